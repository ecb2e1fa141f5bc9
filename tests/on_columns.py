"""Cases of processes.py: rows whose columns lie on several processes, by rmsnorm.parallel."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

import rmsnorm
from operands import DTYPES, same_bits
from processes import Claims, World, error_of, named, needs
from rmsnorm.parallel import rms_norm

OPTIONS = (
    {},
    {"epsilon": 0.0},
    {"rounding": "before_gamma", "gamma_offset": 1.0, "epsilon": 1e-30},
    {"out_dtype": torch.float32},
)


def rows(n: int, dtype: torch.dtype) -> Tensor:
    """Plain rows, and rows whose sum of squares leaves float32 or isn't a number."""
    x = torch.randn(3, 4, n)
    x[0, 1] *= 1e-25
    x[0, 2] *= 1e25
    x[1, 0] = 0
    x[1, 1, 7] = torch.nan
    x[1, 2, n - 1] = torch.inf
    x[1, 3] *= 1e-44
    x[2, 0] *= 2.0**-45
    return x.to(dtype)


def results(function, x: Tensor, gamma: Tensor | None, dy: Tensor, **options) -> list[Tensor]:
    """y, dx and, where there is a gamma, dgamma."""
    inputs = [t.detach().requires_grad_() for t in (x, gamma) if t is not None]
    y = function(*inputs, **options)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(t.grad for t in inputs)]


def columns_have_the_bits_of_whole_rows(world: World) -> Claims:
    for dtype in DTYPES:
        for leaves in (1, 2, 3, 5):  # 3 and 5 are made of two subtrees or more
            n = 512 * leaves * world.size
            x, dy = rows(n, dtype), torch.randn(3, 4, n).to(dtype)
            gamma = torch.randn(n).to(DTYPES[leaves % 3])
            for options in OPTIONS:
                for scale in (gamma, None):
                    if scale is None and "gamma_offset" in options:
                        continue
                    own = None if scale is None else world.own(scale, 0)
                    got = results(rms_norm, world.own(x, -1), own, world.own(dy, -1), **options)
                    expected = results(rmsnorm.rms_norm, x, scale, dy, **options)
                    for name, a, b in zip(("y", "dx", "dgamma"), got, expected, strict=False):
                        claim = f"{name}, {dtype}, {leaves} leaves, {own is None}, {options}"
                        yield claim, same_bits(a, world.own(b, -1))


def columns_may_be_a_slice_of_a_wider_projection(world: World) -> Claims:
    n = 512 * world.size
    x, dy, gamma = torch.randn(5, n), torch.randn(5, n), torch.randn(n)
    projected = torch.cat([torch.randn(5, 100), world.own(x, -1), torch.randn(5, 60)], -1)
    query = projected[:, 100:612]
    got = results(rms_norm, query, world.own(gamma, 0), world.own(dy, -1))
    expected = results(rmsnorm.rms_norm, x, gamma, dy)
    yield "not packed", not query.is_contiguous()
    yield "bits", all(same_bits(a, world.own(b, -1)) for a, b in zip(got, expected, strict=True))


def columns_may_be_float64_or_of_no_rows(world: World) -> Claims:
    n = 512 * world.size
    x, dy, gamma = (torch.randn(*shape, n).double() for shape in ([3], [3], []))
    own = [world.own(x, -1), world.own(gamma, 0), world.own(dy, -1)]
    expected = results(rmsnorm.rms_norm, x, gamma, dy)
    got = results(rms_norm, *own)
    yield "float64", all(same_bits(a, world.own(b, -1)) for a, b in zip(got, expected, strict=True))
    y, dx, dgamma = results(rms_norm, own[0][:0], own[1], own[2][:0])
    yield "no rows", y.shape == dx.shape == (0, 512) and not dgamma.any()


