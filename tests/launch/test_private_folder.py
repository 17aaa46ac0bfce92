import os
import pathlib
import signal
import stat
import subprocess
import sys

import pytest

from sparsetrain.launch.private_folder import private_folder, sweep

HOLD = """
import time
from sparsetrain.launch.private_folder import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def test_it_is_for_this_user_only_and_goes_with_its_end():
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and len(str(folder)) < 40
    assert not folder.exists()


@pytest.mark.timeout(60)
def test_what_a_killed_one_left_goes_and_what_is_held_stays():
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = pathlib.Path(process.stdout.readline().strip())
        sweep(left.parent)
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        (left / "r").mkdir()
        with private_folder() as folder:  # the next one sweeps
            assert not left.exists() and folder.exists()


def test_folders_of_others_stay(tmp_path):
    (tmp_path / "st-strange").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/lock").touch()
    (tmp_path / "st-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "st-pipe").mkdir()
    os.mkfifo(tmp_path / "st-pipe/lock")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / "elsewhere/lock").exists()
