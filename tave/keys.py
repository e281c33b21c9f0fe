"""The keys of the command line: which entry point has which, their nearest neighbours, and a word as Hydra needs it.

Words are Hydra's ``KEY=VALUE``, made easier in three ways: a path or prompt is taken as it is typed
(:func:`text_value`), a misspelt key is refused with the nearest one, and ``video=NAME`` needs no plus
(:func:`prepared`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from tave import config
from tave.config import BACKBONE_KEYS, CONF, EDIT_GROUPS, EDIT_KEYS, OptionError, check_name, nearest

QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
LIST = rf"\[(?>{QUOTED}|[^\]])*+\]"
BRACES = r"\{[^{}]*\}"
# A value between two commas, or between a comma and an end; a comma in quotes or brackets is part of it.
PART = re.compile(rf"(\s*)({QUOTED}|{LIST}|{BRACES}|[^,]*)(\s*)(?:,|\Z)", re.DOTALL)
# Hydra's functions whose value is a sweep.
SWEEP = re.compile(r"(choice|glob|interval|range|shuffle|sort|tag)\(.*\)", re.DOTALL)

HYDRAS_PATHS = ("hydra.run.dir", "hydra.sweep.dir")  # typed like our own paths


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
    "report": Root(config.ReportOptions),
    "benchmark": Root(config.BenchmarkOptions, ("set",)),
    "doctor": Root(config.DoctorOptions, ("backbone",), ("backbone", "segmenter", "edit")),
    "cache": Root(config.CacheOptions),
    "app": Root(config.AppOptions),
    "batch": Root(config.BatchOptions),
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


def literal(text: str) -> str:
    """``text`` as OmegaConf reads it back unchanged: ``${`` in it is no interpolation."""
    return re.sub(r"(\\*)\$\{", lambda at: 2 * at[1] + r"\${", text)


def literals(tree: Any) -> Any:
    """``tree`` with every text :func:`literal`."""
    if isinstance(tree, Mapping):
        return {key: literals(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literals(value) for value in tree]
    return literal(tree) if isinstance(tree, str) else tree


def quoted(value: str | Path) -> str:
    """A value as Hydra's grammar and OmegaConf read it back unchanged."""
    text = re.sub(r'(\\*)("|\Z)', lambda at: 2 * at[1] + at[2].replace('"', '\\"'), literal(str(value)))
    return f'"{text}"'


def shown(key: str, value: str) -> str:
    """``KEY=VALUE`` as a shell takes it."""
    return shlex.quote(f"{key}={value}")


def parts_of(value: str) -> list[tuple[str, str, str]]:
    """The values between the commas of ``value``, each with the blanks before and after it."""
    found, at = [], 0
    while match := PART.match(value, at):
        found.append((match[1], match[2], match[3]))
        at = match.end()
        if match[0][-1:] != ",":
            break
    return found


def text_value(key: str, entry: Field[Any], value: str, *, sweep: bool) -> str:
    """The value of an option marked ``text`` as Hydra's grammar needs it, so that it arrives as it was typed.

    Taken for Hydra's grammar are null where the option may be none, a value in quotes, a list where several may be
    given, a function such as ``choice(...)``, and in a sweep a comma, which separates values. Raises
    :class:`OptionError` for a comma in a sweep that may be a sentence's: one beside a blank.
    """
    found = parts_of(value)
    if SWEEP.fullmatch(value):
        return value
    if not sweep or len(found) == 1:
        return _single(entry, value)
    plain = [part for part in found if not re.fullmatch(f"{QUOTED}|{LIST}", part[1], re.DOTALL)]
    if any(before or after or not text or text[-1].isspace() for before, text, after in plain):
        several = ",".join(_single(entry, text.strip()) for _, text, _ in found)
        raise OptionError(
            f"{key} has a comma that may be part of a sentence: in a sweep give {shown(key, quoted(value))} for one "
            f"value, {shown(key, several)} for {len(found)}"
        )
    return ",".join(_single(entry, text) for _, text, _ in found)


def _single(entry: Field[Any], value: str) -> str:
    kind = str(entry.type)
    if value == "null" and kind.endswith(("None", "Any")):
        return value
    if re.fullmatch(QUOTED, value, re.DOTALL):
        return value
    if kind == "Any" and re.fullmatch(LIST, value, re.DOTALL):
        inner = value[1:-1]
        return f"[{','.join(_element(text.strip()) for _, text, _ in parts_of(inner))}]" if inner.strip() else "[]"
    return quoted(value)


def _element(value: str) -> str:
    return value if value == "null" or re.fullmatch(QUOTED, value, re.DOTALL) else quoted(value)


def prepared(words: Iterable[str], root_name: str, *, sweep: bool = False) -> list[str]:
    """The words of a command line as Hydra needs them; those that aren't ``KEY=VALUE`` stay as they are.

    Raises :class:`OptionError` for an unknown key and for a name that can't be a folder's.
    """
    root, words, made = ROOTS[root_name], list(words), []
    named: dict[str, dict[str, list[str]]] = {}  # word of a dict of options -> name -> its options
    brings_groups = any(re.match(r"--config-dir|-cd|hydra\.searchpath", word) for word in words)
    for word in words:
        match = re.fullmatch(r"(\+{0,2}|~)([^-+~=@\s][^=@\s]*)(=?)(.*)", word, re.DOTALL)
        if match and match[3] and match[2] in HYDRAS_PATHS and not re.search(rf"\$\{{|\A{QUOTED}\Z", match[4]):
            made.append(f"{match[1]}{match[2]}={quoted(match[4])}")
            continue
        if match is None or re.match(r"hydra\b", match[2]) or not (match[1] or match[3]):
            made.append(word)
            continue
        plus, key, equals, value = match.groups()
        at = option_at(root.kind, key)
        if at is None and key not in root.groups and not (brings_groups and "." not in key):
            raise OptionError(unknown(key, root))
        if at and at.entry.metadata["text"] and equals:
            value = text_value(key, at.entry, value, sweep=sweep)
        if key in root.groups and "null" in (values := [part for _, part, _ in parts_of(value)]) and values[1:]:
            raise OptionError(f"{key}={value}: none can't be one of several choices: give null in a command of its own")
        if not plus and (key == "video" or (at and at.dict_depth)):
            plus = "+" if key == "video" else "++"  # Hydra's, for what the configuration doesn't hold before
        if at and at.named and equals:  # OmegaConf makes options by name from a dict of them alone
            owner, name, rest = _split(key, at.dict_depth)
            check_name(f"{owner}: {name!r}", name)
            swept = sweep and (len(parts_of(value)) > 1 or SWEEP.fullmatch(value))
            if rest or (value[:1], value[-1:]) == ("{", "}"):
                if (holder := f"++{owner}=") not in named:
                    named[holder] = {}
                    made.append(holder)
                content = named[holder].setdefault(name, [])
                if not swept:
                    content.append(f"{rest}: {value}" if rest else value[1:-1])
                    continue
        made.append(f"{plus}{key}{equals}{value}")
    return [word + _braces(named[word]) if word in named else word for word in made]


def _split(key: str, depth: int) -> tuple[str, str, str]:
    """The key of a dict of options, a name in it, and an option of that."""
    parts = key.split(".")
    return ".".join(parts[:depth]), parts[depth], ".".join(parts[depth + 1 :])


def _braces(named: dict[str, list[str]]) -> str:
    return "{" + ", ".join(f"{name}: {{{', '.join(content)}}}" for name, content in named.items()) + "}"


def allowed(key: str, entry: Field[Any]) -> str:
    """The choices or the range of an option, in parentheses."""
    low, high, above, choices = (entry.metadata[name] for name in ("low", "high", "above", "choices"))
    facts = [" | ".join(choices)] if choices and not all(each in entry.metadata["help"] for each in choices) else []
    facts += [f"{low} to {high}" if high is not None else f"{low} or more"] if low is not None else []
    facts += [f"above {above}"] if above is not None else []
    facts += ["set by backbone="] if key in BACKBONE_KEYS else []
    return f" ({'; '.join(facts)})" if facts else ""
