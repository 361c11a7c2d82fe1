// Products on Hopper's matrix cores: weights are decoded in registers, where the cores take them
// from, tokens come through shared memory.
//
// A warpgroup owns 64 weight rows and all tokens of the block: a weight is decoded once for all of
// them. Blocks of a cluster share the contraction, and their sums are added in a fixed order.
//
// A lane reads whole chunks of a weight row, so values of the contraction reach the cores in an
// order of the lanes' own; tokens are stored in the same order.
#ifndef MLA_GPU_PRODUCT_WARPGROUPS_H_
#define MLA_GPU_PRODUCT_WARPGROUPS_H_

#include "gpu/cluster.h"
#include "gpu/product_block.h"
#include "gpu/warpgroup.h"

namespace mla {
namespace gpu {

template <typename Format, typename Shape>
struct WarpgroupProduct {
  static constexpr int kThreads = Shape::kThreads, kTokens = Shape::kTokens;
  static constexpr int kLaneRows = 2, kRing = Shape::kRing;
  static_assert(Format::kGroupScales && Format::kChunks == 1, "a chunk and a scale a row and step");
  // A part of a step is what is decoded while the cores multiply the one before.
  static constexpr int kParts = 2, kPartOctets = Format::kOctets / kParts;
  static constexpr int kPanels = Format::kStep / 64;
  static constexpr int kPanelBytes = kTokens * 128, kTileBytes = kPanelBytes * kPanels;
  // Of tokens: one is multiplied, one written, one perhaps still read by a warpgroup that is late.
  static constexpr int kTokenTiles = 3;
  // A wave stores 4 tokens of a panel at a time.
  static constexpr int kTokenGroups = kThreads / kWave / kPanels;
  static constexpr int kMine = (kTokens / 4 + kTokenGroups - 1) / kTokenGroups;
  static constexpr bool kEven = kTokens / 4 % kTokenGroups == 0;  // Every wave stores as many.
  static constexpr uint32_t kNone = ~0u;
  using Ring = LaneRing<kLaneRows, kThreads, kRing>;
  static_assert(kTokenGroups % 2 == 0, "tokens of a lane differ by multiples of 8");
  using Sums = float[kTokens / 2];

  const ProductArgs& args;
  const ProductBlock block;
  char* shared;
  uint32_t* group_scales;  // (ring, rows)
  Ring ring;
  int step, end;                   // Of this block's share of the contraction.
  const uint8_t* rows[kLaneRows];  // This lane's part of the weight rows.
  const uint8_t* scale_row;        // Of the row whose scales this lane copies, if it does.
  const bf16* x;                   // This lane's part of the tokens' rows.
  uint32_t tokens[kMine];          // Where they begin; kNone: no such token.

  MLA_DEVICE WarpgroupProduct(const ProductArgs& product, char* shared_memory)
      : args(product),
        block(product, kTokens, BlockX() / Shape::kSplits),
        shared(shared_memory),
        group_scales(reinterpret_cast<uint32_t*>(shared_memory + kTokenTiles * kTileBytes)),
        ring(reinterpret_cast<Chunk*>(group_scales + kRing * Shape::kRows)) {}

  MLA_DEVICE static int Wave() { return ThreadX() / kWave; }

  // The block's row that is row j of this lane's.
  MLA_DEVICE static int LaneRowAt(int j) { return 16 * Wave() + Lane() / 4 + 8 * j; }
  // The weight row in row `row` of the block. Of gated products every 8 gate rows are followed by
  // their up rows, so that a lane has both.
  MLA_DEVICE int64_t RowAt(int row) const {
    const int64_t first = block.row_block * (args.gated ? Shape::kRows / 2 : Shape::kRows);
    return args.gated ? block.WeightRow(first + row / 16 * 8 + row % 8, row / 8)
                      : block.WeightRow(first + row, 0);
  }

  // A lane stores octet HalfOctet() of a panel's two, of token Token(i).
  MLA_DEVICE static int Panel() { return Wave() % kPanels; }
  MLA_DEVICE static int HalfOctet() { return Lane() / 4 % 2; }
  MLA_DEVICE static int Token(int i) {
    return 4 * (Wave() / kPanels + i * kTokenGroups) + Lane() / 8;
  }

  MLA_DEVICE void Find() {
    const int steps = static_cast<int>(args.k) / Format::kStep;
    const int split = ClusterRank<Shape::kSplits>();
    step = steps * split / Shape::kSplits;
    end = steps * (split + 1) / Shape::kSplits;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      rows[j] = block.data + RowAt(LaneRowAt(j)) * (args.k / Format::kStep * Format::kStepBytes) +
                Format::PieceByte(0, 0, Lane() % 4);
    }
    scale_row = block.scale + RowAt(LaneRowAt(Lane() % 2)) * args.scale_columns;
    x = static_cast<const bf16*>(args.x) + block.batch * args.x_batch +
        Format::KOf(2 * Panel() + HalfOctet(), Lane() % 4);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const bool present = Token(i) < kTokens && Token(i) < block.count;
      tokens[i] = present ? static_cast<uint32_t>(block.TokenOffset(Token(i))) : kNone;
    }
  }

  MLA_DEVICE void StartWeights(int at, int slot) {
    if (at < end) {
#pragma unroll
      for (int j = 0; j < kLaneRows; ++j) {
        ring.Start(slot, j, rows[j] + at * Format::kStepBytes, true);
      }
      if (Lane() % 4 < 2) {
        CopyAsync<4>(group_scales + slot * Shape::kRows + LaneRowAt(Lane() % 2), scale_row + 4 * at,
                     true);
      }
    }
    ring.Commit();
  }

