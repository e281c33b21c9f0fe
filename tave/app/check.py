"""What users give, read with tave's own readers before anything is queued; and the process in which that happens.

A fault of a decoder ends that process and not the service. Messages between the two are JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tave.app.job import EXAMPLES, Job, words_of
from tave.app.plan import Plan, planned
from tave.app.public import cut
from tave.config import PACKAGE, LimitOptions, OptionError, ReadOptions, TrainOptions, VideoOptions, within
from tave.files import FileError
from tave.keys import ROOTS, quoted

PIXELS = 64_000_000  # of a picture, and 4096 x 4096 of a clip's frame: more than any camera of these days
FRAME_PIXELS = 4096 * 4096
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
# How files of clips begin: offset, bytes. Others are not given to FFmpeg, which would also take playlists and scripts.
CLIP_HEADS = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"free"), (4, b"skip"))
CLIP_HEADS += ((0, b"\x1aE\xdf\xa3"), (0, b"RIFF"), (0, b"GIF8"), (0, b"\x00\x00\x01\xba"), (0, b"OggS"), (0, b"G@"))


@dataclass(frozen=True)
class Setting:
    """Where a job is prepared. ``folder``: the worker's working directory, all paths are relative to it.

    ``run``: the run folder of the tuned clip, for another edit of it; ``example``: the named clip that is tuned.
    ``maps``: its target was compared before. ``weights``: backbone -> further words of tave.train; ``rates``: the
    folder of :func:`tave.app.plan.learn`.
    """

    folder: str
    cache: str
    rates: str
    run: str | None = None
    example: str | None = None
    maps: bool = False
    weights: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Prepared:
    """A job that can run: its words, what it will do, and the paths of its files by key."""

    words: tuple[str, ...]
    plan: Plan
    files: Mapping[str, str]


def inspect(path: str, name: str) -> dict[str, Any]:
    """What an upload is: ``kind`` picture or clip, ``width``, ``height``, of a clip ``frames``.

    Raises ValueError, in one line, for what can't be used.
    """
    from PIL import Image

    from tave.video import read_clip, read_image

    try:
        with Image.open(path, formats=PICTURE_FORMATS) as opened:
            (width, height), still = opened.size, getattr(opened, "n_frames", 1) == 1
    except Image.DecompressionBombError as error:
        raise OptionError(f"{name}: more than {PIXELS // 10**6} megapixels; make it smaller") from error
    except (OSError, SyntaxError, ValueError):
        width, height, still = 0, 0, False
    if width * height > PIXELS:
        raise OptionError(f"{name}: {width}x{height} is more than {PIXELS // 10**6} megapixels; make it smaller")
    if still:
        read_image(path)
        return {"kind": "picture", "width": width, "height": height}
    with Path(path).open("rb") as source:
        head = source.read(16)
    if not any(head[at : at + len(known)] == known for at, known in CLIP_HEADS):
        raise OptionError(f"{name}: neither a picture (PNG, JPEG, WebP) nor a clip (MP4, MOV, MKV, WebM, AVI, GIF)")
    frames = _counted(path, name)
    height, width = read_clip(path, ReadOptions(frames=1, multiple=1)).frames.shape[-2:]  # as shown: it may be rotated
    return {"kind": "clip", "width": width, "height": height, "frames": frames}


def _counted(path: str, name: str) -> int:
    """How many frames a clip has by its header, 0 if that does not tell."""
    import av
    from av.error import FFmpegError

    from tave.video import VideoError

    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: has no pictures; give a file with a video stream")
            stream = container.streams.video[0]
            width, height, frames = stream.width, stream.height, stream.frames
    except FFmpegError as error:
        raise VideoError(
            f"{name}: not a video that can be decoded ({error.strerror}): truncated, damaged or of another kind; "
            "export it again, for instance as H.264 mp4"
        ) from error
    if width * height > FRAME_PIXELS:
        raise OptionError(f"{name}: frames of {width}x{height} are too large; scale it to 4096x4096 or less")
    return frames


def prepare(job: Job, files: Mapping[str, str], setting: Setting, limits: LimitOptions | None = None) -> Prepared:
    """The words of a job and its plan, every input read and checked. ``files``: key of a file -> its path.

    Works in ``setting.folder``. Raises ValueError, in one line and in the words of the command line.
    """
    from tave.cli import compose_options, typed
    from tave.edit import options_of
    from tave.inputs import clip_notes, first_clip, knowledge_notes, read_targets
    from tave.source import clip_of

    files = dict(files)
    own = ["logger=csv", f"cache={quoted(setting.cache)}"]
    given = (setting.weights or {}).get(job.backbone or "roadside", []) if setting.run is None else []

    def options_now() -> tuple[list[str], TrainOptions]:
        words = [*words_of(job, files, setting.example), *given, *own]
        if setting.run is None:
            return words, compose_options("train", words)
        return words, typed(options_of(Path(setting.run), words))

    words, options = options_now()
    if limits is not None and setting.run is None:
        _check_size(options.video, limits.side)
    if limits is not None and setting.run is None and options.video.frames is None:
        given = [*given, f"video.frames={_frames(options.video, limits.frames)}"]
        words, options = options_now()
    clip = first_clip(options)[1] if setting.run is None else clip_of(Path(setting.run))
    if "video.mask" in files and not job.mask_stays and _is_picture(files["video.mask"]):
        raise OptionError(
            f"video.mask={files['video.mask']} is one picture: give a mask of every frame, or mask_stays=true "
            "if the object stays there in all of them"
        )
    notes = clip_notes(clip) if setting.run is None else []
    read_targets(options.video.requests(), clip, options.video, options.reference, notes.append)
    notes += knowledge_notes(options.backbone, options.video.source_prompt, options.video.requests())
    done = () if setting.run is None else ("inversion", "reconstruction", *["masking"] * setting.maps)
    plan = planned(
        options, tuple(clip.frames.shape), Path(setting.rates), tuned=setting.run is not None, remembered=done
    )
    return Prepared(tuple(words), replace(plan, warnings=tuple(notes)), files)


def _check_size(video: VideoOptions, most: int) -> None:
    """Raise :class:`OptionError` for frames of the network with sides of over ``most`` px, however they come about, or
    with more pixels than ``most`` squared in a first look at the whole of them.
    """
    from tave.crop import overview
    from tave.video import frame_size, shown_size

    shown = shown_size(video.path)
    size, whole = frame_size(shown, video), overview(shown, video)
    for name, side in zip(("video.width", "video.height"), size, strict=True):
        within(name, side, 1, most)
    if whole is not None and math.prod(look := whole.size(size, video.multiple)) > most**2:
        raise OptionError(
            f"video.path: frames of {shown[0]}x{shown[1]} would be looked at in {look[0]}x{look[1]} px, which is more "
            f"than {most}x{most}: give a clip that is less narrow"
        )


def _frames(video: VideoOptions, most: int) -> int:
    """How many frames the chosen part of a clip has, at most ``most``."""
    from tave.video import open_clip

    with open_clip(Path(video.path), video) as (_, frames):
        return sum(1 for _ in islice(frames, most))


def _is_picture(path: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=PICTURE_FORMATS) as opened:
            return getattr(opened, "n_frames", 1) == 1
    except (OSError, SyntaxError, ValueError):
        return False


def first_frame(path: str, out: str) -> None:
    """Write the first frame of a clip as a picture."""
    from tave.video import read_clip, write_image

    write_image(out, read_clip(path, ReadOptions(frames=1, multiple=1)).frames[0])


def draw_examples(names: Sequence[str], folder: str) -> None:
    """Draw each example's clip and target as browsers show them: ``NAME/source.mp4``, ``NAME/target.png``."""
    from tave.roadside.cases import FPS, find_case, frames_of, target_image
    from tave.video import write_video
    from tave.video.frames import from_pixels

    for name in names:
        case, made = find_case(name), Path(folder) / name
        made.mkdir(parents=True, exist_ok=True)
        target_image(case).save(made / "target.png")
        write_video(made / "source.mp4", from_pixels(frames_of(case.source)), FPS, crf=12, chroma="420")


