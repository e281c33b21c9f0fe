"""How the options of a stage check themselves: a wrong value fails at once and names key and remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any


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


def takes(name: str, target: Callable[..., Any], keys: Iterable[str]) -> None:
    """Raise :class:`OptionError` unless ``target`` has an argument for each of ``keys``, which are told as ``name.KEY``."""
    arguments = inspect.signature(target).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return
    for key in keys:
        known(f"{name}.{key} is unknown", key, arguments)


def known(told: str, word: str, words: Iterable[str]) -> None:
    """Raise :class:`OptionError` unless ``word`` is one of ``words``: ``told``, and those most like it."""
    among = sorted(words)
    if word not in among:
        raise OptionError(f"{told}: did you mean {' or '.join(get_close_matches(word, among, 3, 0.5) or among)}?")
