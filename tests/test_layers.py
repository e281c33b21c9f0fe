"""The house's walls: a file imports only from files above it, and heavy libraries stay behind their doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# In the order in which data meets them; a module may import from those before it.
ORDER = [
    "options",
    "files",
    "memory",
    "video",
    "backbone",
    "latents",
    "reference",
    "conditions",
    "schedule",
    "attention",
    "inflate",
    "denoiser",
    "guidance",
    "inversion",
    "evidence",
    "masking",
    "outline",
    "correspondence",
    "correction",
    "sampling",
    "start",
    "pose",
    "recognition",
    "stages",
    "cache",
    "editor",
    "data",
    "config",
    "writer",
    "report",
    "run",
    "train",
    "edit",
    "story",
    "listing",
    "controls",
    "rows",
    "workers",
    "benchmark",
    "footprint",
    "doctor",
]
LIGHTNING = {"editor", "data", "writer", "report", "run", "train", "edit"}
HYDRA = {"config", "run", "train", "edit", "story", "benchmark", "footprint", "doctor"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "tave").rglob("*.py")):
        parts = path.relative_to(ROOT / "tave").with_suffix("").parts
        if parts[0] not in ("__init__", "roadside"):
            yield parts[0], path


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_every_module_has_its_place() -> None:
    assert {name for name, _ in modules()} == set(ORDER)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(getattr(value, "stem", value)))
def test_imports_point_up_the_list(name: str, path: Path) -> None:
    wanted = {part.split(".")[1] for part in imported(path) if part.startswith("tave.")}
    later = {part for part in wanted if part in ORDER and ORDER.index(part) > ORDER.index(name)}
    assert not later, f"{path.name} imports {later}, which stand below it"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(getattr(value, "stem", value)))
def test_heavy_libraries_stay_behind_their_doors(name: str, path: Path) -> None:
    assert "wandb" not in roots(path)
    assert "lightning" not in roots(path) or name in LIGHTNING
    assert "hydra" not in roots(path) or name in HYDRA
    assert "roadside" not in {part.split(".")[1] for part in imported(path) if part.startswith("tave.")}


def test_metrics_know_files_and_not_the_method() -> None:
    for path in (ROOT / "eval").glob("*.py"):
        wanted = {".".join(part.split(".")[:2]) for part in imported(path) if part.startswith("tave.")}
        assert wanted <= {"tave.files", "tave.video"}, f"{path.name} imports {wanted}"
