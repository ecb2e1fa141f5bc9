"""RMSNorm over processes that hold the columns of x, or the rows, by torch.distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from rmsnorm.checks import check_forward, check_numbers, real_dtype
from rmsnorm.composite import LEAST_IN_RANGE

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LEAF = 512  # columns
_LEAF_ROWS = 16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes

Run = tuple[int, int]  # the first leaf, how many


def rms_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    epsilon: float = 1e-6,
    *,
    group: ProcessGroup | None = None,
    gamma_offset: float = 0.0,
    rounding: str = "once",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """rmsnorm.rms_norm of rows whose columns lie on several processes, as under tensor parallelism.

    Every process of the group calls it, and every process its backward.

    Args:
        x: [..., n / processes], this process's columns, in the order of the group's ranks: equally
            many on each (which is not checked), a multiple of 512 where there is more than one; as
            many rows on each; dtypes as in rmsnorm.rms_norm.
        gamma: [n / processes], its columns; None scales by 1.
        group: None: all processes.
        epsilon, gamma_offset, rounding, out_dtype: as in rmsnorm.rms_norm, equal on all processes.

    Returns:
        y: shape of x; dtype of x, or out_dtype. Differentiable once.

    Raises:
        ValueError: an argument breaks the rules above; the text names it and its value.

    Bits: y, dx and dgamma are those of one process that holds all columns, without autocast.
    Cost: exchanges a float32 a row and process forward and one backward, or up to twice the
        logarithm of the number of columns / 512 where that isn't a power of two; a second exchange
        for rows whose mean square leaves the range of float32. Whether there are any is waited for.
        y is computed by operators of PyTorch, in several passes over x.
    """
    _check_plain("x", x)
    if gamma is not None:
        _check_plain("gamma", gamma)
    axes = check_forward(x, gamma, rounding, out_dtype)
    check_numbers(x, gamma, epsilon, gamma_offset)
    if axes > 1:
        raise ValueError(f"gamma: {axes} axes; expected 1, the columns of x")
    columns = x.shape[-1]
    processes = _processes(group)
    if processes > 1 and columns % _LEAF:
        raise ValueError(
            f"x: {columns} columns on each of {processes} processes; expected a multiple of "
            f"{_LEAF}; rmsnorm.rms_norm of a DTensor takes any number, and gathers them"
        )
    return _RmsNorm.apply(x, gamma, epsilon, group, gamma_offset, rounding, out_dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        gamma: Tensor | None,
        epsilon: float,
        group: ProcessGroup | None,
        gamma_offset: float,
        rounding: str,
        out_dtype: torch.dtype | None,
    ) -> Tensor:
        rstd = _rstd(x, epsilon, group)
        context.save_for_backward(x, gamma, rstd)
        context.group = group
        context.gamma_offset = gamma_offset
        xhat = x * rstd
        if rounding == "before_gamma":
            xhat = xhat.to(x.dtype).to(rstd.dtype)
        if gamma is not None:
            xhat *= gamma.to(rstd.dtype) + gamma_offset
        return _with_one_nan(xhat.to(out_dtype or x.dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, rstd = context.saved_tensors
        wanted = context.needs_input_grad[:2]
        sums = _sums_of_rows(dy, x, gamma, rstd, context.gamma_offset, context.group)
        n = x.shape[-1] * _processes(context.group)
        dx, dgamma = torch.ops.rmsnorm.rms_norm_backward_from_sums(
            dy, x, gamma, rstd, sums, n, context.gamma_offset, wanted
        )
        return (
            dx if wanted[0] else None,
            dgamma.to(gamma.dtype) if wanted[1] else None,
            *[None] * 5,
        )


def _rstd(x: Tensor, epsilon: float, group: ProcessGroup | None) -> Tensor:
    """[..., 1], of whole rows."""
    real = real_dtype(x)
    ones = x.new_ones([*x.shape[:-1], 1], dtype=real)
    n = ones.new_full((), x.shape[-1] * _processes(group))  # `/ int` multiplies on CUDA
    epsilon_of_real = ones.new_full((), epsilon)
    t = _sums_of_rows(x, x, None, ones, 0.0, group) / n + epsilon_of_real
    rstd = _one_over_root(t)
    if real == torch.float32:
        extreme = ((t < LEAST_IN_RANGE) | (t == torch.inf)).squeeze(-1)
        if extreme.any():
            wide = x[extreme].double()
            wide_ones = wide.new_ones([*wide.shape[:-1], 1])
            squares = _sums_of_rows(wide, wide, None, wide_ones, 0.0, group)
            rstd[extreme] = _one_over_root(squares / n + epsilon_of_real.double()).float()
    return rstd


def _one_over_root(t: Tensor) -> Tensor:
    """1 / sqrt(t), each rounded to nearest: on a CPU PyTorch's sqrt isn't, on a GPU its rsqrt."""
    return t.rsqrt() if t.device.type == "cpu" else 1 / t.sqrt()


def _sums_of_rows(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float,
    group: ProcessGroup | None,
) -> Tensor:
    """[..., 1]: the canonical sum of dy * (gamma_offset + gamma) * x * rstd over all processes.

    Each process hands over the roots of the aligned subtrees that its columns are made of.
    """

    def root(columns: slice) -> Tensor:
        of_gamma = None if gamma is None else gamma[columns]
        return torch.ops.rmsnorm.rms_norm_row_sums(
            dy[..., columns], x[..., columns], of_gamma, rstd, gamma_offset
        )

    processes, rank = _processes(group), dist.get_rank(group)
    if processes == 1:
        return root(slice(None))
    leaves = x.shape[-1] // _LEAF
    runs = [_aligned_runs(process * leaves, leaves) for process in range(processes)]
    roots = [
        root(slice(_LEAF * (first - rank * leaves), _LEAF * (first + count - rank * leaves)))
        for first, count in runs[rank]
    ]
    unused = [torch.zeros_like(roots[0])] * (max(map(len, runs)) - len(roots))
    gathered = _gather(torch.stack([*roots, *unused]), group)
    return _tree(
        {run: gathered[i][j] for i, own in enumerate(runs) for j, run in enumerate(own)},
        (0, processes * leaves),
    )


def _aligned_runs(first: int, count: int) -> list[Run]:
    """Leaves first … first + count - 1, cut into the fewest that are nodes of any longer tree."""
    runs = []
    while count:
        size = min(first & -first or count, 1 << (count.bit_length() - 1))
        runs.append((first, size))
        first, count = first + size, count - size
    return runs


def _tree(nodes: dict[Run, Tensor], run: Run) -> Tensor:
    """The root over a run of leaves, from nodes of its tree: cut at a power of two, as the
    canonical sum is. Every node has had +0 added, so the root needs it no more."""
    if run in nodes:
        return nodes[run]
    first, count = run
    cut = 1 << ((count - 1).bit_length() - 1)
    return _tree(nodes, (first, cut)) + _tree(nodes, (first + cut, count - cut))


def _check_plain(name: str, tensor: Tensor) -> None:
    if hasattr(tensor, "to_local"):
        raise ValueError(f"{name}: a DTensor; expected this process's part, as to_local() gives")


def _processes(group: ProcessGroup | None) -> int:
    size = dist.get_world_size(group)
    if size < 1:  # an exchange would leave out what it should write, with a warning
        raise ValueError("group: this process is not in it; expected a group that it belongs to")
    return size


def _gather(tensor: Tensor, group: ProcessGroup | None) -> list[Tensor]:
    """The tensor of each process."""
    tensor = tensor.contiguous()
    gathered = [torch.empty_like(tensor) for _ in range(_processes(group))]
    dist.all_gather(gathered, tensor, group=group)
    return gathered


def _with_one_nan(tensor: Tensor) -> Tensor:
    """Every NaN as the operators write it; in place."""
    integers = _INTEGERS[tensor.element_size()]
    tensor.view(integers).masked_fill_(tensor.isnan(), torch.iinfo(integers).max)
    return tensor


def sum_in_order(
    dgamma: Tensor, group: ProcessGroup | None = None, *, rows: int | None = None
) -> Tensor:
    """The sum of every process's dgamma, in the order in which one process would add their rows.

    Args:
        dgamma: float32 (float64 where x is), any shape, equal on all processes: of this process's
            rows, which follow those of the rank before. Requires no gradient.
        group: None: all processes.
        rows: how many dgamma is the sum of: given on all processes, or on none. Where it is given,
            all processes' are checked.

    Returns:
        The same on every process; shape and dtype of dgamma.

    Raises:
        ValueError: dgamma has another dtype, is a DTensor or requires a gradient; or rows aren't as
            below.

    Bits: those of one process with all rows, where every process has the same power-of-two multiple
        of 16 rows; the last that has any may have fewer, of any number.
    Cost: receives every process's dgamma; an all-reduce moves about 2 of them.
    """
    _check_plain("dgamma", dgamma)
    if dgamma.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dgamma: dtype {dgamma.dtype}; expected float32 or float64")
    if dgamma.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "dgamma: requires a gradient, which the sum has none of; expected no graph"
        )
    if rows is not None:
        counts = _gather(torch.tensor(rows, device=dgamma.device), group)
        _check_rows([int(count) for count in counts])
    ranks = {(i, 1): of_rank for i, of_rank in enumerate(_gather(dgamma, group))}
    return _with_one_nan(_tree(ranks, (0, len(ranks))))


def _check_rows(counts: list[int]) -> None:
    """Whether each process's rows are a node of the tree over the rows of all."""
    used = counts[: max((i + 1 for i, count in enumerate(counts) if count), default=0)]
    if len(used) < 2:
        return
    leaves, odd = divmod(used[0], _LEAF_ROWS)
    power_of_two = not odd and leaves & (leaves - 1) == 0
    if not power_of_two or set(used[:-1]) != {used[0]} or used[-1] > used[0]:
        raise ValueError(
            f"rows: {counts} on the processes; expected {_LEAF_ROWS} times a power of two on each, "
            "the same; or fewer on the last that has any"
        )
