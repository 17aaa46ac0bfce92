"""The same targets under libFuzzer, where atheris is installed: `python -m tests.fuzz.guided codes -runs=9`.

All that follows the target is for libFuzzer. It sees edges and comparisons of the package's bytecode in every case, so
it gets further in a given number of cases, and reads fewer of them a second; it stops at the first finding.
"""

from __future__ import annotations

import random
import sys
import tempfile

import atheris  # pyrefly: ignore[missing-import]

with atheris.instrument_imports(include=["sparsetrain"]):
    from tests.fuzz.__main__ import target_of

    TARGET = target_of(sys.argv[1])
    SEEDS = TARGET.seeds()
    for seed in SEEDS:  # what a parser imports late is instrumented too
        TARGET.read(seed)

LARGEST = 1 << 17  # bytes of a case


def read(case: bytes) -> None:
    """Read a case; libFuzzer takes what is raised for a finding."""
    try:
        TARGET.read(case)
    except TARGET.refusals:
        return


def change(case: bytes, most: int, seed: int) -> bytes:
    """Return another case near this one, of at most so many bytes."""
    draw = random.Random(seed)
    if draw.random() < 0.2:
        return atheris.Mutate(case, most)
    return TARGET.change(case or SEEDS[0], SEEDS, draw)[:most]


def main() -> None:
    """Run libFuzzer from the valid cases on."""
    with tempfile.TemporaryDirectory(prefix="sparsetrain-corpus-") as folder:
        for number, seed in enumerate(SEEDS):
            with open(f"{folder}/{number}", "wb") as file:
                file.write(seed)
        arguments = [sys.argv[0], f"-max_len={LARGEST}", "-timeout=10", *sys.argv[2:], folder]
        atheris.Setup(arguments, read, custom_mutator=change)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
