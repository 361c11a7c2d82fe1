// e2m1 pairs with a power-of-two scale to float32 through the gfx950 conversion; SELECT picks a byte.
#ifndef SELECT
#define SELECT(i) (i)
#endif

typedef __attribute__((ext_vector_type(2))) float f32x2;

KERNEL dequantize(const u32* codes, float scale, float* out) {
  const int at = group() * 64 + thread();
  const u32 word = codes[at];
  const f32x2 pairs[4] = {__builtin_amdgcn_cvt_scalef32_pk_f32_fp4(word, scale, SELECT(0)),
                          __builtin_amdgcn_cvt_scalef32_pk_f32_fp4(word, scale, SELECT(1)),
                          __builtin_amdgcn_cvt_scalef32_pk_f32_fp4(word, scale, SELECT(2)),
                          __builtin_amdgcn_cvt_scalef32_pk_f32_fp4(word, scale, SELECT(3))};
  for (int i = 0; i < 4; ++i) {
    out[8 * at + 2 * i] = pairs[i][0];
    out[8 * at + 2 * i + 1] = pairs[i][1];
  }
}
