from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.worker import main
from sparsetrain.worker.environment import Place


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
    assert main.check_size(job, Place(rank=0, size=3, master_port=1)).cluster.workers.max == 3
    assert main.check_size(job, Place(rank=0, size=2, master_port=1)) is job
    span = parse({"name": "one", "cluster": {"workers": {"min": 1, "max": 4}}})
    assert main.check_size(span, Place(rank=0, size=3, master_port=1)) is span
