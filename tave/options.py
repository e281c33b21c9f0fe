"""How the options of a stage check themselves: a wrong value fails at once and names key and remedy."""

from __future__ import annotations

from collections.abc import Sequence


class OptionError(ValueError):
    """A configured value that can't work; the message names the key and what is allowed."""


def choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise :class:`OptionError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not known: choose one of {', '.join(allowed)}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise :class:`OptionError` unless ``low <= value <= high`` (NaN is refused as well)."""
    if not low <= value <= high:
        raise OptionError(f"{name}={value} is out of range: set it between {low} and {high}")
