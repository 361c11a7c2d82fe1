# The GPU libraries _rocm and _cuda: kernels by a device compiler, handlers by the plain C++ compiler.
#
# mla_add_gpu_library(NAME rocm|cuda MODULE name [EMULATED]): with EMULATED the handlers run on JAX's CPU
# platform, for tests that put an emulator in the driver's place.

set(MLA_GPU_OPS
  rope_append_latent rope_append_kv
  mla_attention mla_attention_expanded
  rmsnorm fused_qk_rmsnorm rmsnorm_quantize
  mxfp4_quantize mxfp4_dequantize flatten_quantize
  linear_quantized linear_mxfp4 linear_shuffled absorb_quantized
  expert_mlp expert_mlp_quantized)

set(MLA_ROCM_ARCHITECTURES gfx942 gfx950)
# Compiled as sm_90a: with Hopper's own instructions, whose PTX no other architecture takes.
set(MLA_CUDA_ARCHITECTURES sm_90)

# The device compiler of a platform, in `result`, or why there is none, in `reason`. One that is found
# must also work: clang needs its own lld beside it, nvcc a host compiler that it knows.
function(mla_find_device_compiler platform result reason)
  if(platform STREQUAL "rocm")
    # ROCm's own clang, or a plain one that knows gfx950, which needs no ROCm.
    find_program(MLA_HIP_COMPILER NAMES amdclang++ clang++-22 clang++-23
      HINTS $ENV{ROCM_PATH}/llvm/bin /opt/rocm/llvm/bin)
    set(compiler "${MLA_HIP_COMPILER}")
    set(wanted "clang 22 with HIP (ROCm's amdclang++, or Debian's clang-22, lld-22 and clang-tools-22)")
  else()
    find_program(MLA_CUDA_COMPILER NAMES nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    set(compiler "${MLA_CUDA_COMPILER}")
    set(wanted "nvcc of CUDA 12 or newer")
  endif()
  set(${result} "" PARENT_SCOPE)
  if(NOT compiler)
    set(${reason} "found no ${wanted}" PARENT_SCOPE)
    return()
  endif()
  set(source ${CMAKE_CURRENT_BINARY_DIR}/check_${platform}.cc)
  file(WRITE ${source} "#include <cstdint>\n#include \"gpu/convert.h\"\n"
    "extern \"C\" __global__ void check(float* x) { *x = mla::gpu::ToFloat(mla::bf16{1}); }\n")
  mla_device_command(${platform} ${source} ${CMAKE_CURRENT_BINARY_DIR}/check_${platform}.image command)
  execute_process(COMMAND ${command} RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(failed)
    string(REGEX MATCH "[^\n]*error[^\n]*" first "${said}")
    set(${reason} "${compiler} does not compile for it: ${first}" PARENT_SCOPE)
  else()
    set(${result} ${compiler} PARENT_SCOPE)
  endif()
endfunction()

# The command that compiles one op's kernels for every architecture of a platform into one file.
function(mla_device_command platform source output result)
  set(include ${PROJECT_SOURCE_DIR}/csrc)
  if(platform STREQUAL "rocm")
    set(archs ${MLA_ROCM_ARCHITECTURES})
    list(TRANSFORM archs PREPEND --offload-arch=)
    set(${result}
      ${MLA_HIP_COMPILER} -x hip -std=c++17 -O3 -nogpuinc -nogpulib -Wall -Wextra -I${include} ${archs}
      --cuda-device-only -c ${source} -o ${output} PARENT_SCOPE)
  else()
    set(archs "")
    foreach(arch ${MLA_CUDA_ARCHITECTURES})
      string(REPLACE "sm_" "" number ${arch})
      list(APPEND archs -gencode arch=compute_${number}a,code=sm_${number}a)
    endforeach()
    set(${result}
      ${MLA_CUDA_COMPILER} -x cu -std=c++17 -O3 -I${include} ${archs} -fatbin ${source}
      -o ${output} PARENT_SCOPE)
  endif()
endfunction()

function(mla_add_gpu_library platform module)
  cmake_parse_arguments(ARG "EMULATED" "" "" ${ARGN})
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/${platform})
  file(MAKE_DIRECTORY ${folder})
  set(sources "")
  set(images "")
  set(declarations "")
  set(items "")
  foreach(op ${MLA_GPU_OPS})
    set(image ${folder}/${op}.image)
    set(source ${PROJECT_SOURCE_DIR}/csrc/${op}/gpu_kernel.cc)
    list(APPEND sources csrc/${op}/ffi.cc)
    if(EXISTS ${PROJECT_SOURCE_DIR}/csrc/${op}/gpu_launch.cc)
      list(APPEND sources csrc/${op}/gpu_launch.cc)
    endif()
    if(NOT EXISTS ${source})
      continue()  # Made of other ops' kernels.
    endif()
    if(NOT TARGET mla_${platform}_${op})
      mla_device_command(${platform} ${source} ${image} command)
      # Not a depfile: clang writes none where it compiles for several architectures at once.
      file(GLOB headers CONFIGURE_DEPENDS csrc/gpu/*.h csrc/common/*.h csrc/*/kernel.h csrc/*/gpu_*.h)
      list(TRANSFORM headers PREPEND ${PROJECT_SOURCE_DIR}/ REGEX "^csrc")
      add_custom_command(OUTPUT ${image} COMMAND ${command} DEPENDS ${source} ${headers}
        COMMENT "Compiling ${op} for ${platform}" VERBATIM)
      add_custom_target(mla_${platform}_${op} DEPENDS ${image})
      configure_file(${PROJECT_SOURCE_DIR}/csrc/gpu/embed.cc.in ${folder}/${op}.embed.cc @ONLY)
    endif()
    set_source_files_properties(${folder}/${op}.embed.cc PROPERTIES OBJECT_DEPENDS ${image})
    list(APPEND sources ${folder}/${op}.embed.cc)
    list(APPEND images mla_${platform}_${op})
    string(APPEND declarations "extern const Image kImage_${op};\n")
    string(APPEND items "&kImage_${op}, ")
  endforeach()
  configure_file(${PROJECT_SOURCE_DIR}/csrc/gpu/images.cc.in ${folder}/images.cc @ONLY)

  if(platform STREQUAL "rocm")
    set(driver hip)
    string(REPLACE ";" "," architectures "${MLA_ROCM_ARCHITECTURES}")
  else()
    set(driver cuda)
    string(REPLACE ";" "," architectures "${MLA_CUDA_ARCHITECTURES}")
  endif()
  pybind11_add_module(${module} MODULE csrc/python/gpu_module.cc csrc/gpu/runtime.cc csrc/gpu/driver_${driver}.cc
    csrc/common/ffi_checks.cc csrc/common/quantized_ffi.cc csrc/common/group_format_ffi.cc ${folder}/images.cc
    ${sources})
  add_dependencies(${module} ${images})
  target_include_directories(${module} PRIVATE csrc)
  target_include_directories(${module} SYSTEM PRIVATE "${MLA_FFI_INCLUDE}")
  target_compile_definitions(${module} PRIVATE MLA_GPU MLA_MODULE=${module} MLA_PLATFORM="${platform}"
    MLA_ARCHITECTURES="${architectures}")
  if(platform STREQUAL "rocm")
    target_compile_definitions(${module} PRIVATE MLA_GPU_ROCM)
  endif()
  if(ARG_EMULATED)
    target_compile_definitions(${module} PRIVATE MLA_GPU_EMULATED)
  endif()
  target_compile_options(${module} PRIVATE -Wall -Wextra)
  target_link_libraries(${module} PRIVATE ${CMAKE_DL_LIBS})
endfunction()
