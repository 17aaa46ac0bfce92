"""What a fuzzer needs to know of a parser: valid inputs, how to change them, and what counts as a refusal."""

from __future__ import annotations

import abc
import atexit
import pathlib
import random
import shutil
import tempfile
from collections.abc import Hashable, Sequence

from tests.fuzz.coverage import path_of
from tests.fuzz.mutations import changed


class Target(abc.ABC):
    """A parser under test. Every case is bytes, so that it can be kept in a file and read again."""

    refusals: tuple[type[Exception], ...]  # documented by the parser; whatever else it raises is a finding
    traced = 64  # one case of so many runs under the line tracer

    @abc.abstractmethod
    def seeds(self) -> list[bytes]:
        """Return valid cases, the same in every process."""

    @abc.abstractmethod
    def read(self, case: bytes) -> Hashable:
        """Parse a case and use what came of it. Return what kind of value that was: a new kind is worth keeping.

        Raises one of `refusals`, or whatever the parser should not have raised; AssertionError for a wrong value.
        """

    def kind_of(self, refusal: Exception) -> Hashable:
        """Return what kind of refusal this is; a new kind is worth keeping too."""
        return path_of(refusal)

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        """Return another case near this one."""
        return changed(case, corpus, draw)


def scratch() -> pathlib.Path:
    """Return a new folder that is removed when the process ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sparsetrain-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
