"""YAML file or preset, plus dotted overrides, to a checked Job; and back to YAML."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import re
from typing import Any

import yaml
from pydantic import ValidationError

from sparsetrain import registry
from sparsetrain.config.component import Component, adapter
from sparsetrain.config.defaults import settle
from sparsetrain.config.errors import JobError, describe
from sparsetrain.config.job import Job
from sparsetrain.config.nodes import check_nodes

LONGEST = 1 << 18  # characters of a YAML text
DIGITS = 100  # characters of a number
# What to write for sections that may be a plain number, too.
WHOLE = {"cluster.workers": """; give it whole: 'cluster.workers={"min": 2, "max": 8}'"""}
# What PyYAML raises for a value that is not what its tag says.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)


class _UniqueKeys(yaml.SafeLoader):
    """safe_load that refuses a key given twice instead of keeping the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if key in seen:
            raise JobError(f"{key}: given twice (line {key_node.start_mark.line + 1})")
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _integer(loader: _UniqueKeys, node: yaml.ScalarNode) -> int:
    return loader.construct_yaml_int(_short(node))


def _float(loader: _UniqueKeys, node: yaml.ScalarNode) -> float:
    return loader.construct_yaml_float(_short(node))


def _short(node: yaml.ScalarNode) -> yaml.ScalarNode:
    # Longer ones take long to read, and may have no decimal text to name them with.
    if len(node.value) > DIGITS:
        raise ValueError(f"a number of {len(node.value)} characters")
    return node


_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _integer)
_UniqueKeys.add_constructor("tag:yaml.org,2002:float", _float)
_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text. Raises JobError that begins with `where` for whatever is wrong with it."""
    if len(text) > LONGEST:
        raise JobError(f"{where}: longer than {LONGEST} characters")
    try:
        loader = _UniqueKeys(text)  # a SafeLoader
        node = loader.get_single_node()
        if node is None:
            return None
        check_nodes(node, where)
        return loader.construct_document(node)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise JobError(f"{where}: not readable as YAML: {reason}") from error


def parse(tree: dict[str, Any]) -> Job:
    """Return the checked job of a nested mapping. Raises JobError with one line for the first mistake."""
    from sparsetrain.config.check import check

    try:
        job = adapter(Job).validate_python(settle(tree))
    except ValidationError as error:
        raise JobError(describe(error, lambda path: _fields_at(path, tree))) from error
    check(job)
    return job


def checked(config: Any) -> Any:
    """Return a section of the job that was made in code, checked like one from a file. Raises JobError."""
    own = [field.name for field in dataclasses.fields(config)]
    try:
        return adapter(type(config)).validate_python(config)
    except ValidationError as error:
        raise JobError(describe(error, lambda path: own)) from error


def load_job(source: str, overrides: tuple[str, ...] = ()) -> Job:
    """Return the job of a YAML file or preset name, with `a.b=value` overrides applied in order."""
    return parse(apply_overrides(read_tree(source), overrides))


def read_tree(source: str) -> dict[str, Any]:
    """Return the nested mapping of a YAML file, or of a preset when no such file exists."""
    from sparsetrain.config.presets import PRESETS

    path = pathlib.Path(source)
    if path.suffix not in (".yaml", ".yml") and source in PRESETS:
        return PRESETS[source]()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)  # a device has no end
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise JobError(f"{source}: is not a text file") from error
        near = registry.nearest(source, list(PRESETS))
        raise JobError(f"{source}: no such job file or preset; presets: {', '.join(PRESETS)}{near}") from error
    except OSError as error:
        raise JobError(f"{source[:100]}: cannot be read: {error.strerror}") from error
    tree = read_yaml(text, source)
    if not isinstance(tree, dict):
        raise JobError(f"{source}: a job file holds a mapping, not {type(tree).__name__}")
    return tree


def apply_overrides(tree: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of `tree` with each `a.b=value` (value read as YAML) put in its place."""
    result = copy.deepcopy(tree)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise JobError(f"{override}: an override has the form a.b=value")
        value = read_yaml(text, path)
        node = result
        *parents, last = path.split(".")
        for part in parents:
            inner = node.get(part)
            # A component given by its bare name becomes a mapping so that its options can be set.
            node[part] = {"name": inner} if isinstance(inner, str) else inner if inner is not None else {}
            node = node[part]
            if not isinstance(node, dict):
                whole = WHOLE.get(path.rpartition(".")[0], "")
                raise JobError(f"{path}: {part} is not a section (it holds {inner!r}){whole}")
        node[last] = value
    return result


def to_tree(job: Job) -> dict[str, Any]:
    """Return the job as plain mappings, lists and scalars, with all defaults written out."""
    return adapter(Job).dump_python(job, mode="json")


def to_yaml(job: Job) -> str:
    """Return the resolved job file."""
    return yaml.safe_dump(to_tree(job), sort_keys=False)


def _fields_at(path: tuple[str, ...], tree: dict[str, Any]) -> list[str]:
    """Return the names that are allowed in the section at `path`."""
    cls: Any = Job
    given: Any = tree
    for part in path:
        field = {f.name: f for f in dataclasses.fields(cls)}[part]
        given = given.get(part) if isinstance(given, dict) else None
        default = field.default
        kind = _component_kind(field.type)
        if kind:
            name = given if isinstance(given, str) else (given or {}).get("name", default)
            cls = registry.load(kind, name).Config
        else:
            cls = type(default) if dataclasses.is_dataclass(default) else _section(field.type)
    own = [f.name for f in dataclasses.fields(cls)]
    return ["name", *own] if cls.__name__ == "Config" else own


def _component_kind(annotation: Any) -> str | None:
    found = re.search(r"Named\(['\"](\w+)", str(annotation))
    return found.group(1) if found else None


def _section(annotation: Any) -> Any:
    from sparsetrain.config import job

    return getattr(job, str(annotation).split(" ")[0])


__all__ = ["Component", "Job", "JobError", "apply_overrides", "load_job", "parse", "read_tree", "to_tree", "to_yaml"]
