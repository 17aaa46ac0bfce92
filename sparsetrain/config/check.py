"""Rules that need more than one field of the job."""

from __future__ import annotations

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange, Job, Masks
from sparsetrain.config.numbers import interval_of, steps_of
from sparsetrain.config.url import check_url


def check_exchange(exchange: Exchange) -> None:
    """Raise JobError, naming the dotted path, for parts of an exchange that make no sense together, with the reason."""
    feedback, collective, sparsifier = (
        c.name for c in (exchange.error_feedback, exchange.collective, exchange.sparsifier)
    )
    if feedback in ("ef21", "ef21_sgdm") and exchange.residual != "fp32":
        raise JobError(
            f"exchange.residual: {exchange.residual} with {feedback}: rounding would part the ranks' estimates from "
            "their mean; allowed: fp32"
        )
    if feedback == "dgc" and exchange.every > 1:
        raise JobError(
            "exchange.error_feedback: dgc corrects the momentum of single gradients; with exchange.every > 1 the "
            "optimizer has its own; allowed: ef14, none, ef21, ef21_sgdm"
        )
    regimes = exchange.allow if exchange.regime == "auto" else (exchange.regime,)
    if "lowrank" in regimes and feedback not in ("ef14", "none"):
        where = "exchange.allow: lowrank" if exchange.regime == "auto" else "exchange.regime: lowrank"
        raise JobError(f"{where} with error_feedback {feedback}, which corrects entries; allowed: ef14, none")
    if len(set(exchange.allow)) < len(exchange.allow):
        raise JobError(f"exchange.allow: {', '.join(exchange.allow)}: a regime is named twice")
    if "sparse" not in regimes:
        return
    support = getattr(registry.load("collective", collective), "support", "any")
    shared = getattr(registry.load("sparsifier", sparsifier), "shared", False)
    if support == "all":
        raise JobError(
            f"exchange.collective: {collective} takes whole buckets, but exchange.regime is sparse; say "
            f"exchange.regime={collective}"
        )
    if support == "shared" and not shared:
        raise JobError(
            f"exchange.collective: {collective} sends no places, but ranks choose different ones with {sparsifier}; "
            f"allowed: {_collectives('any', 'own')} (or exchange.sparsifier=randomk)"
        )
    if shared and support == "own":
        raise JobError(
            f"exchange.collective: {collective} merges different places, but {sparsifier} gives all ranks the same; "
            f"allowed: {_collectives('any', 'shared')}"
        )


def _collectives(*supports: str) -> str:
    names = registry.names("collective")
    return ", ".join(n for n in names if getattr(registry.load("collective", n), "support", "any") in supports)


