// The few things in which AMD's and NVIDIA's device code differ: waves, shuffles, barriers,
// rounding.
//
// Code that includes this is compiled once an architecture, by clang (HIP) or nvcc (CUDA). The host
// never sees a wave size: grids and blocks are the same on both.
#ifndef MLA_GPU_DEVICE_H_
#define MLA_GPU_DEVICE_H_

#include <cstdint>

#include "common/dtype.h"
#include "gpu/platform.h"

#if defined(__HIP__)
#include "gpu/hip_language.h"
#elif !defined(__CUDACC__)
#error "kernels are compiled as HIP or CUDA"
#endif

#if defined(__HIP__)
#define MLA_DEVICE inline __device__ __attribute__((always_inline))
#else
#define MLA_DEVICE __device__ __forceinline__
#endif

// A kernel by its own name, so that the host finds it in the code object.
#define MLA_GPU_KERNEL(name, threads, Args) \
  extern "C" __global__ void __launch_bounds__(threads) name(const Args args)
// The same, where `blocks` of them should fit on a processor together; AMD's compiler balances that
// by itself.
#if defined(__HIP__)
#define MLA_GPU_KERNEL_BLOCKS(name, threads, blocks, Args) MLA_GPU_KERNEL(name, threads, Args)
// Where AMD's compiler misses that balance by a few registers: waves that should fit on a SIMD.
#define MLA_GPU_KERNEL_WAVES(name, threads, waves, Args) \
  extern "C" __global__ void __launch_bounds__(threads)  \
      __attribute__((amdgpu_waves_per_eu(waves))) name(const Args args)
#else
#define MLA_GPU_KERNEL_WAVES(name, threads, waves, Args) MLA_GPU_KERNEL(name, threads, Args)
#define MLA_GPU_KERNEL_BLOCKS(name, threads, blocks, Args) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args)
#endif

