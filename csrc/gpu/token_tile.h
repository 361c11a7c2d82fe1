// A step's values of a block's tokens in shared memory, in the order in which lanes read octets.
#ifndef MLA_GPU_TOKEN_TILE_H_
#define MLA_GPU_TOKEN_TILE_H_

#include "gpu/product_block.h"

namespace mla {
namespace gpu {

// `count` tokens, copied by `threads` threads of which this is `thread`.
template <typename Format, int count, int threads, int stages>
struct TokenTile {
  static constexpr int kRowChunks = Format::kOctets * 4;
  static constexpr int kChunks = count * kRowChunks;
  static constexpr int kMine = (kChunks + threads - 1) / threads;
  static_assert(kChunks % threads == 0, "every thread copies as much");

  const ProductArgs& args;
  char* shared;
  int thread;
  const bf16* rows[kMine];
  bool present[kMine];
#if defined(__HIP__)
  Chunk held[kMine];
#endif

  MLA_DEVICE TokenTile(const ProductBlock& block, char* shared_memory, int thread_of_split)
      : args(block.args), shared(shared_memory), thread(thread_of_split) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int token = (thread + i * threads) / kRowChunks;
      present[i] = token < block.count;
      rows[i] = static_cast<const bf16*>(args.x) + block.TokenOffset(present[i] ? token : 0);
    }
  }

  MLA_DEVICE char* Place(int slot, int token, int chunk) const {
    return shared + (slot * count + token) * kTokenBytes + chunk * 16;
  }

  MLA_DEVICE void Start(int step, [[maybe_unused]] int slot) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int chunk = (thread + i * threads) % kRowChunks;
      const int k = step * Format::kStep + Format::KOf(chunk / 4, chunk % 4);
      const bool valid = present[i] && k < args.k;
      const bf16* from = rows[i] + (valid ? k : 0);
#if defined(__HIP__)
      held[i] = valid ? *reinterpret_cast<const Chunk*>(from) : Chunk{};
#else
      CopyAsync<16>(Place(slot, (thread + i * threads) / kRowChunks, chunk), from, valid);
#endif
    }
  }

  // After it and a barrier the tile is there.
  MLA_DEVICE void Finish([[maybe_unused]] int slot) {
#if defined(__HIP__)
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = thread + i * threads;
      *reinterpret_cast<Chunk*>(Place(slot, at / kRowChunks, at % kRowChunks)) = held[i];
    }
#endif
  }

  MLA_DEVICE Octet Read(int slot, int tile, int o) const {
    return BitCast<Octet>(*reinterpret_cast<const Chunk*>(
        Place(slot, tile * kTileTokens + LaneToken(), o * 4 + Quarter())));
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_TOKEN_TILE_H_
