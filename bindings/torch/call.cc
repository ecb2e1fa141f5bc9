// rmsnorm.call: rms_norm as C functions of Python, for the calls that torch.ops has nothing to add
// to. They cost half as much as torch.ops, which parses its arguments by the schema.
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "ops.h"

namespace rmsnorm::torch_binding {
namespace {

// Lets other threads of Python run; takes the interpreter back where the operator throws, too.
class WithoutInterpreter {
 public:
  WithoutInterpreter() : state_(PyEval_SaveThread()) {}
  ~WithoutInterpreter() { PyEval_RestoreThread(state_); }
  WithoutInterpreter(const WithoutInterpreter&) = delete;
  WithoutInterpreter& operator=(const WithoutInterpreter&) = delete;

 private:
  PyThreadState* const state_;
};

enum class Outputs { kY, kYAndRstd };

// (x, gamma, epsilon, gamma_offset, rounding, out_dtype) -> y or (y, rstd). NotImplemented where
// torch.ops has to see the call: subclasses of Tensor, modes of __torch_function__, other types.
template <Outputs outputs>
PyObject* Call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const bool plain =
      count == 6 && THPVariable_CheckExact(args[0]) &&
      (args[1] == Py_None || THPVariable_CheckExact(args[1])) && PyFloat_CheckExact(args[2]) &&
      PyFloat_CheckExact(args[3]) && PyUnicode_CheckExact(args[4]) &&
      (args[5] == Py_None || THPDtype_Check(args[5])) && !at::impl::torch_function_mode_enabled();
  if (!plain) Py_RETURN_NOTIMPLEMENTED;
  const Tensor x = THPVariable_Unpack(args[0]);  // held: Python goes on meanwhile
  const MaybeTensor gamma =
      args[1] == Py_None ? MaybeTensor() : MaybeTensor(THPVariable_Unpack(args[1]));
  const double epsilon = PyFloat_AS_DOUBLE(args[2]);
  const double gamma_offset = PyFloat_AS_DOUBLE(args[3]);
  Py_ssize_t length;
  const char* rounding = PyUnicode_AsUTF8AndSize(args[4], &length);
  if (rounding == nullptr) return nullptr;
  Optional<at::ScalarType> out_dtype;
  if (args[5] != Py_None) out_dtype = reinterpret_cast<THPDtype*>(args[5])->scalar_type;
  Tensor y, rstd;
  {
    const WithoutInterpreter others_run;
    std::tie(y, rstd) = RmsNorm(x, gamma, epsilon, gamma_offset,
                                StringView(rounding, static_cast<size_t>(length)), out_dtype);
  }
  if constexpr (outputs == Outputs::kY) return THPVariable_Wrap(std::move(y));
  return Py_BuildValue("NN", THPVariable_Wrap(std::move(y)), THPVariable_Wrap(std::move(rstd)));
  END_HANDLE_TH_ERRORS
}

PyMethodDef Method(const char* name, PyObject* (*call)(PyObject*, PyObject* const*, Py_ssize_t)) {
  // By way of void(): compilers warn of a cast between functions, which Python's table needs.
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL,
          nullptr};
}

PyMethodDef methods[] = {Method("rms_norm", Call<Outputs::kY>),
                         Method("rms_norm_and_rstd", Call<Outputs::kYAndRstd>),
                         {}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,  "rmsnorm.call",
                      /*m_doc=*/nullptr,
                      /*m_size=*/0,           methods,
                      /*m_slots=*/nullptr,
                      /*m_traverse=*/nullptr,
                      /*m_clear=*/nullptr,
                      /*m_free=*/nullptr};

}  // namespace
}  // namespace rmsnorm::torch_binding

PyMODINIT_FUNC PyInit_call() { return PyModule_Create(&rmsnorm::torch_binding::module); }
