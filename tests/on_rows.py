"""Cases of processes.py: rows on several processes, by DTensor, what uses it, and trainers."""

import copy
import itertools

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rmsnorm
from operands import DTYPES, same_bits
from processes import Claims, World, error_of, named, needs
from rmsnorm.parallel import sum_in_order


def gradients(x: Tensor, gamma: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and dgamma by autograd; plain tensors or DTensors."""
    x, gamma = x.detach().requires_grad_(), gamma.detach().requires_grad_()
    y = rmsnorm.rms_norm(x, gamma)
    y.backward(dy)
    return y.detach(), x.grad, gamma.grad


@needs("2.5")
def rows_of_a_dtensor_are_normalized_without_communication(world: World) -> Claims:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = world.mesh()
    for dtype, axis, n in itertools.product(DTYPES, (0, 1), (512, 700)):
        x, dy = (torch.randn(5, 6, n).to(dtype) for _ in range(2))  # not the same on each
        gamma = torch.randn(n)
        placed = [Shard(axis)], [Replicate()], [Shard(axis)]
        tensors = [
            distribute_tensor(t, mesh, p) for t, p in zip((x, gamma, dy), placed, strict=True)
        ]
        with CommDebugMode() as communication:
            y, dx, dgamma = gradients(*tensors)
        yield "no communication", communication.get_total_counts() == 0
        yield "sharded alike", y.placements == dx.placements == (Shard(axis),)
        yield "dgamma is partial", dgamma.placements == (Partial(),)
        expected = gradients(x, gamma, dy)
        yield f"y {dtype} {n}", same_bits(y.full_tensor(), expected[0])
        yield f"dx {dtype} {n}", same_bits(dx.full_tensor(), expected[1])
        own = gradients(*(t.to_local() for t in tensors))[2]
        yield f"dgamma {dtype} {n}", same_bits(dgamma.to_local(), own)
        total = own.clone()
        dist.all_reduce(total)
        yield f"sum of dgamma {dtype} {n}", same_bits(dgamma.full_tensor(), total)
        rstd = rmsnorm.npu_rms_norm(tensors[0], tensors[1])[1]
        yield "rstd is sharded alike", rstd.placements == (Shard(axis),)
        yield "rstd", same_bits(rstd.full_tensor(), rmsnorm.npu_rms_norm(x, gamma)[1])


@needs("2.5")
def a_dtensor_that_needs_no_gradient_gets_none(world: World) -> Claims:
    """The rule for a call must not be taken for another that wants other gradients."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = world.mesh()
    x, gamma, dy = torch.randn(8, 96), torch.randn(96), torch.randn(8, 96)
    for wanted in ((True, False), (False, True), (True, True), (False, True)):
        own_x = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_(wanted[0])
        own_gamma = distribute_tensor(gamma, mesh, [Replicate()]).requires_grad_(wanted[1])
        rmsnorm.rms_norm(own_x, own_gamma).backward(distribute_tensor(dy, mesh, [Shard(0)]))
        _, dx, dgamma = gradients(x, gamma, dy)
        for tensor, expected, asked in zip((own_x, own_gamma), (dx, dgamma), wanted, strict=True):
            yield f"{wanted}", (tensor.grad is not None) == asked
            if asked:
                yield f"{wanted}, shape", tensor.grad.shape == expected.shape
        if wanted[0]:
            yield f"{wanted}, dx", same_bits(own_x.grad.full_tensor(), dx)
        if wanted[1]:
            whole = own_gamma.grad.full_tensor()
            yield f"{wanted}, dgamma", torch.allclose(whole, dgamma, atol=1e-5)


@needs("2.5")
def columns_of_a_dtensor_are_gathered(world: World) -> Claims:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = world.mesh()
    x, gamma, dy = torch.randn(8, 3, 200), torch.randn(200), torch.randn(8, 3, 200)
    expected = gradients(x, gamma, dy)
    for of_x, of_gamma in ((Shard(2), Shard(0)), (Shard(2), Replicate()), (Shard(0), Shard(0))):
        tensors = [
            distribute_tensor(t, mesh, [p]) for t, p in ((x, of_x), (gamma, of_gamma), (dy, of_x))
        ]
        y, dx, dgamma = gradients(*tensors)
        yield f"y, x {of_x}, gamma {of_gamma}", same_bits(y.full_tensor(), expected[0])
        yield f"dx, x {of_x}, gamma {of_gamma}", same_bits(dx.full_tensor(), expected[1])
        once = torch.allclose(dgamma.full_tensor(), expected[2], atol=1e-5)  # not per process
        yield f"dgamma, x {of_x}, gamma {of_gamma}", once


@needs("2.5")
def a_dtensor_given_as_out_may_be_x_itself_or_sharded_otherwise(world: World) -> Claims:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, zeros

    mesh = world.mesh()
    x, gamma = torch.randn(8, 4, 96), torch.randn(96)
    expected = rmsnorm.rms_norm(x, gamma)
    own_gamma = distribute_tensor(gamma, mesh, [Replicate()])
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        own = distribute_tensor(x, mesh, [Shard(0)])
        out = zeros(8, 4, 96, device_mesh=mesh, placements=[placement])
        yield "returned", rmsnorm.rms_norm(own, own_gamma, out=out) is out
        yield f"into {placement}", same_bits(out.full_tensor(), expected)
    rmsnorm.rms_norm(own, own_gamma, out=own)
    yield "in place", same_bits(own.full_tensor(), expected)
    said = error_of(lambda: rmsnorm.rms_norm(own, own_gamma, out=out[:4]))
    yield said, "out: shape [4, 4, 96]" in said


@needs("2.5")
def plain_tensors_beside_dtensors_are_refused_as_pytorch_refuses_them(world: World) -> Claims:
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.experimental import implicit_replication

    x, gamma = distribute_tensor(torch.randn(8, 96), world.mesh(), [Shard(0)]), torch.ones(96)
    ours = error_of(lambda: rmsnorm.rms_norm(x, gamma))
    pytorch = error_of(lambda: torch.mul(x, gamma))
    common = "got mixed torch.Tensor and DTensor"
    yield f"{ours}; {pytorch}", common in ours and common in pytorch
    with implicit_replication():
        y = rmsnorm.rms_norm(x, gamma)
    yield "replicated", same_bits(y.full_tensor(), rmsnorm.rms_norm(x.full_tensor(), gamma))
    said = error_of(lambda: rmsnorm.rms_norm(x, distribute_tensor(torch.ones(5), world.mesh())))
    yield said, "gamma: shape [5] is not the tail of x's [8, 96]" in said


@needs("2.8")
def compiled_code_has_the_bits_of_eager(world: World) -> Claims:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    def compiled(x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, gamma = x.detach().requires_grad_(), gamma.detach().requires_grad_()
        y = torch.compile(rmsnorm.rms_norm, backend="aot_eager", fullgraph=True)(x, gamma)
        y.sum().backward()
        return y.detach(), x.grad, gamma.grad

    x, gamma = torch.randn(4, 8, 96), torch.randn(96)
    own = distribute_tensor(x, world.mesh(), [Shard(1)])
    y, dx, dgamma = compiled(own, distribute_tensor(gamma, world.mesh(), [Replicate()]))
    expected = gradients(x, gamma, torch.ones_like(x))
    yield "y", same_bits(y.full_tensor(), expected[0])
    yield "dx", same_bits(dx.full_tensor(), expected[1])
    yield "dgamma is partial", dgamma.placements == (Partial(),)


class Block(nn.Module):
    def __init__(self, norm: nn.Module, n: int):
        super().__init__()
        self.norm, self.up, self.down = norm, nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def norm_like_llama(n: int) -> nn.Module:
    """transformers' own class, patched."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(n, eps=1e-5)
    rmsnorm.patch(norm)
    return norm


@needs("2.6", package="transformers")
def sequence_and_tensor_parallelism_in_fsdp_keep_the_bits_of_norms(world: World) -> Claims:
    """Sharded by sequence in the norm, by columns after it; two halves of the batch on four."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (world.size // 2, 2), mesh_dim_names=("data", "tensor"))
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
    }
    for make in (rmsnorm.RMSNorm, norm_like_llama):
        block = Block(make(96), 96)
        nn.init.normal_(block.norm.weight)
        alone = copy.deepcopy(block.norm)
        fully_shard(parallelize_module(block, mesh["tensor"], plan), mesh=mesh["data"])
        x = torch.randn(world.size, 6, 96).chunk(world.size // 2)[mesh["data"].get_local_rank()]
        seen: list[Tensor] = []
        block.norm.register_forward_hook(lambda _, inputs, y, seen=seen: seen.extend((*inputs, y)))
        x = x.chunk(2, 1)[mesh["tensor"].get_local_rank()].contiguous().requires_grad_()
        output = block(x)
        for tensor in seen:
            tensor.retain_grad()
        output.square().sum().backward()
        whole = [t.full_tensor().detach() for t in (*seen, *(tensor.grad for tensor in seen))]
        whole_x = whole[0].requires_grad_()
        y = alone(whole_x)
        y.backward(whole[3])
        yield f"{make.__name__}: y", same_bits(y.detach(), whole[1])
        yield f"{make.__name__}: dx", same_bits(whole_x.grad, whole[2])
        local = [tensor.to_local() for tensor in (seen[0], seen[1].grad)]
        dgamma = rms_norm_gradient(alone, *local)
        yield "dgamma", same_bits(block.norm.weight.grad.full_tensor(), mean(dgamma, mesh))


def rms_norm_gradient(norm: nn.Module, x: Tensor, dy: Tensor) -> Tensor:
    return torch.autograd.grad(norm(x.detach()), norm.weight, dy)[0]


def mean(dgamma: Tensor, mesh) -> Tensor:
    """The sum over the mesh's tensor axis, then the mean over its data axis."""
    total = dgamma.clone()
    for axis in ("tensor", "data"):
        dist.all_reduce(total, group=mesh[axis].get_group())
    return total / mesh["data"].size()


@needs("2.7")
def context_parallelism_keeps_the_bits_of_norms(world: World) -> Claims:
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard

    mesh = world.mesh()
    x, gamma, dy = torch.randn(2, 8 * world.size, 96), torch.randn(96), torch.randn(96)
    dy = dy.expand(2, 8 * world.size, 96).contiguous()
    expected = gradients(x, gamma, dy)
    buffers = [x.clone(), dy.clone()]
    with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1, 1]):
        yield "a part of the sequence", buffers[0].shape == (2, 8, 96)
        own = gradients(buffers[0], gamma, buffers[1])
        y, dx = context_parallel_unshard(mesh, list(own[:2]), [1, 1])
    yield "y", same_bits(y, expected[0])
    yield "dx", same_bits(dx, expected[1])


