"""Seeded damage: to bytes, to JSON and YAML trees, and to pictures and clips."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SENTENCES = [
    "a farmer's red suv", "a red suv, at night", "ein grünes Auto", "a red suv (2024)", "a red suv; snow", "a=b, c=d",
    'the "new" bus', "50% off: {big} [sale]", "#1 & only", "C:\\clips\\new", "车在路上", "🚙 on a road", "ends with \\",
    "$HOME and `ls`", "${oc.env:HOME}", "a\tb", "two\nlines", "null", "true", "3", "1e3", "~", "'", "glob(*)", "*",
    "a" * 3000, "é" * 300, "-m", "--help me", "${now:%Y}", "a red suv, a blue van, a bus", " spaces ", "x: y",
    "!!python",
]  # fmt: skip
NAMES = [
    "clip (1)", "jürgen", "a,b", "it's", 'the "new" one', "a=b", "[x]", "{x}", "50%", "#1", "$HOME", "${x}", "&", ";",
    "-leading", ".hidden", "spaced out ", "车", "🚙", "tab\there", "new\nline", "back\\slash", "~", "*", "?", "x" * 120,
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**64, 10**9, 1e308, -0.5, float("nan"), float("inf"), "", "text", "../../x",
    "/etc/passwd", "ünï", "x" * 10_000, "${oc.env:HOME}", "${nothing:1}", "???", [], [1], ["a", None], [[[]]], {},
    {"a": 1}, {"_target_": "os.getcwd"}, {"": {}}, "\x00", "\ud800", "1", "1.5", "nan", "-inf", "2024-01-01",
]  # fmt: skip


# ---- bytes -----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """(how, the damaged bytes): a flipped bit, a cut, zeros, foreign bytes, a repeated or a removed part, nothing."""
    size = max(1, len(content))
    how = draw.choice(
        ["bit", "bit", "bits", "byte at the start", "cut", "cut", "empty", "zeros", "noise", "twice", "gap"]
    )
    at, many = draw.randrange(size), bytearray(content)
    if how == "bit" and content:
        many[at] ^= 1 << draw.randrange(8)
    elif how == "bits" and content:
        for _ in range(draw.choice([5, 50, 500])):
            many[draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif how == "byte at the start" and content:
        many[draw.randrange(min(64, size))] = draw.randrange(256)
    elif how == "cut":
        many = many[:at]
    elif how == "empty":
        many = bytearray()
    elif how == "zeros":
        end = at + draw.choice([1, 16, 4096])
        many[at:end] = bytes(len(many[at:end]))
    elif how == "noise":
        many = bytearray(draw.randbytes(draw.choice([1, 16, 5000])))
    elif how == "twice":
        many *= 2
    elif how == "gap":
        del many[at : at + draw.choice([1, 8, 1000])]
    return f"{how} at {at} of {size}" if how in ("bit", "cut", "zeros", "gap") else how, bytes(many)


def spoil(path: Path, draw: random.Random) -> str:
    """Damage, remove or replace a file; returns how."""
    how = draw.choice(["damage"] * 7 + ["remove", "folder", "link to nothing", "link to itself"])
    if how == "damage":
        how, content = damaged(path.read_bytes(), draw)
        path.write_bytes(content)
        return how
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link to nothing":
        path.symlink_to("nothing")
    elif how == "link to itself":
        path.symlink_to(path.name)
    return how


# ---- trees -----------------------------------------------------------------------------------------------------------


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a tree of dicts and lists, inner ones too."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed_tree(tree: Any, draw: random.Random) -> tuple[str, Any]:
    """(how, a copy of ``tree`` in which one value is another, gone, or under another key)."""
    made, places = copy.deepcopy(tree), list(leaves(tree))
    if not places or draw.random() < 0.05:
        return "the whole", draw.choice(ODD_VALUES)
    *above, last = draw.choice(places)
    inner = made
    for key in above:
        inner = inner[key]
    where = ".".join(map(str, (*above, last)))
    how = draw.random()
    if how < 0.15:
        del inner[last]
        return f"{where} gone", made
    if how < 0.25 and isinstance(inner, dict):
        inner[draw.choice(["_target_", "x", "", "../x", f"{last} "])] = draw.choice(ODD_VALUES)
        return f"another key beside {where}", made
    value = draw.choice(ODD_VALUES)
    inner[last] = value
    return f"{where}={str(value)[:40]!r}", made


def put(tree: Any, where: str, value: Any) -> None:
    """Set a dotted key, with the dicts that it needs."""
    *above, last = where.split(".")
    for key in above:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


def write_tree(path: Path, tree: Any) -> None:
    """As JSON, with NaN and lone surrogates as Python writes them."""
    path.write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")


# ---- pictures and clips ----------------------------------------------------------------------------------------------


def odd_picture(path: Path, draw: random.Random) -> str:
    """Write a picture that is unusual or no picture at all; returns what it is."""
    import numpy as np
    from PIL import Image

    side = draw.choice([1, 2, 3, 7, 16, 33, 64, 200])
    seeds = np.random.default_rng(draw.randrange(2**32))
    colour = Image.fromarray(seeds.integers(0, 256, (side, draw.choice([1, side, 2 * side]), 3), np.uint8))
    kinds = [
        "1",
        "L",
        "LA",
        "P",
        "RGBA",
        "I;16",
        "F",
        "CMYK",
        "clear",
        "opaque",
        "nan",
        "bomb",
        "animated",
        "text",
        "folder",
    ]
    kind = draw.choice(kinds)
    if kind in ("1", "L", "LA", "P", "RGBA"):
        colour.convert(kind).save(path, "PNG")
    elif kind == "CMYK":
        colour.convert("CMYK").save(path, "TIFF")
    elif kind in ("I;16", "F", "nan"):
        plane = np.asarray(colour.convert("L")).astype(np.uint16 if kind == "I;16" else np.float32)
        if kind == "nan":
            plane[0, 0] = draw.choice([np.nan, np.inf, 1e30])
        Image.fromarray(plane).save(path, "TIFF")
    elif kind in ("clear", "opaque"):
        colour.putalpha(0 if kind == "clear" else 255)
        colour.save(path, "PNG")
    elif kind == "bomb":
        colour.save(path, "PNG")
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", draw.choice([65_535, 2**30, 2**31 - 1]), 65_535)
        path.write_bytes(content)
    elif kind == "animated":
        colour.save(path, "GIF", save_all=True, append_images=[colour.rotate(90)] * 3)
    elif kind == "text":
        path.write_text(draw.choice(["", "no picture", "<svg onload='x'/>", "%PDF-1.4", "GIF89a", "\x89PNG\r\n\x1a\n"]))
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    return f"{kind} of {colour.width}x{colour.height}"


def odd_folder(folder: Path, source: Path, draw: random.Random) -> str:
    """A folder of numbered pictures with one thing wrong; ``source`` is a picture. Returns what."""
    from PIL import Image

    folder.mkdir()
    for number in range(1, 10):
        shutil.copy(source, folder / f"{number:03d}.png")
    how = draw.choice(
        ["gap", "size", "mode", "other file", "mask between", "broken", "folder", "empty", "one", "mixed"]
    )
    some = folder / f"{draw.randrange(1, 10):03d}.png"
    if how == "gap":
        some.unlink()
    elif how in ("size", "mode"):
        with Image.open(some) as picture:
            (picture.resize((9, 50)) if how == "size" else picture.convert("1")).save(some)
    elif how == "other file":
        (folder / "readme.txt").write_text("frames")
    elif how == "mask between":
        shutil.copy(source, folder / "1_mask.png")
    elif how == "broken":
        some.write_bytes(damaged(some.read_bytes(), draw)[1])
    elif how == "folder":
        some.unlink()
        some.mkdir()
    elif how in ("empty", "one"):
        for path in sorted(folder.iterdir())[1 if how == "one" else 0 :]:
            path.unlink()
    elif how == "mixed":
        some.rename(some.with_suffix(".jpg"))
    return f"frames: {how}"
