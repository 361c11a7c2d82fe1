#include "code_object.h"

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "decode.h"
#include "messagepack.h"

namespace emulator {

namespace {

constexpr int kAmdgpuMachine = 224;
constexpr uint32_t kMetadataNote = 32;
constexpr uint32_t kRelative64 = 13;

const char* name_of(Architecture architecture) {
  return architecture == Architecture::gfx942 ? "gfx942" : "gfx950";
}
uint32_t machine_of(Architecture architecture) {
  return architecture == Architecture::gfx942 ? 0x4c : 0x4f;
}

[[noreturn]] void bad_image(const std::string& what, int code = kInvalidImage) {
  throw Fault(code, "code object: " + what);
}

// A bundle is a header, then entries of offset, size and target triple (Clang's offload bundler
// documentation).
const uint8_t* pick_entry(const uint8_t* image, Architecture architecture) {
  static constexpr char kMagic[] = "__CLANG_OFFLOAD_BUNDLE__";
  if (std::memcmp(image, "CCOB", 4) == 0)
    bad_image("compressed offload bundles are not read; build without --offload-compress");
  if (std::memcmp(image, kMagic, 24)) return image;
  const auto number = [&](size_t at) {
    uint64_t value;
    std::memcpy(&value, image + at, 8);
    return value;
  };
  const uint64_t entries = number(24);
  std::string seen;
  size_t at = 32;
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t offset = number(at), length = number(at + 16);
    const std::string triple(reinterpret_cast<const char*>(image) + at + 24, length);
    at += 24 + length;
    // Target features may follow: hipv4-amdgcn-amd-amdhsa--gfx942:sramecc+
    const std::string processor = triple.substr(triple.rfind('-') + 1);
    if (triple.rfind("hip", 0) == 0 &&
        processor.substr(0, processor.find(':')) == name_of(architecture))
      return image + offset;
    seen += (seen.empty() ? "" : ", ") + triple;
  }
  bad_image("the bundle has no entry for " + std::string(name_of(architecture)) +
                " (it has: " + seen + ")",
            kNoBinaryForGpu);
}

template <class T>
const T* at(const uint8_t* image, uint64_t offset) {
  return reinterpret_cast<const T*>(image + offset);
}

size_t elf_bytes(const uint8_t* image) {
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  uint64_t end = header.e_shoff + uint64_t(header.e_shnum) * sizeof(Elf64_Shdr);
  const auto* sections = at<Elf64_Shdr>(image, header.e_shoff);
  for (int i = 0; i < header.e_shnum; ++i)
    if (sections[i].sh_type != SHT_NOBITS)
      end = std::max(end, sections[i].sh_offset + sections[i].sh_size);
  return end;
}

std::string disassemble(const uint8_t* image, size_t bytes) {
  char path[] = "/tmp/code_object_XXXXXX";
  const int file = mkstemp(path);
  if (file < 0) throw Fault(kInvalidImage, "no temporary file for the disassembler");
  const bool written = write(file, image, bytes) == ssize_t(bytes);
  close(file);
  const char* chosen = std::getenv("MLA_JAX_LLVM_OBJDUMP");
  const std::string tool = chosen ? chosen : "llvm-objdump-22";
  std::string text;
  int status = -1;
  if (written)
    if (FILE* pipe = popen((tool + " -d " + path + " 2>&1").c_str(), "r")) {
      char buffer[1 << 16];
      while (const size_t got = fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, got);
      status = pclose(pipe);
    }
  unlink(path);
  if (status) throw Fault(kInvalidImage, tool + " failed: " + text.substr(0, 300));
  return text;
}

// The same image is decoded once a process.
std::shared_ptr<const Program> decoded(const uint8_t* image, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Program>> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& program = cache[std::string(reinterpret_cast<const char*>(image), bytes)];
  if (!program)
    program = std::make_shared<Program>(link_program(parse_disassembly(disassemble(image, bytes))));
  return program;
}

const MetadataValue* find_kernel(const MetadataValue& metadata, const std::string& descriptor) {
  const MetadataValue* kernels = metadata.find("amdhsa.kernels");
  if (!kernels) return nullptr;
  for (const MetadataValue& kernel : kernels->items)
    if (const MetadataValue* symbol = kernel.find(".symbol"))
      if (symbol->text == descriptor) return &kernel;
  return nullptr;
}

MetadataValue read_metadata(const uint8_t* image) {
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  const auto* segments = at<Elf64_Phdr>(image, header.e_phoff);
  for (int i = 0; i < header.e_phnum; ++i) {
    if (segments[i].p_type != PT_NOTE) continue;
    uint64_t offset = segments[i].p_offset;
    const uint64_t end = offset + segments[i].p_filesz;
    while (offset + sizeof(Elf64_Nhdr) <= end) {
      const auto& note = *at<Elf64_Nhdr>(image, offset);
      const uint64_t content = offset + sizeof note + (note.n_namesz + 3) / 4 * 4;
      if (note.n_type == kMetadataNote)
        return MetadataReader(image + content, note.n_descsz).read();
      offset = content + (note.n_descsz + 3) / 4 * 4;
    }
  }
  bad_image("no metadata note");
}

void check_descriptor(Kernel& kernel) {
  const auto refuse = [&](const std::string& what) { kernel.problems.push_back(what); };
  if (kernel.properties >> 10 & 1) refuse("wave32 kernels do not run on gfx942 and gfx950");
  if (kernel.properties & 1) refuse("a private segment buffer in scalar registers is not emulated");
  if (kernel.properties >> 2 & 1) refuse("the queue pointer is not emulated");
  if (kernel.properties >> 11 & 1) refuse("a dynamic stack is not emulated");
  const uint32_t rounding = kernel.resource1 >> 12 & 15, denormals = kernel.resource1 >> 16 & 15;
  if (rounding) refuse("a rounding mode other than to nearest even is not emulated");
  if ((denormals >> 2 & 3) != 3) refuse("16 and 64-bit denormals must be kept");
  if ((denormals & 3) != 3 && (denormals & 3) != 0)
    refuse("32-bit denormals must be kept, or flushed on both sides");
}

}  // namespace

