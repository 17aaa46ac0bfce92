"""What an MPI library says of GPU memory, asked of libraries that answer in each way, and of the real one."""

import os
import pathlib
import shutil
import subprocess
import types

import pytest
from mpi_ranks import missing, mpi_ranks

from sparsetrain.collective.mpi_gpu import gpu_aware
from sparsetrain.collective.world import World

COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
@pytest.mark.parametrize(("answer", "aware"), [("1", True), ("0", False), ("-1", False), (None, False)])
def test_the_library_is_asked(tmp_path: pathlib.Path, answer: str | None, aware: bool):
    name = "MPIX_Query_cuda_support" if answer else "something_else"
    source = tmp_path / "mpi.cpp"
    source.write_text(f'extern "C" int {name}(void) {{ return {answer or 0}; }}\n')
    library = tmp_path / "mpi.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    assert gpu_aware(types.SimpleNamespace(__file__=str(library))) is aware


def test_what_is_no_library_is_not_aware(tmp_path: pathlib.Path):
    assert not gpu_aware(types.SimpleNamespace(__file__=str(tmp_path / "none.so")))
    assert not gpu_aware(os)


def ask(world: World) -> bool:
    return world.transport.direct


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_ranks_on_processors_never_hand_gpu_memory_over():
    assert mpi_ranks(2, ask) == [False, False]
