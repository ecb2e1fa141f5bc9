"""Fixtures: every test starts and ends with the best instruction set and its own threads."""

import os
from collections.abc import Iterator

import pytest
import torch

import rmsnorm

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    rmsnorm.use_cpu_target(None)
