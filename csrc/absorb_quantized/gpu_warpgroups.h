// MXFP4 weights of a head on Hopper's matrix cores: codes come in bulk copies, and tiles of them
// are decoded into shared memory, from where the cores take a tile by rows or by columns: one way
// of decoding serves both contractions.
//
// Products are turned around, so that few tokens waste little: outputs are the 64 rows of a product
// and tokens its columns.
#ifndef MLA_ABSORB_QUANTIZED_GPU_WARPGROUPS_H_
#define MLA_ABSORB_QUANTIZED_GPU_WARPGROUPS_H_

#include "absorb_quantized/gpu_shape.h"
#include "gpu/bulk_copy.h"
#include "gpu/warpgroup.h"
#include "gpu/weight_format.h"

namespace mla {
namespace gpu {

// The contraction runs across the weight rows or, `along`, along them; then outputs are rows.
//
// How four warpgroups share the products: across, each has a tile, and goes through parts of its
// outputs and of the tokens, so that the first results are written early. Along, each has half of
// the outputs, and two of the tiles or, of many tokens, half of the tokens and every tile.
template <int token_count, bool along>
struct HeadProduct {
  using Shape = HeadShape<token_count, along>;
  using Format = FormatE2M1;
  static constexpr int kThreads = Shape::kThreads, kTile = Shape::kTile, kTiles = Shape::kTiles;
  static constexpr int kTokens = Shape::kTokens;
  static constexpr bool kInTurn = Shape::kTilesInTurn;
  static constexpr int kRowBytes = kHeadColumns / 2, kRowScales = kHeadColumns / 32;
  static constexpr int kHalves = along || kTokens >= 64 ? 1 : 2;  // Of a tile's outputs, at once.
  static constexpr int kMine = kTokens > 64 ? 64 : kTokens;       // Tokens at once.
  using Sums = float[kHalves][kMine / 2];
  using WeightPanel = SwizzledPanels<kTile>;
  using TokenPanel = SwizzledPanels<kTokens>;
  static_assert(kThreads == kTiles * kWarpgroup && kTiles == 4, "how warpgroups share the work");

  // Codes come in parts of so many rows. Where tiles are taken in turn all are needed for the
  // first; else rows that are there are decoded while others are on their way.
  static constexpr int kParts = kInTurn ? 1 : 4, kPartRows = kTile / kParts;
  // Tiles of tokens that are on their way. More would arrive together, at the end.
  static constexpr int kTokenTiles = kInTurn ? 2 : Shape::kDepthTiles;

  const ProductArgs& args;
  char* shared;
  int64_t batch, first_token;
  int first_row, rows;  // Of the head's, and how many there are.
  int count;            // Tokens.

  MLA_DEVICE HeadProduct(const ProductArgs& product, char* shared_memory)
      : args(product), shared(shared_memory) {
    const auto x = static_cast<uint32_t>(BlockX());
    const auto row_blocks = static_cast<uint32_t>(args.row_blocks);
    const auto token_blocks = static_cast<uint32_t>(args.token_blocks);
    first_row = static_cast<int>(x % row_blocks) * kTile;
    first_token = static_cast<int64_t>(x / row_blocks % token_blocks) * kTokens;
    batch = x / row_blocks / token_blocks;
    const int64_t left = args.tokens - first_token;
    count = left < kTokens ? static_cast<int>(left) : kTokens;
    const int rows_left = static_cast<int>(args.rows) - first_row;
    rows = rows_left < kTile ? rows_left : kTile;
  }

  MLA_DEVICE static int Group() { return ThreadX() / kWarpgroup; }
  MLA_DEVICE static int Wave() { return ThreadX() / kWave % 4; }
  MLA_DEVICE static int Pair() { return Group() / 2; }
  MLA_DEVICE static int Thread() { return ThreadX() % kWarpgroup; }

  MLA_DEVICE BulkBarrier* Arrivals() const {
    return reinterpret_cast<BulkBarrier*>(shared + Shape::kArrivals);
  }

