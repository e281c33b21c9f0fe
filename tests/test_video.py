"""Files to frames and back: exact where it is promised, and errors that name file and remedy."""

from __future__ import annotations

import math
import struct
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tave.config import ReadOptions
from tave.files import FileError, content_digest, file_digest
from tave.video import (
    Origin,
    VideoError,
    contact_sheet,
    fit_frames,
    mask_frames,
    read_clip,
    read_image,
    read_matte,
    side_by_side,
    write_image,
    write_mask_video,
    write_video,
)

ANY = ReadOptions(frames=None, multiple=1)  # every frame, at the file's own size


def drawn(count: int = 8, width: int = 64, height: int = 48) -> Tensor:
    """A saturated clip with thin lines, the worst case for a codec: `f 3 H W` on the 8-bit grid."""
    frames = []
    for i in range(count):
        big = Image.new("RGB", (width * 4, height * 4), (120, 170, 230))
        pen = ImageDraw.Draw(big)
        pen.rectangle((0, height * 2.5, width * 4, height * 4), fill=(90, 90, 90))
        left = width * 0.4 + i * 8
        pen.rectangle((left, height * 1.8, left + width * 1.6, height * 3), fill=(230, 10, 20))
        for k in range(8):
            y = height * (1.85 + k * 0.14)
            pen.line((left, y, left + width * 1.6, y), fill=(20, 30, 255), width=4)
        pen.line((0, 0, width * 4, height), fill=(255, 0, 255), width=4)
        frames.append(np.asarray(big.resize((width, height), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def numbered(count: int, width: int = 64, height: int = 64) -> Tensor:
    """Frame i is flat with brightness 16 + 8 i, which encodes its number."""
    values = (16 + 8 * torch.arange(count)).view(-1, 1, 1, 1) / 127.5 - 1
    return values.expand(count, 3, height, width)


def numbers(frames: Tensor) -> list[int]:
    return [round((float(frame.mean() + 1) * 127.5 - 16) / 8) for frame in frames]


def psnr(a: Tensor, b: Tensor) -> float:
    """The worst frame's, for values in [-1, 1]."""
    worst = float((a - b).square().flatten(1).mean(1).max())
    return 10 * math.log10(4 / worst) if worst else math.inf


@pytest.fixture(params=["decord", "pyav"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both readers in turn; hiding decord is what a machine without its wheel sees."""
    if request.param == "pyav":
        monkeypatch.setitem(sys.modules, "decord", None)
    else:
        pytest.importorskip("decord")
    return request.param


def encode(
    path: Path, frames: Tensor, codec: str, pixel_format: str, ticks: list[int] | None = None, **options: str
) -> None:
    """A file that `write_video` wouldn't write; ``ticks`` are times of 1/100 s."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10 if ticks is None else 100)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[-2:]
        stream.pix_fmt, stream.options = pixel_format, {**options}
        file.start_encoding()  # writes the header even if no frame follows
        for i, frame in enumerate(frames):
            pixels = ((frame + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
            picture = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pixel_format)
            picture.pts = i if ticks is None else ticks[i]
            picture.time_base = Fraction(1, 10 if ticks is None else 100)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))


def silence(path: Path) -> None:
    """A sound file."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44_100)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def turn(path: Path, degrees: int) -> None:
    """Set the rotation tag as phones do: the matrix in the track's header, pixels as they were."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(plain, data.index(b"tkhd"))
    one = 1 << 16
    turned = struct.pack(">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + turned + data[at + 36 :])


# --- writing and reading back ----------------------------------------------------------------------------


def test_a_lossless_clip_comes_back_bit_for_bit(tmp_path: Path, reader: str) -> None:
    frames = drawn()
    write_video(tmp_path / "a.mp4", frames, 12.5, lossless=True)
    clip = read_clip(tmp_path / "a.mp4", ANY)
    assert torch.equal(clip.frames, frames)
    assert clip.frames.dtype == torch.float32
    assert clip.fps == pytest.approx(12.5)
    write_video(tmp_path / "b.mp4", frames, 30_000 / 1001)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.video[0].average_rate == Fraction(30_000, 1001)


def test_full_colour_resolution_keeps_the_background_and_half_does_not(tmp_path: Path, reader: str) -> None:
    frames = drawn()
    write_video(tmp_path / "full.mp4", frames, 8)
    write_video(tmp_path / "half.mp4", frames, 8, chroma="420", crf=0)
    assert psnr(read_clip(tmp_path / "full.mp4").frames, frames) > 44
    assert psnr(read_clip(tmp_path / "half.mp4").frames, frames) < 30


def test_the_two_readers_agree_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    write_video(tmp_path / "a.mp4", drawn(24), 8)  # long enough for frames that are stored out of order
    options = ReadOptions(frames=5, start=3, stride=4)
    one = read_clip(tmp_path / "a.mp4", options)
    monkeypatch.setitem(sys.modules, "decord", None)
    other = read_clip(tmp_path / "a.mp4", options)
    assert torch.equal(one.frames, other.frames)
    assert one.fps == other.fps


@pytest.mark.parametrize("lossless", [False, True])
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, lossless: bool) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, drawn(), 29.97, lossless=lossless)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("chroma", ["444", "420"])
def test_odd_sides_are_written_at_their_size(tmp_path: Path, chroma: str) -> None:
    write_video(tmp_path / "a.mp4", drawn(3, 63, 47), 8, chroma=chroma)
    assert read_clip(tmp_path / "a.mp4", ANY).frames.shape == (3, 3, 47, 63)


def test_files_are_marked_as_generated(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", drawn(2), 8)
    write_image(tmp_path / "a.png", drawn(1)[0])
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert "Generated with tave" in file.metadata["comment"]
    with Image.open(tmp_path / "a.png") as image:
        assert "Generated with tave" in image.info["Comment"]


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    write_video(target, drawn(2), 8)
    before = target.read_bytes()
    broken = drawn(4)
    broken[3, 0, 0, 0] = math.nan
    with pytest.raises(VideoError, match=r"a\.mp4.*NaN"):
        write_video(target, broken, 8)
    with pytest.raises(FileError, match=r"a\.mp4: can't be written"):
        write_video(target, torch.zeros(1, 3, 8, 20_000), 8)  # wider than the encoder takes
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "frames", "fps", "message"),
    [
        ("a.avi", drawn(1), 8, r"a\.avi.*must end in \.mp4"),
        ("a.mp4", drawn(1)[0], 8, r"a\.mp4.*f 3 H W"),
        ("a.mp4", drawn(1)[:0], 8, r"a\.mp4.*at least one frame"),
        ("a.mp4", drawn(1), 0, r"a\.mp4.*positive"),
        ("a.mp4", drawn(1), math.nan, r"a\.mp4.*positive"),
    ],
)
def test_writing_refuses_wrong_input(tmp_path: Path, name: str, frames: Tensor, fps: float, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


def test_a_binary_mask_survives_its_video(tmp_path: Path) -> None:
    masks = torch.zeros(6, 1, 48, 64)
    for i in range(6):
        masks[i, :, 10 + i : 30, 5 + 3 * i : 30 + 3 * i] = 1
    write_mask_video(tmp_path / "mask.mp4", masks, 8)
    back = read_clip(tmp_path / "mask.mp4", ANY).frames
    assert torch.equal((back[:, :1] > 0).float(), masks)


# --- which frames -----------------------------------------------------------------------------------------------


def test_start_and_stride_choose_frames_and_the_rate_follows(tmp_path: Path, reader: str) -> None:
    write_video(tmp_path / "a.mp4", numbered(20), 24)
    clip = read_clip(tmp_path / "a.mp4", ReadOptions(frames=4, start=2, stride=5))
    assert numbers(clip.frames) == [2, 7, 12, 17]
    assert clip.fps == pytest.approx(24 / 5)
    assert numbers(read_clip(tmp_path / "a.mp4", ReadOptions(frames=None, stride=6)).frames) == [0, 6, 12, 18]


def test_frames_of_a_varying_rate_are_counted_as_shown(tmp_path: Path, reader: str) -> None:
    encode(
        tmp_path / "vfr.mp4", numbered(8), "libx264", "yuv420p", ticks=[0, 3, 20, 25, 60, 61, 90, 130], crf="4", bf="0"
    )
    clip = read_clip(tmp_path / "vfr.mp4", ANY)
    assert numbers(clip.frames) == list(range(8))
    assert 4 < clip.fps < 8  # eight frames in 1.3 s and the last one's own time


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ReadOptions(frames=20), r"a\.mp4: has 10 frames, but video\.frames=20 .* set video\.frames to 10 or less"),
        (
            ReadOptions(frames=4, start=1, stride=4),
            r"a\.mp4: has 10 frames, .* needs 14; set video\.frames to 3 or less",
        ),
        (
            ReadOptions(frames=1, start=10),
            r"a\.mp4: has 10 frames, so video\.start=10 is past its end; set it below 10",
        ),
        (ReadOptions(frames=None, start=30), r"a\.mp4: .*set it below 10"),
    ],
)
def test_too_few_frames_says_how_many_there_are(
    tmp_path: Path, reader: str, options: ReadOptions, message: str
) -> None:
    write_video(tmp_path / "a.mp4", numbered(10), 8)
    with pytest.raises(VideoError, match=message):
        read_clip(tmp_path / "a.mp4", options)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_clip_stands_upright(tmp_path: Path, reader: str, degrees: int) -> None:
    frames = drawn(2)
    write_video(tmp_path / "a.mp4", frames, 8, lossless=True)
    turn(tmp_path / "a.mp4", degrees)
    clip = read_clip(tmp_path / "a.mp4", ReadOptions(frames=2))
    assert torch.equal(clip.frames, torch.rot90(frames, -degrees // 90, (2, 3)))


@pytest.mark.parametrize("width", [8, 12, 16, 24, 48, 72])
def test_the_widths_that_decord_takes_for_channels(tmp_path: Path, width: int) -> None:
    frames = drawn(3, width, 40)
    write_video(tmp_path / "a.mp4", frames, 8, lossless=True)
    assert torch.equal(read_clip(tmp_path / "a.mp4", ANY).frames, frames)


def test_av1_and_gif_are_read(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", numbered(4), "libsvtav1", "yuv420p", crf="20", preset="12")
    assert numbers(read_clip(tmp_path / "a.mp4", ANY).frames) == [0, 1, 2, 3]
    pictures = [Image.new("RGB", (64, 64), (16 + 8 * i,) * 3) for i in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=200)
    clip = read_clip(tmp_path / "a.gif", ANY)
    assert numbers(clip.frames) == [0, 1, 2]
    assert clip.fps == pytest.approx(5)


def test_a_folder_of_numbered_pictures_is_a_clip(tmp_path: Path) -> None:
    for i, frame in enumerate(numbered(12)):
        write_image(tmp_path / "shot" / f"frame_{i}.png", frame)  # 10 sorts before 2 by letters
    (tmp_path / "shot" / "notes.txt").write_text("notes")
    clip = read_clip(tmp_path / "shot", ReadOptions(frames=None, stride=4))
    assert numbers(clip.frames) == [0, 4, 8]
    assert clip.fps == 2


# --- at what size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (ReadOptions(), (48, 96)),  # 101x53 trimmed to the multiple
        (ReadOptions(width=64, height=64), (64, 64)),
        (ReadOptions(width=64), (32, 64)),  # aspect kept: 33.6 -> 32
        (ReadOptions(height=160), (160, 304)),
        (ReadOptions(width=32, height=96, fit="stretch"), (96, 32)),
        (ReadOptions(width=32, height=96, fit="pad"), (96, 32)),
        (ReadOptions(multiple=1), (53, 101)),
        (ReadOptions(multiple=64, width=64), (64, 64)),
    ],
)
def test_sizes(tmp_path: Path, options: ReadOptions, size: tuple[int, int]) -> None:
    write_video(tmp_path / "a.mp4", drawn(8, 101, 53), 8)
    assert read_clip(tmp_path / "a.mp4", options).frames.shape == (8, 3, *size)


def test_trimming_does_not_resample_and_resized_frames_lie_on_the_8_bit_grid(tmp_path: Path) -> None:
    drawing = drawn(2, 101, 53)
    write_video(tmp_path / "a.mp4", drawing, 8, lossless=True)
    assert torch.equal(read_clip(tmp_path / "a.mp4", ReadOptions(frames=2)).frames, drawing[..., 2:50, 2:98])
    frames = read_clip(tmp_path / "a.mp4", ReadOptions(frames=2, width=40, height=40)).frames
    write_video(tmp_path / "b.mp4", frames, 8, lossless=True)
    assert torch.equal(read_clip(tmp_path / "b.mp4", ReadOptions(frames=2)).frames, frames)


def test_crop_keeps_the_centre_and_the_aspect() -> None:
    frames = -torch.ones(1, 3, 60, 200)
    frames[..., 20:40, 90:110] = 1  # a square in the middle
    out = fit_frames(frames, 60, 60)
    assert torch.equal(out, frames[..., 70:130])
    half = fit_frames(frames, 30, 30)
    rows, columns = (half[0, 0] > 0).any(1), (half[0, 0] > 0).any(0)
    assert int(rows.sum()) == int(columns.sum()) == 10


def test_pad_shows_the_whole_picture_between_black_bars() -> None:
    out = fit_frames(torch.ones(1, 3, 40, 80), 40, 40, "pad")
    assert torch.equal(out[0, 0, :, 0] > 0, torch.tensor([False] * 10 + [True] * 20 + [False] * 10))
    assert float(out.min()) == -1


def test_portrait_stretch_and_no_change() -> None:
    portrait = drawn(1, 48, 80)
    assert fit_frames(portrait, 64, 32, "stretch").shape == (1, 3, 32, 64)
    assert torch.equal(fit_frames(portrait, 48, 80), portrait)
    stripes = (torch.arange(256) % 2 * 2.0 - 1).expand(1, 3, 64, 256)  # finest stripes shrink to grey, not to moire
    assert float(fit_frames(stripes, 50, 64, "stretch")[..., 4:-4].abs().max()) < 0.05


# --- wrong input --------------------------------------------------------------------------------


def _damaged(path: Path, keep: float) -> None:
    write_video(path, drawn(24) + 0.2 * torch.randn(24, 3, 48, 64, generator=torch.Generator().manual_seed(0)), 8)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def test_the_intact_part_of_a_truncated_file_can_be_used(tmp_path: Path, reader: str) -> None:
    _damaged(tmp_path / "half.mp4", 0.6)
    assert len(read_clip(tmp_path / "half.mp4", ReadOptions(frames=4)).frames) == 4


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.mp4", lambda path: None, "no such file"),
        ("empty", lambda path: path.mkdir(), "folder without pictures.*give a video file"),
        ("text.mp4", lambda path: path.write_text("hello\n" * 50), "not a video that can be decoded.*export it again"),
        ("notes.txt", lambda path: path.write_text("hello world\n" * 50), "text file.*give a clip"),
        ("zero.mp4", lambda path: path.write_bytes(b""), "zero bytes.*copy or export"),
        ("cut.mp4", lambda path: _damaged(path, 0.002), "(decoded|has no pictures).*export it again"),
        ("half.mp4", lambda path: _damaged(path, 0.5), r"damaged after \d+ frames.*request only frames before"),
        ("sound.m4a", silence, "sound but no pictures.*video stream"),
        ("tiny.mp4", lambda path: write_video(path, drawn(8, 6, 6), 8), "6x6, smaller.*set width and height"),
    ],
)
def test_bad_input_names_the_file_and_the_remedy(tmp_path: Path, reader: str, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(VideoError, match=f"{name}.*{message}") as caught:
        read_clip(tmp_path / name, ReadOptions(frames=24) if name == "half.mp4" else ReadOptions())
    assert "\n" not in str(caught.value)


def test_a_file_with_a_header_and_no_frames_is_refused(tmp_path: Path, reader: str) -> None:
    encode(tmp_path / "empty.mp4", numbered(0), "libx264", "yuv420p")
    with pytest.raises(VideoError, match=r"empty\.mp4.*export"):
        read_clip(tmp_path / "empty.mp4")


def test_folders_that_are_not_a_clip(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "cover.png", drawn(1)[0])
    with pytest.raises(VideoError, match=r"cover\.png has no number"):
        read_clip(tmp_path / "a")
    for i, width in enumerate((64, 32)):
        write_image(tmp_path / "b" / f"{i}.png", drawn(1, width)[0])
    with pytest.raises(VideoError, match=r"differ in size \(32x48, 64x48\); set width and height"):
        read_clip(tmp_path / "b", ReadOptions(frames=2))
    assert read_clip(tmp_path / "b", ReadOptions(frames=2, width=32, height=32)).frames.shape == (2, 3, 32, 32)
    write_image(tmp_path / "b" / "1_copy.png", drawn(1)[0])
    with pytest.raises(VideoError, match=r"1\.png and 1_copy\.png have the same number"):
        read_clip(tmp_path / "b", ReadOptions(frames=2, width=32, height=32))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_video("~/a.mp4", drawn(1), 8)
    write_image("~/a.png", drawn(1)[0])
    assert len(read_clip("~/a.mp4", ANY).frames) == 1 and torch.equal(read_image("~/a.png").rgb, drawn(1)[0])
    assert file_digest("~/a.png") == content_digest("~/a.png") == file_digest(tmp_path / "a.png")


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").rgb.shape == (3, 40, 20)


def test_alpha_is_read_and_an_opaque_one_is_none(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.save(tmp_path / "opaque.png")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "cut.png")
    assert read_image(tmp_path / "opaque.png").alpha is None
    rgb, alpha = read_image(tmp_path / "cut.png")
    assert alpha is not None
    assert alpha.shape == (1, 8, 8)
    assert (float(alpha[0, 0, 0]), float(alpha[0, 1, 1])) == (0, 1)
    assert torch.equal(read_matte(tmp_path / "cut.png"), alpha)
    assert rgb[:, 1, 1].tolist() == [1, -1, -1]
    matte = Image.new("L", (8, 8), 0)
    matte.paste(255, (2, 2, 6, 6))
    matte.save(tmp_path / "matte.png")
    assert float(read_matte(tmp_path / "matte.png").sum()) == 16


def _png() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(255, size=(48, 64, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 153 * 257, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (153, 153, 153)).convert(mode)
    image.save(tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}")
    rgb = read_image(next(tmp_path.iterdir())).rgb
    assert rgb.shape == (3, 8, 8)
    if mode != "1":
        assert float((rgb - 0.2).abs().max()) < 0.02


@pytest.mark.parametrize(("numbers", "level"), [([0.0, 0.6, 1.0], 153), ([0.0, 153.0, 255.0], 153)])
def test_float_pictures_in_0_to_1_or_0_to_255_are_read(tmp_path: Path, numbers: list[float], level: int) -> None:
    Image.fromarray(np.array([numbers] * 2, np.float32)).save(tmp_path / "a.tif")
    rgb = read_image(tmp_path / "a.tif").rgb
    assert ((rgb[0, 0] + 1) * 127.5).round().tolist() == [0, level, 255]


@pytest.mark.parametrize("numbers", [[-1.0, 1.0], [0.0, 4000.0], [0.0, math.nan]])
def test_float_pictures_whose_white_is_unknown_are_refused(tmp_path: Path, numbers: list[float]) -> None:
    Image.fromarray(np.array([numbers], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match=r"a\.tif: its numbers reach from .* scale them"):
        read_image(tmp_path / "a.tif")


def test_a_palette_with_a_transparent_colour_is_cut_out(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    rgb, alpha = read_image(tmp_path / "a.png")
    assert alpha is not None and alpha.flatten().tolist() == [0, 1] and rgb[:, 0, 1].tolist() == [-1, -1, 1]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("none.png", lambda path: None, "no such file"),
        ("folder", lambda path: path.mkdir(), "is a folder"),
        ("text.png", lambda path: path.write_text("hello"), "not a picture.*save it again"),
        ("zero.png", lambda path: path.write_bytes(b""), "zero bytes"),
        ("clip.mp4", lambda path: write_video(path, drawn(1), 8), "not a picture"),
        ("cut.png", lambda path: path.write_bytes(_png()[:-200]), "not a picture"),
    ],
)
def test_files_that_are_not_pictures_are_refused(tmp_path: Path, name: str, make, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(VideoError, match=f"{name}.*{message}"):
        read_image(tmp_path / name)


# --- several clips in one ---------------------------------------------------------------------------------------


def test_clips_stand_side_by_side_and_above_each_other() -> None:
    frames, masks = drawn(3), torch.ones(3, 1, 48, 64)
    row = side_by_side([frames, mask_frames(masks)])
    column = side_by_side([frames, frames, frames], "vertical")
    assert row.shape == (3, 3, 48, 128)
    assert column.shape == (3, 3, 144, 64)
    assert torch.equal(row[..., :64], frames)
    assert bool((row[..., 64:] == 1).all())
    with pytest.raises(VideoError, match="agree in shape"):
        side_by_side([frames, frames[:2]])


def test_a_sheet_shows_frames_across_and_clips_down() -> None:
    long, short = numbered(9, 10, 6), numbered(2, 10, 6)
    sheet = contact_sheet([long, short], columns=3, gap=2)
    assert sheet.shape == (3, 14, 34)
    assert numbers(torch.stack([sheet[:, :6, left : left + 10] for left in (0, 12, 24)])) == [0, 4, 8]
    assert numbers(torch.stack([sheet[:, 8:, left : left + 10] for left in (0, 12)])) == [0, 1]
    assert bool((sheet[:, 8:, 24:] == 1).all())
    assert bool((sheet[:, 6:8] == 1).all())


@pytest.mark.parametrize("number", ["1e999999999", "1" * 5000, 0.5, "nan", "1/0"])
@pytest.mark.parametrize("key", ["times", "rate"])
def test_an_origin_with_odd_numbers_is_refused_at_once(key: str, number: Any) -> None:
    record = {"path": "a.mp4", "size": [64, 64], "times": ["0"], "rate": "8", "total": 1, "audio": False, "notes": []}
    with pytest.raises(VideoError, match=r"run\.json: its origin can't be read"):
        Origin.recorded(Path("run.json"), record | {key: [number] if key == "times" else number})
