// State that instructions read and write: a wave, its workgroup, its launch; and the faults they
// raise.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "instruction.h"
#include "memory.h"

namespace emulator {

struct Fault : std::runtime_error {
  int code;
  Fault(int code, const std::string& message) : std::runtime_error(message), code(code) {}
};

// The HIP error codes that the stand-in returns.
enum HipError : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDeviceFunction = 98,
  kInvalidImage = 200,
  kNoBinaryForGpu = 209,
  kInvalidHandle = 400,
  kNotFound = 500,
  kIllegalAddress = 700,
  kLaunchTimeOut = 702,
  kLaunchFailure = 719,
};

enum class Architecture { gfx942, gfx950 };

// Registers outside s0..s101 in the scalar register file (CDNA3 ISA, "Scalar Operand" encodings).
enum ScalarRegister : int {
  kFlatScratch = 102,
  kXnackMask = 104,
  kVcc = 106,
  kTtmp = 108,
  kM0 = 124,
  kExec = 126,
  kScalarRegisters = 128
};

struct Program {
  std::vector<Instruction> instructions;
  std::vector<std::string> mnemonics, texts;
  std::vector<int32_t> index_of_word;  // (address - start) / 4 -> instruction, -1 inside one
  uint64_t start = 0;                  // virtual address in the code object

  int find(uint64_t address) const {
    const uint64_t word = (address - start) / 4;
    return address < start || address % 4 || word >= index_of_word.size() ? -1
                                                                          : index_of_word[word];
  }
};

// One launch: what all of its workgroups share.
struct Launch {
  const Program* program = nullptr;
  Architecture architecture = Architecture::gfx942;
  Memory memory;
  uint64_t load_bias = 0;  // added to a code object address for its place in this process
  std::string kernel;
  uint64_t budget = 0;  // instructions a wave may execute
  int order = 0;
  uint32_t lds_bytes = 0, private_bytes = 0;
  std::vector<uint64_t> executed;  // per instruction of the program
  uint64_t lds_traffic = 0, global_traffic = 0;
};

struct Workgroup {
  Launch& launch;
  std::vector<uint8_t> lds;
  uint32_t id[3];
};

// What a load that goes straight to LDS will write there.
struct Arrival {
  uint64_t issued;  // The wave's vector memory instructions up to this one.
  uint8_t* to;
  int bytes;
  uint8_t data[16];
};

struct Wave {
  Workgroup& group;
  Launch& launch;
  int number;
  uint32_t s[kScalarRegisters];
  bool scc = false;
  uint32_t (*v)[kLanes];
  std::unique_ptr<uint32_t[]> storage;
  std::vector<uint8_t> scratch;
  int pc = 0;
  uint64_t executed = 0, vector_memory = 0;
  std::vector<Arrival> arrivals;
  uint32_t mode = 0;
  // VGPR indexing (s_set_gpr_idx_on): which of src0, src1, src2 and dst are displaced, and by how
  // many registers.
  int indexed = 0, index = 0;
  bool finished = false, at_barrier = false, lanes_reversed = false;

  Wave(Workgroup& group, int number);

  uint64_t pair(int index) const {
    uint64_t value;
    std::memcpy(&value, &s[index], 8);
    return value;
  }
  void set_pair(int index, uint64_t value) { std::memcpy(&s[index], &value, 8); }
  uint64_t exec() const { return pair(kExec); }
  uint64_t vcc() const { return pair(kVcc); }
  bool ocp() const { return launch.architecture == Architecture::gfx950; }
  // MODE.FP16_OVFL: conversions to narrow formats saturate.
  bool saturates() const { return mode >> 23 & 1; }

  // One word a lane: all ones where the lane is enabled.
  const uint32_t* mask() {
    const uint64_t now = exec();
    if (now != masked_exec_ || !mask_valid_) {
      for (int lane = 0; lane < kLanes; ++lane) mask_[lane] = now >> lane & 1 ? ~0u : 0u;
      masked_exec_ = now, mask_valid_ = true;
    }
    return mask_;
  }

 private:
  alignas(64) uint32_t mask_[kLanes];
  uint64_t masked_exec_ = 0;
  bool mask_valid_ = false;
};

// Calls f(lane) for every enabled lane, in the order that this run of the launch wants stores to
// land.
template <class F>
inline void for_each_lane(const Wave& wave, F f) {
  const uint64_t exec = wave.exec();
  if (wave.lanes_reversed) {
    for (int lane = kLanes - 1; lane >= 0; --lane)
      if (exec >> lane & 1) f(lane);
  } else {
    for (int lane = 0; lane < kLanes; ++lane)
      if (exec >> lane & 1) f(lane);
  }
}

}  // namespace emulator
