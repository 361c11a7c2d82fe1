// What the host must know of the platform that it launches on. Device code has it from the
// compiler, the host from the build, and both come to the same.
#ifndef MLA_GPU_PLATFORM_H_
#define MLA_GPU_PLATFORM_H_

#if defined(__HIP__) || defined(MLA_GPU_ROCM)
#define MLA_ON_ROCM
#endif

namespace mla {
namespace gpu {

#if defined(MLA_ON_ROCM)
constexpr int kPlatformWave = 64;
#else
constexpr int kPlatformWave = 32;
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PLATFORM_H_
