"""What the tests of the operator share: operands, bits, and the formula in float64."""

import itertools

import pytest
import torch
from torch import Tensor

import rmsnorm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# From the smallest to a model's, with uneven ones, eight axes, and leaves that don't fill up.
SHAPES = (
    [1],
    [7],
    [3, 1],
    [2, 64],
    [5, 513],
    [2, 3, 4096],
    [1, 1, 2, 1, 3, 2, 1, 128],
    [1024, 12288],
)


def has_pytorch(since: str) -> bool:
    """Whether PyTorch is no older than `since`, as "2.4"."""
    here, needed = (
        tuple(int(part) for part in version.split(".")[:2])
        for version in (torch.__version__, since)
    )
    return here >= needed


def needs_pytorch(since: str, what: str) -> pytest.MarkDecorator:
    """Skips a test by the name of what it needs, where PyTorch is older than `since`."""
    return pytest.mark.skipif(not has_pytorch(since), reason=f"needs PyTorch {since}: {what}")


def gamma_shapes(shape: list[int]) -> list[list[int]]:
    """One, two and all of the last axes."""
    spans = {1, min(2, len(shape)), len(shape)}
    return [shape[-span:] for span in sorted(spans)]


def dtype_pairs() -> list[tuple[torch.dtype, torch.dtype]]:
    """(x, gamma): any dtype with any."""
    return list(itertools.product(DTYPES, DTYPES))


def random_operands(shape: list[int], gamma_shape: list[int], dtypes: tuple) -> tuple[Tensor, ...]:
    """x, gamma and dy; dtypes: x's and dy's, gamma's."""
    x = torch.randn(shape).to(dtypes[0])
    return x, torch.randn(gamma_shape).to(dtypes[1]), torch.randn(shape).to(dtypes[0])


def bits(tensor: Tensor) -> Tensor:
    """The elements as integers, so that equal means equal bits, NaN and zeros included."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(widths[tensor.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def formula(x: Tensor, gamma: Tensor | None, epsilon: float, gamma_offset: float = 0.0) -> Tensor:
    """y in the dtype of x, by PyTorch's own operators and their autograd."""
    axes = list(range(-(gamma.dim() if gamma is not None else 1), 0))
    y = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
    return y if gamma is None else y * (gamma_offset + gamma)


def forward_and_backward(
    x: Tensor, gamma: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, rstd, dx, dgamma) of npu_rms_norm."""
    y, rstd = rmsnorm.npu_rms_norm(x, gamma)
    dx, dgamma = rmsnorm.npu_rms_norm_backward(dy, x, gamma, rstd)
    return y, rstd, dx, dgamma
