"""Read, resize and write clips, masks and pictures.

Frames are float32 `f 3 H W` in [-1, 1]. Frames that were read lie on the 8-bit grid, so a lossless file of them gives
the same bits back. Errors are :class:`VideoError` and name the file and the remedy.
"""

from tave.config import ReadOptions
from tave.video.frames import Clip, Image4, VideoError, centre, fit_frames
from tave.video.image import read_image, read_matte
from tave.video.read import read_clip
from tave.video.sheet import contact_sheet, heat, mask_frames, shaded, side_by_side
from tave.video.write import GENERATED, write_image, write_mask_video, write_video

__all__ = [
    "GENERATED",
    "Clip",
    "Image4",
    "ReadOptions",
    "VideoError",
    "centre",
    "contact_sheet",
    "fit_frames",
    "heat",
    "mask_frames",
    "read_clip",
    "read_image",
    "read_matte",
    "shaded",
    "side_by_side",
    "write_image",
    "write_mask_video",
    "write_video",
]
