"""rmsnorm migrate: the imports it adds, and calls of torch_npu, which it moves."""

import sys
import types

import pytest
import torch

from norms import N, assert_close, rows
from rmsnorm.migrate.call import Target
from rmsnorm.migrate.rewrite import rewrite
from test_migrate import HEAD, PAGE, codes, executed, migrated


class TestImports:
    @pytest.mark.parametrize(
        "head, expected",
        [
            ("import torch\n", "import torch\nimport rmsnorm\n"),
            ("import rmsnorm\nimport torch\n", "import rmsnorm\nimport torch\n"),
            (
                '"""Doc."""\nfrom __future__ import annotations\nimport torch\n',
                '"""Doc."""\nfrom __future__ import annotations\nimport torch\nimport rmsnorm\n',
            ),
            (
                "from torch import nn\nimport math; import torch as t  # t\nx = 1\nimport torch\n",
                "from torch import nn\nimport rmsnorm\nimport math; import torch as t  # t\n"
                "x = 1\nimport torch\n",
            ),
            (
                "from torch import nn; import math  # both\nx = 1\nimport torch\n",
                "from torch import nn; import math  # both\nimport rmsnorm\nx = 1\nimport torch\n",
            ),
            (
                "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch\n",
                "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch\nimport rmsnorm\n",
            ),
            (
                "import os\ntry:\n    import torch\nexcept ImportError:\n    torch = None\nx = 1\n",
                "import os\ntry:\n    import torch\nexcept ImportError:\n    torch = None\n"
                "import rmsnorm\nx = 1\n",
            ),
            (
                "if TYPE_CHECKING:\n    import torch.nn\nx = 1\nimport torch\n",
                "if TYPE_CHECKING:\n    import torch.nn\nx = 1\nimport torch\nimport rmsnorm\n",
            ),
            (
                "import os\nimport sys\nx = 1\n",
                "import os\nimport sys\nimport rmsnorm\nimport torch\nx = 1\n",
            ),
            ("import rmsnorm as rn\nimport torch\n", "import rmsnorm as rn\nimport torch\n"),
            (
                "from . import rmsnorm\nimport torch\n",
                "from . import rmsnorm\nimport torch\nimport rmsnorm as fused_rmsnorm\n",
            ),
            (
                "from .rmsnorm import rmsnorm\nimport torch\n",
                "from .rmsnorm import rmsnorm\nimport torch\nimport rmsnorm as fused_rmsnorm\n",
            ),
            (
                "import torch\ndef rmsnorm(x): return x\n",
                "import torch\nimport rmsnorm as fused_rmsnorm\ndef rmsnorm(x): return x\n",
            ),
        ],
    )
    def test_the_import_is_added_once_after_that_of_torch(self, head, expected):
        norm = (
            "def norm(x, weight, eps):\n"
            "    x = x.float()\n"
            "    return x * ((x * x).mean(-1, keepdim=True) + eps) ** -0.5 * weight\n"
        )
        after = migrated(head + norm)
        assert after.startswith(expected + "def norm(x, weight, eps):\n    return ")
        name = (
            "fused_rmsnorm" if "fused" in expected else "rn" if "as rn" in expected else "rmsnorm"
        )
        assert f" {name}.rms_norm(" in after

    @pytest.mark.parametrize(
        "head, comment",
        [
            ("# head\n\n", ""),
            ("# head\n\n", "# Normalizes.\n# Twice.\n"),
            ("", "# Normalizes.\n"),
            ("#!/usr/bin/env python\n", "# Normalizes.\n"),
            ("#!/usr/bin/env python\n# coding: utf-8\n", ""),
            ('"""Doc."""\n\n', "# Normalizes.\n"),
        ],
    )
    def test_a_file_without_imports_gets_one_before_its_code_and_the_comment_on_it(
        self, head, comment
    ):
        norm = "def norm(x, w, eps):\n    x = x.float()\n"
        norm += "    return x * ((x * x).mean(-1, keepdim=True) + eps) ** -0.5 * w\n"
        after = migrated(head + comment + norm)
        added = (
            "\nimport rmsnorm\nimport torch\n"
            if '"""' in head
            else ("import rmsnorm\nimport torch\n\n\n")
        )
        assert after.replace(added, "").startswith(head + comment + "def norm")
        assert 0 <= after.index(added) <= len(head)


NPU = {
    "module": ("import torch_npu\n", "torch_npu.npu_rms_norm"),
    "alias": ("import torch_npu as npu\n", "npu.npu_rms_norm"),
    "function": ("from torch_npu import npu_rms_norm\n", "npu_rms_norm"),
    "renamed function": ("from torch_npu import npu_rms_norm as fused\n", "fused"),
    "operator": ("import torch_npu\n", "torch.ops.npu.npu_rms_norm"),
}


