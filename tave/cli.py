"""Command line: conf/ and overrides to typed options, one-line errors, --help, and the entry points."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tave import __version__, config
from tave.config import CONF, MISSING, PACKAGE, OptionError, nearest, slug
from tave.files import REFUSED, FileError, naming, refusal
from tave.findings import printable
from tave.interrupts import Interrupted, handled
from tave.keys import ROOTS, Root, allowed, choices_of, option_at, options_of, prepared, quoted, shown, unknown
from tave.roadside.resolver import drawing
from tave.sweep import Jobs, NewFolders, job_folder

# Groups of overrides that are not part of a W&B run's name: its tags hold them, or they don't change the result.
UNNAMED = ("video", "experiment", "backbone", "logger", "metrics", "trainer", "cache", "report", "quiet", "json")
TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}
EXPECTED = (ValueError, OSError, HydraException, OmegaConfBaseException, yaml.YAMLError)
FULL_ERROR = "HYDRA_FULL_ERROR"  # the environment variable by which Hydra raises errors instead of printing them
TRACEBACKS = os.environ.get(FULL_ERROR) == "1"  # a person asks for them
OUT_OF_MEMORY = (
    "the GPU's memory is full: set memory=16gb, 12gb or 8gb (python -m tave.doctor names the one that suits), fewer "
    "video.frames, or a smaller video.width and video.height"
)


def schema(kind: type) -> DictConfig:
    """A class of options as a config that can be filled: OmegaConf makes a read-only one of a frozen dataclass."""
    made = OmegaConf.structured(kind)
    _thaw(made)
    return made


def _thaw(node: Any) -> None:
    if isinstance(node, DictConfig):
        OmegaConf.set_readonly(node, None)
        for key in node:
            _thaw(node._get_node(key))


def _clips(folder: str) -> str:
    """All clips of a folder of conf/video, as the values of a sweep."""
    return ",".join(name for name in choices_of("video") if name.startswith(f"{folder}/"))


def _job(fact: str) -> str | None:
    """A fact about the running Hydra job, for loggers: study, values, backbone, method or command."""
    if not HydraConfig.initialized():
        return "" if fact == "values" else None
    job = HydraConfig.get()
    experiment, sweeps = job.runtime.choices.get("experiment"), job.mode == RunMode.MULTIRUN
    if fact == "study":
        return experiment or (Path(job.sweep.dir).name if sweeps else None)
    if fact == "values":
        return "".join(
            f" {word}" for word in _plain(job.overrides.task) if re.split("[.=]", word.lstrip("+"))[0] not in UNNAMED
        )
    if fact == "command":
        return job.job.name
    if fact == "backbone":
        return job.runtime.choices.get("backbone")
    return experiment if experiment and not sweeps else "tave"


def _job_folder(words: ListConfig) -> str:
    """The folder of a sweep's job with those overrides."""
    return job_folder(_plain(words))


def _plain(words: Any) -> list[str]:
    """Overrides as they were given: those that Hydra keeps would be interpolated."""
    return [str(word) for word in OmegaConf.to_container(words, resolve=False)]  # type: ignore[union-attr]


OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
for _resolver in (_clips, _job, _job_folder):
    OmegaConf.register_new_resolver(_resolver.__name__[1:], _resolver, replace=True)
OmegaConf.register_new_resolver("slug", lambda name: slug(str(name)), replace=True)
for _name, _root in ROOTS.items():
    ConfigStore.instance().store(name=f"{_name.split('/')[0]}_schema", node=schema(_root.kind))


def compose_config(root_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """``conf/ROOT.yaml`` under ``overrides``, in a Hydra job or without one; ``root_name`` is a key of ROOTS.

    Raises :class:`OptionError` with one line that names the key or the choice and the remedy.
    """
    folder, _, name = root_name.rpartition("/")
    around = GlobalHydra.instance().hydra  # an entry point's, or a notebook's with other files
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF / folder), version_base="1.3"):
            return hydra.compose(name, prepared(overrides, root_name))
    except (HydraException, OmegaConfBaseException) as error:
        raise OptionError(one_line(error, ROOTS[root_name])) from error
    finally:
        GlobalHydra.instance().hydra = around


def compose_options(root_name: str, overrides: Sequence[str] = ()) -> Any:
    """:func:`compose_config` and :func:`typed`: the options of an entry point, from Python."""
    return typed(compose_config(root_name, overrides))


def typed(cfg: DictConfig) -> Any:
    """A composed config as its dataclasses, checked: nothing is missing, every value is in its range.

    Raises :class:`OptionError` with one line that names the key and the remedy.
    """
    with drawing():
        return _checked(cfg)


