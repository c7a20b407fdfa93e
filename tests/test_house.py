"""The import order of the house: a file imports only from lines above its own."""

from __future__ import annotations

import ast
import pathlib

import pytest

import alexnet_jax

PACKAGE = pathlib.Path(alexnet_jax.__file__).parent
ORDER = (
    *("keys", "nn", "models", "checkpoint", "data", "parallel"),
    *("trained", "weights", "evaluation", "inference", "figures", "training", "cli"),
)


def imported(source: str) -> set[str]:
    """The rooms of the package (first name after `alexnet_jax.`) that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = ["alexnet_jax.relative_import"]
        elif isinstance(node, ast.ImportFrom) and node.module == "alexnet_jax":
            names = [f"alexnet_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("alexnet_jax.")}
    return found


def violations(room: str, source: str) -> set[str]:
    """What a file of this room imports and may not."""
    allowed = {*ORDER[: ORDER.index(room) + 1], "__version__"}
    return imported(source) - allowed


def files() -> list[pathlib.Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_above(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ORDER, f"{path.name} stands in no room of the house"
    assert not violations(room, path.read_text(encoding="utf-8"))


def test_the_package_itself_imports_only_blocks_networks_and_weights():
    assert imported((PACKAGE / "__init__.py").read_text(encoding="utf-8")) <= {"nn", "models", "weights"}


@pytest.mark.parametrize(
    "line",
    [
        "from alexnet_jax.training import config",
        "import alexnet_jax.data.loader",
        "from alexnet_jax import evaluation",
        "def f():\n    from alexnet_jax.cli import main",
        "from ..training import config",
    ],
)
def test_the_check_can_fail(line):
    assert violations("models", line)


def test_no_module_is_longer_than_a_sitting():
    long = {path.name: n for path in files() if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