  MLA_DEVICE void ReadTokens(int at, Chunk (&held)[kMine]) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      held[i] = Chunk{};
      if (tokens[i] != kNone && at < end) {
        held[i] = *reinterpret_cast<const Chunk*>(x + tokens[i] + at * Format::kStep);
      }
    }
  }

  // Pair p of octet o of quarter q is word q of run 4 * (o % 2) + p of panel o / 2.
  MLA_DEVICE void StoreTokens(int tile, const Chunk (&held)[kMine]) const {
    const int run = 4 * HalfOctet() ^ Token(0) % 8;
    char* to = shared + tile * kTileBytes + Panel() * kPanelBytes + Token(0) * 128 + Lane() % 4 * 4;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (!kEven && Token(i) >= kTokens) break;
      const Octet values = ToOrder<Format>(BitCast<Octet>(held[i]));
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        *reinterpret_cast<uint32_t*>(to + i * (4 * kTokenGroups * 128) + (run ^ p) * 16) =
            values.pairs[p];
      }
    }
  }

  template <bool two_steps>
  MLA_DEVICE void Decode(int part, const uint32_t (&bytes)[kLaneRows],
                         uint32_t (&weights)[2 * kPartOctets][4]) const {
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const Chunk chunk = ring.At(j);
#pragma unroll
      for (int o = 0; o < kPartOctets; ++o) {
        const Octet octet = Format::template Decode<two_steps>(&chunk, part * kPartOctets + o,
                                                               GroupScale{bytes[j]});
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights[2 * o + i / 2][2 * (i % 2) + j] = octet.pairs[i];
        }
      }
    }
  }

  MLA_DEVICE void Multiply(SharedMatrix tile, int slot, Sums& sums) const {
    uint32_t bytes[kLaneRows];
    bool large = false;
#pragma unroll
    for (int j = 0; j < kLaneRows; ++j) {
      const uint32_t* word = group_scales + slot * Shape::kRows + LaneRowAt(j);
      bytes[j] = reinterpret_cast<const uint8_t*>(word)[Lane() % 4];
      large |= bytes[j] >= GroupScale::kTwoSteps;
    }
    large = __any_sync(~0u, large);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t weights[2 * kPartOctets][4];
      if (large) {
        Decode<true>(part, bytes, weights);
      } else {
        Decode<false>(part, bytes, weights);
      }
      BeginProducts();
#pragma unroll
      for (int i = 0; i < 2 * kPartOctets; ++i) {
        const int at = part * 2 * kPartOctets + i;
        WarpgroupMmaHeld(sums, weights[i], tile.At(at / 4 * kPanelBytes + at % 4 * 32));
      }
      EndProducts();
      FinishProductsBut<1>();
    }
  }

  // A share of at least one step.
  MLA_DEVICE void MultiplyAll(Sums& sums) {
#pragma unroll
    for (int i = 0; i < Ring::kAhead; ++i) StartWeights(step + i, i);
    Chunk held[kMine];
    ReadTokens(step, held);
    StoreTokens(0, held);
    const SharedMatrix first(SharedAddress(shared));
    int slot = 0, tile = 0;
    do {
      ring.Take(slot);
      // It waits for all of this thread's reads: they began a step ago, not just now.
      ShowToProducts();
      Barrier();
      StartWeights(step + Ring::kAhead, slot == 0 ? kRing - 1 : slot - 1);
      ReadTokens(step + 1, held);
      Multiply(first.At(tile * kTileBytes), slot, sums);
      tile = tile == kTokenTiles - 1 ? 0 : tile + 1;
      StoreTokens(tile, held);
      slot = slot == kRing - 1 ? 0 : slot + 1;
      ++step;
    } while (step < end);
    FinishProductsBut<0>();
  }

  // From here on sums go through shared memory, where the blocks of a cluster read each other's and
  // from where neighbours write neighbouring outputs.
  static constexpr int kStride = Shape::kRows + 4;  // Four tokens of a wave lie in different banks.

  MLA_DEVICE void StoreSums(const Sums& sums) const {
    auto* all = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int v = 0; v < kTokens / 2; ++v) {
      const int token = 8 * (v / 4) + 2 * (Lane() % 4) + v % 2;
      all[token * kStride + LaneRowAt(v / 2 % 2)] = sums[v];
    }
  }

  MLA_DEVICE void Emit() const {
    auto* all = reinterpret_cast<float*>(shared);
    ClusterBarrier<Shape::kSplits>();
    const int outputs = args.gated ? Shape::kRows / 2 : Shape::kRows;
    const int64_t first = block.row_block * outputs;
    const auto sum_of = [&](int token, int row) {
      float sum = 0;
#pragma unroll
      for (int s = 0; s < Shape::kSplits; ++s) {
        sum += ReadShared<Shape::kSplits>(all + token * kStride + row, s);
      }
      return sum;
    };
    const int count = static_cast<int>(block.count) * outputs;
    for (int i = ClusterRank<Shape::kSplits>() * kThreads + ThreadX(); i < count;
         i += Shape::kSplits * kThreads) {
      const int token = i / outputs, output = i % outputs;
      if (first + output >= block.Outputs()) continue;
      const int row = args.gated ? output / 8 * 16 + output % 8 : output;
      const float sum = sum_of(token, row);
      block.Emit(first + output, token, args.gated ? Gated(sum, sum_of(token, row + 8)) : sum);
    }
    // Nobody's sums go before the others have read them.
    ClusterEnd<Shape::kSplits>();
  }

  MLA_DEVICE void Run() {
    if (block.count <= 0) return;
    Find();
    Sums sums;
#pragma unroll
    for (float& sum : sums) sum = 0;
    if (step < end) MultiplyAll(sums);
    Barrier();
    StoreSums(sums);
    Emit();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_GPU_PRODUCT_WARPGROUPS_H_
