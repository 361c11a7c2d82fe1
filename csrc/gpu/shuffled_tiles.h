// Shuffled MXFP4 weights (16 rows a tile, chunks of 16 bytes), read by a wave for itself ahead of
// time: `steps` steps of 128 values of a tile a stage, whole lines of memory in every load.
//
// NVIDIA: into a ring of stages in shared memory, from where ldmatrix hands every lane an octet of
// each chunk. AMD: into registers; a lane has a chunk.
#ifndef MLA_GPU_SHUFFLED_TILES_H_
#define MLA_GPU_SHUFFLED_TILES_H_

#include "gpu/copy.h"
#include "gpu/decode.h"

namespace mla {
namespace gpu {

// Of a step: 4 groups. Chunks of 256 bytes a tile, in codes and in scales.
constexpr int kShuffledStep = 128, kStepChunks = 4, kTileChunk = 256;

#if !defined(__HIP__)
// Byte `group` of a row's four scales of a step: one instruction.
MLA_DEVICE uint32_t ScaleByte(uint32_t scales, int group) {
  return __byte_perm(scales, 0, 0x4440u + static_cast<uint32_t>(group));
}
#endif

// Where a stage of a tile lies.
struct ShuffledStage {
  const uint8_t *codes, *scales;
  int chunks;  // That exist: the last stage may be short.
};

template <int steps, int stages>
struct ShuffledTiles {
  static_assert(steps == 2 || steps == 4, "scales of a stage are 8 or 16 bytes");
#if defined(__HIP__)
  static_assert(stages == 2, "one stage ahead");
  static constexpr int kBytes = 0;
  Chunk held[steps], taken[steps];
  Pack<uint32_t, steps> held_scales, taken_scales;  // A row's, four a word.

  MLA_DEVICE explicit ShuffledTiles(char*) {}

  MLA_DEVICE void Start(int, const ShuffledStage& stage) {
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      const bool exists = s * kStepChunks + Lane() / 16 < stage.chunks;
      held[s] =
          exists ? *reinterpret_cast<const Chunk*>(stage.codes + s * 1024 + Lane() * 16) : Chunk{};
    }
    held_scales =
        LoadPack<steps>(reinterpret_cast<const uint32_t*>(stage.scales + Lane() % 16 * 16));
  }
  MLA_DEVICE void Commit() {}
  MLA_DEVICE void Take(int) {
#pragma unroll
    for (int s = 0; s < steps; ++s) taken[s] = held[s];
    taken_scales = held_scales;
  }

  // What a lane's octet o of a step is of the contraction.
  static MLA_DEVICE int KOf(int o) { return 32 * (Lane() / 16) + 8 * o; }
  MLA_DEVICE bool Large() const { return false; }
  struct Words {
    Chunk of;
    GroupScale scale;
  };
  MLA_DEVICE Words Read(int step) const {
    return {taken[step], {(taken_scales.at[step] >> (8 * (Lane() / 16))) & 255u}};
  }
  template <bool two_steps>
  static MLA_DEVICE Octet Decode(const Words& words, int, int o) {
    return DecodeE2M1<two_steps>(words.of[o], words.scale);
  }
#else
  static constexpr int kScaleBytes = 4 * steps;  // Of a row.
  static constexpr int kStageBytes = steps * 1024 + 16 * kScaleBytes;
  static constexpr int kBytes = stages * kStageBytes;  // Of a wave.
  char* ring;
  const char* stage;
  uint32_t scales[2][steps];

  MLA_DEVICE explicit ShuffledTiles(char* shared) : ring(shared), stage(shared) {}

  MLA_DEVICE void Start(int slot, const ShuffledStage& from) {
    char* to = ring + slot * kStageBytes;
#pragma unroll
    for (int i = 0; i < 2 * steps; ++i) {
      CopyAsync<16>(to + i * 512 + Lane() * 16, from.codes + i * 512 + Lane() * 16,
                    2 * i + Lane() / 16 < from.chunks);
    }
    if (Lane() < 16) {
      CopyAsync<kScaleBytes>(to + steps * 1024 + Lane() * kScaleBytes, from.scales + Lane() * 16,
                             true);
    }
  }
  MLA_DEVICE void Commit() { CommitCopies(); }
  // The oldest stage: of the whole wave, since lanes read what others have copied.
  MLA_DEVICE void Take(int slot) {
    WaitForCopies<stages - 2>();
    __syncwarp();
    stage = ring + slot * kStageBytes;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const char* of_row = stage + steps * 1024 + (Lane() / 4 + 8 * j) * kScaleBytes;
      const auto words = *reinterpret_cast<const Pack<uint32_t, steps>*>(of_row);
#pragma unroll
      for (int s = 0; s < steps; ++s) scales[j][s] = words.at[s];
    }
  }

  static MLA_DEVICE int KOf(int o) { return 32 * o + 8 * (Lane() % 4); }
  // Whether any lane of the wave has a scale that may take two steps.
  MLA_DEVICE bool Large() const {
    static_assert(GroupScale::kTwoSteps >= 128, "it is seen by the top bit");
    uint32_t any = 0;
#pragma unroll
    for (int s = 0; s < steps; ++s) any |= scales[0][s] | scales[1][s];
    return __any_sync(~0u, (any & 0x80808080u) != 0);
  }
  struct Words {
    uint32_t at[2][4], scales[2];
  };
  MLA_DEVICE Words Read(int step) const {
    Words words;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t (&of)[4] = words.at[j];
      const char* row = stage + step * 1024 + Lane() / 8 * kTileChunk + Lane() % 8 * 16 + j * 128;
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3])
                   : "r"(SharedAddress(row))
                   : "memory");
      words.scales[j] = scales[j][step];
    }
    return words;
  }
  // Octet o of row j of the lane's.
  template <bool two_steps>
  static MLA_DEVICE Octet Decode(const Words& words, int j, int o) {
    return DecodeE2M1<two_steps>(words.at[j][o], GroupScale{ScaleByte(words.scales[j], o)});
  }
#endif
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_SHUFFLED_TILES_H_
