"""Draws docs/accuracy.png: errors of rstd, y, dx and dgamma against exact sums, and their bounds.

Prints the table of docs/numerics.md. tests/test_accuracy.py holds every error to its bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import rmsnorm

UNIT = 2.0**-24  # half of the distance from 1 to the next float32, which bounds a rounding
EPSILON = 1e-6
FIGURE = Path(__file__).parents[1] / "docs/accuracy.png"
QUANTITIES = ("rstd", "y", "dx", "dgamma")
Norm = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Bounds:
    """How many roundings, each of at most UNIT, can meet in a result of float32 operands."""

    rows: int
    n: int

    @property
    def dot(self) -> int:
        """A chain of up to 8, a tree over up to 64 lanes, a tree over the leaves."""
        chain = min(8, math.ceil(self.n / 64))
        return chain + _levels(min(self.n, 64)) + _levels(math.ceil(self.n / 512))

    @property
    def rstd(self) -> float:
        """The mean and + epsilon add 2 to the sum; the root halves that; two more operations."""
        return (self.dot + 2) / 2 + 2

    @property
    def y(self) -> float:
        """Of float32 results: xhat, and the product with gamma."""
        return self.rstd + 2

    @property
    def dx(self) -> float:
        """Of the term -xhat c rstd, which has more than w rstd.

        xhat and the xhat inside of c: rstd's and one more each; w: 1; the sum of c, its quotient;
        the fma, the last product, and rstd.
        """
        return 2 * (self.rstd + 1) + 1 + self.dot + 1 + 2 + self.rstd

    @property
    def dgamma(self) -> float:
        """xhat; a chain of up to 16; a tree over the leaves."""
        return self.rstd + 1 + min(16, self.rows) + _levels(math.ceil(self.rows / 16))


def errors(norm: Norm, rows: int, n: int) -> dict[str, float]:
    """The largest errors of norm(x, gamma) -> (y, rstd or None), in units of UNIT.

    rstd, y: relative. dx: relative to rstd (|w| + |xhat| mean|w xhat|). dgamma: relative to the
    sum of |dy xhat|.
    """
    generator = torch.Generator().manual_seed(rows * 31 + n)
    worst = dict.fromkeys(QUANTITIES, 0.0)
    for draw in (torch.randn, torch.rand):
        x, dy = (draw(rows, n, generator=generator) for _ in range(2))
        gamma = draw(n, generator=generator)
        for name, error in _errors(norm, x, gamma, dy).items():
            worst[name] = max(worst[name], error)
    return worst


def ours(x: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rmsnorm.npu_rms_norm(x, gamma, EPSILON)


def pytorchs(x: torch.Tensor, gamma: torch.Tensor) -> tuple[torch.Tensor, None]:
    return F.rms_norm(x, gamma.shape, gamma, EPSILON), None


def _levels(leaves: int) -> int:
    return (leaves - 1).bit_length()


def _errors(norm: Norm, x: torch.Tensor, gamma: torch.Tensor, dy: torch.Tensor) -> dict[str, float]:
    x.requires_grad_()
    gamma.requires_grad_()
    y, rstd = norm(x, gamma)
    dx, dgamma = torch.autograd.grad(y, (x, gamma), dy)

    def wide(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().numpy().astype(np.longdouble)

    # A long double has 11 more bits than the products need, so its sums stand for exact ones.
    wx, wg, wdy = wide(x), wide(gamma), wide(dy)
    exact_rstd = 1 / np.sqrt(np.mean(wx**2, 1, keepdims=True) + np.longdouble(np.float32(EPSILON)))
    xhat, w = wx * exact_rstd, wdy * wg
    exact_dx = (w - xhat * np.mean(w * xhat, 1, keepdims=True)) * exact_rstd
    dx_scale = exact_rstd * (abs(w) + abs(xhat) * np.mean(abs(w * xhat), 1, keepdims=True))
    found = {
        "y": (y, xhat * wg, abs(xhat * wg)),
        "dx": (dx, exact_dx, dx_scale),
        "dgamma": (dgamma, np.sum(wdy * xhat, 0), np.sum(abs(wdy * xhat), 0)),
    }
    if rstd is not None:
        found["rstd"] = (rstd, exact_rstd, exact_rstd)
    return {
        name: float(np.max(abs(wide(result) - exact)[scale > 0] / scale[scale > 0])) / UNIT
        for name, (result, exact, scale) in found.items()
    }


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    print("| result | at | error, rmsnorm | bound | error, PyTorch |\n|---|---|---|---|---|")
    for axis, quantity in zip(axes.flat, QUANTITIES, strict=True):
        down = quantity == "dgamma"
        sizes = [2**k for k in range(18 if down else 21)]
        shapes = [(size, 64) if down else (max(1, 2**18 // size), size) for size in sizes]
        bounds = [getattr(Bounds(*shape), quantity) for shape in shapes]
        found = [errors(ours, *shape)[quantity] for shape in shapes]
        theirs = [errors(pytorchs, *shape).get(quantity) for shape in shapes]
        axis.plot(sizes, bounds, "--", color="gray", label="bound")
        axis.plot(sizes, found, "o-", color="tab:blue", label="rmsnorm")
        if quantity != "rstd":  # which PyTorch doesn't return
            axis.plot(sizes, theirs, "x-", color="tab:orange", label="F.rms_norm")
        axis.set(xscale="log", yscale="log", title=quantity, xlabel="rows" if down else "n")
        axis.set_ylabel("largest error, in units of 2^-24")
        axis.legend()
        worst = max(range(len(sizes)), key=found.__getitem__)
        peer = "" if quantity == "rstd" else f"{max(theirs):.1f}"
        at = f"{'rows' if down else 'n'} = {sizes[worst]}"
        print(f"| {quantity} | {at} | {found[worst]:.1f} | {bounds[worst]:.1f} | {peer} |")
    figure.savefig(FIGURE, dpi=110)
    print(f"{FIGURE}: drawn")


if __name__ == "__main__":
    main()