def _checked(cfg: DictConfig) -> Any:
    root = Root(OmegaConf.get_type(cfg) or dict)
    try:
        if absent := sorted(OmegaConf.missing_keys(cfg)):
            clip = "choose a clip, for example video=bus_to_suv, or " if absent[0] == "video.path" else ""
            about = option_at(root.kind, absent[0])
            meaning = f" ({about.entry.metadata['help']})" if about else ""
            raise OptionError(f"{', '.join(absent)} not set: {clip}give {absent[0]}=...{meaning}")
        options = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise OptionError(one_line(error, root)) from error
    if type(options) is config.TrainOptions and not options.backbone.chosen:
        raise OptionError("backbone.path not set: give backbone.path=FOLDER, which holds the weights")
    return options


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, its interpolations resolved, for ``run.json``."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def one_line(error: BaseException, root: Root) -> str:
    """An error as one line; for Hydra's and OmegaConf's errors, the key and the remedy."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which isn't imported for its name
        return OUT_OF_MEMORY
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:60]!r} is no text in UTF-8: give other characters, or mend the file that holds it"
    if isinstance(error, OSError) and error.errno:
        return refusal(error, fault="can't be used")
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).lstrip("+").partition("=")
        remedy = f"quote it as {shown(key, quoted(value))} if it is a text" if equals else "give KEY=VALUE"
        return f"{key}{equals}{' '.join(value.split())} can't be read: {remedy}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).partition("/")
        return f"{group}={name} is not known: {nearest(name, error.options)}"
    inner = error.__cause__ or error.__context__
    if isinstance(error, HydraException) and isinstance(inner, OmegaConfBaseException):
        error = inner
    line = " ".join(str(error).split("\n    full_key:")[0].split("Config search path:")[0].split())
    if word := re.match(r"Ambiguous value for argument '(.*?)'", line):
        return f"{word[1]} has several values: add -m to run each of them, or give a list as [a,b]"
    if not isinstance(error, OmegaConfBaseException) or not error.full_key:
        return line
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown(str(error.full_key), root)
    if match := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", line):
        return f"{error.full_key}={match[1]}: give {TYPES.get(match[2], match[2])}"
    if re.match(r"Invalid value assigned: \w+ is not a ListConfig", line):
        return f"{error.full_key}: give a list, for example {error.full_key}=[0,1]"
    if re.match(r"Invalid (type|value) assigned: \w+ is not a", line):
        return f"{error.full_key} is a group of options: give one of them, {error.full_key}.OPTION=VALUE"
    return f"{error.full_key}: {line}"


def help_text(root_name: str, overrides: Sequence[str] = ()) -> str:
    """The page of ``--help``: the first comment of ``conf/ROOT.yaml``, groups, and every option under ``overrides``."""
    root, cfg, group = ROOTS[root_name], compose_config(root_name, overrides), ""
    comment = re.match(r"(#.*\n)*", (CONF / f"{root_name}.yaml").read_text(encoding="utf-8"))
    lines = [f"tave {__version__}", "", *(line[2:] for line in comment[0].splitlines()), ""]  # type: ignore[index]
    if root.groups:
        lines += ["Groups (GROUP=CHOICE):", *(f"  {name}: {', '.join(choices_of(name))}" for name in root.groups), ""]
    lines.append("Options (KEY=VALUE) and their values; ... is required. -m KEY=A,B runs each value.")
    for key, entry in options_of(root.kind):
        top = key.split(".")[0]
        if root.shown and key not in root.shown and top not in root.shown:
            continue
        if "." in key and top != group:
            group = top
            lines.append(f"{top}: {next(f.metadata['help'] for f in fields(root.kind) if f.name == top)}")
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        left = f"{key}={_shown('...' if value is None and entry.default == MISSING else value)}"
        lines.append(f"  {left:<36} {entry.metadata['help']}{allowed(key, entry)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, DictConfig):
        return f"{{{','.join(f'{key}:{_shown(value[key])}' for key in value)}}}"
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )


@dataclass(frozen=True)
class Context:
    """How an entry point was called: Hydra's output folder, the config as plain values, experiment and overrides."""

    folder: Path
    config: dict[str, Any]
    experiment: str | None
    overrides: list[str]


