"""With what a run was made: the commit, versions and hardware, for ``run.json``."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from tave.config import PACKAGE


def origin() -> dict[str, Any]:
    """``commit``, ``versions`` and ``hardware``: what bits may depend on beside options and inputs."""
    cuda = torch.cuda.is_available()
    versions = {name: version(name) for name in ("tave", "torch", "diffusers", "transformers", "lightning")}
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads(), "cuda": cuda}
    return {
        "commit": _commit(),
        "versions": versions | {"python": platform.python_version()},
        "hardware": hardware | {"gpu": torch.cuda.get_device_name() if cuda else None},
    }


def _commit() -> str | None:
    """The commit of the checkout that contains this package, with a plus where files differ from it; None elsewhere."""
    git = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
