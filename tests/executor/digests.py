"""The digests of the kernels for GPUs, on each that the executor plays and in several orders of
blocks and threads: those of the CPU. Takes the folder of the executor's librmsnorm_cuda.so."""

import ctypes
import functools
import itertools
import sys
from pathlib import Path

from rmsnorm import digests, library


class Device(ctypes.Structure):
    """executor::Device."""

    _fields_ = (
        ("major", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("launches", ctypes.c_int64),
        ("most_clusters", ctypes.c_int),
        ("refusal", ctypes.c_int),
    )


def main() -> int:
    library.FOLDER = Path(sys.argv[1])
    executor = ctypes.CDLL(str(library.FOLDER / "librmsnorm_cuda.so"))
    executor.executor_device.restype = ctypes.POINTER(Device)
    device = executor.executor_device().contents
    run = functools.partial(digests.run_core, cuda=True)
    wrong = 0
    for (major, kilobytes), seed in itertools.product(((8, 163), (9, 227), (12, 99)), (0, 1, 2)):
        device.major, device.shared_bytes, device.seed = major, kilobytes << 10, seed
        found = digests.compute(run)
        different = digests.differences(found)
        count = len(digests.RESULTS) * len(found)
        print(f"sm_{major}0, order {seed}: {count - len(different)} of {count} agree", *different)
        wrong += len(different)
    return wrong != 0 or device.launches == 0


if __name__ == "__main__":
    sys.exit(main())
