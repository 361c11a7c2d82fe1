// What follows from an op's name and contract: its target's name and its handler's.
//
// A contract is the version of the operands' meaning: it must change whenever an old caller would
// be misunderstood. A library serves one contract of an op.
#ifndef MLA_PYTHON_TARGETS_H_
#define MLA_PYTHON_TARGETS_H_

#include "xla/ffi/api/c_api.h"

#define MLA_PROJECT_ABI 1

#define MLA_TARGET_HANDLER(op, contract) mla_jax_##op##_v##contract
#define MLA_TARGET_NAME(op, contract) "mla_jax." #op ".v" #contract
#define MLA_OP_NAME(op) "mla_jax." #op

// Some ops have a contract of their own for GPUs: the CPU's with scratch as further results.
#if defined(MLA_GPU)
#define MLA_SCRATCH_HANDLER(op, cpu, gpu) MLA_TARGET_HANDLER(op, gpu)
#else
#define MLA_SCRATCH_HANDLER(op, cpu, gpu) MLA_TARGET_HANDLER(op, cpu)
#endif

#define MLA_DECLARE_TARGET(op, contract) \
  extern "C" XLA_FFI_Error* MLA_TARGET_HANDLER(op, contract)(XLA_FFI_CallFrame * call_frame);

#endif  // MLA_PYTHON_TARGETS_H_
