"""torch.compile, torch.export and AOTInductor: one graph for all batches, and the bits of eager."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import rmsnorm
from norms import SMALL
from operands import DTYPES, same_bits

pytestmark = pytest.mark.usefixtures("device")


def ours(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return rmsnorm.rms_norm(x, gamma)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled_forward_and_backward_have_the_bits_of_eager(dtype):
    x = torch.randn(6, 96).to(dtype).requires_grad_()
    gamma = torch.randn(96).to(dtype).requires_grad_()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results = []
    for normalize in (ours, compiled):
        y = normalize(x, gamma)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (x, gamma))])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_inductor_compiles_the_whole_graph_with_changing_batches():
    compiled = torch.compile(ours, fullgraph=True, dynamic=True)
    gamma = torch.randn(48, requires_grad=True)
    for rows in (3, 5, 8):
        x = torch.randn(rows, 48, requires_grad=True)
        y = compiled(x, gamma)
        assert same_bits(y.detach(), ours(x, gamma).detach())
        dy = torch.randn_like(y)
        expected = torch.autograd.grad(ours(x, gamma), (x, gamma), dy)
        actual = torch.autograd.grad(y, (x, gamma), dy)
        assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True))


def test_compiled_out_writes_into_the_given_tensor():
    def into(x, out):
        rmsnorm.rms_norm(x, out=out)
        return out + 1

    x, out = torch.randn(4, 16), torch.zeros(4, 16)
    result = torch.compile(into, fullgraph=True, backend="aot_eager")(x, out)
    assert same_bits(out, rmsnorm.rms_norm(x))
    assert same_bits(result, out + 1)


def losses(step) -> torch.Tensor:
    """Of some steps of training, each with a batch and a length of its own."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": 1}))
    assert len(rmsnorm.patch(model).replaced) == 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for batch, length in ((2, 12), (3, 12), (5, 9), (4, 16)):
        tokens = (torch.arange(batch * length) * 7 % SMALL["vocab_size"]).view(batch, length)
        loss = step(model, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def test_a_patched_llama_trains_in_one_graph_with_the_losses_of_eager():
    def step(model, tokens):
        return model(input_ids=tokens, labels=tokens).loss

    torch.compiler.reset()
    eager = losses(step)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = losses(torch.compile(step, fullgraph=True, dynamic=True))
    assert eager[0] - eager[-1] > 0.1
    # Inductor sums in another order: each loss, near 3.5, moves by a few units of its last place.
    torch.testing.assert_close(compiled, eager, rtol=16 * 2**-24, atol=0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = rmsnorm.RMSNorm(96, dtype=torch.bfloat16)
        self.pair = rmsnorm.RMSNorm([2, 48], gamma_offset=1.0, rounding="before_gamma")
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(x)
        return y, self.pair((x + y).unflatten(-1, (2, 48)))


def exported(block: Block) -> torch.export.ExportedProgram:
    axes = {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (1, "length"))}
    x = torch.randn(4, 3, 96, dtype=torch.bfloat16)
    return torch.export.export(block, (x,), dynamic_shapes=(axes,))


def expect_bits_of_eager(block, program) -> None:
    for shape in ((1, 1, 96), (2, 7, 96), (9, 3, 96)):
        x = torch.randn(shape, dtype=torch.bfloat16)
        assert all(map(same_bits, program(x), block(x)))


def test_an_exported_block_takes_any_batch_and_length_with_the_bits_of_eager():
    block = Block()
    program = exported(block)
    ranges = [(bound.lower, bound.upper > 10**9) for bound in program.range_constraints.values()]
    assert len(ranges) == 2 and all(lower <= 1 and upper for lower, upper in ranges)
    expect_bits_of_eager(block, program.module())


@pytest.mark.skipif(
    not hasattr(torch._inductor, "aoti_compile_and_package"), reason="needs PyTorch 2.6"
)
def test_a_block_that_aotinductor_compiled_has_the_bits_of_eager(tmp_path):
    block = Block()
    with torch.no_grad():
        package = torch._inductor.aoti_compile_and_package(
            exported(block), package_path=str(tmp_path / "block.pt2")
        )
        expect_bits_of_eager(block, torch._inductor.aoti_load_package(package))
