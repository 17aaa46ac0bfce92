"""What DeepSpeed is told: the job's own settings, and around them those of a DeepSpeed JSON that the user brings."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.registry import nearest

PATH = "engine.config"
LARGEST = 1 << 20  # bytes of a JSON
BUCKET = 500_000_000  # elements, as DeepSpeed itself would take; its buffer is allocated whole
# DeepSpeed passes over top-level keys that it does not know, so a slip of the pen would go unheard.
TAKEN = (
    "activation_checkpointing",
    "aio",
    "bf16",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_optimization",
)
REFUSED = {
    "amp": "apex is not used; allowed: train.precision",
    "autotuning": "it starts runs of its own",
    "checkpoint": "runs resume from the job's own checkpoints (checkpoint.every)",
    "compile": "its graphs reduce gradients by themselves",
    "compression_training": "masks are the job's (masks.method)",
    "curriculum_learning": "the order of the data is the job's",
    "data_efficiency": "the order of the data is the job's",
    "data_types": "gradients are accumulated in the weights' type",
    "elasticity": "the number of workers is the job's (cluster.workers)",
    "gradient_allreduce_op": "the exchange gives the mean",
    "hybrid_engine": "it is for inference between steps",
    "managed_gradient_accumulation": "accumulation is the job's (train.accumulate)",
    "optimizer": "the job names the optimizer (optimizer.name, optimizer.learning_rate)",
    "pipeline": "the exchange is between replicas of a whole model",
    "progressive_layer_drop": "it is of another training loop",
    "scheduler": "the job has the learning rate's schedule (train.warmup, train.final_learning_rate)",
    "sparse_gradients": "the exchange decides what is sent",
    "tensor_parallel": "the exchange is between replicas of a whole model",
    "torch_autocast": "allowed: train.precision",
    "wandb": "the job's own run is the one (log.wandb)",
    "zero_force_ds_cpu_optimizer": "its optimizers have to be compiled",
}
REFUSED_ZERO = {
    "offload_optimizer": "its optimizers have to be compiled",
    "offload_param": "weights stay in memory",
    "zero_hpz_partition_size": "gradients would be reduced in another way",
    "zero_quantized_gradients": "the exchange decides what is sent",
    "zero_quantized_weights": "replicas would compute with other weights than they keep",
}


def settings(value: Any) -> Any:
    """Return the content of a DeepSpeed JSON where its path is given, else what is given: a job holds the content, so
    that a run goes on with what it began with. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        file = pathlib.Path(value)
        if not file.is_file():
            raise ValueError("is no file")
        if file.stat().st_size > LARGEST:
            raise ValueError(f"is larger than {LARGEST} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error


Settings = Annotated[dict[str, Any], BeforeValidator(settings)]


def merged(job: Job, stage: int, given: Mapping[str, Any], ranks: int, elements: int) -> dict[str, Any]:
    """Return what DeepSpeed is told for a model of so many elements on so many ranks: the job's settings and what is
    `given` beside them. Raises JobError where the two contradict each other, and for keys that nobody would read."""
    for key in given:
        if key in REFUSED:
            raise JobError(f"{PATH}: {key} is not for this engine: {REFUSED[key]}")
        if key not in TAKEN:
            raise JobError(f"{PATH}: {key} is no key that DeepSpeed reads{nearest(key, [*TAKEN, *REFUSED])}")
    zero = _section(given, "zero_optimization")
    for key in zero:
        if key in REFUSED_ZERO:
            raise JobError(f"{PATH}: zero_optimization.{key} is not for this engine: {REFUSED_ZERO[key]}")
    if _section(given, "fp16").get("enabled"):
        raise JobError(f"{PATH}: fp16.enabled: its scaled losses and error feedback do not go together; allowed: bf16")
    train = job.train
    micro, steps, bf16 = train.batch_size, train.accumulate, train.precision == "bf16"
    _agree(given, "train_micro_batch_size_per_gpu", micro, "train.batch_size")
    _agree(given, "gradient_accumulation_steps", steps, "train.accumulate")
    _agree(given, "train_batch_size", micro * steps * ranks, "train.batch_size x train.accumulate x workers")
    _agree(given, "gradient_clipping", train.clip, "train.clip")
    _agree(zero, "stage", stage, "engine.stage", "zero_optimization.")
    _agree(zero, "reduce_scatter", False, "the exchange, which reduces by itself", "zero_optimization.")
    _agree(_section(given, "bf16"), "enabled", bf16, "train.precision", "bf16.")
    told = {key: value for key, value in given.items() if key not in ("train_batch_size", "fp16") and value != "auto"}
    told["zero_optimization"] = {
        "reduce_bucket_size": min(BUCKET, max(elements, 1)),
        **{key: value for key, value in zero.items() if value != "auto"},
        "stage": stage,
        "reduce_scatter": False,
    }
    return {
        "steps_per_print": None,
        **told,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": 1,  # micro-batches are added before DeepSpeed sees a gradient
        "gradient_clipping": train.clip,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
    }


def _section(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = given.get(key, {})
    if not isinstance(section, Mapping):
        raise JobError(f"{PATH}: {key} must be a mapping (given {section!r})")
    return section


def _agree(given: Mapping[str, Any], key: str, wanted: Any, who: str, prefix: str = "") -> None:
    """Raise JobError where a key says something else than the job does; "auto" is what the job says."""
    value = given.get(key, wanted)
    if value != "auto" and value != wanted:
        raise JobError(f"{PATH}: {prefix}{key} is {value!r}, but {who} makes it {wanted!r}")
