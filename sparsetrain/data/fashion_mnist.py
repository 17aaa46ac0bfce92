"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, MIT licence): 60,000 + 10,000 images of 28 x 28, ten classes."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pathlib
import struct
import urllib.request

import numpy as np
import torch
from torch import Tensor

from sparsetrain.config.cache import cache_folder
from sparsetrain.config.errors import JobError

# sha256 of the decompressed files: packagers compress them anew.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SYSTEM = pathlib.Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
UPSTREAM = "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


class FashionMNIST:
    """Fashion-MNIST from `root`, $SPARSETRAIN_DATA, the Debian package, the user's cache, or a checked download."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`root` is a folder with the four idx files, gzipped or not; `download` fetches them into the cache."""

        root: str | None = None
        download: bool = False
        url: str = UPSTREAM

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = _find(config)
        content = {name: _read(self.folder, name) for name in FILES}
        self.sha256 = hashlib.sha256(content["train-images-idx3-ubyte"]).hexdigest()
        self.bytes = sum(len(part) for part in content.values())
        train = _images(content, "train")
        mean, spread = train[0].mean(), train[0].std()
        self.train, self.eval = (((x - mean) / spread, y) for x, y in (train, _images(content, "t10k")))
        self.train_size, self.eval_size = len(self.train[1]), len(self.eval[1])

    @staticmethod
    def look(config: Config) -> None:
        """Raise JobError where the files are not on this machine and will not be fetched."""
        if not config.download:
            _find(config)

    def describe(self) -> dict[str, object]:
        """Return the source, its size in bytes and the sha256 of the training images."""
        return {"source": str(self.folder), "files": len(FILES), "bytes": self.bytes, "sha256": self.sha256}

    def train_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (images fp32 [B, 1, 28, 28], labels int64 [B])."""
        return self.train[0][indices], self.train[1][indices]

    def eval_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return (images fp32 [B, 1, 28, 28], labels int64 [B]) of the held-out set."""
        return self.eval[0][indices], self.eval[1][indices]


def _cache() -> pathlib.Path:
    return cache_folder(os.environ) / "fashion-mnist"


def _find(config: FashionMNIST.Config) -> pathlib.Path:
    named = config.root or os.environ.get("SPARSETRAIN_DATA")
    places = [pathlib.Path(named)] if named else [SYSTEM, _cache()]
    for place in places:
        if all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in FILES):
            return place
    if config.download:
        _download(config.url, _cache())
        return _cache()
    looked = ", ".join(str(place) for place in places)
    raise JobError(
        f"data.root: no Fashion-MNIST in {looked}; install Debian's dataset-fashion-mnist, name a folder, "
        "or set data.download=true"
    )


def _download(url: str, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in FILES.items():
        try:
            with urllib.request.urlopen(f"{url}{name}.gz", timeout=60) as answer:
                content = gzip.decompress(answer.read())
        except (OSError, EOFError) as error:
            raise JobError(f"data.url: cannot fetch {name}.gz: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise JobError(f"data.url: {name} has sha256 {found}, expected {expected}")
        unfinished = folder / f"{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        unfinished.rename(folder / name)


def _read(folder: pathlib.Path, name: str) -> bytes:
    plain = folder / name
    try:
        return plain.read_bytes() if plain.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    except (OSError, EOFError) as error:
        raise JobError(f"data.root: {folder / name} is not readable: {error}") from error


def _images(content: dict[str, bytes], part: str) -> tuple[Tensor, Tensor]:
    pixels, labels = content[f"{part}-images-idx3-ubyte"], content[f"{part}-labels-idx1-ubyte"]
    if len(pixels) < 16 or len(labels) < 8:
        raise JobError(f"data.root: the {part} files are cut short")
    magic, count, height, width = struct.unpack(">4I", pixels[:16])
    label_magic, label_count = struct.unpack(">2I", labels[:8])
    whole = len(pixels) == 16 + count * height * width and len(labels) == 8 + label_count
    if (magic, label_magic) != (2051, 2049) or count != label_count or not whole or (height, width) != (28, 28):
        raise JobError(f"data.root: the {part} files are not Fashion-MNIST in idx format")
    x = torch.from_numpy(np.frombuffer(pixels, np.uint8, offset=16).copy()).view(count, 1, height, width)
    return x.float() / 255.0, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy()).long()