def entry_point(
    name: str, root_name: str, work: Callable[[Any, Context], float | None], read: Callable[[DictConfig], Any] = typed
) -> Callable[[], None]:
    """The ``main`` of a module and of its console script.

    A ``ValueError``, an ``OSError`` and a full GPU end in one line and exit code 1; in a sweep the next job runs.

    Args:
        name: What runs, for the line that is printed at once.
        root_name: Its file in conf/, a key of ROOTS.
        work: Takes options and :class:`Context`, imports what is slow, returns what a search optimises, or None.
        read: Makes the options of the composed config.
    """
    root, jobs = ROOTS[root_name], Jobs()

    def task(cfg: DictConfig) -> float | None:
        job = HydraConfig.get()
        folder, overrides = Path(job.runtime.output_dir), _plain(job.overrides.task)
        try:
            prepared(overrides, root_name)  # an experiment may bring more than the command line has
            options = read(cfg)
            context = Context(folder, resolved(cfg), job.runtime.choices.get("experiment"), overrides)
            with naming(folder):
                made = work(options, context)
        except Exception as error:
            if job.mode == RunMode.RUN:
                _leave(error, root, as_json=_asked("json", overrides))
            with contextlib.suppress(OSError):
                folder.rmdir()  # Hydra made it; it goes if it is empty
            jobs.fail(overrides, one_line(error, root), error, expected=_expected(error))
            if _asked("json", overrides):
                print(json.dumps({"error": one_line(error, root), "overrides": overrides}), flush=True)
            if not job.launcher._target_.endswith(".BasicLauncher"):
                raise  # its jobs are in other processes, where Hydra alone counts them
            return None
        jobs.succeed(sweep=job.mode == RunMode.MULTIRUN)
        return made

    folder, _, file = root_name.rpartition("/")
    run = hydra.main(version_base="1.3", config_path=str(CONF / folder), config_name=file)(task)

    def main() -> None:
        nonlocal jobs
        words, jobs = sys.argv[1:], Jobs()
        flags = {word for word in words if word.startswith("-")}
        if "--version" in flags:
            print(f"tave {__version__}")
            return
        if flags & {"-sc", "--shell-completion"}:
            run()
            return
        os.environ[FULL_ERROR] = "1"
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too: one for each part of a backbone
        quiet = _asked("quiet", words) or not flags.isdisjoint({"-c", "--cfg", "-i", "--info", "--hydra-help"})
        try:
            if flags & {"-h", "--help"}:
                print(help_text(root_name, [word for word in words if word not in flags]))
                return
            if not quiet and os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"tave {__version__}: {name}", file=sys.stderr, flush=True)
            words.sort(key=lambda word: word[:1] != "-" and "=" in word)  # Hydra takes no flags between them
            sweep = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(words)
            sys.argv[1:] = prepared(words, root_name, sweep=sweep)
            with handled():
                run()
            if jobs.report():
                raise SystemExit(1)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt, SystemExit, Interrupted) as error:
            jobs.report(stopped=isinstance(error, Interrupted | KeyboardInterrupt))
            NewFolders.clear(begun=jobs.begun)
            if isinstance(error, OSError):  # Hydra could not make the output folder
                cause, error = error, FileError(refusal(error))
                error.__cause__ = cause
            _leave(error, root, as_json=_asked("json", words))
        finally:
            if not TRACEBACKS:
                del os.environ[FULL_ERROR]

    return main


def _output_refused(error: BaseException) -> OSError | None:
    """The error of a standard output that takes nothing more, if ``error`` comes from it: the system names no file."""
    cause = error.__cause__ or error
    if not isinstance(cause, OSError) or cause.filename or cause.errno not in (errno.EPIPE, *REFUSED):
        return None
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter tries again as it ends
        return cause
    return None


def _asked(key: str, words: Sequence[str]) -> bool:
    """Whether the words of a command line set the switch ``key``, known also where the configuration can't be read."""
    return any(re.fullmatch(rf"\+*{key}=(true|1|yes|on)", word, re.IGNORECASE) for word in words)


def _expected(error: BaseException) -> bool:
    """Whether an error is one that a user can mend."""
    return not TRACEBACKS and (isinstance(error, EXPECTED) or type(error).__name__ == "OutOfMemoryError")


def _leave(error: BaseException, root: Root, *, as_json: bool = False) -> NoReturn:
    """Exit in one line: 1 for user errors, 130 after Ctrl-C, 143 after SIGTERM. Raise other errors again."""
    if lost := _output_refused(error):
        if lost.errno == errno.EPIPE:
            raise SystemExit(128 + signal.SIGPIPE)  # its reader, as `| head`, has had enough
        line, code = f"error: {refusal(lost, 'the standard output')}", 1
    elif stop := _signal_of(error):
        line, code = str(stop), stop.code
    elif _expected(error):
        line, code = f"error: {one_line(error, root)}", 1
    else:
        raise error
    print(printable(line), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line.removeprefix("error: "), "code": code}))
    raise SystemExit(code)


def _signal_of(error: BaseException) -> Interrupted | None:
    """The signal that an error comes from; where Python or Lightning took it before :func:`handled` did, as well."""
    if isinstance(error, Interrupted):
        return error
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return Interrupted(signal.SIGINT)
    return Interrupted(signal.SIGTERM) if type(error).__name__ == "SIGTERMException" else None
