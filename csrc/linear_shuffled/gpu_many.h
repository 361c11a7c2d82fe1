// Many tokens, on Hopper: matrix cores take decoded weights from registers and tokens from shared
// memory, where one wave's bulk copies bring them ahead of time. (Bulk copies of the weights, a
// tile an instruction, take longer than all the rest.)
//
// A lane has octets 8 * (Lane() % 4) of each group of 32 values; pair p of that octet is word
// Lane() % 4 of run p of the group's 64 bytes of a token. A kernel of its own has put tokens into
// that order.
#ifndef MLA_LINEAR_SHUFFLED_GPU_MANY_H_
#define MLA_LINEAR_SHUFFLED_GPU_MANY_H_

#include "gpu/bulk_copy.h"
#include "gpu/cluster.h"
#include "gpu/shuffled_tiles.h"
#include "gpu/warpgroup.h"
#include "linear_shuffled/gpu_shape.h"

namespace mla {
namespace gpu {

constexpr int kManySteps = 2, kStageChunks = kManySteps * kStepChunks;
MLA_DEVICE int Stages(const LinearShuffledArgs& args) {
  return static_cast<int>((args.chunks + kStageChunks - 1) / kStageChunks);
}

// An octet a thread: tokens that do not exist and values behind the last are zeros.
template <int tokens>
MLA_DEVICE void ArrangeTokens(const LinearShuffledArgs& args) {
  const int octets = Stages(args) * (kStageChunks * 4);
  const int at = BlockX() * kArrangeThreads + ThreadX();
  const int token = at / octets, octet = at % octets;
  if (token >= tokens) return;
  Octet values = {};
  if (token < args.tokens && octet < 4 * args.chunks) {
    values =
        ToNibbleOrder(BitCast<Octet>(LoadPack<8>(args.x + (token * args.chunks * 4 + octet) * 8)));
  }
  const int panel = octet / 8, run = octet / 4 % 2 * 4;
  auto* row = reinterpret_cast<uint32_t*>(args.arranged) + (panel * tokens + token) * 32;
#pragma unroll
  for (int p = 0; p < 4; ++p) row[((run + p) ^ token % 8) * 4 + octet % 4] = values.pairs[p];
}

template <typename Shape>
struct ManyProduct {
  static constexpr int kTokens = Shape::kTokens, kTokenStages = Shape::kTokenStages;
  static constexpr int kGroups = Shape::kGroups, kWaves = 4 * kGroups, kStages = Shape::kStages;
  static constexpr int kSplits = Shape::kSplits, kAhead = kStages - 1;
  static constexpr int kStepBytes = 2 * Shape::kPanelBytes;
  using Weights = ShuffledTiles<kManySteps, kStages>;
  using Sums = float[kTokens / 2];

  const LinearShuffledArgs& args;
  BulkBarrier *full, *empty;
  char* tokens;
  Weights weights;
  int64_t cluster_row;  // The first of the cluster's.
  int first, end;       // Stages of the tokens that this block copies.
  int mine, mine_end;   // Those that this wave multiplies.

  MLA_DEVICE ManyProduct(const LinearShuffledArgs& product, char* shared)
      : args(product),
        full(reinterpret_cast<BulkBarrier*>(shared)),
        empty(full + kTokenStages),
        tokens(shared + Shape::kBarrierBytes),
        weights(tokens + kTokenStages * kStepBytes + Wave() * Weights::kBytes),
        cluster_row(static_cast<int64_t>(BlockX() / kSplits) * (64 * Shape::kClusterGroups)) {
    const int stages = Stages(product), split = ClusterRank<kSplits>();
    const int share = stages * split / kSplits, share_end = stages * (split + 1) / kSplits;
    first = Shape::kOwn > 0 ? 0 : share;
    end = Shape::kOwn > 0 ? stages : share_end;
    const bool own = Wave() / 4 < Shape::kOwn;
    mine = own ? 0 : share;
    mine_end = own ? stages : share_end;
  }

  MLA_DEVICE static int Wave() { return ThreadX() / kWave; }

  // The first row of group `group` of this block.
  MLA_DEVICE int64_t GroupRow(int group) const {
    const int own = ClusterRank<kSplits>() * Shape::kOwn + group;
    const int shared = kSplits * Shape::kOwn + group - Shape::kOwn;
    return cluster_row + 64 * (group < Shape::kOwn ? own : shared);
  }

  // The copying wave.
  MLA_DEVICE void Copy() const {
    int slot = 0, parity = 1;
    for (int step = kManySteps * first; step < kManySteps * end; ++step) {
      empty[slot].Wait(parity);
      if (Lane() == 0) {
        full[slot].Expect(kStepBytes);
        BulkCopy(tokens + slot * kStepBytes,
                 args.arranged + static_cast<int64_t>(step) * kStepBytes, kStepBytes, &full[slot]);
      }
      __syncwarp();
      if (++slot == kTokenStages) {
        slot = 0;
        parity ^= 1;
      }
    }
  }

  // A wave whose tile does not exist reads the last one's codes for nobody.
  MLA_DEVICE void Start(int slot, int stage) {
    if (stage < mine_end) {
      int64_t tile = GroupRow(Wave() / 4) / 16 + Wave() % 4;
      if (tile >= args.tiles) tile = args.tiles - 1;
      const int at = stage * kStageChunks;
      weights.Start(slot, {args.data + (tile * args.chunks + at) * kTileChunk,
                           args.scale + (tile * args.scale_chunks + at / 16) * kTileChunk + at % 16,
                           static_cast<int>(args.chunks) - at});
    }
    weights.Commit();
  }

