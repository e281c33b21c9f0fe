"""The reader against FFmpeg's own program and filters, where the machine has it: the same pixels.

With ffmpeg 5.1 all are equal to the bit, except the first joined fields by 2 levels and HDR by one. A level is allowed
elsewhere, for other versions.
"""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import clips
import numpy as np
import pytest
from clips import COUNT, SHOWN, Setting, drawn
from test_readers import ALL, SETTINGS

from tave.video import read_clip
from tave.video.frames import to_pixels

FFMPEG = shutil.which("ffmpeg")
HDR = "format=yuv444p16le,"  # by swscale, as tave does; zscale's chroma differs by up to 68 levels at edges
HDR += "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=clip,zscale=t=iec61966-2-1,format=gbrp"

pytestmark = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg here")


def differences(path: Path, filters: str = "null") -> np.ndarray:
    """Levels between the clip as it is read and as ``ffmpeg -vf filters`` shows it, `f H W 3`."""
    ours = to_pixels(read_clip(path, ALL).frames)
    command = [str(FFMPEG), "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-vf", filters]
    made = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    theirs = np.frombuffer(made.stdout, np.uint8)
    assert theirs.size == ours.size
    return np.abs(theirs.reshape(ours.shape).astype(np.int16) - ours)


def has(name: str) -> bool:
    found = subprocess.run([str(FFMPEG), "-hide_banner", "-filters"], capture_output=True, check=True, text=True)
    return f" {name} " in found.stdout


def test_fields_are_joined_as_bwdif_does(tmp_path: Path) -> None:
    woven = []
    for i in range(0, COUNT, 2):
        frame = drawn(i)
        frame[41:72:2] = drawn(i + 1)[41:72:2]
        woven.append(frame)
    options = {"crf": "4", "x264-params": "tff=1", "flags": "+ildct+ilme"}
    clips.write(tmp_path / "a.mp4", Setting(options=options), woven)
    apart = differences(tmp_path / "a.mp4", "bwdif=mode=send_frame:deint=interlaced")
    assert apart.max() <= 2 and differences(tmp_path / "a.mp4").max() > 60


@pytest.mark.parametrize("kind", SHOWN)
def test_clips_are_turned_as_ffmpeg_does(kind: str, tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting())
    clips.set_matrix(tmp_path / "a.mp4", kind)
    assert differences(tmp_path / "a.mp4").max() <= 1


@pytest.mark.parametrize("shape", ["2/1", "32/27", "1/2"])
def test_pixels_are_stretched_as_scale_does(shape: str, tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(tags={"sample_aspect_ratio": Fraction(shape)}))
    assert differences(tmp_path / "a.mp4", "scale=iw*sar:ih").max() <= 1


@pytest.mark.parametrize("name", ["ten_bit.mp4", "444.mp4", "bt601.mp4", "bt709.mp4", "bt2020.mp4", "full.mp4"])
def test_colours_are_converted_as_swscale_does(name: str, tmp_path: Path) -> None:
    clips.write(tmp_path / name, SETTINGS[name])
    assert differences(tmp_path / name).max() <= 1


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_is_converted_as_zscale_does(transfer: str, tmp_path: Path) -> None:
    if not (has("zscale") and has("tonemap")):
        pytest.skip("this ffmpeg has no zscale")
    clips.write_hdr(tmp_path / "a.mp4", transfer)
    assert differences(tmp_path / "a.mp4", HDR).max() <= 1


def test_subtitles_are_said_to_be_left_out(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting())
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nA bus\n")
    given = ["-i", str(tmp_path / "a.mp4"), "-i", str(tmp_path / "a.srt"), "-c:v", "copy", str(tmp_path / "b.mkv")]
    subprocess.run([str(FFMPEG), "-v", "error", *given], check=True)
    origin = read_clip(tmp_path / "b.mkv", ALL).origin
    assert origin is not None and origin.notes == ("its subtitles are left out",)
