"""Another scale than the weight, or something after it."""

import torch
import torch.nn.functional as F
from torch import nn


class ScaleBeforeNorm(nn.Module):
    """The weight scales x before the norm."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        scaled = x.float() * self.weight
        variance = scaled.pow(2).mean(-1, keepdim=True)
        return (scaled * torch.rsqrt(variance + self.eps)).to(x.dtype)


class ScaleTwiceNorm(nn.Module):
    """The weight scales y twice."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y * self.weight).to(x.dtype)


class AbsoluteScaleNorm(nn.Module):
    """The scale is the absolute weight."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight.abs() * y).to(x.dtype)


class ExponentialScaleNorm(nn.Module):
    """The scale is exp(weight)."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (torch.exp(self.weight) * y).to(x.dtype)


class SigmoidScaleNorm(nn.Module):
    """The scale is sigmoid(weight)."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (torch.sigmoid(self.weight) * y).to(x.dtype)


class TanhGatedNorm(nn.Module):
    """The scale is 1 + tanh(weight)."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return ((1 + torch.tanh(self.weight)) * y).to(x.dtype)


class OffsetOfAHalfNorm(nn.Module):
    """The scale is 0.5 + weight."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return ((0.5 + self.weight) * y).to(x.dtype)


class OneMinusWeightNorm(nn.Module):
    """The scale is 1 - weight."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return ((1 - self.weight) * y).to(x.dtype)


class ConstantBiasNorm(nn.Module):
    """A hundredth is added to y."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y + 0.01).to(x.dtype)


class BiasNorm(nn.Module):
    """A parameter is added to y."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y + self.bias).to(x.dtype)


class ResidualNorm(nn.Module):
    """x is added to y."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y + x.float()).to(x.dtype)


class BufferScaledNorm(nn.Module):
    """The scale is a buffer beside the weight."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.register_buffer("factor", torch.full((dim,), 2.0))

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * self.factor * y).to(x.dtype)


class GatedNorm(nn.Module):
    """Another tensor gates y."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x, gate):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y * F.silu(gate.float())).to(x.dtype)


class SelfGatedNorm(nn.Module):
    """x gates y."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y * torch.sigmoid(x.float())).to(x.dtype)


class ClampedInputNorm(nn.Module):
    """x is clamped."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        clamped = x.float().clamp(-1000, 1000)
        variance = clamped.pow(2).mean(-1, keepdim=True)
        y = clamped * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class ClampedOutputNorm(nn.Module):
    """y is clamped."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).clamp(-5, 5).to(x.dtype)
