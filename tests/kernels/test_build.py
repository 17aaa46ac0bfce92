"""What happens without a compiler, with a broken one, without a cache, and when many build at once."""

import os
import pathlib
import stat
import subprocess
import sys
import textwrap

import pytest
import torch

from sparsetrain.kernels import versions
from sparsetrain.kernels.checksum import checksum
from sparsetrain.kernels.native import build
from sparsetrain.kernels.native.build import BuildError
from sparsetrain.kernels.select import select

LIMIT = 100.0  # seconds
USE = """
    import torch
    from sparsetrain.kernels import checksum, versions
    from sparsetrain.kernels.select import select
    buffer = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    chosen = select(None, buffer, 400)
    chosen = select(None, buffer, 400)
    print(checksum.checksum(torch.cat([chosen.indices.view(torch.uint8), chosen.values.view(torch.uint8)])))
    print(versions.describe())
"""


def answer() -> str:
    buffer = torch.randn(40_000, generator=torch.Generator().manual_seed(1))
    select(None, buffer, 400)
    chosen = select(None, buffer, 400)
    return str(checksum(torch.cat([chosen.indices.view(torch.uint8), chosen.values.view(torch.uint8)])))


def start(code: str = USE, **env: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", versions.VARIABLE)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, list[str], str]:
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return process.returncode, out.splitlines(), err


def compiler(folder: pathlib.Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


def quick_compiler(folder: pathlib.Path, library: pathlib.Path) -> str:
    """A compiler that has the result at hand."""
    work = f'while [ "$1" != -o ]; do shift; done; cp {library} "$2"'
    return compiler(folder, f'[ "$1" = --version ] && echo quick 1.0 && exit 0\n{work}')


@pytest.mark.parametrize("cause", ["none", "named but missing", "fails", "makes nothing", "makes rubbish", "hangs"])
def test_without_a_working_compiler_one_line_says_why_and_results_are_the_same(tmp_path, cause):
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if cause == "none":
        env["PATH"] = str(tmp_path)
    elif cause == "named but missing":
        env["CXX"] = "no-such-compiler -O1"
    elif cause == "hangs":
        env["CXX"] = compiler(tmp_path, "exec sleep 1000")
    else:
        # Answers --version, then does not do its work.
        work = {
            "fails": "echo 'x.cpp:1: error: no' >&2; exit 1",
            "makes nothing": "exit 0",
            "makes rubbish": 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"',
        }[cause]
        env["CXX"] = compiler(tmp_path, f'[ "$1" = --version ] && echo strange 1.0 && exit 0\n{work}')
    code = "from sparsetrain.kernels.native import build\nbuild.SECONDS = 1.0\n" + textwrap.dedent(USE)
    rc, out, err = finish(start(code, **env))
    assert rc == 0, err
    assert out[0] == answer() and out[1].startswith("reference (")
    assert len(err.splitlines()) == 1 and "the reference serves: " in err
    words = {"none": "no compiler", "named but missing": "no-such-compiler", "fails": "error: no", "hangs": "no end"}
    assert words.get(cause, "") in err


def test_who_insists_on_native_gets_an_error(tmp_path):
    rc, _, err = finish(start(SPARSETRAIN_KERNELS="native", PATH=str(tmp_path)))
    assert rc == 1 and "SPARSETRAIN_KERNELS=native: no compiler" in err


def test_a_wrong_choice_names_the_right_ones_and_the_reference_needs_no_compiler(tmp_path):
    rc, _, err = finish(start(SPARSETRAIN_KERNELS="fast"))
    assert rc == 1 and "SPARSETRAIN_KERNELS=fast: must be one of auto, native, reference" in err
    rc, out, err = finish(start(SPARSETRAIN_KERNELS="reference", PATH=str(tmp_path)))
    assert (rc, out, err) == (0, [answer(), "reference (SPARSETRAIN_KERNELS=reference)"], "")


@pytest.mark.slow
def test_ranks_that_build_at_once_agree_and_leave_one_file(libraries, tmp_path):
    processes = [start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    for process in processes:
        rc, out, err = finish(process)
        assert rc == 0 and err == "" and out[0] == answer()
        assert out[1].startswith("native, ") and str(tmp_path) in out[1]
    folder = tmp_path / "sparsetrain" / "kernels"
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.slow
def test_a_library_is_built_once_and_replaced_when_broken(libraries, tmp_path):
    env = {"CXX": quick_compiler(tmp_path, libraries["native"].path), "XDG_CACHE_HOME": str(tmp_path)}
    rc, out, err = finish(start(**env))
    (path,) = (tmp_path / "sparsetrain" / "kernels").iterdir()
    assert (rc, out, err) == (0, [answer(), f"native, quick 1.0, {path}"], "")
    before = path.stat().st_mtime_ns
    assert finish(start(**env))[0] == 0 and path.stat().st_mtime_ns == before
    path.write_bytes(b"")
    rc, out, err = finish(start(**env))
    assert (rc, out[0], err) == (0, answer(), "") and path.stat().st_size > 10_000


@pytest.mark.parametrize("fault", ["writable by all", "a file", "of another user"])
def test_a_cache_that_others_may_write_to_is_not_used(libraries, tmp_path, fault):
    folder = tmp_path / "sparsetrain" / "kernels"
    folder.parent.mkdir()
    if fault == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "writable by all" else 0o700)
        if fault == "of another user":
            if os.getuid() != 0:
                pytest.skip("only the superuser can give a folder away")
            os.chown(folder, 65534, 65534)
    quick = quick_compiler(tmp_path, libraries["native"].path)
    rc, out, err = finish(start(CXX=quick, XDG_CACHE_HOME=str(tmp_path), TMPDIR=str(tmp_path)))
    assert (rc, out, err) == (0, [answer(), "native, quick 1.0, not cached"], "")
    assert {path.name for path in tmp_path.iterdir()} == {"sparsetrain", "compiler"}
    assert not folder.is_dir() or not list(folder.iterdir())


def test_sources_flags_and_processor_decide_the_name(tmp_path, monkeypatch):
    first = build._digest(["g++", "12"])
    assert first == build._digest(["g++", "12"]) and len(first) == 32
    assert first != build._digest(["g++", "13"])
    monkeypatch.setattr(build, "_processor", lambda: ["another"])
    assert first != build._digest(["g++", "12"])


def test_other_systems_are_told(monkeypatch):
    monkeypatch.setattr(build.sys, "byteorder", "big")
    with pytest.raises(BuildError, match="no native kernels for"):
        build.build_and_load(os.environ)
