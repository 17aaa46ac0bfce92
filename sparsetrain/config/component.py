"""A part of the job that is chosen by name: its registry name and its own frozen Config."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sparsetrain import registry

STRICT = {"extra": "forbid", "allow_inf_nan": False, "validate_default": True, "revalidate_instances": "always"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The Config of a class that has nothing to choose."""


@dataclasses.dataclass(frozen=True, slots=True)
class Component:
    """`name` as registered (or `module:Class`) and `config`, an instance of that class's `Config`."""

    kind: str
    name: str
    config: Any

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Return `Class(config, *args, **kwargs)`."""
        return registry.load(self.kind, self.name)(self.config, *args, **kwargs)

    def as_dict(self) -> dict[str, Any]:
        """Return the mapping that a job file would hold."""
        return {"name": self.name, **dataclasses.asdict(self.config)}


class Named:
    """Pydantic annotation: a registry entry of `kind`, given as a name or as `{name: ..., **options}`.

    A mapping without a name sets options of the `default`. `optional`: null stays None.
    """

    def __init__(self, kind: str, default: str | None = None, optional: bool = False) -> None:
        self.kind = kind
        self.default = default
        self.optional = optional

    def parse(self, value: Any) -> Component | None:
        if isinstance(value, Component) or (value is None and self.optional):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and self.default:
            value = {"name": self.default, **value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            allowed = ", ".join(registry.names(self.kind))
            message = f"give a name or a mapping with 'name'; allowed: {allowed}"
            raise PydanticCustomError("component", "{message}", {"message": message})
        options = {key: item for key, item in value.items() if key != "name"}
        try:
            cls: Any = registry.load(self.kind, value["name"])
        except registry.UnknownName as error:
            raise PydanticCustomError("component", "{message}", {"message": str(error)}) from error
        return Component(self.kind, value["name"], adapter(cls.Config).validate_python(options))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(_tree)
        )


def _tree(component: Component | None) -> dict[str, Any] | None:
    return None if component is None else component.as_dict()


@functools.cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    """Return the validator of a config dataclass; unknown keys are refused and defaults are checked."""
    if not hasattr(cls, "__pydantic_config__"):
        cls.__pydantic_config__ = STRICT
    return TypeAdapter(cls)
