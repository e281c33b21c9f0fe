"""A module imports only from modules above it, heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    *("config", "interrupts", "files", "plain_yaml", "keys", "seeds", "locks", "progress", "finite", "scratch"),
    *("memory", "video", "windows", "backbone", "schedule", "attention", "inflate", "encoders", "denoiser"),
    *("inversion", "regions", "masking", "correspondence", "correction", "sampling", "cache", "checkpoints"),
    *("reference", "pipeline", "editor", "data", "counting", "fitting", "build"),
    *(
        "crop",
        "inputs",
        "notes",
        "record",
        "findings",
        "source",
        "origin",
        "space",
        "writer",
        "loggers",
        "run",
        "sweep",
    ),
    *("cli", "summary", "report", "train", "edit", "api", "listing", "controls", "benchmark", "footprint"),
    *("doctor", "stored", "remake", "verify", "app"),
]
LIGHTNING = {"checkpoints", "editor", "data", "build", "writer", "loggers", "run"}
HYDRA = {"sweep", "cli", "loggers", "edit"}
WORLD = "roadside"  # the drawn world, which may import everything
DRAWN = {"cli", "benchmark", "doctor", "app"}  # modules that may import it
# Imported for --help and refused values, so without torch; what they need for the work they import when it begins.
LIGHT = ("config", "interrupts", "files", "locks", "keys", "record", "sweep", "cli", "train", "edit", "api", "listing")
LIGHT += ("plain_yaml", "summary", "benchmark", "fitting", "footprint", "doctor", "stored", "findings", "verify")
LIGHT_LIBRARIES = {*sys.stdlib_module_names, "hydra", "omegaconf", "yaml"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "tave").rglob("*.py")):
        parts = path.relative_to(ROOT / "tave").with_suffix("").parts
        if parts[0] not in {"__init__", WORLD}:
            yield parts[0], path


ALL = [pytest.param(name, path, id=path.relative_to(ROOT / "tave").as_posix()) for name, path in modules()]


def imported(path: Path, at_once: bool = False) -> set[str]:
    """Names of imported modules, and of what is imported from them; ``at_once``: by the import of ``path`` itself."""
    tree, found = ast.parse(path.read_text()), set[str]()
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def libraries(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def siblings(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("tave.")}


def test_every_module_has_its_place() -> None:
    assert {name for name, _ in modules()} == set(ORDER)


@pytest.mark.parametrize(("name", "path"), ALL)
def test_imports_point_up_the_order(name: str, path: Path) -> None:
    wanted = imported(path)
    unknown = siblings(wanted) - set(ORDER) - {WORLD, "eval", "__version__", "config"}
    assert not unknown, f"{path.name} imports {unknown}, which do not exist"
    later = {part for part in siblings(wanted) & set(ORDER) if ORDER.index(part) > ORDER.index(name)}
    assert not later, f"{path.name} imports {later}, which are below it"
    assert WORLD not in siblings(wanted) or name in DRAWN


@pytest.mark.parametrize(("name", "path"), ALL)
def test_heavy_libraries_stay_where_they_belong(name: str, path: Path) -> None:
    used = libraries(imported(path))
    assert "wandb" not in used
    assert "lightning" not in used or name in LIGHTNING
    assert "hydra" not in used or name in HYDRA
    if name == "config":
        assert used <= sys.stdlib_module_names
    if name in LIGHT:
        now = imported(path, at_once=True)
        assert libraries(now) - {"tave"} <= LIGHT_LIBRARIES
        assert siblings(now) <= {*LIGHT, "roadside", "__version__"}


def test_metrics_know_files_and_not_the_method() -> None:
    for path in (ROOT / "eval").glob("*.py"):
        wanted = siblings(imported(path))
        assert wanted <= {
            "config",
            "cli",
            "files",
            "findings",
            "plain_yaml",
            "record",
            "report",
            "scratch",
            "source",
            "summary",
            "video",
        }, f"{path.name} imports {wanted}"
