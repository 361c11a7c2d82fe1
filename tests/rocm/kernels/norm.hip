// Root mean square normalisation of bf16 rows by 256 threads a row: wave reductions, LDS, a barrier.
#ifndef BARRIER
#define BARRIER barrier()
#endif

KERNEL norm(const u16* x, const u16* weight, u16* y, int columns, float epsilon) {
  __shared__ float partial[4];
  const long row = group();
  const int lane = thread() & 63;
  float sum = 0;
  for (int j = thread(); j < columns; j += 256) {
    const float value = widen(x[row * columns + j]);
    sum += value * value;
  }
  for (int step = 32; step; step >>= 1)
    sum += __builtin_bit_cast(float, __builtin_amdgcn_ds_bpermute((lane ^ step) << 2, __builtin_bit_cast(int, sum)));
  if (lane == 0) partial[thread() >> 6] = sum;
  BARRIER;
  const float total = partial[0] + partial[1] + partial[2] + partial[3];
  const float scale = 1.0f / __builtin_sqrtf(total / float(columns) + epsilon);
  for (int j = thread(); j < columns; j += 256)
    y[row * columns + j] = narrow(widen(x[row * columns + j]) * scale * widen(weight[j]));
}
