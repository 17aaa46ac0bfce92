"""Which version of the kernels serves, for the length of a with block."""

import contextlib
from collections.abc import Generator
from unittest import mock

import torch

from sparsetrain.kernels import versions
from sparsetrain.kernels.native.library import Library


@contextlib.contextmanager
def serving(library: Library | None, threads: int = 1) -> Generator[None]:
    """Let `library` serve, None for the reference, with that many torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with mock.patch.object(versions, "native", lambda: library):
            yield
    finally:
        torch.set_num_threads(before)
