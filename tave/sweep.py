"""Sweeps: the folder of each job, what became of it, and the folders that a refused command leaves behind."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tave.config import slug

# What changes no result, so that a sweep goes on in its folders under another logger. An experiment sets anything.
NO_EFFECT = ("logger", "logger.wandb.mode", "logger.wandb.group", "metrics.objective", "report", "quiet", "json")
LINE = 200  # characters of a job's values in a message


def job_folder(words: Iterable[str]) -> str:
    """The folder of a job with the overrides ``words``: their values, readable and bounded, and a digest of them.

    The same values make the same folder in any order and however they are quoted; different values never share one.
    """
    parser = OverridesParser.create()
    overrides = [parser.parse_override(word) for word in words]
    kept = [each for each in overrides if each.key_or_group not in NO_EFFECT]
    values = ",".join(sorted(f"{each.get_key_element()}={_canonical(parser, each._value)}" for each in kept))
    return f"{slug(values)[:80]}-{hashlib.sha256(values.encode(errors='surrogateescape')).hexdigest()[:8]}"


def _canonical(parser: OverridesParser, value: Any) -> str:
    """A value as the grammar writes it, a text without quotes where it reads the same."""
    if isinstance(value, list):
        return f"[{','.join(_canonical(parser, each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_canonical(parser, each)}' for key, each in value.items())}}}"
    if isinstance(value, QuotedString):
        plain = Override._get_value_element_as_str(value.text)
        try:
            if parser.parse_override(f"key={plain}")._value == value.text:
                return plain
        except HydraException:
            pass
        return repr(value.text)
    return Override._get_value_element_as_str(value)


@dataclass
class Jobs:
    """What became of a sweep's jobs: how many succeeded, and a line for each that failed."""

    succeeded: int = 0
    failed: list[str] = field(default_factory=list)
    begun: bool = False
    reported: bool = False

    def succeed(self, *, sweep: bool) -> None:
        """Note a job that ended well; one that is no part of a ``sweep`` isn't reported."""
        self.begun, self.succeeded = True, self.succeeded + sweep

    def fail(self, words: Iterable[str], reason: str, error: Exception, *, expected: bool) -> None:
        """Note and print a failed job; an error of the program, not ``expected``, with its traceback."""
        values = " ".join(" ".join(words).split())
        values = values if len(values) <= LINE else f"{values[: LINE - 3]}..."
        self.begun = True
        self.failed.append(f"{values}: {reason}")
        if not expected:
            traceback.print_exception(error)
        print(f"failed: {self.failed[-1]}", file=sys.stderr, flush=True)

    def report(self, *, stopped: bool = False) -> int:
        """Print once how many jobs succeeded and a line for each that failed; returns how many failed.

        ``stopped``: a signal ended the sweep, and jobs may remain.
        """
        count = self.succeeded + len(self.failed)
        if count and not self.reported:
            verdict = "" if stopped else "all "
            verdict += f"{count} jobs succeeded"
            if self.failed:
                verdict = f"error: {len(self.failed)} of {count} jobs failed, {self.succeeded} succeeded"
            lines = [verdict + " before the sweep was stopped" * stopped, *(f"  {line}" for line in self.failed)]
            print("\n".join(lines), file=sys.stderr, flush=True)
        self.reported = True
        return len(self.failed)


class NewFolders(Callback):
    """Notes which folders a command makes, so that a refused one removes those that it leaves empty."""

    made: list[Path] = []  # noqa: RUF012 - of the process: Hydra makes the instance

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the run's folder is made."""
        self._note(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the sweep's folder is made."""
        self._note(config.hydra.sweep.dir)

    def _note(self, folder: str) -> None:
        path = Path(folder).absolute()
        with suppress(OSError):  # a name that is too long, which the making of the folder says
            NewFolders.made += [each for each in (path, *path.parents) if not each.exists()]

    @classmethod
    def clear(cls, *, begun: bool) -> None:
        """Remove what is empty of the noted folders; of a sweep of which no job has ``begun``, Hydra's record too."""
        for folder in cls.made:
            try:
                if not begun:
                    (folder / "multirun.yaml").unlink(missing_ok=True)
                folder.rmdir()
            except OSError:
                break
        cls.made = []
