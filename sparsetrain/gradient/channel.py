"""One bucket's way through the exchange: its buffer, its kept state and its update set, in U-coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sparsetrain.collective.entries import Entries
from sparsetrain.gradient.layout import Bucket
from sparsetrain.gradient.storage import STORAGES, Storage


class Window:
    """The coordinates from `low` to `high` of a channel, as far as a selection sees them; `moved` stands for its state
    where that is about to change."""

    def __init__(self, channel: Channel, low: int, high: int, moved: Mapping[str, Tensor]) -> None:
        self.channel = channel
        self.part = slice(low, high)
        self.moved = moved
        self.buffer = channel.buffer[self.part]

    def read(self, field: str) -> Tensor:
        """See Channel."""
        whole = self.moved.get(field)
        return (self.channel.read(field) if whole is None else whole)[self.part]

    def work(self, field: str) -> Tensor:
        """See Channel; outside the window the next state is zero."""
        return self.channel.work(field).zero_()[self.part]


class Channel:
    """A bucket with its state. U-coordinates number the active positions only, so nothing can live outside the mask.

    During an exchange `buffer` holds the gradient, then what was not sent; `mean` what came back. `moved` is what
    EF21 will move its estimate by. `home` names the part of the bucket that all state lies in, None: anywhere. Tensors
    in `compact` come and go as the values of their update sets, 1-D, the others in their shapes.
    """

    def __init__(
        self, index: int, bucket: Bucket, device: torch.device, fields: tuple[str, ...] = (), storage: str = "fp32"
    ) -> None:
        self.index = index
        self.bucket = bucket
        self.device = device
        self.storage = storage
        self.compact: frozenset[str] = frozenset()
        self.active: Tensor | None = None
        self._given = False  # all tensors that are masked are compact
        self.moved: tuple[Entries, tuple[Entries, ...]] | None = None
        self.home: object = None
        self.kept: dict[str, Storage] = {field: STORAGES[storage](bucket.size, device) for field in fields}
        self._allocate(bucket.size)

    def _allocate(self, size: int) -> None:
        self.size = size
        self._flat: Tensor | None = None
        self.home = None
        self.mean = torch.empty(size, dtype=torch.float32, device=self.device)
        self.buffer = self.mean
        self._free: list[Tensor] = []
        self._work: dict[str, Tensor] = {}
        self._edges = self._find_edges()

    @property
    def flat(self) -> Tensor:
        """Return memory for the bucket in full shape, of any content; the same from call to call."""
        if self._flat is None:
            self._flat = torch.empty(self.bucket.size, device=self.device)
        return self._flat

    def parts(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the gradients as they lie when end to end they are the whole update set, else nothing."""
        if self.active is not None and not self._given:
            return ()
        parts = tuple(gradients[name].detach() for name in self.bucket.names)
        sizes = [end - begin for begin, end in itertools.pairwise(self._edges)]
        if [p.numel() for p in parts] != sizes:  # some come whole
            return ()
        ready = all(p.dtype == torch.float32 and p.device == self.device and p.is_contiguous() for p in parts)
        return parts if ready else ()

    def reserve(self) -> None:
        """Make a buffer of any content."""
        self.buffer = self._empty()

    def take(self, gradients: Mapping[str, Tensor], factor: float = 1.0) -> None:
        """Fill a buffer with the active coordinates of the gradients, times `factor`."""
        self.reserve()
        if self.active is None:
            self.bucket.flatten(gradients, self.buffer)
        elif not self.compact.isdisjoint(self.bucket.names):
            self._take_compact(gradients, self.active)
        else:
            torch.index_select(self.bucket.flatten(gradients, self.flat), 0, self.active, out=self.buffer)
        if factor != 1.0:
            self.buffer.mul_(factor)

    def _take_compact(self, gradients: Mapping[str, Tensor], active: Tensor) -> None:
        for name, start, part in zip(self.bucket.names, self.bucket.starts, self._parts(self.buffer), strict=True):
            given = gradients[name].detach().reshape(-1)
            if given.numel() > part.numel():
                begin = part.storage_offset() - self.buffer.storage_offset()
                given = given[active[begin : begin + part.numel()] - start]
            part.copy_(given)

    def read(self, field: str) -> Tensor:
        """Return the present state of a field, fp32."""
        return self.kept[field].read()

    def work(self, field: str) -> Tensor:
        """Return a tensor in which the next state of a field can be made; the same one until it is staged."""
        if field not in self._work:
            self._work[field] = self._empty()
        return self._work[field]

    def stage(self, field: str, state: Tensor) -> None:
        """Hand over the next state of a field."""
        self.kept[field].stage(state)
        self._work.pop(field, None)

    def release(self, tensor: Tensor) -> None:
        """Give back a tensor of this size that is needed no more."""
        self._free.append(tensor)

    def commit(self) -> None:
        """Make all staged state the present one."""
        for store in self.kept.values():
            free = store.commit()
            if free is not None:
                self._free.append(free)

    def spread(self) -> dict[str, Tensor]:
        """Return the means by name, in their shapes with zeros at inactive places or, of compact tensors, as the values
        of the update set; valid until the next take."""
        if self.active is None:
            return self.bucket.split(self.mean)
        if self._given:
            return {
                name: part if name in self.compact else part.view(shape)
                for name, shape, part in zip(self.bucket.names, self.bucket.shapes, self._parts(self.mean), strict=True)
            }
        self.flat.zero_()
        self.flat[self.active] = self.mean
        means = self.bucket.split(self.flat)
        return means | {name: part for name, part in self._by_name(self.mean).items() if name in self.compact}

    def set_masks(self, masks: Mapping[str, Tensor]) -> bool:
        """Adopt an update set: state of coordinates active before and after stays, all other is zero.

        Returns False when it is the present one, and nothing changed.
        """
        active = self.bucket.active(masks)
        if active is None and self.active is None:
            return False
        if active is not None and self.active is not None and torch.equal(active, self.active):
            return False
        dense = {field: self.dense(field) for field in self.kept}
        self.active = active
        self._given = all(name in self.compact for name in self.bucket.names if name in masks)
        size = self.bucket.size if self.active is None else self.active.numel()
        self._allocate(size)
        for field, state in dense.items():
            self.kept[field] = STORAGES[self.storage](size, self.device)
            self.kept[field].write(state.clone() if self.active is None else state[self.active])
        return True

    def forget(self) -> None:
        """Set all fields to zero."""
        self.home = None
        for field in self.kept:
            self.kept[field] = STORAGES[self.storage](self.size, self.device)

    def dense(self, field: str) -> Tensor:
        """Return a field in the bucket's full shape, zero at inactive places."""
        if self.active is None:
            return self.read(field)
        dense = torch.zeros(self.bucket.size, dtype=torch.float32, device=self.device)
        dense[self.active] = self.read(field)
        return dense

    def state(self) -> dict[str, Tensor]:
        """Return copies of all fields as `field/parameter name`, 1-D in U-coordinates."""
        return {
            f"{field}/{name}": part.clone()
            for field in self.kept
            for name, part in self._by_name(self.read(field)).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises ValueError, naming the tensor, when a size differs."""
        self.home = None
        for field, store in self.kept.items():
            whole = store.read().clone()
            for name, part in self._by_name(whole).items():
                saved = state.get(f"{field}/{name}")
                if saved is None:
                    continue
                if saved.shape != part.shape:
                    raise ValueError(f"{field} of {name}: {saved.numel()} values for {part.numel()} active coordinates")
                part.copy_(saved)
            store.write(whole)

    def edges(self) -> list[int]:
        """Return where each tensor begins, in U-coordinates, and where the last one ends."""
        return self._edges

    def _find_edges(self) -> list[int]:
        starts = torch.tensor([*self.bucket.starts, self.bucket.size], device=self.device)
        if self.active is not None:
            starts = torch.searchsorted(self.active, starts)
        return starts.tolist()

    def tensors(self) -> list[Tensor]:
        """Return what stays allocated between two exchanges: means, buffers, places, kept state in fp32."""
        some = [self.mean, self.buffer, self._flat, self.active, *self._free, *self._work.values()]
        kept = [store.now for store in self.kept.values() if isinstance(store.now, Tensor)]
        return [tensor for tensor in [*some, *kept] if tensor is not None]

    def nbytes(self) -> int:
        """Return the bytes of kept state and of the buffers that stay allocated."""
        kept = sum(store.nbytes() for store in self.kept.values())
        return kept + sum(tensor.nbytes for tensor in [*self._free, *self._work.values()])

    def _empty(self) -> Tensor:
        return self._free.pop() if self._free else torch.empty(self.size, dtype=torch.float32, device=self.device)

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.bucket.names, self._parts(flat), strict=True))

    def _parts(self, flat: Tensor) -> list[Tensor]:
        return [flat[begin:end] for begin, end in itertools.pairwise(self._edges)]


def compacted(channels: Sequence[Channel], names: Collection[str]) -> list[str]:
    """Let the named tensors come and go as the values of their update sets from the next `set_masks` on, as far as they
    are in one of the channels; return which those are."""
    for channel in channels:
        channel.compact = frozenset(names) & frozenset(channel.bucket.names)
    return [name for channel in channels for name in channel.bucket.names if name in channel.compact]
