// What the host must know of the platform that it launches on. Device code has it from the
// compiler, the host from the build, and both come to the same.
#ifndef MLA_GPU_PLATFORM_H_
#define MLA_GPU_PLATFORM_H_

#include <cstdint>

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

// Processors that launches spread their work over. Grids follow from shapes alone, so that this is
// a library's number and not that of the device which it meets; custom_calls reads it from abi().
#if defined(MLA_ON_ROCM)
// Compute units of an MI350X or MI355X. One library also serves the MI300X and MI325X with their
// 304: work for 256 leaves 48 of those idle, while work for 304 would take the others two rounds,
// the second for 48 blocks.
constexpr int64_t kProcessors = 256;
#else
constexpr int64_t kProcessors = 132;  // Of an H200.
#endif

// Kernels whose shared memory is not of one size on all of a platform's architectures have it
// themselves: device code alone knows which architecture it is for.
#if defined(MLA_ON_ROCM)
// Tiles that such a kernel has room for: the one it works on and, where loads go straight to shared
// memory, the next one.
#if defined(__gfx950__)
constexpr int kRoomForTiles = 2;
#else
constexpr int kRoomForTiles = 1;
#endif
// What a launch adds to it.
constexpr int LaunchBytes(int) { return 0; }
#else
constexpr int LaunchBytes(int bytes) { return bytes; }
#endif

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PLATFORM_H_
