"""Seeded bad inputs for every entry point: pictures, clips, options, prompts, run folders, weights, listings, boards.

python -m tests.reliability.fuzz               # make fuzz
python -m tests.reliability.fuzz only=17       # one input again, its folder kept
python -m tests.reliability.fuzz kinds=run     # the kinds whose name begins so

An input survives if it is taken, or refused in one line with exit code 1; if nothing appears outside of the folders
that the command names; if no code of a file runs; and if a result is that of undamaged files, bit for bit.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import bad_folders, bad_inputs
from .bad_inputs import World
from .report import Seen, Settings, Trial, conduct, main
from .shared import EDIT, call, contents, finished, prepared, start

KINDS: dict[str, tuple[int, Callable[[World, Path, random.Random], Seen]]] = {
    "target images": (240, bad_inputs.picture),
    "masks and mattes": (170, bad_inputs.mask),
    "clips": (240, bad_inputs.clip),
    "options": (340, bad_inputs.option),
    "prompts": (180, bad_inputs.prompt),
    "file names": (90, bad_inputs.name),
    "run folders, damaged": (240, bad_folders.damaged_run),
    "caches, damaged": (90, bad_folders.damaged_cache),
    "run folders of strangers": (170, bad_folders.stranger),
    "run folders, forged": (4, bad_folders.forged),
    "weights folders": (200, bad_folders.weights),
    "listings of cases": (120, bad_folders.listing),
    "job files": (80, bad_folders.job_file),
    "leaderboards and studies": (220, bad_folders.board),
}
SHORT = 1  # inputs of each kind in the short form


def trials_of(world: World, settings: Settings) -> list[Trial]:
    """All inputs; the random numbers of each come from the seed and its index."""
    found: list[Trial] = []
    for kind, (many, work) in KINDS.items():
        for _ in range(many):
            found.append(_trial(len(found) + 1, kind, work, world, settings.seed))
    if settings.short:
        found = [each for kind in KINDS for each in [one for one in found if one.kind == kind][:SHORT]]
    return found


def _trial(index: int, kind: str, work: Callable[..., Seen], world: World, seed: int) -> Trial:
    return Trial(index, kind, "", lambda folder: work(world, folder / "home", random.Random(f"{seed} {index}")))


def make(where: Path) -> World:
    """The world, with the same clip in other containers and the tiny backbone's weights as a folder."""
    prepared(where)
    done, fresh, known = finished(where / "fresh", where / "done"), where / "inputs", where / "known"
    for folder, of in ((fresh, where / "fresh"), (known, done)):
        shutil.copytree(of, folder)
    for work in (_write_clips, _write_weights):
        made = start(lambda work=work: work(fresh), fresh, ["prepare"]).wait(120)
        if made.code:
            raise SystemExit(made.err)
    (fresh / "cases.json").write_text(json.dumps([bad_folders.CASE]))
    for entry, words, place in (
        ("benchmark", bad_folders.LISTED, fresh),
        ("edit", EDIT, known),
        ("study", bad_folders.BOARDS["study"], known),
        ("leaderboard", bad_folders.BOARDS["leaderboard"], known),
    ):
        bad_folders.label(known / "run", entry)
        if (ended := call(entry, words, place)).code:
            raise SystemExit(f"{entry} fails with good inputs:\n{ended.err}")
    for left in ("cases.json", "out", "cache"):
        shutil.rmtree(fresh / left) if (fresh / left).is_dir() else (fresh / left).unlink()
    listed = call("train", ["--help"], fresh).out.splitlines()
    options = [line.split("=")[0].strip() for line in listed if line.startswith("  ") and "=" in line]
    return World(fresh, done, contents(known / "run"), options)


def _write_clips(fresh: Path) -> None:
    import av
    import numpy as np
    from PIL import Image

    (fresh / "clips").mkdir()
    with av.open(str(fresh / "clip/source.mp4")) as source:
        frames = [np.asarray(frame.to_image()) for frame in source.decode(video=0)]
    for suffix, codec in (("mp4", "libx264"), ("mkv", "mpeg4"), ("avi", "mjpeg")):
        with av.open(str(fresh / f"clips/clip.{suffix}"), "w") as made:
            stream: Any = made.add_stream(codec, rate=8)
            stream.width, stream.height = 32, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for frame in frames:
                made.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            made.mux(stream.encode())
    first, *rest = map(Image.fromarray, frames)
    first.save(fresh / "clips/clip.gif", save_all=True, append_images=rest)


def _write_weights(fresh: Path) -> None:
    """As the tests' own fixture saves them."""
    from diffusers import StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from torch import nn

    from tave.backbone import tiny_backbone

    tiny = tiny_backbone()
    assert tiny.noising is not None
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=len(tiny.noising.mean))
    normalizer.mean, normalizer.std = (nn.Parameter(v[None]) for v in (tiny.noising.mean, tiny.noising.std))
    parts = {key: getattr(tiny, key) for key in ("feature_extractor", "image_encoder", "tokenizer", "text_encoder")}
    parts |= {key: getattr(tiny, key) for key in ("unet", "scheduler", "vae")}
    whole = StableUnCLIPImg2ImgPipeline(
        image_normalizer=normalizer,
        image_noising_scheduler=tiny.noising.scheduler,  # type: ignore[arg-type]
        **parts,
    )
    whole.save_pretrained(fresh / "weights")


def fuzz(where: Path, settings: Settings) -> int:
    """Try all; exit code 0 if every input survived."""
    return conduct("fuzz", "Bad inputs", trials_of(make(where), settings), settings)


if __name__ == "__main__":
    sys.exit(main(fuzz))