  // By one thread.
  MLA_DEVICE void StartCodes() const {
    const int64_t first = args.first_row + batch * args.batch_rows + first_row;
#pragma unroll
    for (int part = 0; part < kParts; ++part) Arrivals()[part].Init(1);
    ShowBarriers();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int row = part * kPartRows, left = rows - row;
      const int some = left < 0 ? 0 : (left < kPartRows ? left : kPartRows);
      Arrivals()[part].Expect(some * (kRowBytes + kRowScales));
      if (some == 0) continue;
      const auto* data = static_cast<const char*>(args.data) + (first + row) * kRowBytes;
      const auto* scale = static_cast<const char*>(args.scale) + (first + row) * kRowScales;
      BulkCopy(shared + Shape::kCodes + row * kRowBytes, data, some * kRowBytes, Arrivals() + part);
      BulkCopy(shared + Shape::kScales + row * kRowScales, scale, some * kRowScales,
               Arrivals() + part);
    }
  }

  // Tokens of tile `tile` of the contraction, zeros beyond the last token and value.
  MLA_DEVICE void StartTokens(int tile) const {
    bf16* to = reinterpret_cast<bf16*>(shared + tile * Shape::kTokenBytes);
    const int column = ThreadX() % 16 * 8, value = tile * kTile + column;
    const bf16* x = static_cast<const bf16*>(args.x) + batch * args.x_batch;
    const bf16* from = x + first_token * args.x_stride + value;
#pragma unroll
    for (int first = 0; first < kTokens; first += kThreads / 16) {
      const int token = first + ThreadX() / 16;
      if (kTokens % (kThreads / 16) != 0 && token >= kTokens) break;
      const bool exists = token < count && (along || value < rows);
      CopyAsync<16>(to + TokenPanel::At(token, column), exists ? from + token * args.x_stride : x,
                    exists);
    }
  }

  MLA_DEVICE char* Tile(int tile) const {
    return shared + Shape::kWeights + tile % Shape::kDecoded * Shape::kTileBytes;
  }

  // Chunk `chunk` of the 16 of a weight row. Eight threads that have different rows and chunks read
  // and write different banks.
  MLA_DEVICE void Decode(int row, int chunk) const {
    Chunk codes = {};
    GroupScale scale{127};
    if (row < rows) {
      codes =
          *reinterpret_cast<const Chunk*>(shared + Shape::kCodes + row * kRowBytes + chunk * 16);
      scale.byte =
          *reinterpret_cast<const uint8_t*>(shared + Shape::kScales + row * kRowScales + chunk);
    }
    bf16* to = reinterpret_cast<bf16*>(Tile(chunk / 4));
    if (__any_sync(~0u, scale.byte >= GroupScale::kTwoSteps)) {
      DecodeTo<true>(to, row, chunk % 4 * 32, codes, scale);
    } else {
      DecodeTo<false>(to, row, chunk % 4 * 32, codes, scale);
    }
  }
  template <bool two_steps>
  MLA_DEVICE static void DecodeTo(bf16* tile, int row, int column, const Chunk& codes,
                                  const GroupScale& scale) {
#pragma unroll
    for (int o = 0; o < Format::kOctets; ++o) {
      const Octet octet = Format::Decode<two_steps>(&codes, o, scale);
      *reinterpret_cast<Chunk*>(tile + WeightPanel::At(row, column + 8 * o)) =
          BitCast<Chunk>(FromOrder<Format>(octet));
    }
  }

  // Adds the products of one half of a tile's outputs with the tokens from `token` on, of steps
  // `first` to `end` of the tile's contraction.
  template <int first, int end>
  MLA_DEVICE void Multiply(int tile, int half, int token, float (&sums)[kMine / 2],
                           bool add) const {
    const SharedMatrix weights(SharedAddress(Tile(tile)) +
                               half * (along ? 64 * 128 : WeightPanel::kBytes));
    const SharedMatrix tokens(SharedAddress(shared) + (along ? tile * Shape::kTokenBytes : 0) +
                              token * 128);
#pragma unroll
    for (int k = first; k < end; ++k) {
      const int panel = k / 4, within = k % 4 * 32;
      WarpgroupMma<!along>(sums,
                           weights.At(along ? panel * WeightPanel::kBytes + within : k * 16 * 128),
                           tokens.At(panel * TokenPanel::kBytes + within), add || k > first);
    }
  }

