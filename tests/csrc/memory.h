// What a kernel reads and writes: heap blocks of exactly the size that its contract gives, so that
// the address sanitizer sees the first byte beyond.
#ifndef MLA_TESTS_CSRC_MEMORY_H_
#define MLA_TESTS_CSRC_MEMORY_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "common/dtype.h"

namespace mla::test {

inline int64_t Bytes(DType type) {
  return type == DType::kF32 ? 4 : (type == DType::kBF16 ? 2 : 1);
}

inline const char* Name(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3FN:
      return "f8";
    case DType::kF8E4M3FNUZ:
      return "f8 fnuz";
    case DType::kU8:
      return "u8";
  }
  return "";
}

// The blocks of one call. Two of the same seed hold the same values; what a kernel must overwrite
// holds `poison`.
class Memory {
 public:
  enum class Kind { kInput, kResult, kInPlace };

  Memory(uint64_t seed, uint8_t poison) : state_(seed), poison_(poison) {}

  // Numbers in [-1, 1); e4m3 codes that are numbers; bytes.
  void* Values(DType type, int64_t count, Kind kind = Kind::kInput) {
    uint8_t* data = Block(count * Bytes(type), kind);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t random = Next();
      if (type == DType::kF32 || type == DType::kBF16) {
        Store(data, type, i, static_cast<float>(static_cast<double>(random >> 40) / (1 << 23) - 1));
      } else {
        const auto byte = static_cast<uint8_t>(random >> 32);
        // 0x7f and 0xff are NaN; of e4m3fnuz 0x80 is.
        const bool nan = (type == DType::kF8E4M3FN && (byte & 0x7f) == 0x7f) ||
                         (type == DType::kF8E4M3FNUZ && byte == 0x80);
        data[i] = nan ? byte - 1 : byte;
      }
    }
    return data;
  }

  // Any bits: numbers of every size, infinities, NaN.
  void* Bits(DType type, int64_t count) {
    uint8_t* data = Block(count * Bytes(type), Kind::kInput);
    for (int64_t i = 0; i < count * Bytes(type); ++i) data[i] = static_cast<uint8_t>(Next() >> 32);
    return data;
  }

  // Bytes in [low, high].
  void* Range(int64_t count, int low, int high) {
    uint8_t* data = Block(count, Kind::kInput);
    for (int64_t i = 0; i < count; ++i) {
      data[i] = static_cast<uint8_t>(low + static_cast<int>((Next() >> 32) % (high - low + 1)));
    }
    return data;
  }

  template <typename T>
  T* Copy(const std::vector<T>& values) {
    uint8_t* data = Block(static_cast<int64_t>(values.size() * sizeof(T)), Kind::kInput);
    if (!values.empty()) std::memcpy(data, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<T*>(data);
  }

  void* Result(DType type, int64_t count) {
    uint8_t* data = Block(count * Bytes(type), Kind::kResult);
    std::memset(data, poison_, static_cast<size_t>(count * Bytes(type)));
    return data;
  }
  float* Floats(int64_t count) { return static_cast<float*>(Result(DType::kF32, count)); }

  // What differs first from another call's memory of the same making; empty if nothing. Inputs are
  // compared, or else everything else.
  std::string Difference(const Memory& other, bool inputs) const {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const Held& a = blocks_[i];
      const Held& b = other.blocks_[i];
      if ((a.kind == Kind::kInput) != inputs) continue;
      for (int64_t j = 0; j < a.bytes; ++j) {
        if (a.data[j] == b.data[j]) continue;
        return "block " + std::to_string(i) + ", byte " + std::to_string(j) + " of " +
               std::to_string(a.bytes) + ": expected " + std::to_string(b.data[j]) + ", got " +
               std::to_string(a.data[j]);
      }
    }
    return "";
  }

 private:
  struct Held {
    std::unique_ptr<uint8_t[]> data;
    int64_t bytes;
    Kind kind;
  };

  uint8_t* Block(int64_t bytes, Kind kind) {
    blocks_.push_back(
        {std::unique_ptr<uint8_t[]>(new uint8_t[static_cast<size_t>(bytes)]), bytes, kind});
    return blocks_.back().data.get();
  }

  static void Store(uint8_t* data, DType type, int64_t i, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const auto high = static_cast<uint16_t>(bits >> 16);
    if (type == DType::kF32) {
      std::memcpy(data + 4 * i, &bits, sizeof(bits));
    } else {
      std::memcpy(data + 2 * i, &high, sizeof(high));
    }
  }

  // A linear congruential generator: its upper half is random enough here.
  uint64_t Next() { return state_ = state_ * 6364136223846793005u + 1442695040888963407u; }

  uint64_t state_;
  const uint8_t poison_;
  std::vector<Held> blocks_;
};

}  // namespace mla::test

#endif  // MLA_TESTS_CSRC_MEMORY_H_
