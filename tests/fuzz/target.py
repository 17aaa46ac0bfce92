"""What a fuzzer needs to know of a parser: valid inputs, how to change them, and what counts as a refusal."""

from __future__ import annotations

import abc
import random
from collections.abc import Hashable, Sequence

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

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        """Return another case near this one."""
        return changed(case, corpus, draw)