def dgamma_summed_in_order_has_the_bits_of_one_process(world: World) -> Claims:
    for each, last in ((16, 16), (64, 64), (64, 63), (32, 16), (128, 5), (32, 0)):
        counts = [each] * (world.size - 1) + [last]
        x, dy, gamma = torch.randn(sum(counts), 700), torch.randn(sum(counts), 700), torch.ones(700)
        dy[0, 0] = dy[-1, 1] = torch.nan
        dy[0, 2], dy[-1, 2] = torch.inf, -torch.inf * x[0, 2].sign() * x[-1, 2].sign()
        expected = gradients(x, gamma, dy)[2]
        own = gradients(x.split(counts)[world.rank], gamma, dy.split(counts)[world.rank])[2]
        total = sum_in_order(own, rows=counts[world.rank])
        yield f"{counts}", same_bits(total, expected)
        yield f"{counts}, rows not said", same_bits(sum_in_order(own), expected)


def dgamma_of_rows_that_no_order_makes_right_is_refused(world: World) -> Claims:
    dgamma = torch.ones(3)
    for counts in ([48] * world.size, [8] * world.size, [16] + [32] * (world.size - 1)):
        said = error_of(lambda counts=counts: sum_in_order(dgamma, rows=counts[world.rank]))
        yield said, said.startswith(f"ValueError: rows: {counts} on the processes; expected 16 t")
    for counts in ([16] * world.size, [5] + [0] * (world.size - 1)):
        total = sum_in_order(dgamma, rows=counts[world.rank])
        yield f"{counts} are right", same_bits(total, world.size * dgamma)
    said = error_of(lambda: sum_in_order(dgamma.bfloat16()))
    yield said, said == "ValueError: dgamma: dtype torch.bfloat16; expected float32 or float64"


