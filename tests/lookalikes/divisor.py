"""What x is divided by is almost its root mean square."""

import torch
import torch.nn.functional as F
from torch import nn


class MeanSubtractedNorm(nn.Module):
    """LayerNorm without a bias."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        dtype = x.dtype
        x = x.float()
        x = x - x.mean(-1, keepdim=True)
        variance = x.pow(2).mean(-1, keepdim=True)
        return (self.weight * (x * torch.rsqrt(variance + self.eps))).to(dtype)


class FunctionalLayerNorm(nn.Module):
    """F.layer_norm without a bias."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), None, self.eps)


class StandardDeviationNorm(nn.Module):
    """Divides by the standard deviation, but subtracts nothing."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().var(-1, keepdim=True, unbiased=False)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class SumNorm(nn.Module):
    """The sum of squares instead of their mean."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).sum(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class UnbiasedNorm(nn.Module):
    """Divides the sum of squares by n - 1."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).sum(-1, keepdim=True) / (x.shape[-1] - 1)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class PartialNorm(nn.Module):
    """The mean square of the first quarter of the row."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        part = x[..., : x.shape[-1] // 4].float()
        variance = part.pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class MeanAbsoluteNorm(nn.Module):
    """Divides by the mean of the absolute values."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        mean = x.float().abs().mean(-1, keepdim=True)
        y = x.float() / (mean + self.eps)
        return (self.weight * y).to(x.dtype)


class LargestValueNorm(nn.Module):
    """Divides by the largest absolute value."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        largest = x.float().abs().amax(-1, keepdim=True)
        y = x.float() / (largest + self.eps)
        return (self.weight * y).to(x.dtype)


class L2Norm(nn.Module):
    """Rows of length 1."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return (self.weight * F.normalize(x.float(), dim=-1, eps=self.eps)).to(x.dtype)


class ScaledL2Norm(nn.Module):
    """Right but for rows that are almost 0: a floor instead of an epsilon."""

    def __init__(self, dim, eps=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = F.normalize(x.float(), dim=-1, eps=1e-30) * x.shape[-1] ** 0.5
        return (self.weight * y).to(x.dtype)


class CubicNorm(nn.Module):
    """The third moment and its root."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        moment = x.float().abs().pow(3).mean(-1, keepdim=True)
        y = x.float() * (moment + self.eps).pow(-1 / 3)
        return (self.weight * y).to(x.dtype)


class CubeRootNorm(nn.Module):
    """The cube root of the mean square."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * (variance + self.eps).pow(-1 / 3)
        return (self.weight * y).to(x.dtype)


class WrongPowerNorm(nn.Module):
    """The power -0.51 of the mean square."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * (variance + self.eps).pow(-0.51)
        return (self.weight * y).to(x.dtype)


class NoRootNorm(nn.Module):
    """The mean square without its root."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() / (variance + self.eps)
        return (self.weight * y).to(x.dtype)


class OverRowsNorm(nn.Module):
    """Over the last axis but one."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-2, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class OverAxis1Norm(nn.Module):
    """Over axis 1, which is the last where x has two."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class OverAllButTheFirstNorm(nn.Module):
    """Over all axes but the first."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        axes = tuple(range(1, x.dim()))
        variance = x.float().pow(2).mean(axes, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class GroupedNorm(nn.Module):
    """Over each fourth of a row, with a weight that spans all of them."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        groups = x.float().unflatten(-1, (4, -1))
        variance = groups.pow(2).mean(-1, keepdim=True)
        y = (groups * torch.rsqrt(variance + self.eps)).flatten(-2)
        return (self.weight * y).to(x.dtype)


class WeightUsedTwiceNorm(nn.Module):
    """The weight scales the squares and the result."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = (x.float() * self.weight).pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)
