"""regimes.json of a run folder: every decision of the planner, over all attempts."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sparsetrain.config.files import write_whole
from sparsetrain.gradient.decision import Decision
from sparsetrain.gradient.exchange import GradientExchange

VERSION = 1


class Choices:
    """Writes decisions as they come; those of earlier attempts up to exchange number `since` stay in the file."""

    def __init__(self, path: pathlib.Path, since: int) -> None:
        self.path = path
        self.earlier = [row for row in _read(path) if row["exchange"] <= since] if since else []
        self.told = 0

    def tell(self, decisions: Sequence[Decision], log: Callable[[str], None]) -> None:
        """Say every new decision in a line, and write all of them."""
        if len(decisions) == self.told:
            return
        for decision in decisions[self.told :]:
            log(decision.line())
        self.told = len(decisions)
        rows = [*self.earlier, *(decision.row() for decision in decisions)]
        try:
            write_whole(self.path, json.dumps({"version": VERSION, "decisions": rows}, indent=1))
        except OSError as error:  # it only informs: training goes on
            log(f"{self.path.name}: not written: {error.strerror}")


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the decisions in the file, and none where it is not what `tell` writes: it only informs."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return []
        found = json.loads(path.read_text(encoding="utf-8"))["decisions"]
        return [row for row in found if isinstance(row["exchange"], int)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def named(choice: Sequence[str]) -> str:
    """Return the regimes of the buckets in words."""
    return ", ".join(sorted(set(choice)))


def undecided(exchange: GradientExchange) -> str:
    """Return what is to be said where a run ends before its planner has decided; "" where it has, or there is none."""
    planner = exchange.planner
    if planner is None or not planner.begun or planner.settled:
        return ""
    said = "had not yet decided" if not planner.decisions else "was about to decide anew"
    return f"exchange: auto {said} after {exchange.step} exchanges; at last it tried {named(exchange.choice())}"
