"""The fused RMSNorm operator and its gradient: the same bits everywhere, at the speed of memory."""

from rmsnorm.functional import npu_rms_norm, npu_rms_norm_backward, rms_norm
from rmsnorm.library import cpu_targets, operators, use_cpu_target
from rmsnorm.module import RMSNorm
from rmsnorm.patch import Report, patch, unpatch

__all__ = [
    "RMSNorm",
    "Report",
    "cpu_targets",
    "npu_rms_norm",
    "npu_rms_norm_backward",
    "operators",
    "patch",
    "rms_norm",
    "unpatch",
    "use_cpu_target",
]
