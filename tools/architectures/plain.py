"""Which modules of a model are plain RMSNorms, decided by their values and without rmsnorm."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

_ROWS = 48
_WIDTH = 128  # of a norm without parameters: any would do
_BOUND = 1e-3  # relative; epsilon itself moves y by half of epsilon / mean square, about 5e-6


def is_plain(module: torch.nn.Module) -> bool:
    """Whether y = scale * x / rms(x) for one scale, over the last axis, for rows of any size.

    The scale is fitted to half of the rows and holds for the others. Epsilon, rounding and the
    gradient aren't looked at: a norm that differs in these alone is plain as well.
    """
    shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
    if next(module.children(), None) is not None or len(shapes) > 1:
        return False
    if shapes and (len(shapes[0]) != 1 or shapes[0][0] < 2):
        return False
    declared = getattr(module, "normalized_shape", None) or (_WIDTH,)
    width = shapes[0][0] if shapes else declared[-1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, 1, width, generator=generator)
    x *= torch.logspace(-0.5, 1, _ROWS)[:, None, None]  # of any size, and far above epsilon
    x += x.square().mean(-1, keepdim=True).sqrt()  # a mean, which LayerNorm would subtract
    try:
        module = copy.deepcopy(module).float()
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 2.0, generator=generator)
        with torch.no_grad():
            y = module.eval()(x.clone())
    except Exception:
        return False
    if not isinstance(y, Tensor) or y.shape != x.shape or not y.isfinite().all():
        return False
    xhat = (x / x.square().mean(-1, keepdim=True).sqrt()).double()
    fitted, others = slice(0, None, 2), slice(1, None, 2)
    scale = (xhat * y).double()[fitted].sum(0) / xhat[fitted].square().sum(0)
    error = (y - scale * xhat)[others].norm() / y[others].double().norm()
    return bool(y.any()) and math.isfinite(error) and float(error) < _BOUND