CodeObject::CodeObject(const void* given, Architecture architecture) : architecture_(architecture) {
  const uint8_t* image = pick_entry(static_cast<const uint8_t*>(given), architecture);
  if (std::memcmp(image, ELFMAG, 4)) bad_image("neither an ELF file nor an offload bundle");
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  if (header.e_machine != kAmdgpuMachine) bad_image("the ELF file is not for amdgpu");
  if ((header.e_flags & 0xff) != machine_of(architecture))
    bad_image("built for another processor than " + std::string(name_of(architecture)),
              kNoBinaryForGpu);
  load_segments(image);
  relocate(image);
  program_ = decoded(image, elf_bytes(image));
  read_kernels(image);
}

void CodeObject::load_segments(const uint8_t* image) {
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  const auto* segments = at<Elf64_Phdr>(image, header.e_phoff);
  uint64_t end = 0;
  for (int i = 0; i < header.e_phnum; ++i)
    if (segments[i].p_type == PT_LOAD)
      end = std::max(end, segments[i].p_vaddr + segments[i].p_memsz);
  memory_ = std::make_unique<uint8_t[]>(end);
  for (int i = 0; i < header.e_phnum; ++i) {
    const Elf64_Phdr& segment = segments[i];
    if (segment.p_type != PT_LOAD) continue;
    std::memcpy(memory_.get() + segment.p_vaddr, image + segment.p_offset, segment.p_filesz);
    ranges_.push_back(
        {load_bias() + segment.p_vaddr, segment.p_memsz, bool(segment.p_flags & PF_W)});
  }
}

void CodeObject::relocate(const uint8_t* image) {
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  const auto* sections = at<Elf64_Shdr>(image, header.e_shoff);
  for (int i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_RELA) continue;
    const auto* entries = at<Elf64_Rela>(image, sections[i].sh_offset);
    for (uint64_t entry = 0; entry < sections[i].sh_size / sizeof(Elf64_Rela); ++entry) {
      if (ELF64_R_TYPE(entries[entry].r_info) != kRelative64)
        bad_image("a relocation other than R_AMDGPU_RELATIVE64");
      const uint64_t value = load_bias() + uint64_t(entries[entry].r_addend);
      std::memcpy(memory_.get() + entries[entry].r_offset, &value, 8);
    }
  }
}

