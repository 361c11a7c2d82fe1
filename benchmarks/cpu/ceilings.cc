// What this machine's cores do at most: bytes read a second, and bf16 products a second where the
// processor multiplies pairs of them, by tiles of AMX where it has them. A shared library for
// benchmarks/cpu; see machine.py there.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <sys/mman.h>

namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs f(i) on `threads` threads at once and returns the seconds that the last one took.
template <typename F>
double Together(int threads, const F& f) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] {
      ready.fetch_add(1);
      while (!go.load()) std::this_thread::yield();
      f(i);
    });
  }
  while (ready.load() != threads) std::this_thread::yield();
  const double start = Seconds();
  go.store(true);
  for (auto& worker : workers) worker.join();
  return Seconds() - start;
}

typedef uint64_t Vector __attribute__((vector_size(64)));

#if defined(__x86_64__)
#define MLA_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define MLA_CLONES
#endif

MLA_CLONES uint64_t ReadAll(const char* data, int64_t bytes) {
  Vector a = {}, b = {}, c = {}, d = {};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
    const auto* p = reinterpret_cast<const Vector*>(data + i);
    a |= p[0];
    b |= p[1];
    c |= p[2];
    d |= p[3];
  }
  const Vector all = (a | b) | (c | d);
  return all[0] | all[1] | all[2] | all[3] | all[4] | all[5] | all[6] | all[7];
}

// The same of eight parts at once, each asked for a page ahead.
MLA_CLONES uint64_t ReadPlaces(const char* data, int64_t bytes) {
  constexpr int kPlaces = 8;
  const int64_t part = bytes / kPlaces / 64 * 64;
  Vector all[kPlaces] = {};
  for (int64_t i = 0; i < part; i += 64) {
    for (int p = 0; p < kPlaces; ++p) {
      __builtin_prefetch(data + p * part + i + 4096);
      all[p] |= *reinterpret_cast<const Vector*>(data + p * part + i);
    }
  }
  for (int p = 1; p < kPlaces; ++p) all[0] |= all[p];
  uint64_t any = 0;
  for (int i = 0; i < 8; ++i) any |= all[0][i];
  return any;
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) float Multiply(int64_t rounds) {
  constexpr int kChains = 16;
  __m512 acc[kChains];
  for (auto& a : acc) a = _mm512_setzero_ps();
  const __m512bh one = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) acc[j] = _mm512_dpbf16_ps(acc[j], one, one);
  }
  float sum = 0;
  for (auto& a : acc) sum += _mm512_reduce_add_ps(a);
  return sum;
}

#if defined(__linux__)
bool HasTiles() {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & 1u << 22) == 0) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XTILEDATA.
}

// Four independent chains of products of whole tiles.
void MultiplyTiles(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, zero[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile(
        "tdpbf16ps %tmm6, %tmm4, %tmm0\n"
        "tdpbf16ps %tmm7, %tmm4, %tmm1\n"
        "tdpbf16ps %tmm6, %tmm5, %tmm2\n"
        "tdpbf16ps %tmm7, %tmm5, %tmm3\n");
  }
  __asm__ volatile("tilerelease");
}
#endif
#endif

volatile uint64_t kept;

}  // namespace

extern "C" {

// Memory of `bytes` bytes, on large pages where the system gives them, every one of its pages
// written.
void* ceilings_allocate(int64_t bytes) {
  void* data = std::aligned_alloc(int64_t{1} << 21, (bytes + (1 << 21) - 1) >> 21 << 21);
  if (data == nullptr) return nullptr;
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data, 1, bytes);
  return data;
}

void ceilings_free(void* data) { std::free(data); }

// Bytes a second of `threads` threads that read their parts of the memory at once, each at one
// place or at several.
double ceilings_read_rate(const void* data, int64_t bytes, int threads, int several) {
  const int64_t part = bytes / threads / 512 * 512;
  const double seconds = Together(threads, [&](int i) {
    const char* from = static_cast<const char*>(data) + i * part;
    kept = several != 0 ? ReadPlaces(from, part) : ReadAll(from, part);
  });
  return static_cast<double>(part) * threads / seconds;
}

// FLOP a second of bf16 pairs in registers; 0 where the processor does not multiply them.
double ceilings_product_rate(int64_t rounds, int threads) {
#if defined(__x86_64__)
#if defined(__linux__)
  if (HasTiles()) {
    const int64_t tile_rounds = rounds / 16;  // As much work takes about as long.
    const double seconds = Together(threads, [&](int) { MultiplyTiles(tile_rounds); });
    return 2.0 * 16 * 16 * 32 * 4 * static_cast<double>(tile_rounds) * threads / seconds;
  }
#endif
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  const double seconds =
      Together(threads, [&](int) { kept = static_cast<uint64_t>(Multiply(rounds)); });
  return 2.0 * 32 * 16 * static_cast<double>(rounds) * threads / seconds;
#else
  (void)rounds;
  (void)threads;
  return 0;
#endif
}
}
