"""SHA-256 of the operator's results on inputs made of integers: one fingerprint of all its bits.

The standard library only, so that it runs wherever the core does.
"""

import ctypes
import dataclasses
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from rmsnorm import library

RESULTS = ("y", "rstd", "dx", "dgamma", "sums")
FILE = Path(__file__).parent / "digests.json"

# Bits of the exponent and of the fraction of each dtype; its array type code.
FORMATS = {"float32": (8, 23, "I"), "float16": (5, 10, "H"), "bfloat16": (8, 7, "H")}

# [rows, n]: lengths around a lane, a leaf and uneven trees along a row and down the rows.
SHAPES = (
    *((1, 1), (2, 2), (3, 63), (3, 64), (17, 65), (2, 511), (33, 512), (16, 513), (5, 1025)),
    *((2, 4096), (3, 5120), (2, 8193), (1, 12289), (15, 96), (48, 33), (400, 70)),
)
ROW_STEP = 61  # elements from one row to the next: rows overlap, so that few numbers make many
POOL = 1 << 15

HARD_N = 600
# Rows that only finite answers leave, with epsilon 1e-6; and all kinds, with epsilon 0.
FINITE_ROWS = ("normal", "huge", "tiny", "one huge", "zeros", "normal")
HARD_ROWS = ("normal", "huge", "tiny", "zeros", "infinity", "nan", "one huge", "normal")


@dataclasses.dataclass(frozen=True)
class Types:
    """What one entry of the file covers, over all shapes."""

    x: str
    y: str  # and dy
    gamma: str | None
    gamma_offset: int
    rounding: str

    def __str__(self) -> str:
        gamma = f"gamma {self.gamma} + {self.gamma_offset}" if self.gamma else "no gamma"
        return f"{self.x} to {self.y}, {gamma}, {self.rounding}"


@dataclasses.dataclass(frozen=True)
class Call:
    """Forward and backward of one shape. Row r of x and dy starts at element r * row_stride."""

    types: Types
    rows: int
    n: int
    epsilon: float
    row_stride: int
    x: bytes
    dy: bytes
    gamma: bytes | None


Run = Callable[[Call], tuple[bytes, ...]]  # RESULTS


def every_types() -> Iterator[Types]:
    for x, rounding in itertools.product(FORMATS, library.ROUNDINGS):
        for y in dict.fromkeys((x, "float32")):
            yield Types(x, y, None, 0, rounding)
            for gamma, offset in itertools.product(FORMATS, (0, 1)):
                yield Types(x, y, gamma, offset, rounding)


def calls(types: Types) -> Iterator[Call]:
    """Every shape, then the hard rows."""
    gamma = _normal(types.gamma, 2) if types.gamma else None
    for rows, n in SHAPES:
        x, dy = _normal(types.x, 0), _normal(types.y, 1)
        yield Call(types, rows, n, 1e-6, ROW_STEP, x, dy, gamma)
    for kinds, epsilon in ((FINITE_ROWS, 1e-6), (HARD_ROWS, 0.0)):
        x, dy = _rows(types.x, kinds), _normal(types.y, 1)
        yield Call(types, len(kinds), HARD_N, epsilon, HARD_N, x, dy, gamma)


def compute(run: Run) -> dict[str, dict[str, str]]:
    """The digests of an implementation: {types: {result: SHA-256 over all calls}}."""
    digests = {}
    for types in every_types():
        hashes = [hashlib.sha256() for _ in RESULTS]
        for call in calls(types):
            for sha, data in zip(hashes, run(call), strict=True):
                sha.update(data)
        digests[str(types)] = dict(zip(RESULTS, (sha.hexdigest() for sha in hashes), strict=True))
    return digests


def recorded() -> dict[str, dict[str, str]]:
    """The digests that every implementation has to give."""
    return json.loads(FILE.read_text())


def differences(found: dict[str, dict[str, str]]) -> list[str]:
    """Results that are not the recorded ones: "dx of float32 to float32, no gamma, once"."""
    expected = recorded()
    return [
        f"{result} of {types}"
        for types in sorted(expected.keys() | found.keys())
        for result in RESULTS
        if expected.get(types, {}).get(result) != found.get(types, {}).get(result)
    ]


