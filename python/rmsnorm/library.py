"""The compiled core: its C interface (include/rmsnorm/rmsnorm.h), without PyTorch."""

import ctypes
import functools
import json
from ctypes import c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

FOLDER = Path(__file__).parent / "lib"

DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3}
ROUNDINGS = {"once": 1, "before_gamma": 2}


class Matrix(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("row_stride", c_int64), ("dtype", c_int32))


class Vector(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("dtype", c_int32))


class ForwardArgs(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("rows", c_int64),
        ("n", c_int64),
        ("x", Matrix),
        ("gamma", Vector),
        ("y", Matrix),
        ("rstd", c_void_p),
        ("epsilon", c_double),
        ("gamma_offset", c_double),
        ("rounding", c_int32),
    )


class BackwardArgs(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("rows", c_int64),
        ("n", c_int64),
        ("dy", Matrix),
        ("x", Matrix),
        ("gamma", Vector),
        ("rstd", c_void_p),
        ("dx", Matrix),
        ("dgamma", c_void_p),
        ("gamma_offset", c_double),
        ("workspace", c_void_p),
        ("workspace_size", c_size_t),
        ("sums", c_void_p),
        ("whole_sums", c_void_p),
        ("whole_n", c_int64),
    )


@functools.cache
def core() -> ctypes.CDLL:
    """The C interface.

    Raises:
        OSError: the library is missing or doesn't run on this machine.
    """
    library = ctypes.CDLL(str(FOLDER / "librmsnorm.so"))
    for name in ("last_error", "operators", "cpu_targets", "build"):
        getattr(library, f"rmsnorm_{name}").restype = c_char_p
    library.rmsnorm_forward.argtypes = (ctypes.POINTER(ForwardArgs), c_void_p)
    library.rmsnorm_backward.argtypes = (ctypes.POINTER(BackwardArgs), c_void_p)
    library.rmsnorm_backward_workspace.argtypes = (c_int64, c_int64, c_void_p)
    library.rmsnorm_backward_workspace.restype = c_size_t
    library.rmsnorm_cuda_forward.argtypes = (ctypes.POINTER(ForwardArgs), c_void_p)
    library.rmsnorm_cuda_backward.argtypes = (ctypes.POINTER(BackwardArgs), c_void_p)
    library.rmsnorm_cuda_backward_workspace.argtypes = (c_int64, c_int64, c_int32)
    library.rmsnorm_cuda_backward_workspace.restype = c_size_t
    return library


def check(status: int) -> None:
    """Raises the message of the last call as a ValueError unless its status is RMSNORM_OK."""
    if status != 0:
        raise ValueError(core().rmsnorm_last_error().decode())


def operators() -> list[dict]:
    """Every operator of core/ops.h: its name, formula, inputs, attributes, outputs, source."""
    text = core().rmsnorm_operators()
    if text is None:
        raise MemoryError(core().rmsnorm_last_error().decode())
    return json.loads(text)


def build() -> dict[str, str]:
    """How the library was built: version, compiler, flags."""
    return json.loads(core().rmsnorm_build())


def cpu_targets() -> list[str]:
    """Instruction sets that this machine can run, best first; "reference" is the scalar one."""
    return core().rmsnorm_cpu_targets().decode().split()


def use_cpu_target(name: str | None) -> None:
    """Make all later calls of this process use one instruction set; None: the best.

    For tests and measurements: it changes speed, never bits.

    Raises:
        ValueError: name is not one of cpu_targets().
    """
    check(core().rmsnorm_use_cpu_target(None if name is None else name.encode()))


def why_no_cuda() -> str | None:
    """What a call for the current GPU lacks here: code for it, a driver, a GPU. None: nothing."""
    no_rows = ForwardArgs(ctypes.sizeof(ForwardArgs), 0, 1)
    no_rows.x.dtype = no_rows.y.dtype = DTYPES["float32"]
    no_rows.rounding = ROUNDINGS["once"]
    if core().rmsnorm_cuda_forward(no_rows, None) == 0:
        return None
    return core().rmsnorm_last_error().decode()


def check_arithmetic() -> None:
    """See that the compiled code of the instruction set in use keeps the contract's arithmetic.

    Raises:
        ArithmeticError: it doesn't; the text names the rule that it breaks.
    """
    if core().rmsnorm_check_arithmetic() != 0:
        raise ArithmeticError(core().rmsnorm_last_error().decode())
