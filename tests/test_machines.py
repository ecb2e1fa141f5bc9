"""Two and four processes: the bits of one. The claims are functions of on_columns and on_rows."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

import on_columns
import on_rows
import processes
from operands import has_pytorch, needs_pytorch
from rmsnorm import sharding

pytestmark = needs_pytorch("2.4", "with 2.1's gloo, processes hung")

CASES = on_columns.CASES | on_rows.CASES


def lacking(case: str) -> str | None:
    """What a case needs and isn't here."""
    pytorch, package = processes.NEEDS.get(CASES[case], ("2.1", None))
    if not has_pytorch(pytorch):
        return f"needs PyTorch {pytorch}"
    if package is not None and importlib.util.find_spec(package) is None:
        return f"needs {package}"
    return None


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def outcomes(request, tmp_path_factory):
    here = {name: case for name, case in CASES.items() if lacking(name) is None}
    return processes.outcomes(request.param, here, str(tmp_path_factory.mktemp("processes")))


@pytest.mark.parametrize("case", CASES)
def test_that(outcomes, case):
    if (reason := lacking(case)) is not None:
        pytest.skip(reason)
    assert outcomes[case] == []


LOOK = "from importlib.util import find_spec; find_spec('torch.distributed.tensor')"
ONE_PROCESS = """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
x = distribute_tensor(torch.ones(2, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
assert rmsnorm.rms_norm(x).placements == (Shard(0),)
"""


@needs_pytorch("2.5", "rules for DTensor")
@pytest.mark.parametrize(
    "imports",
    [
        "import sys, torch, rmsnorm; assert 'torch.distributed.tensor' not in sys.modules",
        "import torch.distributed.tensor, rmsnorm",
        f"import torch, rmsnorm; {LOOK}",
    ],
    ids=[
        "after rmsnorm, which leaves it alone",
        "before rmsnorm",
        "after a look whether it is there",
    ],
)
def test_that_dtensor_may_be_imported(imports):
    code = f"{imports}\n{ONE_PROCESS}"
    ran = subprocess.run(
        [sys.executable, "-W", "error:rmsnorm", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr


@needs_pytorch("2.5", "rules for DTensor")
def test_that_a_dtensor_that_takes_no_rules_is_a_warning(monkeypatch):
    importlib.import_module("torch.distributed.tensor")  # has them already

    def changed():
        raise AttributeError("no such thing any more")

    monkeypatch.setattr(sharding, "operators", changed)
    with pytest.warns(UserWarning, match="rmsnorm: no rules for DTensor of PyTorch .*: no such"):
        sharding.register_when_imported()
