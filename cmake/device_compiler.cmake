# The device compiler of a GPU platform: which one, how it is called, and why others are not.
#
# mla_find_device_compiler(rocm|cuda) sets, where it is called,
#   MLA_<platform>_COMPILER  the first candidate that compiles for every architecture, or empty
#   MLA_<platform>_VERSION   what it is, without its folder: "clang++-22 (clang 22.1.8)"
#   MLA_<platform>_REASON    why there is none, or empty
#   MLA_<platform>_REFUSED   a JSON list: a sentence for each candidate that was found and does not work
# and needs build_record.cmake for its JSON. mla_require_device_compiler(rocm|cuda why) ends the build without one.

set(MLA_rocm_ARCHITECTURES gfx942 gfx950)
# Compiled as sm_90a: with Hopper's own instructions, whose PTX no other architecture takes.
set(MLA_cuda_ARCHITECTURES sm_90)

# In order: ROCm's own, then a plain clang that knows gfx950, which needs no ROCm.
set(MLA_rocm_CANDIDATES amdclang++ hipcc clang++-22 clang++-23)
set(MLA_rocm_FOLDERS /opt/rocm/bin /opt/rocm/llvm/bin)
if(DEFINED ENV{ROCM_PATH})
  list(PREPEND MLA_rocm_FOLDERS "$ENV{ROCM_PATH}/bin" "$ENV{ROCM_PATH}/llvm/bin")
endif()
set(MLA_rocm_WANTED "ROCm 7, or Debian's clang-22, lld-22 and clang-tools-22")
set(MLA_cuda_CANDIDATES nvcc)
set(MLA_cuda_FOLDERS /usr/local/cuda/bin)
if(DEFINED ENV{CUDA_HOME})
  list(PREPEND MLA_cuda_FOLDERS "$ENV{CUDA_HOME}/bin")
endif()
set(MLA_cuda_WANTED "CUDA 12 or newer")

function(mla_find_device_compiler platform)
  set(refused "[]")
  foreach(name ${MLA_${platform}_CANDIDATES})
    find_program(MLA_CANDIDATE NAMES ${name} HINTS ${MLA_${platform}_FOLDERS})
    set(compiler "${MLA_CANDIDATE}")
    unset(MLA_CANDIDATE CACHE)  # Of the next one, and of a build that finds others.
    if(NOT compiler)
      continue()
    endif()
    mla_compiler_version("${compiler}" version)
    mla_try_compiler(${platform} "${compiler}" problem)
    if(problem STREQUAL "")
      set(MLA_${platform}_COMPILER "${compiler}" PARENT_SCOPE)
      set(MLA_${platform}_VERSION "${version}" PARENT_SCOPE)
      set(MLA_${platform}_REASON "" PARENT_SCOPE)
      set(MLA_${platform}_REFUSED "${refused}" PARENT_SCOPE)
      return()
    endif()
    list(JOIN MLA_${platform}_ARCHITECTURES ", " architectures)
    mla_json_text("${version} does not compile for ${architectures}: ${problem}" sentence)
    string(JSON count LENGTH "${refused}")
    string(JSON refused SET "${refused}" ${count} "${sentence}")
  endforeach()
  list(JOIN MLA_${platform}_CANDIDATES ", " names)
  set(found "found none of")
  if(NOT refused STREQUAL "[]")
    set(found "found nothing that works among")
  endif()
  set(MLA_${platform}_COMPILER "" PARENT_SCOPE)
  set(MLA_${platform}_VERSION "" PARENT_SCOPE)
  set(MLA_${platform}_REASON "the build ${found} ${names}; it takes ${MLA_${platform}_WANTED}" PARENT_SCOPE)
  set(MLA_${platform}_REFUSED "${refused}" PARENT_SCOPE)
endfunction()

function(mla_require_device_compiler platform why)
  if(MLA_${platform}_COMPILER)
    return()
  endif()
  set(text "${why}, but ${MLA_${platform}_REASON}.")
  set(next 0)
  string(JSON count LENGTH "${MLA_${platform}_REFUSED}")
  while(next LESS count)
    string(JSON sentence GET "${MLA_${platform}_REFUSED}" ${next})
    string(APPEND text "\n  ${sentence}")
    math(EXPR next "${next} + 1")
  endwhile()
  message(FATAL_ERROR "${text}")
