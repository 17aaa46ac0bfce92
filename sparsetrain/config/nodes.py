"""How much a YAML text is once its anchors are followed: each alias stands for all that its anchor holds."""

from __future__ import annotations

import yaml

from sparsetrain.config.errors import JobError

MOST = 100_000  # values; the largest job has some hundreds


def check_nodes(root: yaml.Node, where: str) -> None:
    """Raise JobError, which begins with `where`, for more than MOST values or for one that holds itself."""
    if _size(root, {}) > MOST:
        raise JobError(f"{where}: its anchors stand for more than {MOST} values, or for one that holds itself")


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values of a node, itself included; `known` holds those that have been counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # what is found again below itself
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
