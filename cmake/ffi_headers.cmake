# Finds XLA's FFI headers: MLA_FFI_INCLUDE.

# The FFI headers come with jaxlib. Import machinery only: jaxlib itself need not load.
if(DEFINED ENV{MLA_JAX_FFI_INCLUDE})
  set(MLA_FFI_INCLUDE "$ENV{MLA_JAX_FFI_INCLUDE}")
else()
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import importlib.util as u, os; s = u.find_spec('jaxlib'); print(os.path.join(list(s.submodule_search_locations)[0], 'include') if s else '')"
    OUTPUT_VARIABLE MLA_FFI_INCLUDE OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT EXISTS "${MLA_FFI_INCLUDE}/xla/ffi/api/ffi.h")
  message(FATAL_ERROR
    "The XLA FFI headers were not found (looked for xla/ffi/api/ffi.h in '${MLA_FFI_INCLUDE}'): "
    "install jaxlib in the build environment or set MLA_JAX_FFI_INCLUDE.")
endif()
