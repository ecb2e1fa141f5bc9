"""The fused RMSNorm operator and its gradient: the same bits everywhere, at the speed of memory."""

import warnings
from typing import Any

from rmsnorm.library import cpu_targets, operators, use_cpu_target

_why_not: Exception | None = None
try:
    from rmsnorm import parallel, sharding
    from rmsnorm.compile_pass import compile_pass
    from rmsnorm.compiled import compile_as
    from rmsnorm.functional import npu_rms_norm, npu_rms_norm_backward, rms_norm
    from rmsnorm.mapping import patch_mapping
    from rmsnorm.module import RMSNorm
    from rmsnorm.patch import patch, unpatch
    from rmsnorm.report import Report

    sharding.register_when_imported()
except Exception as error:
    _why_not = error  # the core and `rmsnorm doctor` work without PyTorch
    if not isinstance(error, ModuleNotFoundError):  # PyTorch is here
        warnings.warn(f"rmsnorm's operators don't load: {error}", RuntimeWarning, stacklevel=2)

__all__ = [
    "RMSNorm",
    "Report",
    "compile_as",
    "compile_pass",
    "cpu_targets",
    "npu_rms_norm",
    "npu_rms_norm_backward",
    "operators",
    "parallel",
    "patch",
    "patch_mapping",
    "rms_norm",
    "unpatch",
    "use_cpu_target",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise ImportError(
            f"rmsnorm.{name}: the PyTorch operators could not be loaded: {_why_not}; "
            "`rmsnorm doctor` says more"
        ) from _why_not
    raise AttributeError(f"module 'rmsnorm' has no attribute {name!r}")
