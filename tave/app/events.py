"""What the page's events do: files to uploads, fields to jobs, errors to lines."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from tave.app.public import public
from tave.app.service import Desk
from tave.config import OptionError

# The page's settings by the key of a job, in the order of the components.
SETTINGS = ("backbone", "memory", "seed", "video.frames", "tuning.steps", "inversion.steps")
AGAIN = ("mask.threshold", "mask.fixed", "mask.quantile", "correction.enabled", "sampler.guidance_scale")
# Typed, and empty for the default: Gradio's own field of numbers makes 0 of an empty one.
NUMBERS = ("seed", "video.frames", "tuning.steps", "inversion.steps", "sampler.guidance_scale")
UNSET = ("default", "as at first")  # choices that leave an option as it is: of a new run, of a tuned clip
FIXED = {"mask.fixed": "fixed", "mask.quantile": "quantile"}  # the kind of threshold that a level belongs to


def panel(key: str | None) -> str:
    """HTML that page.js turns into the panel of a job."""
    return f'<div data-tave-job="{key}"></div>' if key else "<p>The edit will be shown here.</p>"


def failure(error: Exception) -> str:
    """An error as HTML."""
    return f'<p class="tave-error">{html.escape(public(str(error)))}</p>'


def shown_example(name: str) -> str:
    """An example's clip, target and descriptions as HTML."""
    from tave.cli import compose_config

    video = compose_config("train", [f"video={name}"]).video
    target = next(iter(video.edits.values())).target_prompt
    at = f"/api/examples/{name}"
    return (
        f'<div class="tave-pair" data-example="{name}">'
        f'<video src="{at}/source.mp4" muted autoplay loop playsinline></video>'
        f'<img src="{at}/target.png" alt="the target"><div><p><b>{html.escape(video.source_prompt)}</b></p>'
        f"<p>becomes</p><p><b>{html.escape(target)}</b></p></div></div>"
    )


def chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were set, as keys of a job; a level without its kind of threshold is left out."""
    found = {key: number(value) if key in NUMBERS else value for key, value in values.items()}
    found = {key: value for key, value in found.items() if value not in (None, "", *UNSET)}
    kind = found.get("mask.threshold")
    return {key: value for key, value in found.items() if FIXED.get(key) in (None, kind)}


def number(text: str | None) -> int | float | str:
    """A number as it was typed, "" where the field was never shown; what is none stays, and is refused later."""
    text = text or ""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text.strip()


def outline_of(drawn: Mapping[str, Any] | None) -> np.ndarray | None:
    """What was drawn in an ImageEditor's layers, `H W` bool; None if nothing was."""
    layers = [np.asarray(layer) for layer in (drawn or {}).get("layers", []) if layer is not None]
    planes = [layer[..., 3] > 0 for layer in layers if layer.ndim == 3 and layer.shape[-1] == 4]
    region = np.logical_or.reduce(planes) if planes else None
    return region if region is not None and region.any() else None


