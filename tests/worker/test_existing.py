from __future__ import annotations

import dataclasses
import pathlib

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job, Workers
from sparsetrain.config.load import parse
from sparsetrain.worker import existing, record


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Job:
    return parse({"name": "one", "log": {"folder": str(tmp_path)}, "train": {"steps": 10}})


def changed(job: Job, **train: object) -> Job:
    return dataclasses.replace(job, train=dataclasses.replace(job.train, **train))


def test_no_folder_is_a_new_run(job: Job) -> None:
    assert not existing.finished(job, record.run_folder(job))


def test_a_finished_run_is_finished_until_it_shall_go_further(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    assert not existing.finished(job, folder)
    record.end(folder, "finished", result={"steps": 10})
    assert existing.finished(job, folder)
    assert not existing.finished(changed(job, steps=20), folder)


def test_another_job_is_refused_by_the_first_path_that_differs(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(JobError, match=r"^train\.batch_size: is 3 here and 16 in the run.*name=one-2"):
        existing.finished(changed(job, batch_size=3), folder)


def test_a_run_from_before_a_setting_was_there_has_its_default(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    (folder / "metrics.jsonl").write_text("{}\n")
    record.end(folder, "finished", result={"steps": 10})
    path = folder / "job.yaml"
    path.write_text(path.read_text().replace("  rank: 4\n", ""))
    assert "rank:" not in path.read_text() and existing.finished(job, folder)
    path.write_text(path.read_text().replace("  replan:", "  replanned:"))
    with pytest.raises(JobError, match=r"holds another job"):
        existing.finished(job, folder)


def test_a_job_that_was_refused_before_it_trained_does_not_keep_its_name(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    record.end(folder, "failed")
    assert not existing.finished(changed(job, batch_size=3), folder)


def test_resume_switched_off_does_not_write_over_a_run(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(JobError, match=r"^checkpoint\.resume:"):
        existing.finished(
            dataclasses.replace(job, checkpoint=dataclasses.replace(job.checkpoint, resume=False)), folder
        )


def test_where_a_run_goes_may_change(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    moved = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, workers=Workers(min=4, max=4)))
    assert not existing.finished(moved, folder)


def test_a_folder_is_moved_aside_and_never_deleted(job: Job) -> None:
    folder = record.run_folder(job)
    for number in (1, 2):
        record.begin(job, folder, {})
        assert existing.move_aside(folder) == folder.with_name(f"one.{number}")
    assert existing.move_aside(folder) is None
    assert (folder.with_name("one.1") / "job.yaml").is_file()


def test_attempts_are_counted_and_a_broken_status_is_none(job: Job) -> None:
    folder = record.run_folder(job)
    record.begin(job, folder, {})
    record.begin(job, folder, {})
    assert existing.status(folder)["attempts"] == 2
    (folder / "run.json").write_text("{")
    assert existing.status(folder) == {}


def test_a_folder_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    job = parse({"name": "one", "log": {"folder": str(tmp_path / "file")}})
    with pytest.raises(JobError, match=r"^log\.folder: cannot write"):
        record.begin(job, record.run_folder(job), {})