def sum_in_backward(model: nn.Module) -> None:
    """Every gradient of a norm's weight becomes the mean over all processes, in order of rows."""
    for module in model.modules():
        if isinstance(module, rmsnorm.RMSNorm):
            module.weight.register_hook(lambda dgamma: sum_in_order(dgamma) / dist.get_world_size())


def trained(world: World, model: nn.Module, norm: nn.Module, x: Tensor, dy: Tensor) -> Claims:
    """gamma's gradient after two backward passes is that of one process, each with all rows."""
    expected = torch.zeros_like(norm.weight)
    alone = copy.deepcopy(norm)
    for part, gradient in zip(x, dy, strict=True):
        seen = []
        handle = norm.register_forward_hook(lambda _, inputs, y, seen=seen: seen.append(y))
        model(world.own(part, 0)).backward(world.own(gradient, 0))
        handle.remove()
        whole = alone(part)
        expected += torch.autograd.grad(whole, alone.weight, gradient / world.size)[0]
        yield "y", same_bits(seen[0].detach(), world.own(whole.detach(), 0))
    yield "dgamma", same_bits(norm.weight.grad, expected)


@needs("2.7")
def dgamma_is_summed_in_order_under_fsdp_and_ddp(world: World) -> Claims:
    from torch.distributed.fsdp import fully_shard

    x, dy = (torch.randn(2, 32 * world.size, 96) for _ in range(2))
    for wrap in ("FSDP2", "DDP"):
        model = nn.Sequential(nn.Linear(96, 96, bias=False), rmsnorm.RMSNorm(96))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(96))  # y is of the same bits however rows are split
        sum_in_backward(model)
        if wrap == "FSDP2":
            gammas = {model[1].weight}
            wrapped = fully_shard(model, mesh=world.mesh(), ignored_params=gammas)
        else:
            wrapped = DistributedDataParallel(model)
        for claim, holds in trained(world, wrapped, model[1], x, dy):
            yield f"{wrap}: {claim}", holds


CASES = named(
    rows_of_a_dtensor_are_normalized_without_communication,
    a_dtensor_that_needs_no_gradient_gets_none,
    columns_of_a_dtensor_are_gathered,
    a_dtensor_given_as_out_may_be_x_itself_or_sharded_otherwise,
    plain_tensors_beside_dtensors_are_refused_as_pytorch_refuses_them,
    compiled_code_has_the_bits_of_eager,
    sequence_and_tensor_parallelism_in_fsdp_keep_the_bits_of_norms,
    context_parallelism_keeps_the_bits_of_norms,
    dgamma_summed_in_order_has_the_bits_of_one_process,
    dgamma_of_rows_that_no_order_makes_right_is_refused,
    dgamma_is_summed_in_order_under_fsdp_and_ddp,
)
