"""Every version of the kernels on this machine, side by side."""

import os

import pytest

from sparsetrain.kernels.native.build import BuildError, build_and_load
from sparsetrain.kernels.native.library import Library

BUILDS = {
    "native": (),
    "threaded": ("-DST_PER_THREAD=1024", "-DST_STREAM_FROM=1000"),
    "narrow": ("-DST_NARROW", "-DST_PER_THREAD=1024", "-DST_STREAM_FROM=1000"),
    "portable": ("-DST_PORTABLE", "-DST_PER_THREAD=1024", "-DST_STREAM_FROM=1000"),
}


@pytest.fixture(scope="session")
def libraries() -> dict[str, Library]:
    try:
        return {name: build_and_load(os.environ, extra)[0] for name, extra in BUILDS.items()}
    except BuildError as error:
        pytest.skip(f"no native kernels here: {error}")
