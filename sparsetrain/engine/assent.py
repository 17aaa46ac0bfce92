"""The short message with which ranks tell each other that an exchange has arrived, before anyone acts on it.

Who has it from all others knows that nobody needs to send anything again: so when a rank dies, the survivors are at
most one commit apart, and whoever is behind has everything to follow.
"""

from __future__ import annotations

import dataclasses

import torch

from sparsetrain.collective.transport import Transport


@dataclasses.dataclass(frozen=True)
class Word:
    """What one rank says: its norm of the mean gradient (rank 0's steers all), whether it wants the world to change
    after this step and whether it leaves then, and of its parts of checkpoints the newest step that is written, and the
    newest that could not be."""

    norm: float = float("nan")
    pause: bool = False
    leave: bool = False
    written: int = -1
    unwritten: int = -1


class Assent:
    """Says this rank's word at each exchange and remembers all ranks' words of the last one."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.own = Word()
        self.words: list[Word] = []

    def ask(self, pause: bool, leave: bool) -> None:
        """Ask for a change of the world after the next exchange; may be called from another thread."""
        self.own = dataclasses.replace(self.own, pause=pause or leave, leave=leave)

    def wrote(self, step: int, done: bool = True) -> None:
        """Tell the others with the next word what became of the part of a checkpoint; may come from another thread."""
        unwritten = self.own.unwritten if done else step
        self.own = dataclasses.replace(self.own, written=step, unwritten=unwritten)

    def gather(self, norm: float) -> list[Word]:
        """Return the words of all ranks, in rank order, when everybody has said one. Collective."""
        own = dataclasses.astuple(dataclasses.replace(self.own, norm=norm))
        numbers = torch.tensor(own, dtype=torch.float64, device=self.transport.device)
        found = [part.tolist() for part in self.transport.all_gather(numbers, "control")]
        self.words = [Word(n[0], bool(n[1]), bool(n[2]), int(n[3]), int(n[4])) for n in found]
        return self.words

    @property
    def pausing(self) -> bool:
        """Return whether a rank has asked for a change: the same on all ranks."""
        return any(word.pause for word in self.words)

    @property
    def leaving(self) -> list[int]:
        """Return the ranks that leave, ascending."""
        return [rank for rank, word in enumerate(self.words) if word.leave]
