// A loaded code object: its segments in this process, its kernels, its decoded instructions.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "machine.h"

namespace emulator {

struct KernelArgument {
  int64_t offset, bytes;
  std::string kind;
};

struct Kernel {
  std::string name;
  std::vector<KernelArgument> arguments;  // hidden ones last, as in the metadata
  int64_t argument_bytes = 0, maximum_threads = 0;
  uint32_t lds_bytes = 0, private_bytes = 0;
  uint32_t resource1 = 0, resource2 = 0, resource3 = 0;
  uint16_t properties = 0, preload = 0;
  uint64_t entry = 0;
  int first = 0, last = 0;  // instructions
  std::vector<std::string> problems;
};

class CodeObject {
 public:
  // `image` is an ELF file or a clang offload bundle that holds one for the architecture.
  CodeObject(const void* image, Architecture architecture);

  const Kernel* find(const std::string& name) const;
  Architecture architecture() const { return architecture_; }
  const Program& program() const { return *program_; }
  uint64_t load_bias() const { return reinterpret_cast<uint64_t>(memory_.get()); }
  const std::vector<Range>& ranges() const { return ranges_; }
  std::set<std::string> kernel_names() const;

 private:
  void load_segments(const uint8_t* image);
  void relocate(const uint8_t* image);
  void read_kernels(const uint8_t* image);

  Architecture architecture_;
  std::unique_ptr<uint8_t[]> memory_;
  std::vector<Range> ranges_;
  std::shared_ptr<const Program> program_;
  std::vector<Kernel> kernels_;
};

}  // namespace emulator
