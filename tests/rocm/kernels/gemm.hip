// C = A B^T of bf16 matrices, one wave a 16x16 tile, K in steps of 16 through LDS; mutations change one detail.
#ifndef BARRIER
#define BARRIER barrier()
#endif
#ifndef ROW
#define ROW(lane, i) (4 * ((lane) / 16) + (i))
#endif

typedef __attribute__((ext_vector_type(4))) short bf16x4;
typedef __attribute__((ext_vector_type(4))) float f32x4;

// Four waves share the tile of A in LDS and each owns sixteen columns of B.
KERNEL gemm(const u16* a, const u16* b, float* c, int columns, int depth) {
  __shared__ u16 tile[16][16];
  const int lane = thread() & 63, wave = thread() >> 6;
  const int row = 16 * group(), column = 16 * wave;
  f32x4 sum = {0, 0, 0, 0};
  for (int k = 0; k < depth; k += 16) {
    tile[thread() / 16][thread() % 16] = a[(row + thread() / 16) * depth + k + thread() % 16];
    BARRIER;
    bf16x4 left, right;
    for (int i = 0; i < 4; ++i) {
      left[i] = short(tile[lane % 16][4 * (lane / 16) + i]);
      right[i] = short(b[(column + lane % 16) * depth + k + 4 * (lane / 16) + i]);
    }
    sum = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(left, right, sum, 0, 0, 0);
    BARRIER;
  }
  for (int i = 0; i < 4; ++i) c[(row + ROW(lane, i)) * columns + column + lane % 16] = sum[i];
}