  // Half of a step: two groups, four products of 16 values.
  template <bool two_steps>
  MLA_DEVICE static void Decode(const typename Weights::Words& words, int part,
                                uint32_t (&of)[4][4]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const Octet octet = Weights::template Decode<two_steps>(words, j, 2 * part + g);
#pragma unroll
        for (int p = 0; p < 4; ++p) of[2 * g + p / 2][2 * (p % 2) + j] = octet.pairs[p];
      }
    }
  }

  // Tokens of other groups' stages: nothing to multiply.
  MLA_DEVICE void Skip(int stages, int& slot, int& parity) const {
    for (int i = 0; i < kManySteps * stages; ++i) {
      full[slot].Wait(parity);
      if (Lane() == 0) empty[slot].Arrive();
      Next(slot, parity);
    }
  }
  MLA_DEVICE static void Next(int& slot, int& parity) {
    if (++slot == kTokenStages) {
      slot = 0;
      parity ^= 1;
    }
  }

  // Of at least one stage: the compiler would make a loop that may have no turn wait for every
  // product.
  MLA_DEVICE void MultiplyMine(int& token_slot, int& parity, Sums& sums) {
    const SharedMatrix all(SharedAddress(tokens));
    int slot = 0, before = -1, stage = mine;
    do {
      weights.Take(slot);
      Start(slot == 0 ? kStages - 1 : slot - 1, stage + kAhead);
      const bool large = weights.Large();
#pragma unroll
      for (int s = 0; s < kManySteps; ++s) {
        const auto words = weights.Read(s);
        full[token_slot].Wait(parity);
        const SharedMatrix tile = all.At(token_slot * kStepBytes);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          uint32_t of[4][4];
          if (large) {
            Decode<true>(words, part, of);
          } else {
            Decode<false>(words, part, of);
          }
          BeginProducts();
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            WarpgroupMmaHeld(sums, of[i], tile.At(part * Shape::kPanelBytes + i * 32));
          }
          EndProducts();
          FinishProductsBut<1>();
          // All of the step before has been multiplied.
          if (part == 0 && before >= 0 && Lane() == 0) empty[before].Arrive();
        }
        before = token_slot;
        Next(token_slot, parity);
      }
      slot = slot == kStages - 1 ? 0 : slot + 1;
    } while (++stage < mine_end);
    FinishProductsBut<0>();
    if (Lane() == 0) empty[before].Arrive();
  }

  MLA_DEVICE void Multiply(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) Start(i, mine + i);
    int slot = 0, parity = 0;
    Skip(mine - first, slot, parity);
    if (mine < mine_end) MultiplyMine(slot, parity, sums);
    Skip(end - mine_end, slot, parity);
  }

  static constexpr int kStride = Shape::kRows + 4;  // Four tokens of a wave lie in different banks.

  // Through shared memory, from where neighbours write neighbouring outputs.
  MLA_DEVICE void Emit(const Sums& sums) const {
    auto* all = reinterpret_cast<float*>(tokens);
#pragma unroll
    for (int v = 0; v < kTokens / 2; ++v) {
      const int token = 8 * (v / 4) + 2 * (Lane() % 4) + v % 2;
      all[token * kStride + 16 * Wave() + Lane() / 4 + 8 * (v / 2 % 2)] = sums[v];
    }
    if constexpr (kSplits == 1) {
      WaitForGroups();
    } else {
      ClusterBarrier<kSplits>();
    }
    const int rank = ClusterRank<kSplits>();
    EmitRows<Shape::kOwn, 1>(all, 0, ThreadX());
    EmitRows<Shape::kShared, kSplits>(all, Shape::kOwn, rank * (kWaves * kWave) + ThreadX());
  }

  // Of `groups` groups from `group` on, the sum of `blocks` blocks' sums, from output `first` on.
  template <int groups, int blocks>
  MLA_DEVICE void EmitRows(const float* all, int group, int first_output) const {
    if constexpr (groups > 0) {
      const int64_t first_row = GroupRow(group);
      const int count = static_cast<int>(args.tokens) * 64 * groups;
      for (int i = first_output; i < count; i += blocks * (kWaves * kWave)) {
        const int token = i / (64 * groups), at = i % (64 * groups);
        const int64_t row = first_row + at;
        if (row >= args.rows) continue;
        float sum = 0;
#pragma unroll
        for (int block = 0; block < blocks; ++block) {
          sum += ReadShared<blocks>(all + token * kStride + 64 * group + at, block);
        }
        if (args.bias != nullptr) sum += ReadOne(args.bias, args.bias_type, row);
        WriteOne(args.y, args.y_type, token * args.rows + row, sum);
      }
    }
  }

  // A barrier of those that multiply.
  MLA_DEVICE static void WaitForGroups() {
    asm volatile("bar.sync 1, %0;" ::"n"(kWaves * kWave) : "memory");
  }

  MLA_DEVICE void Run() {
    if (ThreadX() == 0) {
      for (int i = 0; i < kTokenStages; ++i) {
        full[i].Init(1);
        empty[i].Init(kWaves);
      }
      ShowBarriers();
    }
    Barrier();
    if (Wave() == kWaves) {
      Copy();
      if constexpr (kSplits > 1) ClusterBarrier<kSplits>();
    } else {
      Sums sums;
#pragma unroll
      for (float& sum : sums) sum = 0;
      Multiply(sums);
      // Before sums overwrite the last stages.
      WaitForGroups();
      Emit(sums);
    }
    // Nobody's sums go before the others have read them.
    ClusterEnd<kSplits>();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_LINEAR_SHUFFLED_GPU_MANY_H_
