"""Read, resize and write clips, masks and pictures.

Frames are float32 `f 3 H W` in [-1, 1]. Frames that were read lie on the 8-bit grid, so a lossless file of them gives
the same bits back. Errors are :class:`VideoError` and name the file and the remedy.
"""

from tave.config import ReadOptions
from tave.video.cuts import find_cuts
from tave.video.encode import write_like
from tave.video.frames import Clip, Image4, Origin, VideoError, centre, fit_frames, ranges
from tave.video.image import read_image, read_matte
from tave.video.masks import MaskRequest, Masks, read_masks
from tave.video.paste import Footage, Overlay, open_footage, pasted
from tave.video.read import open_clip, read_clip, shown_size
from tave.video.sheet import contact_sheet, heat, mask_frames, shaded, side_by_side, spread
from tave.video.stills import kept_as_pictures, write_still
from tave.video.view import View, frame_size
from tave.video.write import GENERATED, write_image, write_mask_video, write_video

__all__ = [
    "GENERATED",
    "Clip",
    "Footage",
    "Image4",
    "MaskRequest",
    "Masks",
    "Origin",
    "Overlay",
    "ReadOptions",
    "VideoError",
    "View",
    "centre",
    "contact_sheet",
    "find_cuts",
    "fit_frames",
    "frame_size",
    "heat",
    "kept_as_pictures",
    "mask_frames",
    "open_clip",
    "open_footage",
    "pasted",
    "ranges",
    "read_clip",
    "read_image",
    "read_masks",
    "read_matte",
    "shaded",
    "shown_size",
    "side_by_side",
    "spread",
    "write_image",
    "write_like",
    "write_mask_video",
    "write_still",
    "write_video",
]