class TestFromTorchNpu:
    @pytest.mark.parametrize("way", NPU)
    def test_every_way_to_call_it_becomes_a_call_that_runs_here(self, way, monkeypatch):
        imported, function = NPU[way]
        text = (
            f"import torch\n{imported}def f(x, w):\n    return {function}(x, w, epsilon=1e-5)[0]\n"
        )
        after = migrated(text)
        assert "    return rmsnorm.npu_rms_norm(x, w, epsilon=1e-5)[0]\n" in after
        assert codes(text) == ["RN004"]
        assert codes(after) == []
        stub = types.ModuleType("torch_npu")
        stub.npu_rms_norm = None
        monkeypatch.setitem(sys.modules, "torch_npu", stub)
        x, w = rows(torch.float32), torch.ones(N)
        expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        assert_close(executed(after, "f")(x, w), expected, x.dtype)

    @pytest.mark.parametrize(
        "rest",
        [
            "f = torch.ops.npu.npu_rms_norm.default\n",
            "known = [torch_npu.npu_rms_norm]\n",
            "y = torch.ops.npu.npu_rms_norm.default(x, w)\n",
            "f = torch.ops.npu.npu_rms_norm\n",
            "is_norm = node.target == torch.ops.npu.npu_rms_norm.default\n",
            "is_norm = node.target is torch_npu.npu_rms_norm\n",
            "is_norm = node.target in (torch_npu.npu_rms_norm, torch_npu.npu_swiglu)\n",
            "names = {torch_npu.npu_rms_norm: 'norm'}\n",
            "match a:\n    case torch_npu.npu_rms_norm:\n        pass\n",
            "register_replacement(lambda x, w: torch.ops.npu.npu_rms_norm(x, w), f)\n",
            "y = torch_npu.npu_rms_norm(x, w)\ntorch_npu.npu_rms_norm = f\n",
            "y = torch_npu.npu_rms_norm(x, w)\nsetattr(torch_npu, 'npu_rms_norm', f)\n",
            "y = torch_npu.npu_rms_norm(x, w)\nmock.patch('torch_npu.npu_rms_norm', f)\n",
        ],
    )
    def test_what_must_stay_torch_npus_own_function_is_left(self, rest):
        text = "import torch\nimport torch_npu\n" + rest
        assert codes(text) == ["RN107"]
        assert migrated(text) == text

    def test_the_gradient_moves_too(self):
        text = "import torch_npu\ng = torch_npu.npu_rms_norm_backward(dy, x, w, rstd)\n"
        assert migrated(text).endswith("g = rmsnorm.npu_rms_norm_backward(dy, x, w, rstd)\n")

    @pytest.mark.parametrize("name", ["input", "x"])
    def test_a_name_that_rmsnorm_does_not_take_is_changed(self, name):
        text = f"import torch_npu\ny = torch_npu.npu_rms_norm(gamma=w, {name}=a)\n"
        assert migrated(text).endswith("y = rmsnorm.npu_rms_norm(gamma=w, self=a)\n")

    @pytest.mark.parametrize("way", NPU)
    def test_the_import_stays_since_it_makes_the_device_known(self, way):
        imported, function = NPU[way]
        text = f"import torch\n{imported}y = {function}(x, w)\n"
        assert imported in migrated(text)
        (item,) = rewrite(text, Target.RMSNORM).items
        assert item.notes[0].startswith("the import of torch_npu stays")

    def test_a_guarded_import_stays(self):
        text = "try:\n    import torch_npu\nexcept ImportError:\n    pass\n"
        text += "y = torch_npu.npu_rms_norm(x, w)\n"
        assert migrated(text) == text.replace("y = torch_npu", "import rmsnorm\ny = rmsnorm")

    def test_a_name_that_the_file_also_gives_away_is_left(self):
        text = "from torch_npu import npu_rms_norm\ndef f(npu_rms_norm):\n    npu_rms_norm(x, w)\n"
        assert migrated(text) == text
        assert codes(text) == ["RN107"]

    def test_a_skipped_call_keeps_its_import(self):
        text = "import torch_npu\ny = torch_npu.npu_rms_norm(x, w)  # rmsnorm: skip\n"
        assert migrated(text) == text
        assert codes(text) == ["RN201"]

    def test_the_page_s_class_there_and_back_rounds_once(self):
        there = migrated(HEAD + PAGE, Target.TORCH_NPU)
        back = migrated(there)
        assert "return rmsnorm.npu_rms_norm(x, self.weight, epsilon=self.eps)[0]" in back
        assert back.count("torch_npu") == 1  # its import
