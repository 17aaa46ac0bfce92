"""Checkpoints: a whole folder is restored into a run, which then takes a step.

A case is one byte that names the run, then the folder's files. Without COMPLETE it is sealed, as an attacker would:
with the digests of the files as they are. Refusal: CheckpointError. What is accepted must be able to train on.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Hashable, Sequence

from safetensors import SafetensorError
from safetensors.torch import load

from sparsetrain.collective.world import World
from sparsetrain.config.load import apply_overrides, parse
from sparsetrain.engine.checkpoint import CheckpointError
from sparsetrain.engine.pieces import Saved, restore
from sparsetrain.engine.saver import save
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import NotFinite, Trainer
from tests.fuzz.files import changed_json, changed_tensors, joined, parted
from tests.fuzz.mutations import changed
from tests.fuzz.target import Target, scratch

TREE = {
    "name": "tiny",
    "model": {"name": "gpt", "layers": 1, "width": 8, "heads": 1, "context": 8},
    "data": {"name": "text", "context": 8},
    "train": {"steps": 1000, "batch_size": 1, "warmup": 0.0},
    "exchange": {"density": 0.1, "dense_below": 40, "warmup": 0.0},
    "masks": {"method": "rigl", "sparsity": 0.5, "every": 2},
    "log": {"wandb": {"mode": "disabled"}},
}
RUNS = (
    ("optimizer=adamw", "exchange.every=1"),
    ("optimizer={name: sgd, momentum: 0.9}", "exchange.every=2", "exchange.outer.momentum=0.5", "masks.method=topkast"),
    ("optimizer=sgd", "exchange.regime=lowrank", "exchange.rank=2", "masks.method=mest", "exchange.residual=bf16"),
)
STEPS = 2
STEP = 32  # one of so many accepted cases trains on


class Checkpoints(Target):
    refusals = (CheckpointError, NotFinite)
    traced = 128

    def __init__(self) -> None:
        self.root = scratch()
        self.trainers, self.valid, self.folders, self.written = [], [], [], []
        for number, settings in enumerate(RUNS):
            job = parse(apply_overrides(TREE, settings))
            trainer = Trainer(build(job, World()), self.root / str(number), lambda line: None)
            for _ in range(STEPS):
                trainer.train_step()
            folder = save(trainer.state, self.root / str(number))
            (folder / "COMPLETE").unlink()
            self.trainers.append(trainer)
            self.folders.append(folder)
            self.valid.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
            self.written.append(dict(self.valid[-1]))

    def seeds(self) -> list[bytes]:
        cases = []
        for number, files in enumerate(self.valid):
            cases.append(bytes([number]) + joined(files))
            about = json.loads(files["state.json"]) | {"world_size": 2}
            two = {"state.json": json.dumps(about).encode(), **_second_rank(files)}
            cases.append(bytes([number]) + joined({**files, **two}))
        return cases

    def read(self, case: bytes) -> Hashable:
        number = (case[0] if case else 0) % len(RUNS)
        files = parted(case[1:])
        if "COMPLETE" not in files:
            digests = {name: hashlib.blake2b(data, digest_size=16).hexdigest() for name, data in files.items()}
            files["COMPLETE"] = json.dumps({"blake2b": digests}).encode()
        self._write(number, files)
        trainer = self.trainers[number]
        state = trainer.state
        restore(state, Saved(self.folders[number]))
        assert isinstance(state.step, int) and state.step == STEPS, "another step than that of the folder"
        assert state.weights_digest() == Saved(self.folders[number]).about().weights_digest, "other weights"
        if zlib.crc32(case) % STEP == 0:
            trainer.skipped = 0
            trainer.train_step()
            trainer.train_step()
        return number, len(files)

    def _write(self, number: int, files: dict[str, bytes]) -> None:
        """Make the folder's files these; what lies there already stays."""
        folder, written = self.folders[number], self.written[number]
        for name in written.keys() - files.keys():
            (folder / name).unlink()
            del written[name]
        for name, data in files.items():
            plain = not set(name) & set("/\0") and name not in ("", ".", "..") and len(name.encode()) < 200
            if plain and written.get(name) != data:
                (folder / name).write_bytes(data)
                written[name] = data

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        if draw.random() < 0.01:
            return changed(case, corpus, draw)
        files = parted(case[1:])
        for _ in range(1 + (draw.random() < 0.2)):
            if not files:
                break
            self._change_file(files, draw.choice(list(files)), draw)
        if draw.random() < 0.7:
            self._reseal(files, case[0])
        number = draw.randrange(len(RUNS)) if draw.random() < 0.01 else case[0]
        return bytes([number]) + joined(files)

    def _change_file(self, files: dict[str, bytes], name: str, draw: random.Random) -> None:
        way = draw.random()
        if way < 0.02:
            del files[name]
        elif way < 0.04:
            files[name] = files[draw.choice(list(files))]
        elif way < 0.06:
            digests = {key: hashlib.blake2b(data, digest_size=16).hexdigest() for key, data in files.items()}
            files["COMPLETE"] = changed_json(json.dumps({"blake2b": digests}).encode(), draw)
        elif way < 0.2:
            files["state.json"] = changed_json(files.get("state.json", b"{}"), draw)
        elif name.endswith(".json") or name == "COMPLETE":
            files[name] = changed(files[name], (), draw)
        else:
            files[name] = changed_tensors(files[name], draw)

    def _reseal(self, files: dict[str, bytes], number: int) -> None:
        """Put the digest of the weights as they are into state.json, where both can be read."""
        try:
            weights, about = load(files["model.safetensors"]), json.loads(files["state.json"])
            digest = hashlib.blake2b(digest_size=16)
            for name in self.trainers[number % len(RUNS)].state.parameters:
                digest.update(name.encode() + weights[name].numpy().tobytes())
            about["weights_digest"] = digest.hexdigest()
            files["state.json"] = json.dumps(about).encode()
        except (SafetensorError, ValueError, LookupError, TypeError, RecursionError):
            return


def _second_rank(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files that a second rank would have beside rank 0's."""
    return {name.replace("rank00000", "rank00001"): data for name, data in files.items() if "rank00000" in name}
