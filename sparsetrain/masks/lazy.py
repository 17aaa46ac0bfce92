"""Tensors by name that are made when they are asked for: one at a time, where all of them would be too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """`make` returns the tensor of one of the `names`, the same values each time."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self.names = dict.fromkeys(names)
        self.make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
