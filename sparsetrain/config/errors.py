"""What a user can do wrong, said in one line."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from pydantic import ValidationError

from sparsetrain.registry import nearest


class JobError(Exception):
    """A mistake in a job, a command line or an environment; the command line prints it and exits with code 2."""


def describe(error: ValidationError, fields: Any) -> str:
    """Return one line for the first problem: dotted path, what was given, what is allowed, the nearest name.

    `fields(path)` returns the names allowed at a dotted path.
    """
    problems = list(_flatten(error, ()))
    path, kind, given, message = problems[0]
    dotted = ".".join(path)
    if kind == "unexpected_keyword_argument":
        allowed = fields(path[:-1])
        line = (
            f"{dotted}: unknown key (given {_short(given)}); allowed: {', '.join(allowed)}{nearest(path[-1], allowed)}"
        )
    elif kind == "too_short":
        line = f"{dotted}: is empty; wants at least one"
    elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        line = f"{dotted}: is missing"
    elif kind == "literal_error":
        near = nearest(str(given), re.findall(r"'([^']*)'", message))
        line = f"{dotted}: {message} (given {_short(given)}){near}"
    else:
        line = f"{dotted or 'job'}: {message} (given {_short(given)})"
    more = len(problems) - 1
    return line + (f" [and {more} more]" if more else "")


def _flatten(error: ValidationError, prefix: tuple[str, ...]) -> Any:
    for item in error.errors(include_url=False):
        path = (*prefix, *(str(part) for part in item["loc"]))
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _flatten(inner, path)
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield path, item["type"], item["input"], message


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2  # anchors can make a small file an endless value


def _short(value: Any) -> str:
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
