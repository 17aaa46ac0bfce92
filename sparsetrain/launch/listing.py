"""What a job can name, and what a job file may hold."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Job
from sparsetrain.config.presets import PRESETS


def entries(kind: str) -> dict[str, str]:
    """Return the names of one kind with the first line of their description; "preset" is a kind too."""
    if kind == "preset":
        return {name: (inspect.getdoc(preset) or "").split("\n")[0] for name, preset in PRESETS.items()}
    return {name: _summary(kind, name) for name in registry.names(kind)}


def table(found: dict[str, dict[str, str]]) -> str:
    """Return the entries of all kinds as lines, in columns."""
    width = max(len(name) for names in found.values() for name in names)
    lines: list[str] = []
    for kind, names in found.items():
        lines.append(kind)
        lines += [f"  {name.ljust(width)}  {text}" for name, text in names.items()]
    return "\n".join(lines)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a job file; options of components are given by `sparsetrain config show`."""
    return adapter(Job).json_schema(schema_generator=_Schema)


class _Schema(GenerateJsonSchema):
    """Describes a component as its name or a mapping with `name`."""

    def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a part that is chosen by name; any `module:Class` is allowed beside the known ones."""
        kind = schema["function"]["function"].__self__.kind
        name = {"type": "string", "examples": registry.names(kind)}
        section = {"type": "object", "properties": {"name": name}, "required": ["name"]}
        return {"description": f"a {kind}: its name, or its name and options", "anyOf": [name, section]}


def _summary(kind: str, name: str) -> str:
    try:
        return registry.summary(kind, name)
    except registry.UnknownName as error:
        return f"(not available: {error})"
