# The GPU libraries _rocm and _cuda: kernels by the device compiler that mla_find_device_compiler found, handlers by
# the plain C++ compiler.
#
# mla_add_gpu_library(NAME rocm|cuda MODULE name [EMULATED]): with EMULATED the handlers run on JAX's CPU
# platform, for tests that put an emulator in the driver's place.

set(MLA_GPU_OPS
  rope_append_latent rope_append_kv
  mla_attention mla_attention_expanded
  rmsnorm fused_qk_rmsnorm rmsnorm_quantize
  mxfp4_quantize mxfp4_dequantize flatten_quantize
  linear_quantized linear_fp8 linear_mxfp4 linear_shuffled absorb_quantized
  expert_mlp expert_mlp_quantized)

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
      mla_device_command(${platform} "${MLA_${platform}_COMPILER}" "${source}" "${image}" command)
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
  else()
    set(driver cuda)
  endif()
  list(JOIN MLA_${platform}_ARCHITECTURES "," architectures)
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
