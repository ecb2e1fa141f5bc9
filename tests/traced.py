"""What the tests of compile_pass share: a traced graph after the pass, and a norm to trace."""

import torch
from torch._dynamo import lookup_backend

import rmsnorm
from norms import N

EPSILON = 1e-6
GAMMA = torch.linspace(0.5, 1.5, N)


class Traced:
    """A function or module as the pass leaves it: run node by node, or by a backend, `then`."""

    def __init__(self, function, then=None, **options):
        self.then = then
        torch._dynamo.reset()
        self.compile_pass = rmsnorm.compile_pass()
        self.graphs = []
        self.compiled = torch.compile(function, backend=self._backend, **options)

    def _backend(self, module, inputs):
        self.compile_pass(module.graph)
        module.graph.lint()
        module.recompile()
        self.graphs.append(module.graph)
        return module if self.then is None else lookup_backend(self.then)(module, inputs)

    def __call__(self, *args, **kwargs):
        return self.compiled(*args, **kwargs)

    def count(self, name):
        """How many nodes call a function or method."""
        targets = [str(node.target) for graph in self.graphs for node in graph.nodes]
        return sum(name in target for target in targets)

    def norms(self):
        """How many norms were replaced."""
        assert self.then or self.count("rmsnorm.rms_norm") == self.compile_pass.replaced.total()
        return self.compile_pass.replaced.total()


def inline(x, gamma=None, epsilon=EPSILON):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return y if gamma is None else y * gamma
