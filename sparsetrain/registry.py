"""The one table of everything that can be named in a job file.

An entry is `kind -> name -> "module:Class"`. Adding a component costs its file and one line here. A class that is
named in a job must own a frozen, keyword-only dataclass called `Config`; it is constructed as `Class(config, ...)`.
Entries are strings so that reading a job file never imports torch; third parties write `module:Class` in the job.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re

KINDS: dict[str, dict[str, str]] = {
    "model": {
        "gpt": "sparsetrain.models.gpt:GPT",
        "mlp": "sparsetrain.models.mlp:MLP",
        "cnn": "sparsetrain.models.cnn:CNN",
    },
    "data": {
        "text": "sparsetrain.data.text:Text",
        "fashion_mnist": "sparsetrain.data.fashion_mnist:FashionMNIST",
    },
    "optimizer": {
        "sgd": "sparsetrain.engine.optimizers:SGD",
        "adamw": "sparsetrain.engine.optimizers:AdamW",
    },
    "way": {
        "sparse": "sparsetrain.compute.ways.sparse:Sparse",
        "block": "sparsetrain.compute.ways.block:Block",
        "smaller": "sparsetrain.compute.ways.smaller:Smaller",
        "two_four": "sparsetrain.compute.ways.two_four:TwoFour",
    },
    "sparsifier": {
        "topk": "sparsetrain.gradient.sparsifiers.topk:TopK",
        "threshold": "sparsetrain.gradient.sparsifiers.threshold:Threshold",
        "block_topk": "sparsetrain.gradient.sparsifiers.block_topk:BlockTopK",
        "randomk": "sparsetrain.gradient.sparsifiers.randomk:RandomK",
        "sampled": "sparsetrain.gradient.sparsifiers.sampled:Sampled",
    },
    "error_feedback": {
        "ef14": "sparsetrain.gradient.feedback.ef14:EF14",
        "none": "sparsetrain.gradient.feedback.ef14:NoFeedback",
        "dgc": "sparsetrain.gradient.feedback.dgc:DGC",
        "ef21": "sparsetrain.gradient.feedback.ef21:EF21",
        "ef21_sgdm": "sparsetrain.gradient.feedback.ef21:EF21SGDM",
    },
    "collective": {
        "allgather": "sparsetrain.collective.allgather:AllGather",
        "split_reduce": "sparsetrain.collective.split_reduce:SplitReduce",
        "ok_topk": "sparsetrain.collective.ok_topk:OkTopk",
        "gtopk": "sparsetrain.collective.gtopk:GTopK",
        "recursive_doubling": "sparsetrain.collective.recursive_doubling:RecursiveDoubling",
        "hierarchical": "sparsetrain.collective.hierarchical:Hierarchical",
        "packed": "sparsetrain.collective.packed:Packed",
        "dense": "sparsetrain.collective.dense:Dense",
    },
    "index_code": {
        "auto": "sparsetrain.collective.index_codes:Auto",
        "int32": "sparsetrain.collective.index_codes:Int32",
        "block16": "sparsetrain.collective.index_codes:Block16",
        "elias_fano": "sparsetrain.collective.index_codes:EliasFano",
        "deltas": "sparsetrain.collective.index_codes:Deltas",
        "bitmap": "sparsetrain.collective.index_codes:Bitmap",
    },
    "value_code": {
        "fp32": "sparsetrain.collective.value_codes:FP32",
        "bf16": "sparsetrain.collective.value_codes:BF16",
        "int8": "sparsetrain.collective.value_codes:Int8",
        "int4": "sparsetrain.collective.value_codes:Int4",
    },
    "mask_method": {
        "static": "sparsetrain.masks.methods.static:Static",
        "snip": "sparsetrain.masks.methods.snip:SNIP",
        "grasp": "sparsetrain.masks.methods.grasp:GraSP",
        "synflow": "sparsetrain.masks.methods.synflow:SynFlow",
        "magnitude": "sparsetrain.masks.methods.magnitude:Magnitude",
        "gmp": "sparsetrain.masks.methods.gmp:GMP",
        "lottery": "sparsetrain.masks.methods.lottery:Lottery",
        "taylor": "sparsetrain.masks.methods.taylor:Taylor",
        "obd": "sparsetrain.masks.methods.obd:OBD",
        "woodfisher": "sparsetrain.masks.methods.woodfisher:WoodFisher",
        "movement": "sparsetrain.masks.methods.movement:Movement",
        "acdc": "sparsetrain.masks.methods.acdc:ACDC",
        "dnw": "sparsetrain.masks.methods.dnw:DNW",
        "sr_ste": "sparsetrain.masks.methods.sr_ste:SRSTE",
        "set": "sparsetrain.masks.methods.set:SET",
        "rigl": "sparsetrain.masks.methods.rigl:RigL",
        "srigl": "sparsetrain.masks.methods.srigl:SRigL",
        "mest": "sparsetrain.masks.methods.mest:MEST",
        "snfs": "sparsetrain.masks.methods.snfs:SNFS",
        "dsr": "sparsetrain.masks.methods.dsr:DSR",
        "deepr": "sparsetrain.masks.methods.deepr:DeepR",
        "granet": "sparsetrain.masks.methods.granet:GraNet",
        "topkast": "sparsetrain.masks.methods.topkast:TopKAST",
        "str": "sparsetrain.masks.methods.str:STR",
        "l0": "sparsetrain.masks.methods.l0:L0",
    },
    "distribution": {
        "uniform": "sparsetrain.masks.distribution:Uniform",
        "er": "sparsetrain.masks.distribution:ER",
        "erk": "sparsetrain.masks.distribution:ERK",
        "global": "sparsetrain.masks.ranking:Global",
    },
    "structure": {
        "unstructured": "sparsetrain.masks.structures.unstructured:Unstructured",
        "n:m": "sparsetrain.masks.structures.nm:NM",
        "block": "sparsetrain.masks.structures.block:Block",
        "row": "sparsetrain.masks.structures.row:Row",
        "fan_in": "sparsetrain.masks.structures.fan_in:FanIn",
        "neuron": "sparsetrain.masks.structures.coupled:Neuron",
        "head": "sparsetrain.masks.structures.coupled:Head",
    },
    "mask_schedule": {
        "constant": "sparsetrain.masks.schedules.constant:Constant",
        "one_shot": "sparsetrain.masks.schedules.one_shot:OneShot",
        "linear": "sparsetrain.masks.schedules.ramps:Linear",
        "cubic": "sparsetrain.masks.schedules.ramps:Cubic",
        "cosine": "sparsetrain.masks.schedules.ramps:Cosine",
        "list": "sparsetrain.masks.schedules.explicit:Explicit",
        "rounds": "sparsetrain.masks.schedules.rounds:Rounds",
        "phases": "sparsetrain.masks.schedules.phases:Phases",
    },
    "regulariser": {
        "l1": "sparsetrain.masks.regularisers.l1:L1",
        "group_lasso": "sparsetrain.masks.regularisers.group_lasso:GroupLasso",
        "hoyer": "sparsetrain.masks.regularisers.hoyer:Hoyer",
    },
    "launcher": {
        "local": "sparsetrain.launch.launchers.local:Local",
        "ray": "sparsetrain.launch.launchers.ray:Ray",
        "torchrun": "sparsetrain.launch.launchers.torchrun:Torchrun",
        "mpi": "sparsetrain.launch.launchers.mpi:Mpi",
        "slurm": "sparsetrain.launch.launchers.slurm:Slurm",
        "deepspeed": "sparsetrain.launch.launchers.deepspeed:DeepSpeed",
        "ray_job": "sparsetrain.launch.launchers.ray_job:RayJob",
        "ray_cluster": "sparsetrain.launch.launchers.ray_cluster:RayCluster",
        "kuberay": "sparsetrain.launch.launchers.kuberay:KubeRay",
    },
    "engine": {
        "torch": "sparsetrain.engine.torch_engine:TorchEngine",
        "deepspeed": "sparsetrain.engine.deepspeed:DeepSpeed",
        "fsdp": "sparsetrain.engine.fsdp:FSDP",
    },
    "sink": {
        "jsonl": "sparsetrain.track.jsonl:JsonlSink",
        "tensorboard": "sparsetrain.track.tensorboard:TensorBoardSink",
        "wandb": "sparsetrain.track.wandb:WandbSink",
    },
    "format": {
        "safetensors": "sparsetrain.export.formats.dense:Safetensors",
        "compressed": "sparsetrain.export.formats.compressed:Compressed",
        "csr": "sparsetrain.export.formats.matrices:CSR",
        "bsr": "sparsetrain.export.formats.matrices:BSR",
        "2:4": "sparsetrain.export.formats.two_four:TwoFour",
        "onnx": "sparsetrain.export.formats.onnx:Onnx",
        "shrunk": "sparsetrain.export.formats.shrunk:Shrunk",
    },
}

# The methods that each kind of class must have; docs/bring-your-own.md says what they do.
METHODS: dict[str, tuple[str, ...]] = {
    "model": ("loss",),
    "data": ("train_batch", "eval_batch"),
    "optimizer": ("optimizer",),
    "way": ("refuses", "forward", "backward"),
    "sparsifier": ("select",),
    "error_feedback": ("select", "keep", "commit"),
    "collective": ("exchange", "volume"),
    "index_code": ("bytes", "write", "reader"),
    "value_code": ("bytes", "encode", "decode"),
    "mask_method": ("initial", "update"),
    "distribution": ("counts",),
    "structure": ("layout",),
    "mask_schedule": ("updates", "sparsity"),
    "regulariser": ("pull",),
    "launcher": ("plan",),
    "engine": ("begin", "backward", "step"),
    "sink": ("log", "close"),
    "format": ("unfit", "write", "read"),
}


class UnknownName(ValueError):
    """A name that no entry of its kind has; the message lists what is allowed and the nearest name."""


def nearest(given: str, allowed: list[str]) -> str:
    """Return "; did you mean 'x'?" for the closest of `allowed`, or an empty string."""
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def names(kind: str) -> list[str]:
    """Return the registered names of one kind, sorted."""
    return sorted(KINDS[kind])


def load(kind: str, name: str) -> type:
    """Return the class registered as `name`, or the one that `module:Class` points to.

    Raises UnknownName when there is no such entry, module or class.
    """
    target = KINDS[kind].get(name)
    if target is None and ":" not in name:
        raise UnknownName(f"unknown {kind} {name!r}; allowed: {', '.join(names(kind))}{nearest(name, names(kind))}")
    module, _, attribute = (target or name).partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UnknownName(f"unknown {kind} {name!r}; allowed: {', '.join(names(kind))}, or module:Class")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever a module of the user's does when it is imported
        raise UnknownName(f"cannot load {kind} {name!r}: {type(error).__name__}: {error}") from error
    if not inspect.isclass(cls) or not dataclasses.is_dataclass(getattr(cls, "Config", None)):
        raise UnknownName(f"cannot load {kind} {name!r}: {attribute} is not a class with a Config dataclass")
    lacking = [method for method in METHODS[kind] if not callable(getattr(cls, method, None))]
    if lacking:
        raise UnknownName(f"cannot load {kind} {name!r}: {attribute} has no method {lacking[0]}")
    return cls


def summary(kind: str, name: str) -> str:
    """Return the first sentence of a registered class's docstring."""
    first = " ".join((inspect.getdoc(load(kind, name)) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\w\w\.|\w\)\.)(?<! al\.)\s", first)[0]
