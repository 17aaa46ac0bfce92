"""Defaults that depend on another part of the job."""

from __future__ import annotations

from typing import Any

STEPS = (5, 4, 6, 3, 2)  # between two exchanges, the best first
SHARE = 0.01  # of the entries, a step
UNITS = ("neuron", "head")
LEARNED = ("str", "l0")
GATES_RATE = 1e4  # of sgd, whose steps on the gates of l0 are as small as weight times gradient
EVALUATE = 100  # job.Train.evaluate_every
# Steps to equal loss over those of dense training, when gradients are exchanged in every step (docs/records/when.md).
# With local steps the optimizer sees whole gradients whatever travels, and all regimes count as one.
STEPS_FACTOR = {"adamw": {"sparse": 3.0, "lowrank": 1.6}, "sgd": {"sparse": 1.1, "lowrank": 1.1}}


def settle(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the job's tree with the defaults that depend on another part; one that is malformed stays as it is."""
    return _steps_factor(_local_steps(_gates(_distribution(tree))))


def _distribution(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with a distribution where the job names none: uniform where whole neurons or heads go, since er
    and erk share out weights and only then is the sparsity that of units; global where the method learns how to share.
    """
    masks = tree.get("masks")
    if not isinstance(masks, dict) or "distribution" in masks:
        return tree
    if _name(masks, "method") in LEARNED:
        return {**tree, "masks": {**masks, "distribution": "global"}}
    return {**tree, "masks": {**masks, "distribution": "uniform"}} if _name(masks, "structure") in UNITS else tree


def _gates(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with a learning rate for the gates of l0 where they go with sgd and the job names none."""
    masks = tree.get("masks")
    if not isinstance(masks, dict) or _name(masks, "method") != "l0" or _name(tree, "optimizer") != "sgd":
        return tree
    method = masks["method"] if isinstance(masks["method"], dict) else {"name": "l0"}
    return {**tree, "masks": {**masks, "method": {"rate": GATES_RATE, **method}}}


def _name(part: dict[str, Any], field: str) -> Any:
    named = part.get(field)
    return named.get("name") if isinstance(named, dict) else named


def _local_steps(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the job's tree with local steps where AdamW exchanges sparsely and the job says neither how often nor how
    much: 1 % of the entries a step, as without them, but Adam keeps its dense local gradients.

    Five steps, or the next best number of which all boundaries that the job names (evaluation, checkpoints, masks) are
    multiples. docs/records/training.md holds the runs behind it.
    """
    optimizer, exchange = tree.get("optimizer", "adamw"), tree.get("exchange", {})
    name = optimizer.get("name", "adamw") if isinstance(optimizer, dict) else optimizer
    if name != "adamw" or not isinstance(exchange, dict) or exchange.get("regime", "sparse") != "sparse":
        return tree
    if {"every", "density"} & exchange.keys():
        return tree
    steps = _number(tree, "train", "steps", max(STEPS))
    named = [_number(tree, "train", "evaluate_every", EVALUATE)]
    named += [_number(tree, room, "every", 0) for room in ("checkpoint", "masks")]
    for every in STEPS:
        if every <= steps and not any(boundary % every for boundary in named):
            return {**tree, "exchange": {**exchange, "every": every, "density": SHARE * every}}
    return tree


def _steps_factor(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with what a lossy step is worth, where the regime is left to the planner and the job does not
    say it."""
    exchange = tree.get("exchange", {})
    if not isinstance(exchange, dict) or exchange.get("regime") != "auto" or "steps_factor" in exchange:
        return tree
    optimizer = tree.get("optimizer", "adamw")
    name = optimizer.get("name", "adamw") if isinstance(optimizer, dict) else optimizer
    if exchange.get("every", 1) != 1 or not isinstance(name, str) or name not in STEPS_FACTOR:
        return tree
    return {**tree, "exchange": {**exchange, "steps_factor": dict(STEPS_FACTOR[name])}}


def _number(tree: dict[str, Any], room: str, field: str, otherwise: int) -> int:
    part = tree.get(room)
    number = part.get(field, otherwise) if isinstance(part, dict) else otherwise
    return number if isinstance(number, int) else otherwise