namespace mla {
namespace gpu {

constexpr int kWave = kPlatformWave;

#if defined(__HIP__)
MLA_DEVICE int ThreadX() { return static_cast<int>(__builtin_amdgcn_workitem_id_x()); }
MLA_DEVICE int BlockX() { return static_cast<int>(__builtin_amdgcn_workgroup_id_x()); }

MLA_DEVICE void Barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

MLA_DEVICE int ShuffleBits(int value, int lane) {
  return __builtin_amdgcn_ds_bpermute(lane << 2, value);
}
// Where something lies in shared memory, as instructions of that memory take it.
MLA_DEVICE uint32_t SharedAddress(const void* shared) {
  typedef const void __attribute__((address_space(3))) * Shared;
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>((Shared)shared));
}
// What is the same in all lanes, as the scalar unit has it.
MLA_DEVICE int Uniform(int value) { return __builtin_amdgcn_readfirstlane(value); }
MLA_DEVICE int64_t Uniform(int64_t value) {
  const auto high = static_cast<uint32_t>(Uniform(static_cast<int>(value >> 32)));
  const auto low = static_cast<uint32_t>(Uniform(static_cast<int>(value)));
  return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
}
#else
MLA_DEVICE int ThreadX() { return static_cast<int>(threadIdx.x); }
MLA_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
MLA_DEVICE void Barrier() { __syncthreads(); }
MLA_DEVICE int ShuffleBits(int value, int lane) { return __shfl_sync(~0u, value, lane); }
MLA_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// The same, read anew: nothing that follows from it was computed before and kept in a register.
MLA_DEVICE int ThreadXAnew() {
#if defined(__HIP__)
  return ThreadX();
#else
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
#endif
}

MLA_DEVICE int Lane() { return ThreadX() & (kWave - 1); }

template <typename To, typename From>
MLA_DEVICE To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// The element `offset` elements of T into an array.
template <typename T>
MLA_DEVICE const T* At(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <typename T>
MLA_DEVICE T* At(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

MLA_DEVICE float Shuffle(float value, int lane) {
  return BitCast<float>(ShuffleBits(BitCast<int>(value), lane));
}

MLA_DEVICE uint32_t Shuffle(uint32_t value, int lane) {
  return static_cast<uint32_t>(ShuffleBits(static_cast<int>(value), lane));
}

template <typename T>
MLA_DEVICE T LargerOf(T value, T other) {
  return value > other ? value : other;
}

// Over the lanes of a wave that differ in the bits from `low` to below `high`; every lane has the
// result. The order depends on these two alone.
template <int low, int high, typename T, typename Fn>
MLA_DEVICE T OverLanes(T value, const Fn& combine) {
#pragma unroll
  for (int mask = high / 2; mask >= low; mask /= 2) {
    value = combine(value, Shuffle(value, Lane() ^ mask));
  }
  return value;
}
template <int width>
MLA_DEVICE float LanesSum(float value) {
  return OverLanes<1, width>(value, [](float a, float b) { return a + b; });
}
template <int width>
MLA_DEVICE float LanesSumAbove(float value) {
  return OverLanes<width, kWave>(value, [](float a, float b) { return a + b; });
}
// Of floats or of unsigned bits.
template <int width, typename T>
MLA_DEVICE T LanesMax(T value) {
  return OverLanes<1, width>(value, LargerOf<T>);
}
template <int width>
MLA_DEVICE float LanesMaxAbove(float value) {
  return OverLanes<width, kWave>(value, LargerOf<float>);
}

// a * b rounded by itself: the compiler fuses it with no sum behind it.
MLA_DEVICE float RoundedProduct(float a, float b) {
#if defined(__HIP__)
#pragma clang fp contract(off)
  return a * b;
#else
  return __fmul_rn(a, b);
#endif
}

// Base-2 exponential and logarithm as the machine has them, good to 2 units in the last place.
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;
#if defined(__HIP__)
MLA_DEVICE float Exp2(float x) { return __builtin_amdgcn_exp2f(x); }
MLA_DEVICE float Log2(float x) { return __builtin_amdgcn_logf(x); }
#else
MLA_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MLA_DEVICE float Log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// 1 / sqrt(x): the machine's own and a step of Newton's. A root and a quotient that are each
// rounded exactly take longer and are no closer. Of 0 and of infinity the machine's own is right,
// and the step no number.
MLA_DEVICE float InverseSqrt(float x) {
#if defined(__HIP__)
  // The instruction takes a subnormal number for zero.
  const bool small = x < 0x1p-100f;
  const float y = __builtin_amdgcn_rsqf(small ? x * 0x1p64f : x) * (small ? 0x1p32f : 1.0f);
#else
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
#endif
  const float error = __builtin_fmaf(-x * y, y, 1.0f);
  return error == error ? __builtin_fmaf(0.5f * y, error, y) : y;
}

// n elements that move as one.
template <typename T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T at[n];
};

template <int n, typename T>
MLA_DEVICE Pack<T, n> LoadPack(const T* p) {
  return *reinterpret_cast<const Pack<T, n>*>(p);
}
template <int n, typename T>
MLA_DEVICE void StorePack(T* p, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(p) = pack;
}

// The same for runs that may begin anywhere, element by element.
template <int n, typename T>
MLA_DEVICE Pack<T, n> LoadLoose(const T* p) {
  Pack<T, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) pack.at[i] = p[i];
  return pack;
}
template <int n, typename T>
MLA_DEVICE void StoreLoose(T* p, const Pack<T, n>& pack) {
#pragma unroll
  for (int i = 0; i < n; ++i) p[i] = pack.at[i];
}

// Either of them.
template <bool wide, int n, typename T>
MLA_DEVICE Pack<T, n> LoadRun(const T* p) {
  if constexpr (wide) {
    return LoadPack<n>(p);
  } else {
    return LoadLoose<n>(p);
  }
}
template <bool wide, int n, typename T>
MLA_DEVICE void StoreRun(T* p, const Pack<T, n>& pack) {
  if constexpr (wide) {
    StorePack(p, pack);
  } else {
    StoreLoose(p, pack);
  }
}

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_DEVICE_H_
