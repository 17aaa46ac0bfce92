"""Where the ranks of an examination leave notes for each other: a store that rank 0 serves. It works where no process
group would, since only the way to rank 0 has to be open."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from typing import Any

import torch.distributed as dist

from sparsetrain.worker.environment import Place
from sparsetrain.worker.main import AGENT_STORE

LEAVE_S = 5.0


class Absent(RuntimeError):
    """Somebody did not come in time."""


class Board:
    """Notes of rank `place.rank`; `patience` is in seconds. Raises Absent where rank 0 cannot be reached."""

    def __init__(self, place: Place, patience: float, listener: socket.socket | None = None) -> None:
        self.place = place
        self.patience = patience
        self.present: list[int] = []
        serves = place.rank == 0 and AGENT_STORE not in os.environ
        if serves and listener is None:
            listener = socket.create_server((place.master_addr, place.master_port))
        try:
            store = dist.TCPStore(
                place.master_addr,
                place.master_port,
                is_master=serves,
                timeout=datetime.timedelta(seconds=patience),
                wait_for_workers=False,
                master_listen_fd=listener.detach() if serves and listener else None,
            )
        except (RuntimeError, OSError) as error:
            where = f"{place.master_addr}:{place.master_port}"
            said = str(error).split("\n")[0]
            raise Absent(
                f"rank {place.rank} on {place.node} does not reach rank 0 at {where} ({said}): is that port open, and"
                " is that the address at which others see the first host?"
            ) from None
        self.store = dist.PrefixStore("doctor", store)

    def gather(self, name: str, value: Any, grace: float | None = None) -> dict[int, Any]:
        """Return what each rank says, by rank; the first call waits for `patience` and decides who is present, later
        ones raise Absent when somebody present is silent for `grace` seconds."""
        self._put(f"{name}/{self.place.rank}", value)
        if not self.present:
            return self._meet(name)
        return self._read(name, self.present, self.patience if grace is None else grace, strict=True)

    def close(self) -> None:
        """Tell rank 0 that this rank reads no more; rank 0, which holds all notes, waits some seconds for the rest."""
        with contextlib.suppress(Absent):
            self._put(f"done/{self.place.rank}", True)
            if self.place.rank == 0:
                self._read("done", self.present, LEAVE_S, strict=False)

    def _meet(self, name: str) -> dict[int, Any]:
        if self.place.rank == 0:
            found = self._read(name, list(range(self.place.size)), self.patience, strict=False)
            self.present = sorted(found)
            self._put("present", self.present)
            return found
        self.present = self._get("present", self.patience * 2, "rank 0")
        if self.place.rank not in self.present:
            raise Absent(f"rank {self.place.rank} on {self.place.node} came too late")
        return self._read(name, self.present, self.patience, strict=True)

    def _read(self, name: str, ranks: list[int], patience: float, strict: bool) -> dict[int, Any]:
        found: dict[int, Any] = {}
        deadline = time.monotonic() + patience
        for rank in ranks:
            try:
                found[rank] = self._get(f"{name}/{rank}", max(0.05, deadline - time.monotonic()), f"rank {rank}")
            except Absent:
                if strict:
                    raise
        return found

    def _put(self, key: str, value: Any) -> None:
        try:
            self.store.set(key, json.dumps(value))
        except (RuntimeError, OSError) as error:
            raise Absent(f"rank 0 has gone ({error})") from error

    def _get(self, key: str, seconds: float, whom: str) -> Any:
        try:
            self.store.wait([key], datetime.timedelta(seconds=seconds))
            return json.loads(self.store.get(key))
        except (RuntimeError, OSError) as error:
            said = "has come and gone" if self.present else "has not come"
            raise Absent(f"{whom} {said} (waited {seconds:.0f} s for {key})") from error