def offered(backbones: Sequence[str]) -> dict[str, Any]:
    """What can be chosen here: ``device``, ``memory`` presets with the doctor's choice first, ``backbones``.

    A job is prepared as well, so that the first user doesn't wait for imports.
    """
    import torch

    from tave import doctor
    from tave.config import PRESETS

    name = "full"
    if torch.cuda.is_available():
        name = doctor.fitting(torch.cuda.get_device_properties(0).total_memory) or "8gb"
    lines = [f"{finding.name}: {finding.text}" for finding in doctor.device()]
    prepare(Job(example=EXAMPLES[0]), {}, Setting(".", "cache", "."))
    memory = [name, *(each for each in PRESETS if each != name)]
    return {"device": lines, "memory": memory, "backbones": list(backbones)}


TASKS = {"inspect": inspect, "offered": offered, "first_frame": first_frame, "draw_examples": draw_examples}


# ---- the process -----------------------------------------------------------------------------------------------------


class Checker:
    """Runs the functions above in a process of its own, one after another; it is replaced when it dies or hangs."""

    def __init__(self, seconds: float = 120.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def inspect(self, path: Path, name: str) -> dict[str, Any]:
        """:func:`inspect`."""
        return self._call("inspect", path=str(path), name=name)

    def prepare(self, job: Job, files: Mapping[str, str], setting: Setting, limits: LimitOptions) -> Prepared:
        """:func:`prepare`."""
        found = self._call(
            "prepare", job=asdict(job), files=dict(files), setting=asdict(setting), limits=asdict(limits)
        )
        return Prepared(tuple(found["words"]), Plan.read(found["plan"]), found["files"])

    def offered(self, backbones: Sequence[str]) -> dict[str, Any]:
        """:func:`offered`."""
        return self._call("offered", backbones=list(backbones))

    def first_frame(self, clip: Path) -> Path:
        """The first frame of ``clip`` as a picture beside it."""
        made = clip.with_name("first.png")
        self._call("first_frame", path=str(clip), out=str(made))
        return made

    def draw_examples(self, names: Sequence[str], folder: Path) -> None:
        """:func:`draw_examples`."""
        self._call("draw_examples", names=list(names), folder=str(folder))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _call(self, task: str, **given: Any) -> Any:
        with self._lock:
            if self._process is None:
                self._process = module_process("tave.app.check", stderr=subprocess.DEVNULL)
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            limit = threading.Timer(self.seconds if task != "offered" else 10 * self.seconds, process.kill)
            limit.start()
            try:
                process.stdin.write(json.dumps({"task": task, **given}).encode() + b"\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError):  # a broken pipe, or half an answer
                self.close()
                raise OptionError(
                    "the input could not be read: its decoder crashed or took too long; export it again"
                ) from None
            finally:
                limit.cancel()
        if "error" in answer:
            raise OptionError(answer["error"])
        return answer["result"]


def module_process(module: str, stderr: int | IO[bytes], cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """``python -m MODULE`` with pipes for input and output, in a session of its own: its parent answers Ctrl-C."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        stderr=stderr,
        cwd=cwd,
    )


def main() -> None:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin.buffer:
        out.write(json.dumps(_answered(json.loads(line))).encode() + b"\n")
        out.flush()


def _answered(asked: dict[str, Any]) -> dict[str, Any]:
    from tave.cli import one_line

    task = asked.pop("task")
    try:
        if task == "prepare":
            setting = Setting(**asked["setting"])
            os.chdir(setting.folder)
            limits = LimitOptions(**asked["limits"])
            return {"result": asdict(prepare(Job(**asked["job"]), asked["files"], setting, limits))}
        return {"result": TASKS[task](**asked)}
    except (ValueError, FileError, OSError, MemoryError) as error:
        return {"error": cut(one_line(error, ROOTS["train"]) or type(error).__name__)}
    except Exception as error:
        return {"error": cut(f"{type(error).__name__}: {error}")}


if __name__ == "__main__":
    main()
