"""The command-line side of score, leaderboard and study: typed options in, errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from .records import EvalError


def schema(name: str, options: type) -> None:
    """Register an option dataclass under the name that ``conf/NAME/NAME.yaml`` lists in its defaults."""
    ConfigStore.instance().store(name=f"{name}_schema", node=options)


def run_entry(work: Callable[[Any], object], config: DictConfig, options: type) -> None:
    """Run ``work`` on the typed options; what a user can correct ends the process with one line."""
    known = [field.name for field in fields(options)]
    try:
        if unknown := sorted(str(key) for key in config if key not in known):
            raise EvalError(f"unknown key {', '.join(unknown)}: choose from {', '.join(known)}")
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise EvalError(f"{', '.join(missing)} is required: give {' '.join(f'{key}=...' for key in missing)}")
        work(OmegaConf.to_object(config))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
