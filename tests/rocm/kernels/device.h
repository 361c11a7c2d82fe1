// What HIP device code of these tests needs without any ROCm header. It is put in front of a
// kernel.

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define KERNEL extern "C" __global__ void __attribute__((amdgpu_flat_work_group_size(1, 256)))

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

__device__ inline float widen(u16 bits) { return __builtin_bit_cast(float, u32(bits) << 16); }
__device__ inline u16 narrow(float value) { return __builtin_bit_cast(u16, (__bf16)value); }
__device__ inline int thread() { return __builtin_amdgcn_workitem_id_x(); }
__device__ inline int group() { return __builtin_amdgcn_workgroup_id_x(); }

__device__ inline void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
