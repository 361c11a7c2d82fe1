// A step's values of a block's tokens in shared memory, in the order in which lanes read octets.
#ifndef MLA_GPU_TOKEN_TILE_H_
#define MLA_GPU_TOKEN_TILE_H_

#include "gpu/product_block.h"

namespace mla {
namespace gpu {

// `count` tokens, copied by `threads` threads of which this is `thread`.
template <typename Format, int count, int threads>
struct TokenTile {
  static constexpr int kRowChunks = Format::kOctets * 4;
  static constexpr int kChunks = count * kRowChunks;
  static constexpr int kMine = (kChunks + threads - 1) / threads;
  static constexpr bool kEven = kChunks % threads == 0;  // Every thread copies as much.

  static constexpr uint32_t kNone = ~0u;

  const ProductArgs& args;
  char* shared;
  int thread;
  const bf16* base;
  uint32_t rows[kMine];  // Where they begin; kNone: there is no such token.
  Chunk held[kMine];

  MLA_DEVICE TokenTile(const ProductBlock& block, char* shared_memory, int thread_of_split)
      : args(block.args),
        shared(shared_memory),
        thread(thread_of_split),
        base(static_cast<const bf16*>(block.args.x) + block.batch * block.args.x_batch) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int token = (thread + i * threads) / kRowChunks;
      const bool present = token < block.count && token < count;
      rows[i] = present ? static_cast<uint32_t>(block.TokenOffset(token)) : kNone;
    }
  }

  MLA_DEVICE char* Place(int slot, int token, int chunk) const {
    return shared + (slot * count + token) * kTokenBytes + chunk * 16;
  }

  MLA_DEVICE void Start(int step) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = (thread + i * threads) % kRowChunks;
      const int k = step * Format::kStep + Format::KOf(chunk / 4, chunk % 4);
      const bool valid = rows[i] != kNone && k < static_cast<int>(args.k);
      held[i] = valid ? *reinterpret_cast<const Chunk*>(base + rows[i] + k) : Chunk{};
    }
  }

  // After it and a barrier the tile is there.
  MLA_DEVICE void Finish(int slot) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = thread + i * threads;
      if (!kEven && at >= kChunks) break;
      *reinterpret_cast<Chunk*>(Place(slot, at / kRowChunks, at % kRowChunks)) =
          BitCast<Chunk>(ToOrder<Format>(BitCast<Octet>(held[i])));
    }
  }

  MLA_DEVICE Octet Read(int slot, int tile, int o) const {
    return BitCast<Octet>(*reinterpret_cast<const Chunk*>(
        Place(slot, tile * kTileTokens + LaneToken(), o * 4 + Quarter())));
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_TOKEN_TILE_H_
