"""Findings of an examination as tests make them up: three hosts with nothing wrong."""

from __future__ import annotations

from typing import Any

from sparsetrain.doctor.examination import Findings

WAY = {"latency_ms": 0.1, "mbit_s": 900.0}


def healthy(who: str = "slurm", **changes: Any) -> Findings:
    """Return them; `changes` are facts of rank 2."""
    facts = {
        rank: {
            "node": f"node{rank}",
            "host": f"node{rank}",
            "local_rank": 0,
            "interface": "eth0",
            "address": f"10.0.0.{rank + 1}",
            "interfaces": {"lo": "127.0.0.1", "eth0": f"10.0.0.{rank + 1}"},
            "python": "3.12.1",
            "sparsetrain": "0.1.0",
            "torch": "2.13.0",
            "ray": "2.60.0",
            "numpy": "2.4.0",
            "cores": 8,
            "memory_gib": 64.0,
            "gpus": "none",
            "mpi": "none",
            "token": "12ab",
            "troubles": [],
            "ahead_s": 0.0,
            "shared": True,
        }
        for rank in range(3)
    }
    facts[2].update(changes)
    ways = {(a, b): dict(WAY) for a in range(3) for b in range(3) if a != b}
    return Findings(who=who, size=3, facts=facts, ways=ways, folder="/shared")
