"""The compiled library: loading it, and the calls of its C interface that take no tensor."""

import ctypes
import functools
import json
from pathlib import Path

FOLDER = Path(__file__).parent / "lib"


@functools.cache
def core() -> ctypes.CDLL:
    """The C interface of include/rmsnorm/rmsnorm.h."""
    library = ctypes.CDLL(str(FOLDER / "librmsnorm.so"))
    for name in ("rmsnorm_last_error", "rmsnorm_operators", "rmsnorm_cpu_targets"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def operators() -> list[dict]:
    """Every operator of core/ops.h: its name, formula, inputs, attributes, outputs, source."""
    return json.loads(core().rmsnorm_operators())


def cpu_targets() -> list[str]:
    """Instruction sets that this machine can run, best first; "reference" is the scalar one."""
    return core().rmsnorm_cpu_targets().decode().split()


def use_cpu_target(name: str | None) -> None:
    """Make all later calls of this process use one instruction set; None: the best.

    For tests and measurements: it changes speed, never bits.

    Raises:
        ValueError: name is not one of cpu_targets().
    """
    if core().rmsnorm_use_cpu_target(None if name is None else name.encode()) != 0:
        raise ValueError(core().rmsnorm_last_error().decode())
