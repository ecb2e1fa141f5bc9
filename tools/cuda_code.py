"""What nvcc made of the kernels for GPUs: only operations rounded to nearest, and no spilled
registers. `make test-cuda-code` prints it; it needs no GPU."""

import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rmsnorm import library

# Operations on floats that round; a name may follow a brace or a guard: "@%p1 mul.rn.f32".
_ROUNDS = r"add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh|cvt"
_OPERATION = re.compile(rf"\b(?:{_ROUNDS})(?:\.\w+)*\.(?:f|bf)(?:16|32|64)(?:x2)?(?:\.\w+)*")
_EXACT = re.compile(r"cvt\.f32\.b?f16|cvt\.f64\.f32")
# Flushed to zero, approximated, or in an order that the GPU chooses.
_FORBIDDEN = re.compile(r"\b(?:\w+\.)+(?:ftz|approx|full)\b|\b(?:atom|red)\.(?:\w+\.)*\w+")


@dataclass(frozen=True)
class Kernel:
    """As compiled for one architecture."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int  # where spilled registers lie


def operations(ptx: str) -> Counter[str]:
    """How often each operation that rounds occurs, by its full name."""
    return Counter(_OPERATION.findall(ptx))


def forbidden(ptx: str) -> list[str]:
    """Operations that would change bits between GPUs, or break the order of the sum."""
    inexact = [name for name in operations(ptx) if ".rn" not in name and not _EXACT.fullmatch(name)]
    return sorted({*inexact, *_FORBIDDEN.findall(ptx)})


def kernels(resource_usage: str) -> Iterator[Kernel]:
    """What cuobjdump -res-usage lists."""
    architecture = name = ""
    for line in resource_usage.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (.+):$", line):
            name = found[1]
        elif found := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            registers, stack, local = map(int, found.groups())
            yield Kernel(name, architecture, registers, stack + local)


def _cuobjdump(*arguments: str) -> str:
    packaged = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/cuobjdump")
    program = next(packaged, None) or shutil.which("cuobjdump")
    if program is None:
        sys.exit("cuobjdump: not found; expected in PATH or among the packages of this Python")
    file = library.FOLDER / "librmsnorm_cuda.so"
    done = subprocess.run([program, *arguments, file], capture_output=True, text=True, check=True)
    return subprocess.run(
        ["c++filt"], input=done.stdout, capture_output=True, text=True, check=True
    ).stdout


def _short(name: str) -> str:
    """HeldRows<BFloat16, float, 8>"""
    name = re.sub(r"rmsnorm::|cuda::|\(anonymous namespace\)::|^void ", "", name)
    return name.split("(")[0]


def main() -> int:
    console = Console(width=120)
    ptx = _cuobjdump("-ptx")
    counted = operations(ptx)
    wrong = forbidden(ptx)
    found = list(kernels(_cuobjdump("-res-usage")))
    architectures = sorted({kernel.architecture for kernel in found}, key=lambda a: int(a[3:]))
    table = Table(title="registers of a thread", title_justify="left")
    table.add_column("kernel")
    for architecture in architectures:
        table.add_column(architecture, justify="right")
    names = sorted({_short(kernel.name) for kernel in found})
    for name in names:
        row = {k.architecture: k for k in found if _short(k.name) == name}
        spilled = {a: f" + {k.stack_bytes} bytes spilled" for a, k in row.items() if k.stack_bytes}
        table.add_row(name, *(f"{row[a].registers}{spilled.get(a, '')}" for a in architectures))
    console.print(table)
    spills = [kernel for kernel in found if kernel.stack_bytes]
    console.print(
        f"{len(names)} kernels for {', '.join(architectures)}: {len(spills)} spill registers; "
        f"{counted.total()} operations of PTX that round, {len(wrong)} kinds not allowed",
        *wrong,
        soft_wrap=True,
    )
    return 1 if wrong or spills or not counted or not found else 0


if __name__ == "__main__":
    sys.exit(main())
