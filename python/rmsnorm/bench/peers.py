"""Peers outside PyTorch. Each makes its calls on a case, or says by LookupError why it cannot."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rmsnorm.bench.harness import cores, name_of
from rmsnorm.bench.ways import EPSILON, Case, Passes

ONNX, JAX, LIGER, QUACK = "ONNX Runtime", "JAX", "Liger", "Quack"  # the last two: cuda/peers.py


def onnx_runtime(case: Case, threads: int) -> Passes:
    """The operator RMSNormalization of opset 23, into memory that was written before."""
    onnx, runtime = _installed("onnx"), _installed("onnxruntime")
    if case.dtype == torch.bfloat16 or case.shape.row_stride:
        raise LookupError("refused")  # NumPy has no bfloat16; its inputs are contiguous
    x, gamma = case.x.detach().numpy(), case.gamma.detach().numpy()
    y = np.zeros_like(x)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads wait actively, for long after a call, on the cores that the next way needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(
        _model(onnx, x.shape, gamma.shape, x.dtype), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_cpu_input("gamma", gamma)
    binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def forward() -> Any:
        session.run_with_iobinding(binding)
        return y

    return Passes(forward, tensor=torch.from_numpy)


def jax(case: Case, threads: int) -> Passes:
    """The small operators under jit, which always takes all cores."""
    module = _installed("jax")
    if threads != cores():
        raise LookupError("all threads only")
    if case.shape.row_stride:
        raise LookupError("refused")  # its arrays are contiguous
    numpy = importlib.import_module("jax.numpy")
    x, gamma, dy = (
        numpy.asarray(tensor.detach().float().numpy()).astype(name_of(case.dtype))
        for tensor in (case.x, case.gamma, case.dy)
    )

    def normalize(x: Any, gamma: Any) -> Any:
        wide = x.astype(numpy.float32)
        mean = numpy.mean(wide * wide, -1, keepdims=True)
        return (wide * module.lax.rsqrt(mean + EPSILON)).astype(x.dtype) * gamma

    forward = module.jit(normalize)
    both = module.jit(lambda x, gamma, dy: module.vjp(normalize, x, gamma)[1](dy))
    return Passes(
        lambda: forward(x, gamma).block_until_ready(),
        lambda: module.block_until_ready(both(x, gamma, dy)),
        lambda result: torch.from_numpy(np.array(result.astype(numpy.float32))),
    )


PEERS: dict[str, Callable[[Case, int], Passes]] = {ONNX: onnx_runtime, JAX: jax}


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise LookupError("not installed") from None


def _model(onnx: Any, shape: Any, gamma_shape: Any, dtype: Any) -> bytes:
    helper = onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    inputs = [
        helper.make_tensor_value_info("x", kind, shape),
        helper.make_tensor_value_info("gamma", kind, gamma_shape),
    ]
    output = helper.make_tensor_value_info("y", kind, shape)
    node = helper.make_node("RMSNormalization", ["x", "gamma"], ["y"], axis=-1, epsilon=EPSILON)
    graph = helper.make_graph([node], "rms_norm", inputs, [output])
    opset = helper.make_opsetid("", 23)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=11)
    serialized: bytes = model.SerializeToString()
    return serialized
