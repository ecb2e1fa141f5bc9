"""Whether a thread flushes subnormal numbers to zero, and which library has made it so.

Code built with -ffast-math sets that mode, for all other code too, when its library is loaded.
"""

import ctypes
import json
import os
import subprocess
import sys
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint16, c_uint64, c_void_p
from pathlib import Path
from typing import Any


def flushes_subnormals() -> bool:
    """Whether this thread's arithmetic takes or gives zero for subnormal numbers."""
    least_normal, least = sys.float_info.min, 5e-324
    return _product(least_normal, 0.5) == 0 or _product(least, 2.0**52) == 0


def libraries_that_flush() -> list[str]:
    """Paths of this process's shared libraries that set the mode as they are loaded.

    Each is loaded again in a process of its own, dependencies first.
    """
    child = subprocess.run(
        [sys.executable, "-S", __file__],
        input=json.dumps(_loaded()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if child.returncode != 0:
        raise OSError(f"the process that loads each library ended with {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])


def _product(a: float, b: float) -> float:
    return a * b  # in a function, so that Python doesn't compute it at compile time


class _Info(ctypes.Structure):
    """The head of struct dl_phdr_info."""

    _fields_ = (
        ("address", c_uint64),
        ("name", c_char_p),
        ("headers", c_void_p),
        ("count", c_uint16),
    )


def _loaded() -> list[str]:
    """Paths of the shared libraries of this process, dependencies before their users."""
    paths: list[str] = []

    @ctypes.CFUNCTYPE(c_int, POINTER(_Info), c_size_t, c_void_p)
    def note(info: Any, _size: int, _data: Any) -> int:
        path = os.fsdecode(info.contents.name or b"")
        if path and Path(path).is_file():
            paths.append(path)
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(note, None)
    return paths[::-1]


def _load_each() -> None:
    default_modes = c_void_p(-1)  # FE_DFL_ENV of <fenv.h>
    fesetenv = ctypes.CDLL("libm.so.6").fesetenv
    found = []
    for path in json.load(sys.stdin):
        fesetenv(default_modes)
        try:
            ctypes.CDLL(path)
        except OSError:  # it needs what only its own process has
            continue
        if flushes_subnormals():
            found.append(path)
    print(json.dumps(found), flush=True)
    os._exit(0)  # without the destructors of so many libraries


if __name__ == "__main__":
    _load_each()
