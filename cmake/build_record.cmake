# What is built and why not: custom_calls/_build.json, which `mla-jax doctor` reads. It holds no folder of this machine
# and nothing that another build of the same sources by the same compilers would not say.
#
# mla_record_build(PLATFORM compiler architectures reason refused) adds a platform: the compiler's name and version,
# empty where nothing is built; what there is code for; why nothing is built, or empty; and a JSON list of sentences.
# mla_install_build_record() writes the file and installs it beside the libraries.

set(MLA_BUILD_RECORD "{}")

function(mla_record_build platform compiler architectures reason refused)
  set(items "[]")
  foreach(architecture ${architectures})
    string(JSON count LENGTH "${items}")
    string(JSON items SET "${items}" ${count} "\"${architecture}\"")
  endforeach()
  mla_json_text("${compiler}" compiler)
  mla_json_text("${reason}" reason)
  set(one "{}")
  string(JSON one SET "${one}" compiler "${compiler}")
  string(JSON one SET "${one}" architectures "${items}")
  string(JSON one SET "${one}" reason "${reason}")
  string(JSON one SET "${one}" refused "${refused}")
  string(JSON record SET "${MLA_BUILD_RECORD}" ${platform} "${one}")
  set(MLA_BUILD_RECORD "${record}" PARENT_SCOPE)
endfunction()

function(mla_install_build_record)
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/_build.json" "${MLA_BUILD_RECORD}\n")
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/_build.json" DESTINATION custom_calls)
endfunction()

# A text as JSON; null for none.
function(mla_json_text text result)
  if("${text}" STREQUAL "")
    set(${result} "null" PARENT_SCOPE)
    return()
  endif()
  string(REPLACE "\\" "\\\\" text "${text}")
  string(REPLACE "\"" "\\\"" text "${text}")
  string(REGEX REPLACE "[\t\r\n]+" " " text "${text}")
  set(${result} "\"${text}\"" PARENT_SCOPE)
endfunction()
