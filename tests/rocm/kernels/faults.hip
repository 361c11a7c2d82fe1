// Kernels that go wrong, one way each.

KERNEL past_the_end(u32* out, int count) { out[thread() + count] = 1; }

KERNEL reads_outside(const u32* in, u32* out, int offset) { out[thread()] = in[thread() + offset]; }

KERNEL endless(volatile u32* out) {
  while (out[0] != 7) out[1] = thread();
}

// The first wave never arrives.
KERNEL one_wave_leaves(u32* out) {
  if (thread() >= 64) __builtin_amdgcn_s_barrier();
  out[thread()] = 1;
}

// Two different barriers, one a wave.
KERNEL two_barriers(u32* out) {
  if (__builtin_amdgcn_readfirstlane(thread()) < 64) {
    out[thread()] = 1;
    asm volatile("s_barrier ; the first");
  } else {
    out[thread()] = 2;
    asm volatile("s_barrier ; the second");
  }
}

KERNEL lds_outside(u32* out, int at) {
  __shared__ u32 box[64];
  box[thread()] = 3;
  barrier();
  out[thread()] = box[thread() + at];
}

KERNEL lds_unwritten(float* out) {
  __shared__ float box[64];
  if (thread() > 100) box[0] = 1;
  barrier();
  out[thread()] = box[thread()];
}

KERNEL traps(u32* out) {
  out[thread()] = 1;
  __builtin_trap();
}

extern __attribute__((shared)) u32 dynamic[];
KERNEL dynamic_lds(u32* out) {
  dynamic[thread()] = thread() * 3;
  barrier();
  out[thread()] = dynamic[63 - thread()];
}

// A stack that the compiler cannot remove.
KERNEL private_array(const int* index, int* out) {
  int local[32];
  for (int i = 0; i < 32; ++i) local[i] = i * 5 + thread();
  local[index[thread()] & 31] += 100000;
  int sum = 0;
  for (int i = 0; i < 32; ++i) sum = sum * 3 + local[(i + index[thread()]) & 31];
  out[thread()] = sum;
}

__attribute__((constant)) const u32 squares[8] = {0, 1, 4, 9, 16, 25, 36, 49};
KERNEL reads_constants(const int* index, u32* out) { out[thread()] = squares[index[thread()] & 7]; }

struct Three {
  u8 a;
  u16 b;
  u64 c;
};
KERNEL geometry(u32* out, Three by_value, u8 byte) {
  const int blocks = __builtin_amdgcn_workgroup_id_x() + 3 * __builtin_amdgcn_workgroup_id_y() + 15 * __builtin_amdgcn_workgroup_id_z();
  const int threads = __builtin_amdgcn_workitem_id_x() + 4 * __builtin_amdgcn_workitem_id_y() + 12 * __builtin_amdgcn_workitem_id_z();
  out[blocks * 24 + threads] =
      by_value.a + by_value.b * 1000 + u32(by_value.c >> 32) + byte * 7 + blocks * 100 + threads + __builtin_amdgcn_workgroup_size_x() * 100000;
}

__device__ u32 calls = 40;
__device__ u32* const where = &calls;
KERNEL counts_calls(u32* out) {
  if (thread() == 0) out[0] = __hip_atomic_fetch_add(where, 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

// Who came when: each wave takes a ticket.
KERNEL tickets(u32* count, u32* order) {
  if ((thread() & 63) == 0)
    order[__hip_atomic_fetch_add(count, 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT)] = group() * 4 + (thread() >> 6);
}
