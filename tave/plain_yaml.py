"""YAML out of a file that may be anybody's: plain values, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tave.files import FileError, unreadable

LARGEST = 4_000_000  # bytes of a file, which take a minute


class _Loader(yaml.SafeLoader):
    """Without aliases, by which a few lines make more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"*{self.peek_event().anchor} is an alias: write its value out")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The content of a YAML or JSON file. Raises :class:`FileError`, in one line, for what is too large or no YAML."""
    try:
        if path.stat().st_size > LARGEST:
            raise FileError(f"{path} is larger than {LARGEST // 10**6} MB: give a smaller file")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise FileError(f"{path} can't be read ({unreadable(error)}): mend it") from error
