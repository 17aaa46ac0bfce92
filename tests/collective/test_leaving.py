"""A process group that is destroyed is gone, with its threads: those that stay abort the interpreter now and then."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import pathlib, time
from sparsetrain import torch_world
import torch
import torch.distributed as dist

def threads():
    names = [(task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)

dist.init_process_group("gloo", init_method="file://" + FOLDER + "/meet", rank=0, world_size=1)
weight = torch.nn.Parameter(torch.ones(3))
weight.sum().backward()
torch.optim.SGD([weight], lr=0.1).step()  # imports torch._dynamo and half of torch with it
torch_world().transport.barrier()
before = threads()
dist.destroy_process_group()
ends = time.monotonic() + 5  # one that has been told to end may still be on its way
while threads() and time.monotonic() < ends:
    time.sleep(0.01)
print(before, threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_of_a_group_outlives_it(tmp_path):
    script = tmp_path / "leave.py"
    script.write_text(f"FOLDER = {str(tmp_path)!r}\n{SCRIPT}")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 0 and after == 0
