"""Fixtures: every test starts and ends with the best instruction set and its own threads."""

import os
from collections.abc import Iterator

import pytest
import torch

import rmsnorm

os.environ.setdefault("HF_HUB_OFFLINE", "1")


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
def device(request) -> Iterator[str]:
    """Where a test makes its tensors: on every device that is here, one after another."""
    if request.param != "cpu":
        torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    rmsnorm.use_cpu_target(None)
