"""The keys of the command line: which entry point has which, their nearest neighbours, and a word as Hydra needs it.

Words are Hydra's ``KEY=VALUE``, made easier in three ways: a path or prompt is taken as it is typed, a misspelt key is
refused with the nearest one, and ``video=NAME`` needs no plus (:func:`prepared`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from tave import config
from tave.config import BACKBONE_KEYS, CONF, EDIT_GROUPS, EDIT_KEYS, OptionError, nearest


@dataclass(frozen=True)
class Root:
    """An entry point's options, the groups of conf/ that it takes, and what --help lists (empty: all)."""

    kind: type
    groups: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


ROOTS = {
    "train": Root(config.TrainOptions, ("video", "backbone", "memory", "logger", "experiment")),
    "edit": Root(config.EditOptions, ("memory", "logger", "experiment"), (*EDIT_KEYS, *EDIT_GROUPS)),
    "verify": Root(config.VerifyOptions),
    "benchmark": Root(config.BenchmarkOptions, ("set",)),
    "doctor": Root(config.DoctorOptions, ("backbone",), ("backbone", "segmenter", "edit")),
    "cache": Root(config.CacheOptions),
    "footprint": Root(config.FootprintOptions),
    "pretrain": Root(config.PretrainOptions),
    "score/score": Root(config.ScoreOptions),
    "leaderboard/leaderboard": Root(config.LeaderboardOptions),
    "study/study": Root(config.StudyOptions),
}


def choices_of(group: str) -> list[str]:
    """The files of a group of conf/; those of its folders as ``FOLDER/NAME``."""
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


def options_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Dotted key and field of every option in a class of options and in its groups."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hint := hints[entry.name]):
            yield from options_of(hint, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{entry.name}", entry


class Place(NamedTuple):
    """A key's field; for a key in a dict the number of parts up to that, and whether it is one of options by name."""

    entry: Field[Any]
    dict_depth: int = 0
    named: bool = False


def option_at(kind: Any, key: str) -> Place | None:
    """The place of a dotted key below a class of options; None where there is none."""
    found: Place | None = None
    for depth, part in enumerate(key.split(".")):
        if is_dataclass(kind):
            entry = next((entry for entry in fields(kind) if entry.name == part), None)
            if entry is None:
                return None
            found = Place(entry) if found is None else found._replace(entry=entry)
            kind = get_type_hints(kind)[part]
        elif get_origin(kind) is dict and found is not None:
            kind = get_args(kind)[1]
            found = Place(found.entry, depth, is_dataclass(kind))
        elif kind is not Any:
            return None
    return found


def unknown(key: str, root: Root) -> str:
    """The message for a key that an entry point doesn't have."""
    keys = [*(name for name, _ in options_of(root.kind)), *root.groups]
    same = [name for name in keys if name.split(".")[-1] == key.split(".")[-1]]
    return f"unknown option {key}: " + (f"did you mean {' or '.join(same)}?" if same else nearest(key, keys))


def quoted(value: str | Path) -> str:
    """A value as Hydra's grammar reads it back unchanged."""
    text = re.sub(r'(\\*)("|$)', lambda at: 2 * at[1] + at[2].replace('"', '\\"'), str(value))
    return f'"{text}"'


def prepared(words: Iterable[str], root_name: str, *, sweep: bool = False) -> list[str]:
    """The words of a command line as Hydra needs them; those that aren't ``KEY=VALUE`` stay as they are.

    The value of an option marked ``text`` is quoted, unless it is null, begins with a quote, ``[``, ``{``, ``glob(`` or
    ``choice(``, or holds a comma in a sweep. Raises :class:`OptionError` for an unknown key.
    """
    root, words, made = ROOTS[root_name], list(words), []
    brings_groups = any(re.match(r"--config-dir|-cd|hydra\.searchpath", word) for word in words)
    for word in words:
        match = re.fullmatch(r"(\+{0,2}|~)([\w./]+)(=?)(.*)", word, re.DOTALL)
        if match is None or match[2].split(".")[0] == "hydra" or not (match[1] or match[3]):
            made.append(word)
            continue
        plus, key, equals, value = match.groups()
        at = option_at(root.kind, key)
        if at is None and key not in root.groups and not (brings_groups and "." not in key):
            raise OptionError(unknown(key, root))
        special = (
            value == "null" or value.startswith(("'", '"', "[", "{", "glob(", "choice(")) or (sweep and "," in value)
        )
        if at and at.entry.metadata["text"] and equals and not special:
            value = quoted(value)
        if at and at.named and equals and not sweep:  # OmegaConf makes options by name from a dict of them alone
            parts = key.split(".")
            for part in reversed(parts[at.dict_depth :]):
                value = f"{{{part}: {value}}}"
            key = ".".join(parts[: at.dict_depth])
        if not plus and (key == "video" or (at and at.dict_depth)):
            plus = "+" if key == "video" else "++"  # Hydra's, for what the configuration doesn't hold before
        made.append(f"{plus}{key}{equals}{value}")
    return made


def allowed(key: str, entry: Field[Any]) -> str:
    """The choices or the range of an option, in parentheses."""
    low, high, above, choices = (entry.metadata[name] for name in ("low", "high", "above", "choices"))
    facts = [" | ".join(choices)] if choices and not all(each in entry.metadata["help"] for each in choices) else []
    facts += [f"{low} to {high}" if high is not None else f"{low} or more"] if low is not None else []
    facts += [f"above {above}"] if above is not None else []
    facts += ["set by backbone="] if key in BACKBONE_KEYS else []
    return f" ({'; '.join(facts)})" if facts else ""
