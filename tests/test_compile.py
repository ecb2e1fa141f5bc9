"""torch.compile, torch.export and AOTInductor: one graph for all batches, and the bits of eager."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import rmsnorm
from operands import DTYPES, needs_pytorch, same_bits

pytestmark = pytest.mark.usefixtures("device")


NEEDS_OUT = pytest.mark.skipif(
    not hasattr(torch.library, "register_vmap"), reason="needs PyTorch 2.5: compiled out="
)


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


@NEEDS_OUT
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
    transformers = pytest.importorskip("transformers")
    from norms import SMALL

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 1})
    model = transformers.LlamaForCausalLM(config)
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
        assert all(same_bits(*pair) for pair in zip(program(x), block(x), strict=True))


@needs_pytorch("2.4", "torch.export for sizes from 1 on")
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


@pytest.fixture
def decomposed() -> Iterator[None]:
    rmsnorm.compile_as("decomposition")
    yield
    rmsnorm.compile_as("kernel")


class Graphs:
    """A backend that keeps what it is asked to compile."""

    def __init__(self) -> None:
        self.targets: list[list[str]] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        self.targets.append([str(node.target) for node in module.graph.nodes])
        return module


def test_a_graph_has_the_form_that_was_chosen_last():
    torch.compiler.reset()
    graphs = Graphs()
    compiled = torch.compile(ours, fullgraph=True, backend=graphs)
    x, gamma = torch.randn(4, 96), torch.ones(96)
    try:
        for form in ("kernel", "decomposition", "kernel"):
            rmsnorm.compile_as(form)
            compiled(x, gamma)
    finally:
        rmsnorm.compile_as("kernel")
    assert ["rmsnorm.rms_norm.default" in targets for targets in graphs.targets] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_rounding_before_gamma_survives_the_compiler(decomposed, dtype):
    def norm(x, gamma):
        return rmsnorm.rms_norm(x, gamma, rounding="before_gamma")

    torch.compiler.reset()
    x, gamma = torch.randn(64, 96).to(dtype), torch.randn(96)
    assert same_bits(torch.compile(norm, fullgraph=True)(x, gamma), norm(x, gamma))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_decomposition_has_the_numbers_and_gradients_of_the_kernel(decomposed, dtype):
    def norm(x, gamma):
        return rmsnorm.rms_norm(x, gamma, 1e-3, gamma_offset=1.0, out_dtype=torch.float32)

    torch.compiler.reset()
    x = torch.randn(6, 4, 96).to(dtype).requires_grad_()
    gamma = torch.randn(4, 96).to(dtype).requires_grad_()
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend="aot_eager")
    results = []
    for call in (compiled, norm):
        y = call(x, gamma)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), (x, gamma))])
    # Of rstd and of the sums: a few units of float32. They may flip a rounding to x's dtype.
    bound = torch.finfo(dtype).eps if dtype != torch.float32 else 2.0**-19
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype and (a - b).double().norm() <= bound * b.double().norm()


def test_the_decomposition_keeps_finite_rows_finite(decomposed):
    torch.compiler.reset()
    x = torch.randn(4, 96) * torch.tensor([1e-30, 1.0, 1e30, 3e38 / 4]).unsqueeze(1)
    compiled = torch.compile(ours, fullgraph=True)
    y = compiled(x, torch.ones(96))
    expected = rmsnorm.rms_norm(x, torch.ones(96))
    torch.testing.assert_close(y, expected, rtol=2**-19, atol=0)


def test_rstd_of_the_decomposition_has_no_gradient_either(decomposed):
    torch.compiler.reset()
    compiled = torch.compile(rmsnorm.npu_rms_norm, fullgraph=True, backend="eager")
    y, rstd = compiled(torch.randn(4, 8, requires_grad=True), torch.ones(8))
    assert y.requires_grad and not rstd.requires_grad


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form: 'fused'; expected 'kernel' or 'decomposition'"):
        rmsnorm.compile_as("fused")
