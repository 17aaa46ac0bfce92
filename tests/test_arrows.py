"""Who may import whom: docs and taste say it, this test holds it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "sparsetrain"
ARROWS = {
    "cli": {"launch", "bench", "doctor", "track", "plan", "export"},
    "export": {"launch", "bench", "worker", "engine", "masks", "kernels", "track"},
    "doctor": {"worker", "track", "kernels"},
    "plan": {"engine", "gradient", "masks", "collective", "kernels", "models", "data", "track"},
    "bench": {"plan", "launch", "engine", "gradient", "masks", "collective", "compute", "kernels", "models", "data"},
    "launch": {"worker", "track", "doctor"},
    "worker": {"engine", "collective"},
    "engine": {"gradient", "masks", "collective", "compute", "models", "data", "track"},
    "models": {"compute"},
    "data": set(),
    "gradient": {"collective", "kernels"},
    "collective": {"kernels"},
    "masks": {"kernels"},
    "compute": {"kernels"},
    "kernels": set(),
    "track": set(),
    "config": set(),
    "registry": set(),
}
EVERYONE = {"config", "registry"}
FOREIGN = {
    "ray": ("launch/ray", "worker/"),
    "deepspeed": ("engine/deepspeed",),
    "mpi4py": ("collective/mpi", "launch/mpi"),
    "wandb": ("track/wandb",),
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    inside = str(path.relative_to(ROOT))
    room = inside.split("/")[0].removesuffix(".py")
    for name in imports(path):
        package, *rest = name.split(".")
        if package in FOREIGN:
            assert inside.startswith(FOREIGN[package]), f"{inside} imports {package}"
        if package != "sparsetrain" or room in ("__init__", "__main__"):
            continue
        target = rest[0] if (rest and (ROOT / rest[0]).exists()) or (ROOT / f"{rest[0]}.py").exists() else None
        if target is None:  # a public name of the package itself, its version say
            continue
        allowed = ARROWS[room] | EVERYONE | {room}
        assert target in allowed, f"{inside} imports {name}: {room} may import {sorted(allowed)}"


def test_every_room_is_on_the_map():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}
    assert rooms - {"__init__", "__main__"} <= set(ARROWS) | {"doctor"}


def test_files_stay_small():
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 350}
    assert not long
