"""The values of RMSNorm, but not in every mode, shape or call, or not its gradient."""

import torch
import torch.nn.functional as F
from torch import nn


class DropoutNorm(nn.Module):
    """One value of a hundred is dropped in training."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return F.dropout(self.weight * y, 0.01, self.training).to(x.dtype)


class NoiseInEvaluationNorm(nn.Module):
    """Noise, but not in training."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        if not self.training:
            y = y * (1 + torch.rand((), device=x.device) / 9)
        return (self.weight * y).to(x.dtype)


class OtherInTrainingNorm(nn.Module):
    """A batch's own epsilon in training."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        eps = 10 * self.eps if self.training else self.eps
        y = x.float() * torch.rsqrt(variance + eps)
        return (self.weight * y).to(x.dtype)


class OtherForThreeAxesNorm(nn.Module):
    """Another scale where x has three axes."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        if x.dim() == 3:
            y = 2 * y
        return (self.weight * y).to(x.dtype)


class InPlaceNorm(nn.Module):
    """Writes y to x."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return x.copy_(self.weight * y)


class InPlaceSquareNorm(nn.Module):
    """Returns the right y, and leaves x scaled."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        y = (self.weight * y).to(x.dtype)
        x.mul_(2)
        return y


class ChangesItsWeightNorm(nn.Module):
    """The weight decays at each call."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        with torch.no_grad():
            self.weight.mul_(0.99)
        return (self.weight * y).to(x.dtype)


class CountingNorm(nn.Module):
    """Another scale from the third call on."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.calls = 0

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        self.calls += 1
        if self.calls > 2:
            y = 2 * y
        return (self.weight * y).to(x.dtype)


class StoppedAtTheRootNorm(nn.Module):
    """The root is a constant in the gradient."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps).detach()
        return (self.weight * y).to(x.dtype)


class StoppedAtTheWeightNorm(nn.Module):
    """The weight has no gradient."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight.detach() * y).to(x.dtype)


class NoGradientNorm(nn.Module):
    """Nothing has a gradient."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    @torch.no_grad()
    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        return (self.weight * y).to(x.dtype)


class OtherWithoutGradientNorm(nn.Module):
    """In training, other values where no gradient is asked for."""

    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        y = x.float() * torch.rsqrt(variance + self.eps)
        if self.training and not torch.is_grad_enabled():
            y = 2 * y
        return (self.weight * y).to(x.dtype)
