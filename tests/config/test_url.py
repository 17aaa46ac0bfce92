import importlib.util

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.config.url import check_url

SECRET = "wJalrXUtnFEMI"
WITH_SECRETS = [
    f"s3://AKIA:{SECRET}@bucket/folder",
    f"s3://AKIA:{SECRET}/folder",
    f"s3://{SECRET}@bucket",
    f"s3://bucket/folder?secret={SECRET}",
    f"s3://bucket/folder#{SECRET}",
    f"ftp://me:{SECRET}@host/folder",
    f"abfs://me:{SECRET}@account.dfs.core.windows.net/folder",
]


@pytest.mark.parametrize("url", WITH_SECRETS)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(JobError, match=r"^checkpoint\.url: takes no keys.*environment") as found:
        load_job("quickstart", (f"checkpoint.url={url}",))
    assert SECRET not in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("folder", "must be a URL"),
        ("s3://", "must be a URL"),
        ("simplecache::memory://a", "must be a URL"),
        ("memroy://a", "no such scheme: memroy; did you mean 'memory'"),
    ],
)
def test_what_is_no_url_is_refused_in_one_line(url, says):
    with pytest.raises(JobError, match=r"^checkpoint\.url: ") as found:
        load_job("quickstart", (f"checkpoint.url={url}",))
    assert says in str(found.value)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("s3fs", "gcsfs") else real(name))
    with pytest.raises(JobError, match=r"s3://\.\.\. wants the package s3fs: pip install sparsetrain\[s3\]"):
        check_url("s3://bucket/folder")
    with pytest.raises(JobError, match="wants the package gcsfs: pip install gcsfs"):
        check_url("gs://bucket/folder")


@pytest.mark.parametrize("url", ["memory://a", "file:///tmp/a", "sftp://me@host/a", "memory://a/me@home"])
def test_urls_without_secrets_are_taken(url, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert load_job("quickstart", (f"checkpoint.url={url}",)).checkpoint.url == url
