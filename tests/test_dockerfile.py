"""The Dockerfile, as far as it can be read without building it."""

from __future__ import annotations

import re
import tomllib

from commands import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text()
KNOWN = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_every_line_is_an_instruction_and_every_argument_is_declared() -> None:
    assert {word for word, _ in instructions()} <= KNOWN
    stages: list[set[str]] = [set()]
    for word, rest in instructions():
        if word == "FROM":
            assert set(re.findall(r"\$\{(\w+)\}", rest)) <= stages[0]
            stages.append(set())
        elif word == "ARG":
            stages[-1].add(rest.partition("=")[0])
            assert "=" in rest  # it builds without any being given
        else:
            assert set(re.findall(r"\$\{(\w+)\}", rest)) <= stages[-1]


def test_it_installs_the_wheel_with_the_torch_of_the_project_from_an_index_that_can_be_chosen() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (torch,) = (name for name in project["dependencies"] if name.startswith("torch"))
    assert any('--index-url "${TORCH_INDEX}"' in line and f'"{torch}"' in line for line in runs)
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in instructions()
    assert any("pip wheel" in line for line in runs) and any("/wheels/*.whl)[${EXTRAS}]" in line for line in runs)
    (extras,) = (rest.partition("=")[2] for word, rest in instructions() if (word, rest[:7]) == ("ARG", "EXTRAS="))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_nothing_in_it_is_secret_and_it_does_not_run_as_root() -> None:
    assert not re.search(r"(token|key|password|secret)\s*=", TEXT, re.IGNORECASE)
    words = [word for word, _ in instructions()]
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users == ["1000"] and words.index("CMD") > words.index("USER") > max(
        place for place, word in enumerate(words) if word == "RUN"
    )
    copied = " ".join(rest for word, rest in instructions() if word == "COPY" and not rest.startswith("--from"))
    assert copied == "pyproject.toml README.md LICENSE ./ sparsetrain sparsetrain"
    assert (REPOSITORY / ".dockerignore").read_text().splitlines()[1] == "*"