def check_masks(masks: Masks) -> None:
    """Raise JobError, naming the dotted path, for parts of the masks that make no sense together, with the reason."""
    name, method = masks.method.name, registry.load("mask_method", masks.method.name)
    structure, distribution = masks.structure.build(), masks.distribution.name
    allowed = getattr(method, "structures", ())
    if allowed and masks.structure.name not in allowed:
        raise JobError(f"masks.structure: {masks.structure.name} with {name}; allowed: {', '.join(allowed)}")
    if structure.couples and getattr(method, "needs_masked_gradients", False):
        loaded = {each: registry.load("mask_method", each) for each in registry.names("mask_method")}
        unfit = ("needs_masked_gradients", "structures")
        others = [each for each, cls in loaded.items() if not any(getattr(cls, field) for field in unfit)]
        raise JobError(
            f"masks.method: {name} lives on gradients of masked weights, and with {masks.structure.name} all of a "
            f"removed unit's are zero; allowed: {', '.join(others)}"
        )
    if masks.regulariser is not None:
        units = getattr(registry.load("regulariser", masks.regulariser.name), "structures", ())
        if units and masks.structure.name not in units:
            raise JobError(
                f"masks.regulariser: {masks.regulariser.name} with {masks.structure.name}, whose units are single "
                f"weights (l1 is the same); allowed: masks.structure {', '.join(units)}"
            )
    if getattr(method, "learns_budget", False):
        _check_learned(masks)
    if distribution == "global" and not getattr(method, "ranks_globally", False):
        raise JobError(
            f"masks.distribution: global compares scores across layers, and {name} has none to compare; "
            "allowed: uniform, er, erk"
        )
    if distribution == "global" and structure.balanced:
        raise JobError(
            f"masks.distribution: with {masks.structure.name} every group keeps equally many, so global has "
            "nothing to move between layers; allowed: uniform"
        )
    schedule = masks.schedule.name if masks.schedule is not None else getattr(method, "schedule", "constant")
    rewinds = getattr(method, "rewinds", False)
    fitting = [n for n in registry.names("mask_schedule") if _rewinds(n) == rewinds]
    if _rewinds(schedule) != rewinds:
        raise JobError(
            f"masks.schedule: {schedule} with {name}, which {'rewinds' if rewinds else 'does not rewind'}; "
            f"allowed: {', '.join(fitting)}"
        )
    if masks.schedule is not None and not getattr(method, "grows", True):
        _check_falls(masks)
    if structure.density is None:
        return
    if distribution != "uniform" or masks.rules:
        raise JobError(
            f"masks.distribution: {distribution} with {masks.structure.name}, which gives every layer "
            "the same density; allowed: uniform, without masks.rules"
        )
    if abs(1.0 - masks.sparsity - structure.density) > 1e-6:
        raise JobError(
            f"masks.sparsity: {masks.sparsity} with {masks.structure.name}; allowed: {1.0 - structure.density:g}"
        )


def _rewinds(schedule: str) -> bool:
    return getattr(registry.load("mask_schedule", schedule), "rewinds", False)


def _check_learned(masks: Masks) -> None:
    """Raise JobError for what shares out a budget beside a method that learns to."""
    name = masks.method.name
    if masks.distribution.name != "global":
        raise JobError(
            f"masks.distribution: {masks.distribution.name} with {name}, which learns how the budget is shared; "
            "allowed: global"
        )
    if masks.rules:
        raise JobError(
            f"masks.rules: with {name}, which learns how the budget is shared; allowed: none (masks.exclude keeps a "
            "tensor dense)"
        )
    if not masks.sparsity:
        raise JobError(f"masks.sparsity: 0.0 with {name}, which would have nothing to learn; allowed: above 0")


def _check_falls(masks: Masks) -> None:
    """Raise JobError where the sparsity of a schedule falls, but the method cannot follow: it grows nothing."""
    name, schedule = masks.method.name, masks.schedule
    assert schedule is not None
    initial, listed = getattr(schedule.config, "initial", 0.0), getattr(schedule.config, "sparsities", ())
    if initial > masks.sparsity:
        raise JobError(
            f"masks.schedule.initial: {initial} with {name}, which grows nothing; allowed: at most {masks.sparsity}"
        )
    if list(listed) != sorted(listed):
        raise JobError(f"masks.schedule.sparsities: fall with {name}, which grows nothing; allowed: ascending ones")
    if schedule.name == "phases":
        raise JobError(
            f"masks.schedule: phases with {name}, which grows nothing: no dense phase would follow a sparse one; "
            "allowed: any other, or masks.method=acdc"
        )


