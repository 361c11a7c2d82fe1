# The CPU kernels: which there are, and every one of them once an instruction-set level.
#
# mla_link_cpu_kernels(TARGET): compiles all levels and links them into the target.

get_filename_component(MLA_CSRC "${CMAKE_CURRENT_LIST_DIR}/../csrc" ABSOLUTE)

set(MLA_OPS rmsnorm rope_append_latent rope_append_kv mla_attention mla_attention_expanded linear absorb
            expert_mlp mxfp4_quantize linear_quantized linear_vnni absorb_quantized expert_mlp_quantized
            flatten_quantize rmsnorm_quantize fused_qk_rmsnorm)

# Instruction-set levels. Every kernel is compiled once a level into a namespace of its own and the
# best one is chosen when the module is first used; nothing here depends on the building machine.
include(CheckCXXCompilerFlag)
set(MLA_ISAS baseline)
set(MLA_ISA_DEFINITIONS "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(MLA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(MLA_FLAGS_avx512 ${MLA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  set(MLA_FLAGS_avx512vnni ${MLA_FLAGS_avx512} -mavx512vnni)
  set(MLA_FLAGS_avx512bf16 ${MLA_FLAGS_avx512} -mavx512bf16)
  set(MLA_FLAGS_amx ${MLA_FLAGS_avx512bf16} -mavx512vbmi -mamx-tile -mamx-bf16)
  foreach(isa avx2 avx512 avx512vnni avx512bf16 amx)
    string(REPLACE ";" " " flags "${MLA_FLAGS_${isa}}")
    check_cxx_compiler_flag("${flags}" MLA_COMPILER_HAS_${isa})
    if(MLA_COMPILER_HAS_${isa})
      list(APPEND MLA_ISAS ${isa})
      string(TOUPPER ${isa} upper)
      list(APPEND MLA_ISA_DEFINITIONS MLA_BUILD_${upper})
    endif()
  endforeach()
endif()

# Those with a kernel of their own: the others run flatten_quantize's and linear_quantized's.
set(MLA_KERNELS ${MLA_OPS})
list(REMOVE_ITEM MLA_KERNELS mxfp4_quantize linear_vnni)
set(MLA_KERNEL_SOURCES ${MLA_KERNELS})
list(TRANSFORM MLA_KERNEL_SOURCES PREPEND "${MLA_CSRC}/")
list(TRANSFORM MLA_KERNEL_SOURCES APPEND /cpu_kernel.cc)

function(mla_link_cpu_kernels target)
  foreach(isa ${MLA_ISAS})
    add_library(mla_kernels_${isa} OBJECT ${MLA_KERNEL_SOURCES})
    target_include_directories(mla_kernels_${isa} PRIVATE "${MLA_CSRC}")
    target_compile_definitions(mla_kernels_${isa} PRIVATE MLA_ISA=${isa} ${MLA_ISA_DEFINITIONS})
    # No errno from sqrt, so that it is one instruction. Products and sums fuse where the source says so
    # alone (MulAdd): a compiler would fuse those of one tile and not of another, and a row's bits would
    # depend on its batch. Not -ffast-math: NaN, infinity and the order of sums keep their meaning.
    target_compile_options(mla_kernels_${isa} PRIVATE
      -Wall -Wextra -fno-math-errno -ffp-contract=off -fno-exceptions ${MLA_FLAGS_${isa}})
    # 64-byte vectors as arguments of inlined functions: a note about an ABI that is never crossed.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(mla_kernels_${isa} PRIVATE -Wno-psabi)
    endif()
    target_link_libraries(${target} PRIVATE mla_kernels_${isa})
  endforeach()
endfunction()
