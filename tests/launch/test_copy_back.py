import pytest
import ray

from sparsetrain.launch.ray_driver import copy_back


class Worker:
    """Stands for a rank whose `files` answers what it likes."""

    def __init__(self, found):
        self.actor = self.files = self
        self.found = found

    def remote(self, folder):
        return self.found


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda answer: answer)


def test_files_come_into_the_folder(tmp_path):
    copy_back(Worker({"run.json": b"{}", "logs/rank00000.log": b"x"}), tmp_path)
    assert (tmp_path / "logs/rank00000.log").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../x", "/tmp/sparsetrain-x", "logs/../../x", "out/x", "logs/../../../../x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="outside the run folder"):
        copy_back(Worker({name: b"x"}), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