def check(job: Job) -> None:
    """Raise JobError, naming the dotted path, where two parts of the job contradict each other."""
    masks, exchange = job.masks, job.exchange
    check_exchange(exchange)
    if job.checkpoint.url is not None:
        check_url(job.checkpoint.url)
    if masks is not None:
        check_masks(masks)
    if problem := registry.load("engine", job.engine.name).refuses(job):
        raise JobError(problem)
    feedback = exchange.error_feedback.name
    if feedback == "dgc" and getattr(job.optimizer.config, "momentum", 0.0):
        raise JobError(
            f"optimizer.momentum: {job.optimizer.config.momentum} with exchange.error_feedback {feedback}, which has "
            "the momentum (exchange.error_feedback.momentum); allowed: 0"
        )
    if 0 < job.train.spike <= 1:
        raise JobError(f"train.spike: {job.train.spike:g} would take every loss for a spike; allowed: 0, or above 1")
    if exchange.every > job.train.steps:
        raise JobError(
            f"exchange.every: {exchange.every} is more than train.steps ({job.train.steps}): nothing would be sent; "
            "allowed: at most that"
        )
    boundaries = {"checkpoint.every": job.checkpoint.every, "train.evaluate_every": job.train.evaluate_every}
    if masks is not None:
        boundaries["masks.every"] = interval_of(masks.every, job.train.steps)
    for path, value in boundaries.items():
        if value % exchange.every:
            raise JobError(
                f"{path}: {value} is not a multiple of exchange.every ({exchange.every}): replicas are equal only at "
                "exchanges; allowed: its multiples, or another exchange.every"
            )
    if masks is not None and _points(job)[1] <= _points(job)[0] and masks.method.name != "static":
        raise JobError(f"masks.end: {masks.end} must be greater than masks.begin ({masks.begin})")
    if masks is not None and _never_changes(job) and registry.load("mask_method", masks.method.name).starts_dense:
        raise JobError(
            f"masks.every: {masks.every} with {masks.method.name}, which begins dense: no update falls into these "
            f"{job.train.steps} steps, so not a weight would be pruned; allowed: below {_points(job)[1]}"
        )


def gathers(job: Job) -> str:
    """Return what lets every rank gather dense weights in every step, as `path: value`, nothing where they do not."""
    stage = getattr(job.engine.config, "stage", 0)
    return f"engine.stage: {stage}" if stage else "engine: fsdp" if job.engine.name == "fsdp" else ""


def advice(job: Job) -> list[str]:
    """Return what is allowed but rarely wanted, a line each."""
    lines = []
    exchange = job.exchange
    if job.optimizer.name == "adamw" and exchange.regime == "sparse" and exchange.every == 1 and exchange.density < 0.5:
        lines.append(
            f"exchange.every: AdamW's step shrinks by about {exchange.density**0.5:.2g} on gradients that arrive at "
            f"density {exchange.density:g}; local steps (exchange.every=5, a larger density) or sgd avoid that"
        )
    if where := gathers(job):
        lines.append(
            f"{where} gathers dense weights in every step, which no exchange saves; where links are slow and memory is "
            "not short, torch, or deepspeed's stage 0, sends least"
        )
    if exchange.error_feedback.name == "ef21_sgdm" and getattr(job.optimizer.config, "momentum", 0.0):
        lines.append("optimizer.momentum: ef21_sgdm has a momentum of its own; 0 is usual")
    if exchange.regime == "auto" and job.optimizer.name == "adamw" and exchange.every == 1:
        lines.append(
            "exchange.every: with AdamW in every step sparse counts as much slower; local steps (exchange.every=5, "
            "exchange.density=0.05) are what makes it pay"
        )
    masks, steps = job.masks, job.train.steps
    if masks is not None and masks.method.name != "static" and _never_changes(job):
        lines.append(f"masks.every: no update falls into these {steps} steps: the masks stay as they begin")
    if masks is not None and exchange.regime == "dense":
        lines.append("exchange.regime: dense sends the zeros of masked weights too; packed gives the same without them")
    if masks is not None and masks.method.name == "l0" and exchange.regime == "sparse" and exchange.bucket_elements > 1:
        lines.append(
            "exchange.bucket_elements: gates share buckets with weights, whose gradients are larger; 1 gives every "
            "tensor its own entries"
        )
    return lines


def _never_changes(job: Job) -> bool:
    """Return whether a schedule that goes by begin, every and end names no step at all."""
    masks = job.masks
    assert masks is not None
    own = getattr(registry.load("mask_method", masks.method.name), "schedule", "constant")
    if (masks.schedule.name if masks.schedule is not None else own) in ("phases", "rounds", "list"):
        return False
    begin, end = _points(job)
    every = interval_of(masks.every, job.train.steps)
    return max(1, -(-begin // every)) * every >= end


def _points(job: Job) -> tuple[int, int]:
    """Return the steps at which mask updates begin and end."""
    assert job.masks is not None
    return steps_of(job.masks.begin, job.train.steps), steps_of(job.masks.end, job.train.steps)
