"""Job files, from bytes on disk to a checked job and back to YAML.

A case is the content of the file. Refusal: JobError, in one line that can be printed. What is accepted must write
itself out, and that must be the same job. `module:Class` names code of the user's own, so no case may invent one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Hashable, Sequence
from typing import Any

import yaml

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job, parse, to_tree, to_yaml
from sparsetrain.config.presets import PRESETS
from sparsetrain.worker.existing import first_difference
from tests.fuzz.coverage import path_of
from tests.fuzz.mutations import changed, changed_value
from tests.fuzz.target import Target, scratch

LONGEST = 10_000  # characters of a refusal
TEXTS = (
    "name: mine\nmodel: {name: gpt, layers: 4, width: 8}\ntrain: {steps: 100}\nmasks: {method: rigl, sparsity: 0.9}\n",
    "name: a\noptimizer: {name: sgd, learning_rate: 1e-2}\nexchange: {regime: auto, steps_factor: {dense: 1}}\n",
    "name: b\nmasks:\n  method: gmp\n  schedule: {name: cubic}\n  begin: 0.1\n  end: 0.8\nbaseline: [train.steps=5]\n",
    "name: &n c\nlog: {folder: *n, wandb: {mode: disabled, tags: [x, y]}}\ncluster: {workers: 2, address: 'h:1'}\n",
    "name: d\ncheckpoint: &a {every: 5}\nlog:\n  <<: *a\n  folder: out\n",
)
PIECES = (
    *("&a ", "*a", "<<: *a\n", "<<: [*a, *a]\n", "[*a,*a,*a,*a,*a,*a,*a,*a,*a]", "&b [*a,*a]", "{", "}", "[", "]"),
    *(
        ": ",
        "\n",
        "\n  ",
        "- ",
        "? ",
        "| ",
        "> ",
        "---\n",
        "...\n",
        "# ",
        "%YAML 1.1\n",
        "'",
        '"',
        "\t",
        "!!",
        "=",
        "~",
    ),
    *("!!python/object:os.system ", "!!binary ", "!!set ", "!!omap ", "!!timestamp ", "!!int ", "!!float ", "!!bool "),
    *(".nan", ".inf", "-.inf", "1e400", "9" * 5000, "0x" + "f" * 5000, "1:" * 2000 + "1", "0b1", "0o7", "2001-99-99"),
    *(
        '"\\ud800"',
        '"\\0"',
        "\x85",
        "\u2028",
        "\ufeff",
        "../..",
        "null",
        "yes",
        "1_0",
        "-1",
        "true",
        "1.5",
        "2147483648",
    ),
    *("[" * 400, "{a: " * 400, "name: x\n", "model: gpt\n", "train: ", "masks: ", "exchange: ", "steps: ", "every: "),
)


class JobFiles(Target):
    refusals = (JobError,)
    traced = 64

    def __init__(self) -> None:
        self.path = scratch() / "job.yaml"
        names = [name for kind in registry.KINDS for name in registry.names(kind)]
        words = sorted(set(re.findall(r"[a-z_]{3,}", "\n".join([*map(str, PRESETS), *(_whole(t) for t in TEXTS[:3])]))))
        self.pieces = [piece.encode("utf-8", "surrogatepass") for piece in (*PIECES, *names, *words)]

    def seeds(self) -> list[bytes]:
        whole = [yaml.safe_dump(PRESETS[name]()) for name in sorted(PRESETS)]
        return [text.encode() for text in (*TEXTS, *whole)]

    def read(self, case: bytes) -> Hashable:
        self.path.write_bytes(case)
        try:
            job = load_job(str(self.path))
        except JobError as error:
            said = str(error)
            assert len(said) < LONGEST and "\n" not in said, "a refusal is not a line"
            raise
        text = to_yaml(job)
        text.encode()
        tree = to_tree(job)
        assert first_difference(tree, to_tree(parse(yaml.safe_load(text)))) is None, "it does not read back"
        assert "/" not in job.name and not job.name.startswith("."), "a name that is a path"
        return len(case).bit_length(), tuple(sorted(key for key, value in tree.items() if isinstance(value, dict)))

    def kind_of(self, refusal: Exception) -> Hashable:
        where, _, why = str(refusal).partition(": ")
        return path_of(refusal), where[:40], re.split(r"[(;'0-9]", why)[0][:40]

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        way = draw.random()
        if way < 0.25:
            return changed(case, corpus, draw)[:20_000]
        if way < 0.7 and isinstance(tree := _tree(case), dict):
            other = _tree(draw.choice(corpus)) if way < 0.45 else None
            if isinstance(other, dict) and other:  # a section of another job in place of the own one
                key = draw.choice(list(other))
                return self._dump({**tree, key: other[key]})[:20_000]
            return self._dump(changed_value(tree, draw))[:20_000]
        data = bytearray(case)
        for _ in range(1 + int(draw.random() * 3)):
            at = _token(data, draw)
            end = at if draw.random() < 0.4 else _end(data, at)
            data[at:end] = draw.choice(self.pieces)
        return bytes(data[:20_000])

    def _dump(self, value: Any) -> bytes:
        return yaml.safe_dump(value, sort_keys=False, width=10_000).encode("utf-8", "surrogatepass")


def _tree(case: bytes) -> Any:
    """Return the value of a case that is short and has no aliases, else None."""
    if len(case) > 4000 or b"*" in case or b"9" * 50 in case or b"f" * 50 in case or b":1:1" in case:
        return None
    try:
        return yaml.safe_load(case)
    except Exception:  # what the parser under test has to refuse is its own matter
        return None


def _token(data: bytearray, draw: random.Random) -> int:
    """Return where some word, number or sign begins."""
    at = int(draw.random() * (len(data) + 1))
    while 0 < at < len(data) and data[at - 1 : at].isalnum() and data[at : at + 1].isalnum():
        at -= 1
    return at


def _end(data: bytearray, at: int) -> int:
    end = at + 1
    while end < len(data) and data[end : end + 1].isalnum():
        end += 1
    return end


def _whole(text: str) -> str:
    return to_yaml(parse(yaml.safe_load(text.replace("&n ", ""))))
