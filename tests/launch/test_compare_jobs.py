from __future__ import annotations

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.launch.compare import against_jobs


def test_the_dense_version_of_a_job_sends_everything_and_masks_nothing() -> None:
    job = load_job("quickstart")
    (dense,) = against_jobs(job, ("dense",))
    assert dense.name == "quickstart-dense"
    assert (dense.exchange.regime, dense.exchange.every, dense.masks) == ("dense", 1, None)
    assert (dense.seed, dense.model, dense.data, dense.train.steps) == (job.seed, job.model, job.data, job.train.steps)


def test_other_jobs_are_loaded_as_they_are() -> None:
    assert [job.name for job in against_jobs(load_job("quickstart"), ("text_gpt",))] == ["text_gpt"]


def test_the_dense_version_has_its_own_best_settings() -> None:
    job = load_job("quickstart", ("baseline=[optimizer.learning_rate=0.004, train.warmup=0.2]",))
    (dense,) = against_jobs(job, ("dense",))
    assert dense.optimizer.config.learning_rate == 0.004 and dense.train.warmup == 0.2
    assert job.optimizer.config.learning_rate != 0.004


def test_a_wrong_baseline_is_told_before_anything_runs() -> None:
    job = load_job("quickstart", ("baseline=[train.stepz=3]",))
    with pytest.raises(JobError, match=r"train\.stepz.*did you mean 'steps'"):
        against_jobs(job, ("dense",))
