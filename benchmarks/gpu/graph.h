// Times launches in a CUDA graph and prints one JSON object a line.
#ifndef MLA_BENCHMARKS_GPU_GRAPH_H_
#define MLA_BENCHMARKS_GPU_GRAPH_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

inline void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Device memory that lives as long as this does.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    Check(cudaMalloc(&data_, std::max<size_t>(bytes, 16)), "cudaMalloc");
    Check(cudaMemset(data_, 0, std::max<size_t>(bytes, 16)), "cudaMemset");
  }
  template <typename T>
  explicit Memory(const std::vector<T>& values) : Memory(values.size() * sizeof(T)) {
    Check(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }

  template <typename T = void>
  T* at(size_t byte = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte);
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_ = nullptr;
};

// Microseconds a launch, the median of 9 replays of a graph of `count` launches; launch(i, stream)
// is the i-th, each on data of its own so that nothing stays in the L2.
template <typename Launch>
float MicrosecondsInGraph(int count, const Launch& launch) {
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream), "cudaStreamCreate");
  cudaGraph_t graph;
  cudaGraphExec_t program;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  for (int i = 0; i < count; ++i) launch(i, stream);
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  Check(cudaGraphInstantiate(&program, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> times;
  for (int i = 0; i < 9; ++i) {
    cudaEventRecord(begin, stream);
    Check(cudaGraphLaunch(program, stream), "cudaGraphLaunch");
    cudaEventRecord(end, stream);
    Check(cudaEventSynchronize(end), "replay");
    float milliseconds;
    cudaEventElapsedTime(&milliseconds, begin, end);
    times.push_back(milliseconds * 1e3f / static_cast<float>(count));
  }
  std::sort(times.begin(), times.end());
  cudaGraphExecDestroy(program);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return times[4];
}

// `shape` is JSON members, such as "\"tokens\": 1".
inline void PrintRow(const char* op, const std::string& shape, float us, double bytes, double flop) {
  std::printf("{\"op\": \"%s\", %s, \"us\": %.3f, \"bytes\": %.0f, \"flop\": %.0f}\n", op, shape.c_str(),
              us, bytes, flop);
  std::fflush(stdout);
}

#endif  // MLA_BENCHMARKS_GPU_GRAPH_H_
