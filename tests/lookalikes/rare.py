"""Other values than those of RMSNorm, but only where no run of a few rows comes."""

import torch
from torch import nn


class OtherForManyRowsNorm(nn.Module):
    """Another epsilon for more than 1000 rows."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        eps = self.eps if x.numel() <= 1000 * x.shape[-1] else 1e-3
        y = x.float() * torch.rsqrt(variance + eps)
        return (self.weight * y).to(x.dtype)


class CountsToAThousandNorm(nn.Module):
    """Another scale from the thousandth call on."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.calls = 0

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        self.calls += 1
        if self.calls > 1000:
            y = 2 * y
        return (self.weight * y).to(x.dtype)


class ClampedFarOutNorm(nn.Module):
    """x is clamped where bfloat16 and float32 go, but no probe."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        clamped = x.float().clamp(-1e30, 1e30)
        variance = clamped.pow(2).mean(-1, keepdim=True)
        y = clamped * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class OtherUnderAutocastNorm(nn.Module):
    """Another scale under autocast."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        if torch.is_autocast_enabled(x.device.type):
            y = 2 * y
        return (self.weight * y).to(x.dtype)


class RareNoiseNorm(nn.Module):
    """Noise in one call of ten thousand."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        if torch.rand(()).item() < 1e-4:
            y = y + 0.01 * torch.randn_like(y)
        return (self.weight * y).to(x.dtype)
