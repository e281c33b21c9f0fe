"""Files to frames and back: read a clip or a picture, bring it to size, write clips, masks and sheets.

Frames are float32 `f 3 H W` in [-1, 1] and lie on the 8-bit grid once read, so that writing them without loss
and reading them again gives the same bits. Every refusal is a :class:`VideoError` that names the file and the
remedy.
"""

from tave.video.frames import Clip, Image4, VideoError, centre, fit_frames
from tave.video.image import read_image, read_matte
from tave.video.read import ReadOptions, read_clip
from tave.video.sheet import contact_sheet, mask_frames, side_by_side
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
    "mask_frames",
    "read_clip",
    "read_image",
    "read_matte",
    "side_by_side",
    "write_image",
    "write_mask_video",
    "write_video",
]
