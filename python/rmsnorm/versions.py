"""PyTorch's versions: the one that the operators fit, and names that not all since 2.1 have."""

import torch

from rmsnorm import library

try:
    from torch.compiler import is_compiling
except ImportError:  # before 2.3
    from torch._utils import is_compiling

__all__ = ["is_compiling", "load_operators"]


def load_operators() -> None:
    """Load torch.ops.rmsnorm and rmsnorm.call, which call into PyTorch's C++.

    PyTorch keeps no C++ interface from one minor version to the next: where the libraries load all
    the same, a call may crash.

    Raises:
        ImportError: they were built for another PyTorch; the text has the command that mends it.
    """
    record = library.FOLDER / "torch_version.txt"
    built_for = record.read_text() if record.exists() else "of an unknown version"
    other = (
        f"built for PyTorch {built_for}, and PyTorch {torch.__version__} is here; run in rmsnorm's "
        "source folder: pip install --no-build-isolation --no-deps ."
    )
    if built_for.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ImportError(other)
    try:
        torch.ops.load_library(library.FOLDER / "librmsnorm_torch.so")
        from rmsnorm import call  # noqa: F401
    except (ImportError, OSError) as error:
        if (
            "undefined symbol" in f"{error}{error.__cause__}"
        ):  # the same version, compiled otherwise
            raise ImportError(other) from error
        raise
