"""What somebody should know of while a run goes on: looked for in its rows of metrics, told rarely."""

from __future__ import annotations

import collections
import json
import pathlib
import statistics
import time
from collections.abc import Callable

from sparsetrain.track.notes import Alert, Level
from sparsetrain.track.sink import Row

PAUSE = 600.0  # seconds in which one kind of alert is told once
KNOWN = 10  # rows that make up what is usual
# Key, times what is usual, level.
UNUSUAL: dict[str, tuple[str, float, Level]] = {
    "residual": ("grad/residual_norm", 10.0, "WARN"),
    "slow": ("time/step_s", 3.0, "INFO"),
}
# What ends a run, by the name of the exception, that has a kind of its own.
ENDS = {"MaskDisagreement": "mask mismatch", "ReplicasDiffer": "replicas differ", "NotFinite": "non-finite"}


class Alerts:
    """Looks at rows and tells `say` and the events file of a rank; used on rank 0 only."""

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None]) -> None:
        self.path = folder / "events.rank00000.jsonl"
        self.say = say
        self.told: dict[str, float] = {}
        self.usual: dict[str, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=KNOWN)
        )

    def look(self, row: Row) -> list[Alert]:
        """Return the alerts of a row that were told now."""
        found = []
        step = int(row["train/step"])
        if skipped := int(row.get("train/skipped", 0)):
            found.append(Alert("non-finite", f"{skipped} steps without a finite gradient by step {step}", "ERROR"))
        for kind, (key, factor, level) in UNUSUAL.items():
            value, known = row.get(key), self.usual[key]
            if value is None:
                continue
            usual = statistics.median(known) if len(known) == KNOWN else float("inf")
            if value > factor * usual:
                found.append(Alert(kind, f"{key} is {value:.3g} at step {step}, usually {usual:.3g}", level))
            known.append(value)
        return [alert for alert in found if self.tell(alert, step)]

    def ended(self, error: BaseException, step: int) -> list[Alert]:
        """Return the alert about an error that has ended the run, where it was told."""
        kind = ENDS.get(type(error).__name__)
        alert = Alert(kind or "failed", f"step {step}: {error}".split("\n")[0], "ERROR")
        return [alert] if kind and self.tell(alert, step, aloud=False) else []

    def tell(self, alert: Alert, step: int, aloud: bool = True) -> bool:
        """Tell an alert, unless its kind has been told lately; return whether it was. `aloud`: to `say` too."""
        now = time.monotonic()
        if now - self.told.get(alert.kind, -PAUSE) < PAUSE:
            return False
        self.told[alert.kind] = now
        if aloud:
            self.say(f"alert: {alert.kind}: {alert.text}")
        row = {"at": time.time(), "step": step, "alert": alert.kind, "text": alert.text}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError:  # a full disk; it has been said
            pass
        return True
