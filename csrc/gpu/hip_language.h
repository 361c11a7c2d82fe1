// HIP's language without ROCm's headers: what clang needs to compile the kernels for AMD GPUs.
#ifndef MLA_GPU_HIP_LANGUAGE_H_
#define MLA_GPU_HIP_LANGUAGE_H_

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
// clang ignores CUDA's launch_bounds on AMD GPUs and would plan for 1024 threads.
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(threads, threads)))

#endif  // MLA_GPU_HIP_LANGUAGE_H_
