"""Writes the pages of the reference from the code: `python docs/reference/generate.py`.

The job comes from its dataclasses and the comments beside their fields, components from the registry, Python from the
public names, commands from the command line itself. `--check` writes nothing and names the pages that are out of date.
"""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import click

import sparsetrain
from sparsetrain import registry
from sparsetrain.cli import cli
from sparsetrain.config import job as job_module
from sparsetrain.config.component import Component
from sparsetrain.config.job import Job
from sparsetrain.config.presets import PRESETS

HERE = pathlib.Path(__file__).parent
NOTE = "<!-- written by docs/reference/generate.py -->\n"
KINDS = {
    "model": "Models (`model`)",
    "data": "Data (`data`)",
    "optimizer": "Optimizers (`optimizer`)",
    "engine": "Engines (`engine`)",
    "sparsifier": "Sparsifiers (`exchange.sparsifier`)",
    "error_feedback": "Error feedback (`exchange.error_feedback`)",
    "collective": "Collectives (`exchange.collective`)",
    "index_code": "Codes of places (`exchange.indices`)",
    "value_code": "Codes of values (`exchange.values`)",
    "mask_method": "Mask methods (`masks.method`)",
    "distribution": "Distributions (`masks.distribution`)",
    "structure": "Structures (`masks.structure`)",
    "mask_schedule": "Schedules of masks (`masks.schedule`)",
    "regulariser": "Regularisers (`masks.regulariser`)",
    "launcher": "Launchers (`cluster.launcher`)",
    "format": "Formats (`sparsetrain export --format`)",
}


def job_page() -> str:
    """Return the page on everything that a job file may hold."""
    parts = [NOTE, "# The job\n"]
    parts.append(
        "A job file is YAML; what it leaves out has a default. On the command line `train.steps=100` sets one field. "
        "A component is a name, or a mapping with `name` and its options ([components](components.md)).\n"
    )
    parts.append(f"Presets: {', '.join(f'`{name}`' for name in PRESETS)}; `sparsetrain config show NAME` prints one.\n")
    for path, cls in sections(Job, ""):
        parts.append(f"## {f'`{path}`' if path else 'Top level'}\n\n{text(cls)}\n")
        parts.append("| field | default | |\n| --- | --- | --- |")
        comments = comments_of(cls)
        for field in dataclasses.fields(cls):
            dotted = f"{path}.{field.name}" if path else field.name
            inner = section_of(field)
            shown = "" if inner else f"`{default_of(field)}`"
            about = f"see [`{dotted}`](#{dotted.replace('.', '')})" if inner else comments.get(field.name, "")
            parts.append(f"| `{dotted}` | {escaped(shown)} | {escaped(about)} |")
        parts.append("")
    return "\n".join(parts)


def sections(cls: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every section of the job by its dotted path, the outer ones first."""
    yield path, cls
    for field in dataclasses.fields(cls):
        inner = section_of(field)
        if inner is not None:
            yield from sections(inner, f"{path}.{field.name}".lstrip("."))


def section_of(field: dataclasses.Field[Any]) -> Any:
    """Return the dataclass of a field that is a section, else None."""
    if dataclasses.is_dataclass(field.default) and not isinstance(field.default, Component):
        return None if type(field.default).__name__ == "Workers" else type(field.default)
    named = str(field.type).split(" ")[0]
    found = getattr(job_module, named, None)
    return found if dataclasses.is_dataclass(found) and field.default is None else None


def default_of(field: dataclasses.Field[Any]) -> str:
    """Return a field's default as a job file would hold it."""
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "(must be given)"
    value = field.default
    if type(value).__name__ == "Workers":
        return str(value.max)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def comments_of(cls: Any) -> dict[str, str]:
    """Return the comment of each field: beside it, or in the lines before."""
    found: dict[str, str] = {}
    before: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        bare = line.strip()
        field = re.match(r"(\w+): [^#]*?(?:#\s*(?!pyrefly)(.*))?$", bare)
        if bare.startswith("# "):
            before.append(bare[2:])
        elif field and not bare.startswith(("def ", "return", "if ")):
            beside = re.sub(r"\s*# pyrefly.*", "", bare).partition("  # ")[2]
            found[field[1]] = " ".join([*before, beside]).strip()
            before = []
        else:
            before = []
    return found


def components_page() -> str:
    """Return the page on everything that a job can name."""
    parts = [NOTE, "# Components\n"]
    parts.append(
        "What a job can name, with its options. `module:Class` names one of yours ([how](../bring-your-own.md)).\n"
    )
    for kind in registry.KINDS:
        parts.append(f"## {KINDS.get(kind, kind)}\n")
        for name in registry.names(kind):
            cls = registry.load(kind, name)
            parts.append(f"### `{name}`\n\n{text(cls)}\n")
            fields = dataclasses.fields(cls.Config)
            if fields:
                about = text(cls.Config)
                parts.append(f"Options: {', '.join(f'`{f.name}: {default_of(f)}`' for f in fields)}.")
                parts.append(f"{about}\n" if about and not about.startswith("Config(") else "")
    return "\n".join(parts)


def python_page() -> str:
    """Return the page on the public names."""
    parts = [NOTE, "# Python\n", "`from sparsetrain import ...`: all that is public.\n"]
    for name in sparsetrain.__all__:
        thing = getattr(sparsetrain, name)
        parts.append(f"## `{name}`\n\n```python\n{name}{signature(thing)}\n```\n\n{text(thing)}\n")
        if inspect.isclass(thing):
            for own, member in vars(thing).items():
                if own.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                    continue
                shown = f"{own}{signature(member)}" if inspect.isfunction(member) else own
                parts.append(f"### `{name}.{own}`\n\n```python\n{shown}\n```\n\n{text(member)}\n")
    return "\n".join(parts)


def signature(thing: Any) -> str:
    """Return a call's parameters, one a line where they are long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "()"
    parts, keywords = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            keywords = True
            parts.append("*")
        shown = re.sub(r"<factory>|<[^>]*>", "...", str(parameter))
        parts.append(re.sub(r"\b(?:[a-z_]+\.)+([A-Z])", r"\1", shown).replace("'", "").replace('"', ""))
    answer = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}".replace("'", "")
    whole = f"({', '.join(parts)}){answer}"
    if len(whole) < 90:
        return whole
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f"){answer}"


def commands_page() -> str:
    """Return the page on the command line."""
    parts = [NOTE, "# Command line\n"]
    for path, command in commands(cli, "sparsetrain"):
        with click.Context(command, info_name=path, terminal_width=100) as context:
            parts.append(f"## `{path}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command by its path, a group before what is in it."""
    yield path, group
    for name, command in sorted(getattr(group, "commands", {}).items()):
        yield from commands(command, f"{path} {name}")


def text(thing: Any) -> str:
    """Return a docstring as Markdown."""
    found = inspect.getdoc(thing) or ""
    return textwrap.dedent(found).replace("<", "&lt;").strip()


def escaped(cell: str) -> str:
    """Return text for a cell of a table."""
    return cell.replace("|", "\\|").replace("\n", " ")


PAGES = {"job": job_page, "components": components_page, "python": python_page, "commands": commands_page}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check name those that are out of date; return the exit code."""
    late = []
    for name, page in PAGES.items():
        path, found = HERE / f"{name}.md", page().rstrip() + "\n"
        if "--check" not in arguments:
            path.write_text(found, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != found:
            late.append(str(path))
    if late:
        print(f"out of date: {', '.join(late)}; python docs/reference/generate.py writes them")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