  // Results of 64 outputs and kMine tokens on their way to memory.
  using ResultPanel = SwizzledPanels<kMine>;
  MLA_DEVICE static void StoreResults(bf16* to, const float (&sums)[kMine / 2]) {
#pragma unroll
    for (int v = 0; v < kMine / 2; v += 2) {
      const Pack<bf16, 2> pair = {{FromFloat<bf16>(sums[v]), FromFloat<bf16>(sums[v + 1])}};
      StoreTransposed(to + ResultPanel::At(v / 4 * 8 + Lane() % 8, 16 * Wave() + v / 2 % 2 * 8),
                      pair);
    }
  }
  // Of `halves` halves of a tile from `half` on and the tokens from `first` on, by `threads`
  // threads: neighbours write neighbouring outputs.
  template <int halves, int threads>
  MLA_DEVICE void WriteResults(const bf16* from, int tile, int half, int first) const {
    constexpr int kRun = 8 * halves;
    const int thread = ThreadX() % threads;
    const int column = thread % kRun * 8, output = 64 * half + column;
    if (along && output >= rows) return;
    bf16* y = static_cast<bf16*>(args.y) + batch * args.y_batch +
              (first_token + first) * args.y_stride + (along ? first_row : tile * kTile) + output;
#pragma unroll
    for (int token = thread / kRun; token < kMine; token += threads / kRun) {
      if (first + token >= count) break;
      *reinterpret_cast<Chunk*>(y + token * args.y_stride) =
          *reinterpret_cast<const Chunk*>(from + ResultPanel::At(token, column));
    }
  }

