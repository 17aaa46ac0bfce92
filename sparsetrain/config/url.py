"""Where checkpoints may lie beside the run folder: a URL that holds no secret and that this installation can open."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlsplit

from sparsetrain.config.errors import JobError
from sparsetrain.registry import nearest

# Schemes in which a name before the @ is no key.
NAMED = ("abfs", "abfss", "hdfs", "sftp", "smb", "ssh")
EXTRAS = {"s3": "s3fs", "s3a": "s3fs"}  # what our extra `s3` installs


def check_url(url: str, where: str = "checkpoint.url") -> None:
    """Raise JobError, which begins with `where` and never repeats a secret, for a URL that cannot be used."""
    from fsspec.registry import known_implementations

    scheme, found, rest = url.partition("://")
    if not found or not rest.strip("/") or "::" in url:
        raise JobError(f"{where}: must be a URL like s3://bucket/folder or file:///folder, or null for the run folder")
    host = urlsplit(f"x://{rest}").netloc
    user, signed, _ = host.rpartition("@")
    if ":" in user or (signed and scheme not in NAMED) or (scheme in EXTRAS and ":" in host) or {"?", "#"} & set(rest):
        raise JobError(
            f"{where}: takes no keys, passwords or parameters, which would end up in files and logs; give them in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL; or what your store reads)"
        )
    if scheme not in known_implementations:
        raise JobError(f"{where}: no such scheme: {scheme[:20]}{nearest(scheme, sorted(known_implementations))}")
    package = EXTRAS.get(scheme) or str(known_implementations[scheme]["class"]).split(".")[0]
    if importlib.util.find_spec(package) is None:
        how = "sparsetrain[s3]" if scheme in EXTRAS else package
        raise JobError(f"{where}: {scheme}://... wants the package {package}: pip install {how}")