class Page:
    """What the page's events do; each gets the user's space by the request."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def take_clip(self, path: str | None, request: gr.Request) -> tuple[str | None, str, Any]:
        """A clip was dropped in: its upload, a line about it, its first frame for the outline."""
        if path is None:
            return None, "", None
        try:
            upload = self.desk.spaces.take(space_of(request), Path(path).name, Path(path))
            if upload.kind != "clip":
                raise OptionError(f"{upload.name} is a picture: give a clip here")
            stored, _ = self.desk.spaces.upload_path(space_of(request), upload.id, "video.path")
            frame = self.desk.checker.first_frame(stored)
        except ValueError as error:
            return None, failure(error), None
        pixels = np.asarray(Image.open(frame).convert("RGBA"))
        counted = f"{upload.frames} frames, " if upload.frames else ""
        editor = {"background": pixels, "layers": [], "composite": pixels}
        return upload.id, f"<p>{counted}{upload.width}x{upload.height} px</p>", editor

    def take_picture(self, path: str | None, request: gr.Request) -> tuple[str | None, str]:
        """A target image was dropped in."""
        return self._take(path, "picture", request)

    def take_mask(self, path: str | None, request: gr.Request) -> tuple[str | None, str]:
        """A mask was given: a clip."""
        return self._take(path, "clip", request)

    def _take(self, path: str | None, kind: str, request: gr.Request) -> tuple[str | None, str]:
        if path is None:
            return None, ""
        try:
            upload = self.desk.spaces.take(space_of(request), Path(path).name, Path(path))
            if upload.kind != kind:
                raise OptionError(f"{upload.name} is a {upload.kind}: give a {kind} here")
            return upload.id, f"<p>{upload.width}x{upload.height} px</p>"
        except ValueError as error:
            return None, failure(error)

    def edit_example(self, request: gr.Request, name: str | None, *settings: Any) -> tuple[str | None, str, str]:
        """Queue the chosen example."""
        if name is None:
            return None, panel(None), failure(OptionError("choose one of the examples first"))
        return self._queued({"example": name} | _settings(settings), request)

    def edit_own(
        self,
        request: gr.Request,
        clip: str | None,
        prompt: str,
        picture: str | None,
        target: str,
        drawn: Any,
        stays: bool,
        mask: str | None,
        *settings: Any,
    ) -> tuple[str | None, str, str]:
        """Queue an edit of the user's own clip."""
        given = {"video.path": clip, "video.source_prompt": (prompt or "").strip(), "video.target_image": picture}
        job: dict[str, Any] = {key: value for key, value in given.items() if value}
        job |= {"video.target_prompt": target.strip()} if (target or "").strip() else {}
        job |= {"video.mask": mask} if mask else {}
        region = outline_of(drawn) if stays else None
        try:
            if stays and region is None:
                raise OptionError("nothing is outlined: draw the object on the first frame, or take the tick away")
            if region is not None:
                job |= {"video.mask": self._outlined(region, request), "mask_stays": True}
        except ValueError as error:
            return None, panel(None), failure(error)
        return self._queued(job | _settings(settings), request)

    def _outlined(self, region: np.ndarray, request: gr.Request) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "outline.png")
            Image.fromarray((region * 255).astype(np.uint8)).save(path)
            return self.desk.spaces.take(space_of(request), path.name, path).id

    def edit_again(
        self, request: gr.Request, key: str | None, picture: str | None, target: str, *settings: Any
    ) -> tuple[str | None, str, str]:
        """Another threshold, guidance, correction or target on the clip that the shown job has tuned."""
        if key is None:
            return None, panel(None), failure(OptionError("make an edit first"))
        job: dict[str, Any] = {"tuned": key} | chosen(dict(zip(AGAIN, settings, strict=True)))
        job |= {"video.target_image": picture} if picture else {}
        job |= {"video.target_prompt": target.strip()} if (target or "").strip() else {}
        made, shown, wrong = self._queued(job, request)
        return (made or key), (shown if made else panel(key)), wrong

    def _queued(self, job: dict[str, Any], request: gr.Request) -> tuple[str | None, str, str]:
        try:
            key = self.desk.submit(space_of(request), job).id
        except ValueError as error:
            return None, panel(None), failure(error)
        return key, panel(key), ""

    def latest(self, request: gr.Request) -> tuple[str | None, str]:
        """The user's last job, for a page that is opened again."""
        jobs = self.desk.queue.of(space_of(request))
        key = jobs[0].id if jobs else None
        return key, panel(key)


def space_of(request: gr.Request) -> str:
    """The user's space, which the guard has put into the request."""
    assert request.request is not None
    return request.request.state.space


def _settings(values: tuple[Any, ...]) -> dict[str, Any]:
    return chosen(dict(zip((*SETTINGS, *AGAIN), values, strict=True)))
