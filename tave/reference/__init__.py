"""Target image, matte, source frame and region -> the pictures that the image encoder sees (METHOD 1).

The encoder gives one vector for a whole picture, so a target image's own background speaks as loudly as its
object. This stage decides what it sees instead. Tensors in and out: pictures in [-1, 1], mattes and masks in
[0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tave.options import OptionError, choice, within
from tave.reference.cutout import MATTES, MatteError, MatteWarning, cut_out, matte
from tave.reference.place import Placed, Pose, neutral, put
from tave.reference.segmenter import Cut, Segmenter, load_segmenter
from tave.reference.site import Site, Stance, find_site

MODES = ("as_is", "neutral", "in_context", "joint", "none")
PLACED = ("in_context", "joint")  # those that need to know the place
FRAMES = ("middle", "first", "per_frame")
HEADINGS = ("as_is", "mirrored", "auto")

__all__ = [
    "PLACED",
    "Cut",
    "MatteError",
    "MatteWarning",
    "Placed",
    "Pose",
    "Reference",
    "ReferenceOptions",
    "Segmenter",
    "Site",
    "Stance",
    "cut_out",
    "find_site",
    "frame_indices",
    "load_segmenter",
    "matte",
    "neutral",
    "put",
    "reference_images",
    "source_frames",
]


@dataclass(frozen=True)
class ReferenceOptions:
    """What the encoder sees of the target, and which source frames it sees.

    ``mode``: as_is (the target image) | neutral (the object on grey) | in_context (the object in a source
    frame, once a first mask tells the place) | joint (that and a picture from ``near``, as_is | neutral: the mean of
    their embeddings knows the object from near and its place) | none (no picture: words alone). ``frame``: middle |
    first | per_frame. ``height_scale``: the object's height as a multiple of the source object's; None: as tall as
    the network paints it there (:mod:`tave.pose`). ``heading``: the object as it is shown | mirrored | auto, likewise.
    ``matte``: auto | alpha | given | colour | segmented | none. ``segmenter``: the network that finds the object where
    ``matte`` is segmented, a folder or an `owner/name` in the hub's local cache; a given matte is not looked at then.
    ``feather``: blending of the pasted object's edge, standard deviation as a share of its height. ``margin``: grey around the
    object, share of its size. ``several``: target images of one object are told by the mean of their embeddings (average), or
    in turn, frame by frame (alternate). ``confine``: while sampling, the target's picture speaks everywhere (off), or inside
    the mask alone, and outside it the source frame (source) or none (nothing); it takes twice the time.
    """

    mode: str = "in_context"
    near: str = "as_is"
    frame: str = "middle"
    height_scale: float | None = 1.0
    heading: str = "as_is"
    matte: str = "auto"
    segmenter: str | None = None
    feather: float = 0.02
    margin: float = 0.1
    several: str = "average"
    confine: str = "off"

    def __post_init__(self) -> None:
        choice("reference.mode", self.mode, MODES)
        choice("reference.near", self.near, ("as_is", "neutral"))
        choice("reference.frame", self.frame, FRAMES)
        choice("reference.matte", self.matte, MATTES)
        if self.matte == "segmented" and not self.segmenter:
            raise OptionError(
                "reference.matte=segmented needs the weights of a segmentation network: give reference.segmenter=FOLDER "
                "(docs/reference.md says which), or set reference.matte=auto"
            )
        choice("reference.several", self.several, ("average", "alternate"))
        choice("reference.confine", self.confine, ("off", "source", "nothing"))
        choice("reference.heading", self.heading, HEADINGS)
        if self.height_scale is not None:
            within("reference.height_scale", self.height_scale, 0.05, 20)
        within("reference.feather", self.feather, 0, 0.5)
        within("reference.margin", self.margin, 0, 2)


@dataclass(frozen=True)
class Reference:
    """The pictures of one pass.

    ``source`` `1 3 H W` or `f 3 H W`: the source frames. ``target`` `1 3 h w` or `f 3 H W`: the target, as
    ``mode`` shows it (None for none). ``matte`` `1 H W` of the target image (None for as_is and none). ``note``:
    what went otherwise than asked, or "". ``near`` `1 3 h w`: the picture from near that goes with ``target`` in the second
    pass of joint.
    """

    source: Tensor
    target: Tensor | None
    mode: str
    matte: Tensor | None
    note: str = ""
    near: Tensor | None = None

    @property
    def views(self) -> list[Tensor]:
        """All that is shown of the target, pictures as ``target`` and ``near``."""
        return [view for view in (self.target, self.near) if view is not None]


def reference_images(
    frames: Tensor,
    rgb: Tensor,
    alpha: Tensor | None = None,
    options: ReferenceOptions | None = None,
    *,
    given: Tensor | None = None,
    site: Site | None = None,
    pose: Pose = Pose(),
) -> Reference:
    """The pictures that the encoder sees in one pass.

    ``in_context`` and ``joint`` take two: without ``site`` the first is neutral; the place that its mask tells goes into the
    second, together with ``given=first.matte``, which saves cutting out again. The other modes take one and ignore ``site``.

    Args:
        frames: the source clip `f 3 H W` in [-1, 1].
        rgb, alpha: the target image `3 h w` in [-1, 1] and its alpha `1 h w` in [0, 1] or None.
        given: the user's matte `1 h w` in [0, 1], or with ``matte=segmented`` the segmenter's; or None.
        site: where the source object stands; pose: how the target stands there.

    Raises:
        MatteError: no matte as asked for.
    """
    options = options or ReferenceOptions()
    source = source_frames(frames, options.frame)
    if options.mode == "none":
        return Reference(source, None, "none", None)
    if options.mode == "as_is":
        return Reference(source, rgb[None], "as_is", None)
    cut = matte(rgb, alpha, given, options.matte)
    whole = options.matte in ("auto", "colour") and bool((cut > 0.5).all())
    note = "the whole target image stands for the object: no matte was found in it" if whole else ""
    if options.mode in PLACED and site is not None:
        placed = put(site, rgb, cut, pose, options.feather, frame_indices(len(frames), options.frame))
        near = {"as_is": rgb, "neutral": neutral(rgb, cut, options.margin)}[options.near][None]
        return Reference(source, placed.pictures, options.mode, cut, note, near if options.mode == "joint" else None)
    return Reference(source, neutral(rgb, cut, options.margin)[None], "neutral", cut, note)


def source_frames(frames: Tensor, frame: str = "middle") -> Tensor:
    """The frames of the clip `f 3 H W` that show the source object: `1 3 H W`, or all of them (per_frame)."""
    return frames[frame_indices(len(frames), frame)]


def frame_indices(count: int, frame: str = "middle") -> list[int]:
    """Which of ``count`` frames ``middle`` (the later one of two) | ``first`` | ``per_frame`` means."""
    choice("reference.frame", frame, FRAMES)
    return {"middle": [count // 2], "first": [0], "per_frame": list(range(count))}[frame]
