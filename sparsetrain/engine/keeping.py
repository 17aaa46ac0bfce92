"""Which checkpoints stay: the newest, beside them the best, and whatever is damaged, which may still be of use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from sparsetrain.engine.checkpoint import CheckpointError
from sparsetrain.engine.store import Store, Stored, StoreError

ESSENTIAL = ("state.json", "model.safetensors")


def superfluous(losses: Mapping[str, float | None], keep: int, best: int) -> list[str]:
    """Return what may go of checkpoints with their evaluation losses, oldest first: neither among the `keep` newest nor
    the `best` of lowest loss. Of equal losses the newer one counts as better; None is no loss."""
    names = list(losses)
    age = {name: number for number, name in enumerate(reversed(names))}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    staying = {*names[-keep:], *sorted(known, key=lambda name: (known[name], age[name]))[:best]}
    return [name for name in names if name not in staying]


def problem(store: Store, name: str, contents: bool = True) -> str:
    """Return what is wrong with a checkpoint, "" where nothing is: COMPLETE must name what none can do without, and
    every file must have the size that it names, and with `contents` the digest. Raises OSError when the store does not
    let it be read."""
    stored = Stored(store, name)
    try:
        sizes = store.sizes(name)
        for file in ESSENTIAL:
            if file not in stored.parts():
                return f"{file} is missing"
        for file, part in stored.parts().items():
            if file not in sizes:
                return f"{file} is missing"
            if part.size is not None and sizes[file] != part.size:
                return f"{file} has {sizes[file]} bytes, not {part.size}"
            if contents:
                stored.compare(file)
    except StoreError:
        raise
    except CheckpointError as error:
        return str(error)
    return ""


@dataclasses.dataclass
class Keeper:
    """Removes what is superfluous in a store. `damaged` is what it has met, or been told of: it is not counted, and
    never removed; `say` gets a line about each that it meets."""

    store: Store
    keep: int
    best: int
    say: Callable[[str], None]
    damaged: set[str] = dataclasses.field(default_factory=set)
    losses: dict[str, float | None] = dataclasses.field(default_factory=dict)

    def prune(self, dry: bool = False, contents: bool = True) -> list[str]:
        """Remove what is superfluous and return it, oldest first; `dry`: only return it. `contents`: see `problem`, of
        what is to be removed. Raises OSError."""
        while True:
            known = {name: self.loss(name) for name in self.store.complete() if name not in self.damaged}
            # Reading a loss may have shown one to be damaged.
            going = superfluous({n: loss for n, loss in known.items() if n not in self.damaged}, self.keep, self.best)
            if not self._meet(going, contents):
                break
        for name in going if not dry else ():
            self.store.remove(name)
            self.losses.pop(name, None)
        return going

    def look(self) -> None:
        """Read all complete checkpoints and say which are damaged. Raises OSError."""
        self._meet([name for name in self.store.complete() if name not in self.damaged], contents=True)

    def loss(self, name: str) -> float | None:
        """Return the loss of the evaluation at a checkpoint's step, None where there was none."""
        if not self.best:
            return None
        if name not in self.losses:
            try:
                self.losses[name] = Stored(self.store, name).about().eval_loss
            except StoreError:
                raise
            except CheckpointError as error:
                self._found(name, str(error))
                return None
        return self.losses[name]

    def _meet(self, names: list[str], contents: bool) -> bool:
        """Look for damage and return whether there is any."""
        found = {name: wrong for name in names if (wrong := problem(self.store, name, contents))}
        for name, wrong in found.items():
            self._found(name, wrong)
        return bool(found)

    def _found(self, name: str, wrong: str) -> None:
        self.damaged.add(name)
        self.say(f"checkpoint {name} is damaged and stays where it is: {wrong}")
