"""A device of PyTorch's PrivateUse1 whose tensors are computed on the CPU; torch_npu's operators.

Needs _setup_privateuseone_for_python_backend of PyTorch. A process can have one such device.
"""

import torch
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import rmsnorm

calls: list[str] = []  # of torch_npu's operators, in order
_held: dict[int, tuple] = {}  # storage: the tensor of the device that has it, the tensor on the CPU
_libraries: list[torch.library.Library] = []


def register(name: str) -> None:
    """Makes `name` a device of PyTorch's."""
    _setup_privateuseone_for_python_backend(name)
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(_run, "PrivateUse1")
    _libraries.append(fallback)


def define_operators() -> None:
    """What torch_npu registers in torch.ops.npu; they compute by our kernels for the CPU."""
    library = torch.library.Library("npu", "DEF")
    library.define(
        "npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)"
    )
    library.define(
        "npu_rms_norm_backward(Tensor dy, Tensor self, Tensor gamma, Tensor rstd) "
        "-> (Tensor, Tensor)"
    )
    library.impl("npu_rms_norm", _npu_rms_norm, "PrivateUse1")
    library.impl("npu_rms_norm_backward", _npu_rms_norm_backward, "PrivateUse1")
    _libraries.append(library)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor of the device, not copied."""
    if tensor.is_cpu:
        return tensor
    return _held[tensor.untyped_storage()._cdata][1].reshape(tensor.shape)


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    made = torch._C._acc.create_empty_tensor(tensor.shape, tensor.dtype)
    _held[made.untyped_storage()._cdata] = made, tensor
    return made


def _run(op, *args, **kwargs):
    """Every operator of PyTorch's that has no kernel for the device."""
    arguments = op._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    inputs = tree_map_only(torch.Tensor, on_cpu, given)
    if inputs.get("device") is not None:
        inputs["device"] = "cpu"
    if op is torch.ops.aten._copy_from.default:
        inputs["dst"].copy_(inputs["self"])
        return given["dst"]
    if op is torch.ops.aten.as_strided.default:  # of strides that the device has: contiguous ones
        inputs["self"] = inputs["self"].contiguous()
    written = [given[argument.name] for argument in arguments if _is_written(argument)]
    outputs = op(**inputs)
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map_only(torch.Tensor, _on_device, outputs)


def _is_written(argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _npu_rms_norm(self, gamma, epsilon=1e-6):
    calls.append("npu_rms_norm")
    assert gamma.dtype == self.dtype
    y, rstd = rmsnorm.npu_rms_norm(on_cpu(self), on_cpu(gamma), epsilon)
    return _on_device(y), _on_device(rstd)


def _npu_rms_norm_backward(dy, self, gamma, rstd):
    calls.append("npu_rms_norm_backward")
    assert dy.dtype == self.dtype == gamma.dtype
    gradients = rmsnorm.npu_rms_norm_backward(*map(on_cpu, (dy, self, gamma, rstd)))
    return tuple(map(_on_device, gradients))