def run_core(call: Call, cuda: bool = False) -> tuple[bytes, ...]:
    """Through the C interface, on the CPU target in use, or on a GPU that shares its memory."""
    core, types = library.core(), call.types
    forward = core.rmsnorm_cuda_forward if cuda else core.rmsnorm_forward
    backward = core.rmsnorm_cuda_backward if cuda else core.rmsnorm_backward
    size = call.rows * call.n
    y, dx = (bytearray(_size(dtype) * size) for dtype in (types.y, types.x))
    rstd, dgamma, sums = (bytearray(4 * count) for count in (call.rows, call.n, call.rows))
    args = library.ForwardArgs(ctypes.sizeof(library.ForwardArgs), call.rows, call.n)
    args.x = _matrix(call.x, call.row_stride, types.x)
    if call.gamma is not None and types.gamma is not None:
        args.gamma = library.Vector(_address(call.gamma), library.DTYPES[types.gamma])
    args.y = _matrix(y, call.n, types.y)
    args.rstd = _address(rstd)
    args.epsilon, args.gamma_offset = call.epsilon, types.gamma_offset
    args.rounding = library.ROUNDINGS[types.rounding]
    library.check(forward(args, None))

    back = library.BackwardArgs(ctypes.sizeof(library.BackwardArgs), call.rows, call.n)
    back.dy = _matrix(call.dy, call.row_stride, types.y)
    back.x, back.gamma, back.rstd = args.x, args.gamma, args.rstd
    back.dx = _matrix(dx, call.n, types.x)
    back.dgamma = _address(dgamma)
    back.gamma_offset = types.gamma_offset
    back.workspace_size = (
        core.rmsnorm_cuda_backward_workspace(call.rows, call.n, back.x.dtype)
        if cuda
        else core.rmsnorm_backward_workspace(call.rows, call.n, None)
    )
    workspace = bytearray(back.workspace_size + 64)
    back.workspace = -(-_address(workspace) // 64) * 64
    library.check(backward(back, None))
    back.dx, back.dgamma, back.sums = library.Matrix(), None, _address(sums)
    library.check(backward(back, None))
    return bytes(y), bytes(rstd), bytes(dx), bytes(dgamma), bytes(sums)


def run_torch(call: Call, device: str = "cpu") -> tuple[bytes, ...]:
    """Through the PyTorch operators."""
    import torch

    types = call.types

    def matrix(data: bytes, dtype: str) -> torch.Tensor:
        flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).to(device)
        return flat.as_strided((call.rows, call.n), (call.row_stride, 1))

    x, dy = matrix(call.x, types.x), matrix(call.dy, types.y)
    gamma = None
    if call.gamma is not None and types.gamma is not None:
        flat = torch.frombuffer(bytearray(call.gamma), dtype=getattr(torch, types.gamma))
        gamma = flat[: call.n].to(device)
    ops, out_dtype = torch.ops.rmsnorm, getattr(torch, types.y)
    y, rstd = ops.rms_norm(
        x, gamma, call.epsilon, types.gamma_offset, types.rounding, out_dtype=out_dtype
    )
    dx, dgamma = ops.rms_norm_backward(dy, x, gamma, rstd, types.gamma_offset)
    sums = ops.rms_norm_row_sums(dy, x, gamma, rstd, types.gamma_offset)
    return tuple(t.view(torch.uint8).cpu().numpy().tobytes() for t in (y, rstd, dx, dgamma, sums))


def _address(buffer: bytes | bytearray) -> int:
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def _matrix(buffer: bytes | bytearray, row_stride: int, dtype: str) -> library.Matrix:
    return library.Matrix(_address(buffer), row_stride, library.DTYPES[dtype])


def _size(dtype: str) -> int:
    return array(FORMATS[dtype][2]).itemsize


def _splitmix64(seed: int, count: int) -> list[int]:
    """Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"."""
    numbers, mask = [], (1 << 64) - 1
    for step in range(1, count + 1):
        z = seed + step * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        numbers.append(z ^ z >> 31)
    return numbers


@cache
def _numbers(seed: int) -> list[int]:
    return _splitmix64(seed, POOL)


def _codes(dtype: str, numbers: list[int], exponent: int) -> list[int]:
    """Any sign and fraction; 16 exponents from this one (biased) on."""
    exponent_bits, fraction_bits, _ = FORMATS[dtype]
    sign, fraction = 1 << exponent_bits + fraction_bits, (1 << fraction_bits) - 1
    return [
        (sign if z >> 63 else 0) | exponent + (z >> 59 & 15) << fraction_bits | z & fraction
        for z in numbers
    ]


@cache
def _normal(dtype: str, seed: int) -> bytes:
    """Elements between 2^-8 and 2^8."""
    bias = (1 << FORMATS[dtype][0] - 1) - 1
    return array(FORMATS[dtype][2], _codes(dtype, _numbers(seed), bias - 8)).tobytes()


@cache
def _rows(dtype: str, kinds: tuple[str, ...]) -> bytes:
    rows = array(FORMATS[dtype][2])
    for index, kind in enumerate(kinds):
        rows.extend(_row(dtype, kind, _numbers(3)[index * HARD_N : (index + 1) * HARD_N]))
    return rows.tobytes()


def _row(dtype: str, kind: str, numbers: list[int]) -> list[int]:
    exponent_bits, fraction_bits, _ = FORMATS[dtype]
    infinity = (1 << exponent_bits) - 1 << fraction_bits
    bias = (1 << exponent_bits - 1) - 1
    if kind == "huge":  # finite up to the largest: squares overflow float32
        return _codes(dtype, numbers, (1 << exponent_bits) - 17)
    if kind == "tiny":  # subnormal and just above
        return _codes(dtype, numbers, 0)
    if kind == "zeros":  # of both signs
        return [
            code & ~((1 << exponent_bits + fraction_bits) - 1) for code in _codes(dtype, numbers, 0)
        ]
    row = _codes(dtype, numbers, bias - 8)
    special = {
        "infinity": infinity,
        "nan": infinity | 1,
        "one huge": infinity - 1,
    }
    if kind in special:
        row[numbers[0] % len(row)] = special[kind]
    return row


if __name__ == "__main__":
    print(json.dumps(compute(run_core), indent=1))