void CodeObject::read_kernels(const uint8_t* image) {
  const MetadataValue metadata = read_metadata(image);
  const auto& header = *at<Elf64_Ehdr>(image, 0);
  const auto* sections = at<Elf64_Shdr>(image, header.e_shoff);
  std::map<std::string, const Elf64_Sym*> symbols;
  for (int i = 0; i < header.e_shnum; ++i) {
    if (sections[i].sh_type != SHT_DYNSYM) continue;
    const auto* entries = at<Elf64_Sym>(image, sections[i].sh_offset);
    const uint64_t names = sections[sections[i].sh_link].sh_offset;
    for (uint64_t entry = 0; entry < sections[i].sh_size / sizeof(Elf64_Sym); ++entry)
      symbols[reinterpret_cast<const char*>(image + names + entries[entry].st_name)] =
          &entries[entry];
  }
  for (const auto& [symbol, descriptor] : symbols) {
    if (symbol.size() < 4 || symbol.compare(symbol.size() - 3, 3, ".kd")) continue;
    Kernel kernel;
    kernel.name = symbol.substr(0, symbol.size() - 3);
    const uint8_t* record = memory_.get() + descriptor->st_value;
    std::memcpy(&kernel.lds_bytes, record, 4);
    std::memcpy(&kernel.private_bytes, record + 4, 4);
    int64_t entry_offset;
    std::memcpy(&entry_offset, record + 16, 8);
    std::memcpy(&kernel.resource3, record + 44, 4);
    std::memcpy(&kernel.resource1, record + 48, 4);
    std::memcpy(&kernel.resource2, record + 52, 4);
    std::memcpy(&kernel.properties, record + 56, 2);
    std::memcpy(&kernel.preload, record + 58, 2);
    // With preloaded arguments the first 256 bytes only load them, for firmware that cannot.
    kernel.entry =
        descriptor->st_value + uint64_t(entry_offset) + (kernel.preload & 0x7f ? 256 : 0);
    kernel.first = program_->find(kernel.entry);
    const auto code = symbols.find(kernel.name);
    if (kernel.first < 0 || code == symbols.end())
      bad_image("kernel " + kernel.name + " has no code");
    kernel.last = program_->find(code->second->st_value + code->second->st_size);
    if (kernel.last < 0) kernel.last = int(program_->instructions.size());

    const MetadataValue* described = find_kernel(metadata, symbol);
    if (!described) bad_image("kernel " + kernel.name + " has no metadata");
    kernel.argument_bytes = described->integer(".kernarg_segment_size");
    kernel.maximum_threads = described->integer(".max_flat_workgroup_size");
    if (const MetadataValue* arguments = described->find(".args"))
      for (const MetadataValue& argument : arguments->items)
        kernel.arguments.push_back({argument.integer(".offset"), argument.integer(".size"),
                                    argument.find(".value_kind")->text});

    check_descriptor(kernel);
    std::vector<std::string> unknown;
    for (int i = kernel.first; i < kernel.last; ++i)
      if (const Instruction& instruction = program_->instructions[size_t(i)];
          !instruction.problem.empty())
        unknown.push_back(program_->texts[size_t(i)] + ": " + instruction.problem);
    // The host flushes doubles and singles together, and matrix instructions never flush.
    if ((kernel.resource1 >> 16 & 3) == 0)
      for (int i = kernel.first; i < kernel.last; ++i)
        if (const std::string& text = program_->texts[size_t(i)];
            text.find("_f64") != std::string::npos || text.rfind("v_mfma", 0) == 0)
          unknown.push_back(text + ": not emulated in a kernel that flushes 32-bit denormals");
    // Registers come in blocks of eight, the accumulation registers after the others.
    const int all = 8 * int((kernel.resource1 & 63) + 1),
              vector_registers = 4 * int((kernel.resource3 & 63) + 1);
    check_registers(*program_, kernel.first, kernel.last, std::min(all, vector_registers),
                    std::max(0, all - vector_registers), unknown);
    std::sort(unknown.begin(), unknown.end());
    unknown.erase(std::unique(unknown.begin(), unknown.end()), unknown.end());
    kernel.problems.insert(kernel.problems.end(), unknown.begin(), unknown.end());
    kernels_.push_back(std::move(kernel));
  }
}

const Kernel* CodeObject::find(const std::string& name) const {
  for (const Kernel& kernel : kernels_)
    if (kernel.name == name) return &kernel;
  return nullptr;
}

std::set<std::string> CodeObject::kernel_names() const {
  std::set<std::string> names;
  for (const Kernel& kernel : kernels_) names.insert(kernel.name);
  return names;
}

}  // namespace emulator
