"""What a checkpoint's configuration may ask for: checked against the files' headers before anything is built.

A configuration is data of whoever made the folder. One that asks for more than the files hold would fill the memory or
run for hours before the library notices.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from tave.backbone.parts import BackboneError
from tave.files import read_json

COPY = "copy it again"
PICKLES = (b"PK", b"\x80")  # the first bytes of torch.save's files: a zip archive, or a bare pickle
# The largest number that is no dimension of a tensor (the side of a picture), the longest list (of blocks), the largest
# number of noise levels; ten times those of the published checkpoints or more.
LARGEST, LONGEST, LEVELS = 16_384, 64, 10_000
SEVERAL = ("tuple", "list")  # in the annotation of an argument that takes one value or several
# Tensors of a layer, at least: of a residual block two norms and two convolutions, of a transformer's layer more.
TENSORS = 8


class Header(NamedTuple):
    """What safetensors files say of their tensors: the types, the shapes, and the number of values."""

    types: set[str]
    shapes: list[list[int]]

    @property
    def values(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


def header_of(files: Sequence[Path]) -> Header:
    """The headers of safetensors ``files``. Raises :class:`BackboneError` for any other file."""
    found = Header(set(), [])
    for file in files:
        try:
            with safe_open(file, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 - not a mapping
                    tensor = stored.get_slice(key)
                    found.types.add(tensor.get_dtype())
                    found.shapes.append(list(tensor.get_shape()))
        except (OSError, SafetensorError) as error:
            raise BackboneError(f"{file} is {_kind(file, error)}: copy it again as safetensors") from error
    return found


def _kind(file: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), file.open("rb") as source:
        if source.read(2).startswith(PICKLES):
            return "a pickle by another name, which is not read"
    return f"not a safetensors file ({line(error)})"


def part_config(file: Path, largest: int = LARGEST) -> dict[str, Any]:
    """A part's ``config.json``. Raises :class:`BackboneError` for numbers, lists and code that no part of ours has."""
    config = read_json(file, COPY)
    for key, value in _leaves(config):
        length = LEVELS if key == "trained_betas" else LONGEST
        if isinstance(value, float) and not math.isfinite(value):
            raise BackboneError(f"{file}: {key} is {value}: {COPY} from the checkpoint")
        if isinstance(value, int | float) and abs(value) > largest:
            raise BackboneError(f"{file}: {key}={str(value)[:20]} is out of range (at most {largest}): {COPY}")
        if isinstance(value, list) and len(value) > length:
            raise BackboneError(f"{file}: {key} has {len(value)} entries: {COPY}")
        if ("attn_implementation" in key and "/" in str(value)) or (key == "trust_remote_code" and value):
            raise BackboneError(f"{file}: {key}={value} asks for code of a repository, which is not run: remove it")
    if config.get("quantization_config") is not None:
        raise BackboneError(f"{file} is of quantised weights: copy those in float32 or float16 instead")
    return config


def check_types(kind: type, config: Mapping[str, Any], file: Path) -> None:
    """Raise :class:`BackboneError` for a value of another type than the default of ``kind``'s argument of that name."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None or not isinstance(default, bool | int | float | str):
            continue
        several = isinstance(value, list) and any(word in str(parameter.annotation).lower() for word in SEVERAL)
        whole = isinstance(default, int) and "float" not in str(parameter.annotation)
        wanted = type(default) if isinstance(default, bool | str) else int if whole else (int, float)
        values: list[Any] = value if several else [value]
        for each in values:
            fits = isinstance(each, wanted)
            if fits and not isinstance(default, bool | str):
                fits = not isinstance(each, bool | str) and each >= 0
            if not fits:
                raise BackboneError(f"{file}: {name}={str(value)[:40]} is no value for it: {COPY} from the checkpoint")


def _leaves(node: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value of a JSON tree with the key that it is below, lists themselves as well; ten levels at most."""
    if isinstance(node, Mapping):
        for name, value in node.items() if depth < 10 else ():
            yield from _leaves(value, name, depth + 1)
        return
    yield key, node
    for value in node if isinstance(node, list) and depth < 10 else ():
        yield from _leaves(value, key, depth + 1)


def bounded_config(file: Path, header: Header) -> dict[str, Any]:
    """:func:`part_config` of a network whose weights have ``header``: no more layers than its tensors can make."""
    config = part_config(file, max([LARGEST, *(side for shape in header.shapes for side in shape)]))
    blocks = config.get("block_out_channels")
    times = 2 * len(blocks) if isinstance(blocks, list) else 1  # down and up
    for key, value in _leaves(config):
        count = times if key == "layers_per_block" and isinstance(config.get(key), int) else 1
        if "layers" in key and isinstance(value, int) and value * count * TENSORS > len(header.shapes):
            raise BackboneError(f"{file}: {key}={value} is more than its {len(header.shapes)} tensors make: {COPY}")
    return config


def check_network(kind: type, folder: Path, weights: Sequence[Path]) -> None:
    """Raise :class:`BackboneError` if the configuration in ``folder`` asks for another class or a larger network.

    The network is built without memory (on torch's meta device) once its numbers of layers fit the number of tensors.
    """
    header, file = header_of(weights), folder / "config.json"
    config = bounded_config(file, header)
    if (stated := config.get("_class_name", kind.__name__)) != kind.__name__:
        raise BackboneError(f"{file} is of a {str(stated)[:40]}, not of a {kind.__name__}: {COPY} from the checkpoint")
    check_types(kind, config, file)
    with torch.device("meta"), _silent():
        try:
            network = _built(kind, folder, config)
        except Exception as error:  # whatever the libraries raise for a file's content
            raise BackboneError(f"{file} describes no {kind.__name__} ({line(error)}): {COPY}") from error
    wanted = sum(parameter.numel() for parameter in network.parameters())
    if wanted > 2 * header.values:  # a file with gaps is refused by its keys
        raise BackboneError(
            f"{file} describes a network of {wanted:,} parameters, but its weights have {header.values:,}: take both "
            "from one checkpoint"
        )


def _built(kind: Any, folder: Path, config: dict[str, Any]) -> torch.nn.Module:
    if issubclass(kind, ModelMixin):
        return kind.from_config(config)  # type: ignore[return-value]
    return kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The libraries' remarks come when the network is loaded; here they would come twice."""
    loggers = (diffusers_logging, transformers_logging)
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.set_verbosity(level)


def line(error: Exception) -> str:
    """An error's message, shortened to one line, without exceptions and classes that libraries name in it."""
    text = re.sub(r"\b[A-Z]\w*(?:Error|Exception): ", "", " ".join(str(error).split()))
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null")
    return f"{text[:160]} ..." if len(text) > 160 else text or "unknown fault"