endfunction()

# Compiles a small kernel for every architecture. `problem`: what the compiler says of it, empty if all is well.
# clang needs its own lld and offload bundler beside it, nvcc a host compiler that it knows.
function(mla_try_compiler platform compiler problem)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/check_${platform}.cc")
  set(image "${CMAKE_CURRENT_BINARY_DIR}/check_${platform}.image")
  file(WRITE "${source}" "#include <cstdint>\n#include \"gpu/convert.h\"\n"
    "extern \"C\" __global__ void check(float* x) { *x = mla::gpu::ToFloat(mla::bf16{1}); }\n")
  file(REMOVE "${image}")
  mla_device_command(${platform} "${compiler}" "${source}" "${image}" command)
  execute_process(COMMAND "${CMAKE_COMMAND}" -E env LC_ALL=C ${command}
    RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
  set(${problem} "" PARENT_SCOPE)
  # A driver may hide how the compiler behind it ended.
  if(failed OR NOT EXISTS "${image}")
    mla_first_error("${said}" first)
    set(${problem} "${first}" PARENT_SCOPE)
  endif()
endfunction()

# The command that compiles one op's kernels for every architecture of a platform into one file. hipcc hands all of
# it on to its clang, and of what it adds, device code without HIP's headers and libraries minds nothing.
function(mla_device_command platform compiler source output result)
  set(include "${PROJECT_SOURCE_DIR}/csrc")
  set(archs "")
  if(platform STREQUAL "rocm")
    foreach(arch ${MLA_rocm_ARCHITECTURES})
      list(APPEND archs --offload-arch=${arch})
    endforeach()
    set(${result}
      "${compiler}" -x hip -std=c++17 -O3 -nogpuinc -nogpulib -Wall -Wextra "-I${include}" ${archs}
      --cuda-device-only -c "${source}" -o "${output}" PARENT_SCOPE)
  else()
    foreach(arch ${MLA_cuda_ARCHITECTURES})
      string(REPLACE "sm_" "" number ${arch})
      list(APPEND archs -gencode arch=compute_${number}a,code=sm_${number}a)
    endforeach()
    set(${result}
      "${compiler}" -x cu -std=c++17 -O3 "-I${include}" ${archs} -fatbin "${source}"
      -o "${output}" PARENT_SCOPE)
  endif()
endfunction()

# Name and version of a compiler.
function(mla_compiler_version compiler result)
  get_filename_component(name "${compiler}" NAME)
  execute_process(COMMAND "${compiler}" --version RESULT_VARIABLE ignored OUTPUT_VARIABLE said ERROR_VARIABLE said)
  set(version "of unknown version")
  if(said MATCHES "((AMD )?clang) version ([0-9.]+)")
    set(version "(${CMAKE_MATCH_1} ${CMAKE_MATCH_3})")
  elseif(said MATCHES "Cuda compilation tools, release [0-9.]+, V([0-9.]+)")
    set(version "(CUDA ${CMAKE_MATCH_1})")
  endif()
  set(${result} "${name} ${version}" PARENT_SCOPE)
endfunction()

# The first line of an output that speaks of an error, or the first one; without the folders of this machine.
function(mla_first_error text result)
  string(REGEX MATCH "[^\n]*error[^\n]*" line "${text}")
  if(NOT line)
    string(REGEX MATCH "[^\n]+" line "${text}")
  endif()
  if(NOT line)
    set(line "it fails and says nothing")
  endif()
  string(REPLACE "${CMAKE_CURRENT_BINARY_DIR}/" "" line "${line}")
  string(REPLACE "${PROJECT_SOURCE_DIR}/" "" line "${line}")
  string(REGEX REPLACE "(^|[ '\"=(:])/[^ '\":]*/" "\\1" line "${line}")
  string(STRIP "${line}" line)
  set(${result} "${line}" PARENT_SCOPE)
endfunction()
