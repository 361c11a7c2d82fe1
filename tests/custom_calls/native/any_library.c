// An extension module whose Python functions are those of BODY: any ABI record, right or wrong, in
// a real shared object. Built by tests/custom_calls/native_libraries.py.
#include <Python.h>

#ifdef UNDEFINED
extern int mla_jax_symbol_of_no_library;
int* mla_jax_needed = &mla_jax_symbol_of_no_library;
#endif

static int Execute(PyObject* module) {
  PyObject* names = PyModule_GetDict(module);
  PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins());
  PyObject* done = PyRun_String(BODY, Py_file_input, names, names);
  Py_XDECREF(done);
  return done == NULL ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, Execute}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "any_library", NULL, 0, NULL, slots};

PyMODINIT_FUNC PyInit_any_library(void) { return PyModuleDef_Init(&module); }
