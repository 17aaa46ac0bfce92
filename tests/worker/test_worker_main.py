from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.worker import main
from sparsetrain.worker.environment import Place


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_fast_products_are_kept_only_if_exact() -> None:
    lines: list[str] = []
    main.prefer_fast_matmul(lines.append)
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    exact = left.double() @ right.double()
    assert float(((left @ right).double() - exact).norm() / exact.norm()) < main.MATMUL_ERROR
    assert (torch.get_float32_matmul_precision() == "medium") == (not lines)


def test_inexact_products_are_switched_off_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "MATMUL_ERROR", 0.0)
    lines: list[str] = []
    main.prefer_fast_matmul(lines.append)
    assert torch.get_float32_matmul_precision() == "highest"
    assert len(lines) == 1


def test_all_generators_are_seeded() -> None:
    draws = []
    for _ in range(2):
        main.seed_all(7)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert draws[0] == draws[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there() -> None:
    job = parse({"name": "one", "cluster": {"gpus_per_worker": 1}})
    with pytest.raises(JobError, match=r"^cluster\.gpus_per_worker:"):
        main.pick_device(job, Place())


def test_the_launcher_decides_the_number_of_workers() -> None:
    job = parse({"name": "one", "cluster": {"workers": 2}})
    assert main.check_size(job, Place(rank=0, size=3, master_port=1)).cluster.workers == 3
    assert main.check_size(job, Place(rank=0, size=2, master_port=1)) is job
