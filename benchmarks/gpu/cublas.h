// cuBLAS as far as a benchmark needs it as a peer, from whichever library can be opened: neither
// its headers nor the library need be there when this is built.
#ifndef MLA_BENCHMARKS_GPU_CUBLAS_H_
#define MLA_BENCHMARKS_GPU_CUBLAS_H_

#include <dlfcn.h>

#include "graph.h"

class Cublas {
 public:
  Cublas() {
    void* library = nullptr;
    for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
      if (library == nullptr) library = dlopen(name, RTLD_NOW);
    }
    if (library == nullptr) return;
    create_ = reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2"));
    set_stream_ = reinterpret_cast<SetStream>(dlsym(library, "cublasSetStream_v2"));
    set_workspace_ = reinterpret_cast<SetWorkspace>(dlsym(library, "cublasSetWorkspace_v2"));
    products_ = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmStridedBatchedEx"));
    Check(create_(&handle_), "cublasCreate");
  }

  bool found() const { return handle_ != nullptr; }

  // `batches` products of bf16, summed in f32, of matrices whose columns lie one after the other:
  // c (m, n) = a (m, k), or (k, m) where `transposed`, times b (k, n); c of f32 if asked for.
  void Products(cudaStream_t stream, bool transposed, int m, int n, int k, const void* a,
                int a_column, long long a_batch, const void* b, int b_column, long long b_batch,
                void* c, int c_column, long long c_batch, int batches,
                bool f32_result = false) const {
    constexpr int kBF16 = 14, kF32 = 0, kSumInF32 = 68, kChooses = -1;
    const float one = 1, zero = 0;
    Check(set_stream_(handle_, stream), "cublasSetStream");
    Check(set_workspace_(handle_, workspace_.at(), workspace_.bytes()), "cublasSetWorkspace");
    Check(products_(handle_, transposed ? 1 : 0, 0, m, n, k, &one, a, kBF16, a_column, a_batch, b,
                    kBF16, b_column, b_batch, &zero, c, f32_result ? kF32 : kBF16, c_column,
                    c_batch, batches, kSumInF32, kChooses),
          "cublasGemmStridedBatchedEx");
  }

 private:
  using Create = int (*)(void**);
  using SetStream = int (*)(void*, cudaStream_t);
  using SetWorkspace = int (*)(void*, void*, size_t);
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int,
                       long long, const void*, int, int, long long, const void*, void*, int, int,
                       long long, int, int, int);

  static void Check(int status, const char* what) {
    if (status == 0) return;
    std::fprintf(stderr, "%s: status %d\n", what, status);
    std::exit(1);
  }

  Create create_;
  SetStream set_stream_;
  SetWorkspace set_workspace_;
  Gemm products_;
  void* handle_ = nullptr;
  Memory workspace_{size_t{32} << 20};
};

#endif  // MLA_BENCHMARKS_GPU_CUBLAS_H_
