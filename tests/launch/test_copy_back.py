import pytest

from sparsetrain.launch.ray_driver import copy_back


class Group:
    """Stands for a group whose first rank answers what it likes."""

    def __init__(self, found):
        self.found = found

    def files(self, member):
        return self.found


def test_files_come_into_the_folder(tmp_path):
    copy_back(None, Group({"run.json": b"{}", "logs/rank00000.log": b"x"}), tmp_path)
    assert (tmp_path / "logs/rank00000.log").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../x", "/tmp/sparsetrain-x", "logs/../../x", "out/x", "logs/../../../../x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="outside the run folder"):
        copy_back(None, Group({name: b"x"}), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