  MLA_DEVICE void Run() {
    if (ThreadX() == 0) StartCodes();
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      StartTokens(tile);
      CommitCopies();
    }
    Sums sums;
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
#pragma unroll
      for (float& sum : sums[i]) sum = 0;
    }
    Barrier();
    if constexpr (kInTurn) {
      InTurn(sums[0]);
    } else {
      // What half of the rows is good for is multiplied while the others are decoded.
      DecodeHalf(0);
      WaitForCopies<0>();
      Show();
      if constexpr (along) {
        if (Group() % 2 == 0) AlongTiles(sums[0]);
      } else {
        AcrossTile<0, kTile / 32>(0, 0, sums);
      }
      DecodeHalf(1);
      Show();
      if constexpr (along) {
        if (Group() % 2 == 1) AlongTiles(sums[0]);
        EndAlong(sums[0]);
      } else {
        AcrossTile<kTile / 32, kTile / 16>(0, 0, sums);
        EndAcross(sums);
      }
    }
  }

  MLA_DEVICE void DecodeHalf(int half) const {
    static_assert(kInTurn || kPartRows * kRowScales == kThreads, "a thread has a chunk of a part");
#pragma unroll 1
    for (int part = 2 * half; part < 2 * half + 2; ++part) {
      Arrivals()[part].Wait(0);
      Decode(part * kPartRows + ThreadX() % kPartRows, (ThreadX() / kPartRows + ThreadX()) % 16);
    }
  }
  // To the matrix cores, what all threads have stored.
  MLA_DEVICE static void Show() {
    ShowToProducts();
    Barrier();
  }

  // Of this warpgroup's tile, kHalves halves of the outputs from `half` on.
  template <int first, int end>
  MLA_DEVICE void AcrossTile(int half, int token, Sums& sums) const {
    BeginProducts();
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      Multiply<first, end>(Group(), half + i, token, sums[i], first > 0);
    }
    EndProducts();
  }
  // The first part of outputs and tokens has been begun.
  MLA_DEVICE void EndAcross(Sums& sums) const {
    // Where codes were.
    constexpr int kBytes = kHalves * kMine * 128;
    static_assert(4 * kBytes <= kTile * kRowBytes, "results have room");
    bf16* results = reinterpret_cast<bf16*>(shared + Shape::kCodes + Group() * kBytes);
#pragma unroll
    for (int part = 0; part < 2 / kHalves * (kTokens / kMine); ++part) {
      const int half = part % (2 / kHalves), next = (part + 1) % (2 / kHalves);
      const int token = part / (2 / kHalves) * kMine, later = (part + 1) / (2 / kHalves) * kMine;
      FinishProducts();
      // Nobody reads the results before any more.
      if (part > 0) WarpgroupBarrier(Group());
#pragma unroll
      for (int i = 0; i < kHalves; ++i) StoreResults(results + i * kMine * 64, sums[i]);
      if (later < kTokens) AcrossTile<0, kTile / 16>(next, later, sums);
      WarpgroupBarrier(Group());
      WriteResults<kHalves, kWarpgroup>(results, Group(), half, token);
    }
  }

  // Of a half of the outputs, where weights were.
  MLA_DEVICE bf16* Results(int half, int token) const {
    return reinterpret_cast<bf16*>(Tile(0)) + (2 * token + half * kMine) * 64;
  }

  // This warpgroup's half of the outputs.
  MLA_DEVICE void AlongTiles(float (&sums)[kMine / 2]) const {
    BeginProducts();
    Multiply<0, kTile / 16>(2 * Pair(), Group() % 2, 0, sums, false);
    Multiply<0, kTile / 16>(2 * Pair() + 1, Group() % 2, 0, sums, true);
    EndProducts();
  }
  MLA_DEVICE void EndAlong(float (&sums)[kMine / 2]) const {
    FinishProducts();
    WarpgroupBarrier(Group());
    // The second pair's sums reach the first where this warpgroup's weights were.
    auto* other = reinterpret_cast<float*>(Tile(2) + Group() % 2 * 64 * 128) + Thread();
    const auto at = [](int v) { return v / 16 * (WeightPanel::kBytes / 4) + v % 16 * kWarpgroup; };
    if (Pair() == 1) {
#pragma unroll
      for (int v = 0; v < kMine / 2; ++v) other[at(v)] = sums[v];
    }
    Barrier();
    if (Pair() == 0) {
#pragma unroll
      for (int v = 0; v < kMine / 2; ++v) sums[v] += other[at(v)];
      StoreResults(Results(Group(), 0), sums);
    }
    Barrier();
    WriteResults<2, kThreads>(Results(0, 0), 0, 0, 0);
  }

  // A tile is decoded while the cores multiply the one before. Sums are added as EndAlong() adds
  // them: no token's result depends on how many there are.
  MLA_DEVICE void InTurn(float (&sums)[kMine / 2]) const {
    Arrivals()->Wait(0);
    TileInTurn<0>(sums);
    TileInTurn<1>(sums);
    float others[kMine / 2];
    TileInTurn<2>(others);
    TileInTurn<3>(others);
    FinishProducts();
    Barrier();
#pragma unroll
    for (int v = 0; v < kMine / 2; ++v) sums[v] += others[v];
    StoreResults(Results(Group() % 2, Pair() * kMine), sums);
    Barrier();
    WriteResults<2, 2 * kWarpgroup>(Results(0, Pair() * kMine), 0, 0, Pair() * kMine);
  }
  template <int tile>
  MLA_DEVICE void TileInTurn(float (&sums)[kMine / 2]) const {
    Decode(ThreadX() % kTile, 4 * tile + (ThreadX() / kTile + ThreadX()) % 4);
    if constexpr (tile > 0) {
      constexpr int kLater = tile + kTokenTiles - 1;
      if (kLater < kTiles) StartTokens(kLater);
      CommitCopies();
      FinishProducts();
    }
    if constexpr (tile % 2 == 0) {
#pragma unroll
      for (int v = 0; v < kMine / 2; ++v) sums[v] = 0;
    }
    WaitForCopies<kTokenTiles - 1>();
    Show();
    BeginProducts();
    Multiply<0, kTile / 16>(tile, Group() % 2, Pair() * kMine, sums, tile % 2 > 0);
    EndProducts();
  }
};

}  // namespace gpu
}  // namespace mla

#endif  // MLA_ABSORB_QUANTIZED_GPU_WARPGROUPS_H_
