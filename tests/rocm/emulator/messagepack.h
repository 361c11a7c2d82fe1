// The MessagePack subset of a code object's metadata note: nil, booleans, integers, strings, arrays
// and maps.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace emulator {

struct MetadataValue {
  int64_t number = 0;
  std::string text;
  std::vector<MetadataValue> items;
  std::vector<std::pair<std::string, MetadataValue>> fields;

  const MetadataValue* find(const std::string& key) const {
    for (const auto& [name, value] : fields)
      if (name == key) return &value;
    return nullptr;
  }
  int64_t integer(const std::string& key) const {
    const MetadataValue* value = find(key);
    return value ? value->number : 0;
  }
};

class MetadataReader {
 public:
  MetadataReader(const uint8_t* data, size_t bytes) : at_(data), end_(data + bytes) {}

  MetadataValue read() {
    MetadataValue out;
    const uint8_t tag = byte();
    if (tag < 0x80) return out.number = tag, out;
    if (tag >= 0xe0) return out.number = int8_t(tag), out;
    if (tag <= 0x8f) return map(tag & 15);
    if (tag <= 0x9f) return array(tag & 15);
    if (tag <= 0xbf) return string(tag & 31);
    switch (tag) {
      case 0xc0:
        return out;
      case 0xc2:
      case 0xc3:
        return out.number = tag & 1, out;
      case 0xcc:
        return out.number = int64_t(unsigned_integer(1)), out;
      case 0xcd:
        return out.number = int64_t(unsigned_integer(2)), out;
      case 0xce:
        return out.number = int64_t(unsigned_integer(4)), out;
      case 0xcf:
        return out.number = int64_t(unsigned_integer(8)), out;
      case 0xd0:
        return out.number = int8_t(unsigned_integer(1)), out;
      case 0xd1:
        return out.number = int16_t(unsigned_integer(2)), out;
      case 0xd2:
        return out.number = int32_t(unsigned_integer(4)), out;
      case 0xd3:
        return out.number = int64_t(unsigned_integer(8)), out;
      case 0xd9:
        return string(unsigned_integer(1));
      case 0xda:
        return string(unsigned_integer(2));
      case 0xdb:
        return string(unsigned_integer(4));
      case 0xdc:
        return array(unsigned_integer(2));
      case 0xdd:
        return array(unsigned_integer(4));
      case 0xde:
        return map(unsigned_integer(2));
      case 0xdf:
        return map(unsigned_integer(4));
      default:
        throw std::invalid_argument("the metadata note holds a value of an unknown kind");
    }
  }

 private:
  const uint8_t *at_, *end_;

  uint8_t byte() {
    if (at_ == end_) throw std::invalid_argument("the metadata note is cut short");
    return *at_++;
  }
  uint64_t unsigned_integer(int bytes) {
    uint64_t value = 0;
    while (bytes--) value = value << 8 | byte();
    return value;
  }
  MetadataValue string(uint64_t bytes) {
    MetadataValue out;
    while (bytes--) out.text += char(byte());
    return out;
  }
  MetadataValue array(uint64_t count) {
    MetadataValue out;
    while (count--) out.items.push_back(read());
    return out;
  }
  MetadataValue map(uint64_t count) {
    MetadataValue out;
    while (count--) {
      std::string key = read().text;
      out.fields.emplace_back(std::move(key), read());
    }
    return out;
  }
};

}  // namespace emulator
