"""Where what can be made again is kept."""

import pathlib

from sparsetrain.config.cache import cache_folder


def test_it_lies_in_the_users_cache() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == pathlib.Path("/x/sparsetrain")
    assert cache_folder({"XDG_CACHE_HOME": "", "HOME": "/h"}) == pathlib.Path("/h/.cache/sparsetrain")
    assert cache_folder({}) == pathlib.Path.home() / ".cache/sparsetrain"
