"""One row of metrics, and where rank 0's rows go."""

from __future__ import annotations

import pathlib
import resource
from collections.abc import Callable

from sparsetrain.config.load import to_tree
from sparsetrain.engine.flow import effective_sparsity
from sparsetrain.engine.layers import LayerSink
from sparsetrain.engine.state import RunState
from sparsetrain.engine.window import Window
from sparsetrain.masks.report import Report
from sparsetrain.track.console import RowSink
from sparsetrain.track.jsonl import JsonlSink
from sparsetrain.track.provenance import about
from sparsetrain.track.sink import Row, Sink
from sparsetrain.track.tensorboard import TensorBoardSink
from sparsetrain.track.wandb import WandbSink

LARGEST = 1 << 25  # masked weights, held as their active values, that are looked through


def figures(state: RunState, window: Window, loss: float, evaluation: Row, report: Report | None) -> Row:
    """Return the row of the present step: `loss` is the mean over ranks, `evaluation` what was evaluated, if it was."""
    return {
        "train/step": state.step,
        "train/samples": state.at.samples,
        "train/loss": loss,
        "train/lr": state.optimizer.param_groups[0]["lr"],
        **evaluation,
        **window.figures(state),
        **_masks(state, report),
        "memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "memory/residual_gib": state.exchange.state_bytes() / 2**30,
        "job/world_size": state.world.size,
        "job/wall_s": state.wall_s,
    }


def sinks(
    state: RunState,
    recorded: int,
    folder: pathlib.Path,
    show: Callable[[Row], None],
    say: Callable[[str], None],
) -> dict[str, Callable[[], Sink]]:
    """Return how to open rank 0's sinks, which keep rows up to step `recorded`; other ranks have none. `say` hears of
    those that cannot be used."""
    if state.world.rank != 0:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    job = state.job
    sinks: dict[str, Callable[[], Sink]] = {
        "metrics.jsonl": lambda: JsonlSink(JsonlSink.Config(), folder / "metrics.jsonl", recorded),
        "console": lambda: RowSink(show),
    }
    if state.masks is not None:
        masks = state.masks
        sinks["layers.jsonl"] = lambda: LayerSink(lambda: masks.masks, folder / "layers.jsonl", recorded)
    if job.log.wandb.mode != "disabled":
        facts = {"seed": job.seed, "workers": state.world.size}
        if hasattr(state.data, "describe"):
            facts["data"] = state.data.describe()
        sinks["W&B"] = lambda: WandbSink(
            job.log.wandb, folder, job.name, lambda: about(to_tree(job), folder, **facts), say
        )
    if job.log.tensorboard:
        sinks["TensorBoard"] = lambda: TensorBoardSink(folder, say, recorded)
    return sinks


def effective(state: RunState) -> Row:
    """Return what of the masked weights no signal can reach, where the model can be looked through: a forward and a
    backward of one sample, which belongs to an evaluation."""
    if state.masks is None:
        return {}
    whole = sum(mask.numel() for mask in state.masks.masks.masks.values())
    if state.engine.compact and whole > LARGEST:
        return {}  # whole weights of several types, where not one is held
    example = state.data.train_batch(state.sampler.whole(0)[:1])[0].to(state.world.transport.device)
    found = effective_sparsity(state.model, example, state.masks.masks)
    return {} if found is None else {"mask/effective_sparsity": found}


def _masks(state: RunState, report: Report | None) -> dict[str, float]:
    """Return what the masks are like. Operations are shares of dense ones; the training's are those since step 0."""
    if state.masks is None:
        return {}
    masks = state.masks.masks
    figures = {
        "mask/sparsity": masks.sparsity(),
        "mask/epoch": masks.epoch,
        "mask/nonzeros": sum(masks.counts().values()),
    }
    if state.operations is not None:
        figures["mask/forward_operations"] = state.operations.forward(masks)
        figures["mask/training_operations"] = state.dense_steps / max(1, state.step)
    if report is not None:
        figures |= {
            "mask/sparsity_target": report.target_sparsity,
            "mask/unit_sparsity": report.unit_sparsity,
            "mask/dropped": report.dropped,
            "mask/grown": report.grown,
            "mask/churn": report.churn,
            "mask/explored": report.explored,
        }
    return figures
