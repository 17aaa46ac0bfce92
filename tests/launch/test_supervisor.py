"""The supervisor's words when a run cannot go on, with a group that only says what it is told to."""

import pathlib

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.launch.failure import Failure, RunFailed
from sparsetrain.launch.supervisor import Progress, Supervisor

JOB = parse({"name": "one", "cluster": {"workers": 2, "start_timeout": 0.05}})
SAYS = Progress(line=lambda line: None, row=lambda row: None)


class Empty:
    """A cluster without room."""

    def recruit(self):
        pass

    def ready(self):
        return [], []


def supervisor():
    return Supervisor(JOB, pathlib.Path(), Empty(), SAYS, lambda members: members)


def test_a_cluster_without_room_is_a_mistake_of_the_job():
    with pytest.raises(JobError, match=r"^cluster\.start_timeout: 0 of 2 workers were up after 0\.05 s$"):
        supervisor().run()


def test_a_loss_that_nobody_makes_up_for_is_the_cause():
    loss = Failure(rank=1, host="h", node="n", pid=7, kind="died", message="gone")
    lonely = supervisor()
    lonely.cause = loss
    with pytest.raises(RunFailed) as caught:
        lonely._gather()
    assert caught.value.failure is loss
    said = "rank 1 on h (node n, process 7) failed: gone [cluster.start_timeout: 0 of 2 workers were up after 0.05 s]"
    assert str(caught.value) == said
