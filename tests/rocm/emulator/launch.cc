#include "launch.h"

#include <xmmintrin.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <random>

namespace emulator {

namespace {

// Ones: a NaN as float32, float16, bfloat16 and OCP fp8, and far outside any buffer as an address.
constexpr uint32_t kPoison = 0xffffffff;

// Callers may run with denormals flushed (XLA's CPU threads do); a wave runs as its kernel
// descriptor asks.
class FloatEnvironment {
 public:
  explicit FloatEnvironment(bool flush_denormals) : saved_(_mm_getcsr()) {
    constexpr unsigned kDefault = 0x1f80, kFlushResults = 0x8000, kFlushOperands = 0x0040;
    _mm_setcsr(kDefault | (flush_denormals ? kFlushResults | kFlushOperands : 0));
  }
  ~FloatEnvironment() { _mm_setcsr(saved_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  unsigned saved_;
};

void put(std::vector<uint8_t>& to, int64_t offset, uint64_t value, int64_t bytes) {
  if (offset + bytes <= int64_t(to.size())) std::memcpy(to.data() + offset, &value, size_t(bytes));
}

// Hidden arguments of code object version 5 and 6 (AMDGPU usage, "implicit kernel arguments").
void fill_hidden(const Kernel& kernel, const LaunchRequest& request,
                 std::vector<uint8_t>& arguments) {
  for (const KernelArgument& argument : kernel.arguments) {
    const auto axis = size_t(std::max(0, int(argument.kind.back()) - 'x'));
    uint64_t value = 0;
    if (argument.kind.rfind("hidden_block_count_", 0) == 0)
      value = request.grid[axis];
    else if (argument.kind.rfind("hidden_group_size_", 0) == 0)
      value = request.block[axis];
    else if (argument.kind == "hidden_grid_dims")
      value = request.grid[2] > 1 ? 3 : request.grid[1] > 1 ? 2 : 1;
    else if (argument.kind == "hidden_dynamic_lds_size")
      value = request.dynamic_lds_bytes;
    else if (argument.kind == "hidden_shared_base")
      value = kSharedAperture >> 32;
    else if (argument.kind == "hidden_private_base")
      value = kPrivateAperture >> 32;
    else if (argument.kind.rfind("hidden_", 0) != 0)
      continue;
    put(arguments, argument.offset, value, argument.bytes);
  }
}

// The dispatch packet's fields that device code reads (HSA runtime specification, kernel dispatch
// packet).
std::array<uint8_t, 64> dispatch_packet(const LaunchRequest& request) {
  std::array<uint8_t, 64> packet{};
  for (size_t axis = 0; axis < 3; ++axis) {
    const auto group = uint16_t(request.block[axis]);
    const uint32_t grid = request.grid[axis] * request.block[axis];
    std::memcpy(packet.data() + 4 + 2 * axis, &group, 2);
    std::memcpy(packet.data() + 12 + 4 * axis, &grid, 4);
  }
  return packet;
}

struct Context {
  const Kernel& kernel;
  const LaunchRequest& request;
  const std::vector<uint8_t>& arguments;
  const std::array<uint8_t, 64>& packet;
};

// The initial registers, in the order of the AMDHSA kernel descriptor's enable bits.
void set_up_registers(Wave& wave, const Context& context) {
  const Kernel& kernel = context.kernel;
  int next = 0;
  const auto user_pair = [&](int bit, uint64_t value) {
    if (kernel.properties >> bit & 1) wave.set_pair(next, value), next += 2;
  };
  const uint64_t arguments = reinterpret_cast<uint64_t>(context.arguments.data());
  user_pair(1, reinterpret_cast<uint64_t>(context.packet.data()));
  user_pair(3, arguments);
  user_pair(4, 0);
  user_pair(5, 0);
  if (kernel.properties >> 6 & 1) wave.s[next++] = kernel.private_bytes;
  const uint32_t preloaded = kernel.preload & 0x7f, skipped = kernel.preload >> 7;
  if (preloaded) std::memcpy(&wave.s[next], context.arguments.data() + 4 * skipped, 4 * preloaded);
  next = int(kernel.resource2 >> 1 & 31);
  for (int axis = 0; axis < 3; ++axis)
    if (kernel.resource2 >> (7 + axis) & 1) wave.s[next++] = wave.group.id[axis];
  if (kernel.resource2 >> 10 & 1) wave.s[next++] = 0;
  wave.set_pair(kFlatScratch, 0);
  wave.mode = kernel.resource1 >> 12 & 0xff;

  // Work item numbers share v0, ten bits an axis.
  const auto& block = context.request.block;
  const uint32_t threads = block[0] * block[1] * block[2];
  uint64_t exec = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t thread = uint32_t(wave.number * kLanes + lane);
    if (thread >= threads) continue;
    exec |= 1ull << lane;
    wave.v[0][lane] = thread % block[0] | thread / block[0] % block[1] << 10 |
                      thread / (block[0] * block[1]) << 20;
  }
  wave.set_pair(kExec, exec);
  wave.pc = kernel.first;
}

// Executes a vector instruction with its register numbers displaced (ISA documents, "VGPR
// Indexing").
void execute_indexed(Wave& wave, const Instruction& instruction) {
  Instruction moved = instruction;
  const auto displace = [&](Operand& operand) {
    if (operand.kind != OperandKind::vector) return;
    operand.index = uint16_t(operand.index + wave.index);
    if (operand.index + operand.count > kFirstAccumulator)
      throw Fault(kIllegalAddress, "VGPR indexing leaves the register file");
  };
  for (int source = 0; source < std::min<int>(3, instruction.sources); ++source)
    if (wave.indexed >> source & 1) displace(moved.source[size_t(source)]);
  if (wave.indexed >> 3 & 1) displace(moved.destination[0]);
  moved.execute(wave, moved);
}

// Runs until the wave ends, waits, or has executed `quantum` instructions.
void run_wave(Wave& wave, uint64_t quantum) {
  Launch& launch = wave.launch;
  const std::vector<Instruction>& instructions = launch.program->instructions;
  int current = wave.pc;
  try {
    while (!wave.finished && !wave.at_barrier && quantum--) {
      current = wave.pc;
      if (current >= int(instructions.size()))
        throw Fault(kIllegalAddress, "the wave ran off the end of the code");
      if (++wave.executed > launch.budget)
        throw Fault(kLaunchTimeOut, "the wave executed more than " + std::to_string(launch.budget) +
                                        " instructions: an endless loop?");
      const Instruction& instruction = instructions[size_t(current)];
      ++launch.executed[size_t(current)];
      ++wave.pc;
      if (instruction.vector_memory) ++wave.vector_memory;
      if (wave.indexed && instruction.vector_alu)
        execute_indexed(wave, instruction);
      else
        instruction.execute(wave, instruction);
    }
  } catch (const Fault& fault) {
    char place[160];
    std::snprintf(
        place, sizeof place, " (workgroup %u,%u,%u, wave %d, at 0x%llx)", wave.group.id[0],
        wave.group.id[1], wave.group.id[2], wave.number,
        static_cast<unsigned long long>(
            instructions[size_t(std::min(current, int(instructions.size()) - 1))].address));
    throw Fault(fault.code,
                "kernel " + launch.kernel + ", instruction '" +
                    launch.program->texts[size_t(std::min(current, int(instructions.size()) - 1))] +
                    "': " + fault.what() + place);
  }
}

void release_barrier(Launch& launch, std::vector<std::unique_ptr<Wave>>& waves) {
  int waiting = 0, place = -1;
  bool same_place = true;
  for (const auto& wave : waves)
    if (wave->at_barrier) {
      same_place = same_place && (place < 0 || place == wave->pc);
      place = wave->pc, ++waiting;
    }
  const std::string kernel = "kernel " + launch.kernel + ", instruction 's_barrier': ";
  if (waiting != int(waves.size()))
    throw Fault(kLaunchFailure,
                kernel + std::to_string(waiting) + " of " + std::to_string(waves.size()) +
                    " waves wait at a barrier that the others have ended without reaching");
  if (!same_place)
    throw Fault(kLaunchFailure, kernel + "the waves of a workgroup wait at different barriers");
  for (const auto& wave : waves) wave->at_barrier = false;
}

void run_workgroup(Launch& launch, const Context& context, const uint32_t* id,
                   std::mt19937& random) {
  Workgroup group{
      launch, std::vector<uint8_t>(launch.lds_bytes, uint8_t(kPoison)), {id[0], id[1], id[2]}};
  const auto& block = context.request.block;
  const int count = int((block[0] * block[1] * block[2] + kLanes - 1) / kLanes);
  std::vector<std::unique_ptr<Wave>> waves;
  for (int number = 0; number < count; ++number) {
    waves.push_back(std::make_unique<Wave>(group, number));
    waves.back()->lanes_reversed = launch.order == 1;
    waves.back()->scratch.assign(size_t(kLanes) * launch.private_bytes, uint8_t(kPoison));
    set_up_registers(*waves.back(), context);
  }
  const auto runnable = [](const std::unique_ptr<Wave>& wave) {
    return !wave->finished && !wave->at_barrier;
  };
  for (;;) {
    std::vector<Wave*> ready;
    for (const auto& wave : waves)
      if (runnable(wave)) ready.push_back(wave.get());
    if (!ready.empty()) {
      if (launch.order == 0)
        run_wave(*ready.front(), ~0ull);
      else if (launch.order == 1)
        run_wave(*ready.back(), ~0ull);
      else
        run_wave(*ready[random() % ready.size()], 1 + random() % 32);
      continue;
    }
    if (std::all_of(waves.begin(), waves.end(), [](const auto& wave) { return wave->finished; }))
      return;
    release_barrier(launch, waves);
  }
}

}  // namespace

Wave::Wave(Workgroup& group, int number) : group(group), launch(group.launch), number(number) {
  storage = std::make_unique_for_overwrite<uint32_t[]>(512 * kLanes + 16);
  // 64-byte alignment lets whole registers be moved by vector instructions.
  auto aligned = (reinterpret_cast<uintptr_t>(storage.get()) + 63) & ~uintptr_t(63);
  v = reinterpret_cast<uint32_t (*)[kLanes]>(aligned);
  std::fill_n(&v[0][0], 512 * kLanes, kPoison);
  std::fill_n(s, int(kScalarRegisters), kPoison);
}

LaunchReport run_kernel(const CodeObject& object, const Kernel& kernel,
                        const LaunchRequest& request, std::vector<uint8_t> arguments) {
  const uint64_t threads = uint64_t(request.block[0]) * request.block[1] * request.block[2];
  for (size_t axis = 0; axis < 3; ++axis)
    if (!request.grid[axis] || !request.block[axis])
      throw Fault(kInvalidConfiguration, "kernel " + kernel.name + ": a grid or block extent is 0");
  if (threads > uint64_t(kernel.maximum_threads))
    throw Fault(kInvalidConfiguration, "kernel " + kernel.name + ": a block of " +
                                           std::to_string(threads) + " threads, at most " +
                                           std::to_string(kernel.maximum_threads) +
                                           " are declared");
  Launch launch;
  launch.architecture = object.architecture();
  launch.program = &object.program();
  launch.load_bias = object.load_bias();
  launch.kernel = kernel.name;
  launch.budget = request.budget;
  launch.order = request.order;
  launch.lds_bytes = kernel.lds_bytes + request.dynamic_lds_bytes;
  launch.private_bytes = kernel.private_bytes;
  launch.executed.assign(object.program().instructions.size(), 0);
  const uint32_t most_lds = launch.architecture == Architecture::gfx950 ? 160 * 1024 : 64 * 1024;
  if (launch.lds_bytes > most_lds)
    throw Fault(kInvalidConfiguration,
                "kernel " + kernel.name + ": " + std::to_string(launch.lds_bytes) +
                    " bytes of LDS, a workgroup has " + std::to_string(most_lds));
  fill_hidden(kernel, request, arguments);
  const std::array<uint8_t, 64> packet = dispatch_packet(request);
  launch.memory.checked = !request.buffers.empty();
  launch.memory.ranges = request.buffers;
  launch.memory.ranges.push_back(
      {reinterpret_cast<uint64_t>(arguments.data()), arguments.size(), false});
  launch.memory.ranges.push_back({reinterpret_cast<uint64_t>(packet.data()), packet.size(), false});
  for (const Range& range : object.ranges()) launch.memory.ranges.push_back(range);

  const Context context{kernel, request, arguments, packet};
  const FloatEnvironment environment((kernel.resource1 >> 16 & 3) == 0);
  std::mt19937 random{uint32_t(request.order)};
  const uint64_t groups = uint64_t(request.grid[0]) * request.grid[1] * request.grid[2];
  for (uint64_t i = 0; i < groups; ++i) {
    const uint64_t group = request.order == 1 ? groups - 1 - i : i;
    const uint32_t id[3] = {uint32_t(group % request.grid[0]),
                            uint32_t(group / request.grid[0] % request.grid[1]),
                            uint32_t(group / request.grid[0] / request.grid[1])};
    run_workgroup(launch, context, id, random);
  }

  LaunchReport report;
  report.lds_bytes = launch.lds_traffic, report.global_bytes = launch.global_traffic;
  std::map<std::string, uint64_t> counts;
  for (size_t i = 0; i < launch.executed.size(); ++i)
    if (launch.executed[i]) {
      counts[launch.program->mnemonics[launch.program->instructions[i].name]] += launch.executed[i];
      report.instructions += launch.executed[i];
    }
  report.histogram.assign(counts.begin(), counts.end());
  return report;
}

}  // namespace emulator
