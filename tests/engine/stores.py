"""Stores for tests, and checkpoints in them that hold a few bytes."""

from __future__ import annotations

import json
import pathlib
import uuid

import fsspec

from sparsetrain.engine.checkpoint import digest, name_of, write_text
from sparsetrain.engine.keeping import ESSENTIAL
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.engine.remote_store import RemoteStore
from sparsetrain.engine.store import Part, Store

KINDS = ("local", "file", "memory")


def store_of(kind: str, folder: pathlib.Path) -> Store:
    if kind == "local":
        return LocalStore(folder / "run/checkpoints")
    if kind == "file":
        return RemoteStore(f"file://{folder}/run", 20)
    return RemoteStore(f"memory://{uuid.uuid4().hex}/run", 20)


def put(store: Store, step: int, ranks: int = 1, text: str = "text") -> dict[str, Part]:
    """Put one file per rank, and of rank 0 what none can do without, and return them; the checkpoint is not complete
    yet."""
    parts = {}
    for rank in range(ranks):
        files = [f"residual.rank{rank:05d}.safetensors", *(ESSENTIAL if rank == 0 else ())]
        store.begin(name_of(step), rank, files)
        for file in files:
            parts[file] = store.put(name_of(step), file, lambda path: write_text(path, text))
    return parts


def publish(store: Store, step: int, ranks: int = 1, text: str = "text") -> None:
    store.publish(name_of(step), put(store, step, ranks, text))


def damage(store: Store, name: str, file: str, data: bytes | None = None) -> None:
    """Overwrite a file of a complete checkpoint, or take it away."""
    if isinstance(store, LocalStore):
        path = store.root / name / file
        path.unlink() if data is None else path.write_bytes(data)
        return
    fs, root = fsspec.core.url_to_fs(store.name)
    fs.rm_file(f"{root}/{name}/{file}") if data is None else fs.pipe_file(f"{root}/{name}/{file}", data)


def sealed(folder: pathlib.Path) -> None:
    """Give the folder the digests of its files, as an attacker would."""
    digests = {path.name: digest(path) for path in folder.iterdir() if path.is_file()}
    (folder / "COMPLETE").write_text(json.dumps({"blake2b": {**digests, "COMPLETE": ""}}))


def everything(store: Store) -> set[str]:
    """Return the names of all that is there, whatever it is."""
    fs, root = fsspec.core.url_to_fs(store.name)
    fs.invalidate_cache()
    return {path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)}


def contents(store: Store) -> list[bytes]:
    """Return what is in all files, wherever they lie."""
    fs, root = fsspec.core.url_to_fs(store.name)
    return [fs.cat_file(path) for path in (fs.find(root) if fs.exists(root) else ())]