def columns_belong_to_a_group(world: World) -> Claims:
    """Each pair of neighbours has rows of its own, as beside data parallelism."""
    pairs = [dist.new_group([first, first + 1]) for first in range(0, world.size, 2)]
    group = pairs[world.rank // 2]
    torch.manual_seed(world.rank // 2)
    x, gamma = torch.randn(3, 1024), torch.randn(1024)
    half = slice(0, 512) if world.rank % 2 == 0 else slice(512, 1024)
    y = rms_norm(x[:, half], gamma[half], group=group)
    yield "bits", same_bits(y, rmsnorm.rms_norm(x, gamma)[:, half])


def columns_are_refused_with_a_text_that_says_what_is_accepted(world: World) -> Claims:
    x, gamma = torch.randn(2, 512), torch.ones(512)
    said = error_of(lambda: rms_norm(x[:, :500], gamma[:500]))
    yield said, said.startswith(f"ValueError: x: 500 columns on each of {world.size} processes")
    said = error_of(lambda: rms_norm(x, torch.ones(1024)))
    yield said, "gamma: shape [1024] is not the tail of x's [2, 512]" in said
    said = error_of(lambda: rms_norm(x, torch.ones(2, 512)))
    yield said, said == "ValueError: gamma: 2 axes; expected 1, the columns of x"
    said = error_of(lambda: rms_norm(x, gamma, -1.0))
    yield said, said.startswith("ValueError: epsilon: -1")
    said = error_of(lambda: rms_norm(x, gamma, rounding="never"))
    yield said, said.startswith("ValueError: rounding: never")
    said = error_of(lambda: rms_norm(x.long(), gamma))
    yield said, said.startswith("ValueError: x: dtype")
    x.requires_grad_()
    dx = torch.autograd.grad(rms_norm(x, gamma).square().sum(), x, create_graph=True)[0]
    said = error_of(dx.sum().backward)
    yield said, "differentiate twice" in said


class NormOfColumns(nn.Module):
    """A norm over the full hidden size, of the columns that ColwiseParallel leaves here."""

    def __init__(self, norm: rmsnorm.RMSNorm, mesh):
        from torch.distributed.tensor import Shard, distribute_tensor

        super().__init__()
        self.weight = nn.Parameter(distribute_tensor(norm.weight, mesh, [Shard(0)]))
        self.eps = norm.eps
        self.group = mesh.get_group()

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.to_local(), self.eps, group=self.group)


class Query(nn.Module):
    """The query as OLMo2 has it: normalized over all heads."""

    def __init__(self, n: int):
        super().__init__()
        self.q_proj = nn.Linear(64, n, bias=False)
        self.q_norm = rmsnorm.RMSNorm(n)
        self.o_proj = nn.Linear(n, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(self.q_norm(self.q_proj(x)))


@needs("2.5")
def columns_come_from_colwise_parallel(world: World) -> Claims:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = world.mesh()
    model = Query(1024 * world.size)
    nn.init.normal_(model.q_norm.weight)
    whole = model.q_norm.weight.detach().clone()
    model.q_norm = NormOfColumns(model.q_norm, mesh)
    parallelize_module(model, mesh, {"q_proj": ColwiseParallel(), "o_proj": RowwiseParallel()})
    seen = []
    model.q_norm.register_forward_hook(lambda module, inputs, y: seen.extend((*inputs, y)))
    output = model(torch.randn(2, 3, 64))
    for tensor in seen:
        tensor.retain_grad()
    output.square().sum().backward()
    x, y, dx, dy = (world.whole(t, -1) for t in (*seen, *(tensor.grad for tensor in seen)))
    expected = results(rmsnorm.rms_norm, x, whole, dy)
    dgamma = model.q_norm.weight.grad
    for name, a, b in zip(
        ("y", "dx", "dgamma"), (y, dx, dgamma.full_tensor()), expected, strict=True
    ):
        yield name, same_bits(a, b)
    yield "dgamma stays with its columns", dgamma.to_local().shape == (1024,)


CASES = named(
    columns_have_the_bits_of_whole_rows,
    columns_may_be_a_slice_of_a_wider_projection,
    columns_may_be_float64_or_of_no_rows,
    columns_belong_to_a_group,
    columns_are_refused_with_a_text_that_says_what_is_accepted,
    columns_come_from_colwise_parallel,
)
