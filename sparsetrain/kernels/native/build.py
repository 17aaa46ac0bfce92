"""Compiling the native kernels with the machine's own compiler, once per machine, source and compiler.

The library lies in a private folder under the user's cache, named by the hash of everything that decides its
content, so that an old one is never loaded, and ranks that build at the same time write the same thing: each
compiles beside and renames.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from sparsetrain.config.cache import cache_folder
from sparsetrain.kernels.native.library import Library

SOURCES = pathlib.Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    "-pthread",
)
SECONDS = 120.0  # for a compiler to answer or to compile


class BuildError(RuntimeError):
    """Why there is no native library, in one line."""


def build_and_load(env: Mapping[str, str], extra: Sequence[str] = ()) -> tuple[Library, str]:
    """Return the library and, in a line, what it was built with and where it lies.

    `extra` flags are added, as tests do for the portable code. Compiles where no equal library is in the cache of
    the user that `env` describes; without a cache that is safe and writable, in a temporary folder. Raises BuildError.
    """
    if sys.byteorder != "little" or os.name != "posix":
        raise BuildError(f"no native kernels for {platform.system()} {platform.machine()}")
    command = _compiler(env)
    version = _run([*command, "--version"], env).partition("\n")[0].strip()
    command += [*FLAGS, *extra]
    name = f"kernels-{_digest([*command, version])}.so"
    cache = _cache(env)
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="sparsetrain-kernels-") as private:
            # Once loaded it needs no file any more.
            return _load(command, pathlib.Path(private) / name, env), f"{version}, not cached"
    return _load(command, cache / name, env), f"{version}, {cache / name}"


def _load(command: Sequence[str], path: pathlib.Path, env: Mapping[str, str]) -> Library:
    if path.exists():
        try:
            return Library(path)
        except (OSError, AttributeError):
            pass  # a disk that was full, say: a new one takes its place
    _compile(command, path, env)
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise BuildError(f"cannot load what {command[0]} made: {error}") from None


def _compiler(env: Mapping[str, str]) -> list[str]:
    try:
        wanted = [shlex.split(env["CXX"])] if env.get("CXX", "").strip() else [[name] for name in COMPILERS]
    except ValueError as error:
        raise BuildError(f"CXX: {error} (given {env['CXX']})") from None
    for name, *arguments in wanted:
        if path := shutil.which(name, path=env.get("PATH", "")):
            return [path, *arguments]
    raise BuildError(f"no compiler: {', '.join(name for name, *_ in wanted)} not found")


def _digest(parts: Sequence[str]) -> str:
    """Return a hash of the sources, of `parts` and of this processor."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for part in (*parts, *_processor()):
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()


def _processor() -> list[str]:
    """Return what -march=native looks at: a home folder may be shared by machines that differ."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {line.partition(":")[0].strip(): line for line in lines if line.startswith(wanted)}
    return [platform.machine(), platform.processor(), *(found[name] for name in sorted(found))]


def _cache(env: Mapping[str, str]) -> pathlib.Path | None:
    """Return a folder that nobody else can write to, since what lies in it is loaded as code; None without one."""
    folder = cache_folder(env) / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        with tempfile.TemporaryFile(dir=folder):  # a read-only file system refuses even the superuser
            return folder
    except OSError:
        return None


def _compile(command: Sequence[str], library: pathlib.Path, env: Mapping[str, str]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as beside:
            fresh, inside = pathlib.Path(beside) / library.name, {**env, "TMPDIR": beside}
            sources = {path: f"{beside}/{path.stem}.o" for path in sorted(SOURCES.glob("*.cpp"))}
            # The vector instructions' header is most of a file's time, so files are compiled side by side.
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                list(
                    pool.map(lambda item: _run([*command, "-c", "-o", item[1], str(item[0])], inside), sources.items())
                )
            _run([*command, "-o", str(fresh), *sources.values()], inside)
            fresh.replace(library)
    except OSError as error:
        raise BuildError(f"{command[0]} left no library: {error}") from None


def _run(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Return what `command` prints. Raises BuildError with its first complaint."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, env=dict(env), start_new_session=True, **streams)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from None
    try:
        out, complaints = process.communicate(timeout=SECONDS)
    except BaseException as error:
        # A compiler is several processes, and those that stay would hold its pipes open.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise BuildError(f"{command[0]}: no end after {SECONDS:.0f} s") from None
        raise
    if process.returncode:
        lines = [line for line in complaints.decode(errors="replace").splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise BuildError(f"{command[0]} ended with {process.returncode}: {why.strip()[:200]}")
    return out.decode(errors="replace")
