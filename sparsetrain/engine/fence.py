"""Which group of ranks a run folder belongs to now: a rank of an earlier one, cut off and back, completes nothing."""

from __future__ import annotations

import contextlib
import pathlib

from sparsetrain.config.files import write_whole

NEWEST = "generation"  # a file in the run folder that names the newest group


class Fence:
    """Rank 0's of the group `generation`; a run without a name for its groups has no fence."""

    def __init__(self, folder: pathlib.Path, generation: str) -> None:
        self.path = folder / NEWEST
        self.generation = generation

    def take_over(self) -> None:
        """Make the folder this group's."""
        if not self.generation:
            return
        with contextlib.suppress(OSError):  # then nothing can be saved there either, and that is said
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, self.generation)

    def late(self) -> bool:
        """Return whether another group has taken over since this one did."""
        try:
            newest = self.path.read_text(encoding="utf-8") if self.path.is_file() else self.generation
        except (OSError, UnicodeDecodeError):
            return False
        return bool(self.generation) and newest != self.generation
