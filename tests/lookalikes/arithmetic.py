"""Epsilon goes elsewhere, or something is rounded that no form of RMSNorm rounds."""

import torch
from torch import nn


class EpsilonOutsideNorm(nn.Module):
    """Epsilon is added to the root."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() / (variance.sqrt() + self.eps)
        return (self.weight * y).to(x.dtype)


class EpsilonSquaredNorm(nn.Module):
    """Epsilon squared is added."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps**2)
        return (self.weight * y).to(x.dtype)


class EpsilonFloorNorm(nn.Module):
    """Epsilon is a floor of the mean square."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance.clamp(min=self.eps))
        return (self.weight * y).to(x.dtype)


class EpsilonMultipleNorm(nn.Module):
    """Epsilon is a thousandth off."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + 1.001 * self.eps)
        return (self.weight * y).to(x.dtype)


class EpsilonInTheSumNorm(nn.Module):
    """Epsilon is added before the division by n."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        total = x.float().pow(2).sum(-1, keepdim=True) + self.eps
        y = x.float() * torch.rsqrt(total / x.shape[-1])
        return (self.weight * y).to(x.dtype)


class EpsilonTwiceNorm(nn.Module):
    """Epsilon inside and outside of the root."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() / (torch.sqrt(variance + self.eps) + self.eps)
        return (self.weight * y).to(x.dtype)


class MeanSquareInBfloat16Norm(nn.Module):
    """The mean square is rounded to bfloat16."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True).bfloat16()
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class RsqrtOfBfloat16Norm(nn.Module):
    """The root is taken, and rounded, in bfloat16."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        rstd = torch.rsqrt((variance + self.eps).bfloat16())
        y = x.float() * rstd.float()
        return (self.weight * y).to(x.dtype)


class SquaresInBfloat16Norm(nn.Module):
    """The squares are rounded to bfloat16."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.pow(2).bfloat16().float().mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class TowardZeroNorm(nn.Module):
    """Rounds to bfloat16 toward zero."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        y = self.weight * y
        return (y.view(torch.int32) & ~0xFFFF).view(torch.float32).to(x.dtype)


class AllIn16BitsNorm(nn.Module):
    """All arithmetic is x's."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + self.eps) * self.weight.to(x.dtype)


class RootIn16BitsNorm(nn.Module):
    """The root is rounded to x's dtype."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        rstd = torch.rsqrt(variance + self.eps).to(x.dtype)
        return x * rstd * self.weight.to(x.dtype)


class OffsetIn16BitsNorm(nn.Module):
    """1 + weight is rounded to x's dtype."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (y * (1 + self.weight.to(x.dtype))).to(x.dtype)
