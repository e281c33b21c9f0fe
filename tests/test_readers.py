"""What a player shows is what is read: every kind of file that people have, drawn with a known answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
import torch
from clips import COUNT, HEIGHT, RED, SHOWN, SKY, WIDTH, Setting, drawn, number_of, patches
from PIL import Image

from tave.config import ReadOptions
from tave.video import Clip, VideoError, read_clip
from tave.video.frames import to_pixels
from tave.video.h264 import may_interlace
from tave.video.probe import Stored, decord_agrees, open_video, video_stream

ALL = ReadOptions(frames=None, multiple=1)
EVERY = [*range(COUNT)]
VARYING = [10 * i for i in (0, 1, 2, 6, 7, 8, 9, 11, *range(12, 28))]


def tagged(matrix: int, **tags: int) -> Setting:
    return Setting(matrix=matrix, tags={"colorspace": matrix, "color_range": 1, **tags})


SETTINGS = {
    "h264.mp4": Setting(),
    "h264.mkv": Setting(),
    "h264.ts": Setting(),
    "hevc.mp4": Setting("libx265", options={"crf": "4", "x265-params": "log-level=none"}),
    "vp9.webm": Setting("libvpx-vp9", options={"crf": "4", "b": "0"}),
    "av1.mp4": Setting("libsvtav1", options={"crf": "4", "preset": "8"}),
    "prores.mov": Setting("prores_ks", "yuv422p10le", {}),
    "mjpeg.avi": Setting("mjpeg", "yuvj420p", {"qmin": "1", "qmax": "1"}, full=True),
    "huffyuv.avi": Setting("huffyuv", "rgb24", {}),
    "apng.apng": Setting("apng", "rgba", {}),
    "rgb.mp4": Setting("libx264rgb", "rgb24", {"qp": "0"}),
    "ten_bit.mp4": Setting(pixels="yuv420p10le"),
    "444.mp4": Setting(pixels="yuv444p"),
    "bt601.mp4": tagged(6),
    "bt709.mp4": tagged(1, color_primaries=1, color_trc=1),
    "bt2020.mp4": Setting(pixels="yuv420p10le", matrix=9, tags={"colorspace": 9, "color_range": 1}),
    "full.mp4": Setting(full=True, tags={"color_range": 2, "colorspace": 5}),
    "full_ten_bit.mp4": Setting(pixels="yuv420p10le", matrix=1, full=True, tags={"color_range": 2, "colorspace": 1}),
    "varying.mp4": Setting(ticks=VARYING),
    "varying.mkv": Setting(ticks=VARYING),
    "late.mp4": Setting(ticks=[240 + 10 * i for i in EVERY]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain mp4 with a key frame every 6 frames."""
    path = tmp_path_factory.mktemp("base") / "base.mp4"
    clips.write(path, Setting(options={"crf": "4", "bf": "2", "g": "6", "sc_threshold": "0"}))
    return path


def numbers(clip: Clip) -> list[int]:
    return [number_of(frame) for frame in to_pixels(clip.frames)]


def expect_shown(clip: Clip, expected: list[int] = EVERY, tolerance: float = 2) -> None:
    """The frames in their order, and flat colours within 2 levels in each channel."""
    assert numbers(clip) == expected
    for frame in to_pixels(clip.frames):
        for found, colour in zip(patches(frame), (RED, SKY), strict=True):
            assert np.abs(found - colour).max() <= tolerance, (found, colour)


def read_by_both(path: Path, monkeypatch: pytest.MonkeyPatch, options: ReadOptions = ALL) -> Clip:
    """The clip, for which both readers must agree to the bit: a machine without decord reads the same."""
    one = read_clip(path, options)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "decord", None)
        other = read_clip(path, options)
    assert torch.equal(one.frames, other.frames)
    assert one.origin == other.origin and one.fps == other.fps
    return one


@pytest.mark.parametrize("name", SETTINGS)
def test_frames_order_times_and_colours_are_the_players(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS[name]
    clips.write(tmp_path / name, setting)
    clip = read_by_both(tmp_path / name, monkeypatch)
    expect_shown(clip, tolerance=3 if name in ("av1.mp4", "mjpeg.avi") else 2)  # coarse codecs
    assert clip.origin is not None and clip.origin.size == (WIDTH, HEIGHT)
    ticks = setting.ticks or [10 * i for i in EVERY]
    times = [float(time - clip.origin.times[0]) for time in clip.origin.times]
    assert times == pytest.approx([(tick - ticks[0]) / 120 for tick in ticks], abs=1e-3)
    strided = read_by_both(tmp_path / name, monkeypatch, ReadOptions(frames=4, start=5, stride=4, multiple=1))
    assert numbers(strided) == [5, 9, 13, 17]
    assert torch.equal(strided.frames, clip.frames[5:18:4])


def test_the_fast_reader_gets_plain_files_alone(base: Path, tmp_path: Path) -> None:
    def agrees(path: Path) -> bool:
        with open_video(path) as container:
            stream, _ = video_stream(path, container)
            stored = Stored.of(next(container.decode(stream)), stream)
            assert not stored.interlaced  # whatever the first frame is, others may be stored as fields
            return decord_agrees(path, stream, stored)

    assert agrees(base)
    for name, pixels in (("baseline", "yuv420p"), ("high444", "yuv444p")):
        clips.write(tmp_path / f"{name}.mp4", Setting(pixels=pixels, options={"profile": name}))
        assert agrees(tmp_path / f"{name}.mp4")
    for fields in ("tff=1", "bff=1", "fake-interlaced=1"):
        clips.write(tmp_path / "fields.mp4", Setting(options={"crf": "4", "x264-params": fields}))
        assert not agrees(tmp_path / "fields.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(base.read_bytes()[:-100])
    for kind in ("rot90", "hflip"):
        turned = tmp_path / f"{kind}.mp4"
        turned.write_bytes(base.read_bytes())
        clips.set_matrix(turned, kind)
        assert not agrees(turned)
    clips.remux(tmp_path / "edit_list.mp4", base, shift=-3)
    clips.remux(tmp_path / "two.mp4", base, twice=True)
    assert not agrees(tmp_path / "edit_list.mp4") and not agrees(tmp_path / "two.mp4")


def test_a_damaged_header_gets_no_file_to_the_fast_reader(base: Path) -> None:
    with open_video(base) as container:
        header = container.streams.video[0].codec_context.extradata
    assert header is not None and not may_interlace(header)
    dice = np.random.default_rng(0)
    for length in range(len(header) - 1):
        may_interlace(header[:length])  # raises nothing, and ends
        may_interlace(header[:6] + dice.bytes(length))
    assert may_interlace(None) and may_interlace(b"") and may_interlace(header[:10])
    assert may_interlace(header[:5] + b"\xe0" + header[6:])  # no parameter set


@pytest.mark.parametrize("kind", SHOWN)
def test_turned_and_mirrored_clips_stand_as_players_show_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    clips.write(path, Setting("libx264rgb", "rgb24", {"qp": "0"}))
    clips.set_matrix(path, kind)
    clip = read_clip(path, ALL)
    for number, frame in enumerate(to_pixels(clip.frames)):
        assert np.array_equal(frame, SHOWN[kind](drawn(number)))


@pytest.mark.parametrize(("shape", "size"), [("2/1", (320, 96)), ("32/27", (189, 96)), ("1/2", (80, 96))])
def test_pixels_that_are_not_square_are_stretched_and_said(shape: str, size: tuple[int, int], tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(tags={"sample_aspect_ratio": Fraction(shape)}))
    clip = read_clip(tmp_path / "a.mp4", ALL)
    assert clip.origin is not None and clip.origin.size == size and clip.frames.shape[-2:] == size[::-1]
    expect_shown(clip)
    assert clip.origin.summary is not None and f"160x96 is read as {size[0]}x{size[1]}" in clip.origin.summary
    assert read_clip(tmp_path / "a.mp4", ReadOptions(frames=1, width=96)).frames.shape[-2:] == (
        round(96 * size[1] / size[0] / 8) * 8,
        96,
    )


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_becomes_sdr_with_white_at_203_nits(transfer: str, tmp_path: Path) -> None:
    clips.write_hdr(tmp_path / "a.mp4", transfer)
    clip = read_clip(tmp_path / "a.mp4", ALL)
    expect_shown(clip)
    white = to_pixels(clip.frames)[31 % COUNT, 4:12, 4:12]
    assert white.min() >= 252
    assert clip.origin is not None and "203 nits become white" in (clip.origin.summary or "")


@pytest.mark.parametrize(("backdrop", "level"), [("black", 0), ("grey", 128), ("white", 255)])
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("vp9.webm", Setting("libvpx-vp9", "yuva420p", {"crf": "4", "b": "0"})),
        ("prores.mov", Setting("prores_ks", "yuva444p10le", {"profile": "4444"})),
        ("png.mov", Setting("png", "rgba", {})),
    ],
)
def test_transparent_pixels_show_the_backdrop(
    name: str, setting: Setting, backdrop: str, level: int, tmp_path: Path
) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[76:] = 0
    pictures = [np.concatenate([drawn(i), alpha], axis=2) for i in range(6)]
    clips.write(tmp_path / name, setting, pictures)
    clip = read_clip(tmp_path / name, ReadOptions(frames=None, multiple=1, backdrop=backdrop))
    for number, frame in enumerate(to_pixels(clip.frames)):
        red, ground = patches(frame)
        assert number_of(frame) == number and np.abs(red - RED).max() <= 3
        assert np.abs(ground - level).max() <= 2


def test_interlaced_frames_are_joined_without_combs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woven = []
    for i in range(0, COUNT, 2):  # the second field shows the next moment
        frame = drawn(i)
        frame[41:72:2] = drawn(i + 1)[41:72:2]
        woven.append(frame)
    options = {"crf": "4", "x264-params": "tff=1", "flags": "+ildct+ilme"}
    clips.write(tmp_path / "a.mp4", Setting(options=options), woven)
    clip = read_by_both(tmp_path / "a.mp4", monkeypatch)
    expect_shown(clip, EVERY[::2], tolerance=3)
    assert clip.origin is not None and "interlaced" in (clip.origin.summary or "")
    edge = to_pixels(clip.frames)[3, 46:66, 10 + 4 * 6 : 10 + 4 * 6 + 4].astype(int)  # one field has red here, one sky
    assert np.abs(np.diff(edge, axis=0)).max() < 60  # a comb has 160


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("edit_list.mp4", lambda path, base: clips.remux(path, base, shift=-3), EVERY[3:]),
        ("negative.mkv", lambda path, base: clips.remux(path, base, shift=-3), EVERY),
        ("late.mp4", lambda path, base: clips.remux(path, base, shift=30), EVERY),
        ("two.mp4", lambda path, base: clips.remux(path, base, twice=True), EVERY),
    ],
)
def test_copied_and_cut_files_have_the_frames_that_players_show(
    name: str, make: Callable[[Path, Path], None], expected: list[int], base: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(tmp_path / name, base)
    clip = read_by_both(tmp_path / name, monkeypatch)
    expect_shown(clip, expected)
    assert clip.origin is not None
    assert ("#1 (160x96) left out" in (clip.origin.summary or "")) == (name == "two.mp4")


def test_a_recording_that_begins_between_key_frames_starts_at_the_next(base: Path, tmp_path: Path) -> None:
    clips.remux(tmp_path / "a.ts", base, start=3)
    assert numbers(read_clip(tmp_path / "a.ts", ALL)) == EVERY[6:]


def test_a_change_of_size_within_a_file_is_scaled_to_the_first(tmp_path: Path) -> None:
    small = [np.asarray(Image.fromarray(drawn(i)).resize((80, 48), Image.Resampling.BOX)) for i in EVERY]
    clips.write(tmp_path / "a.ts", Setting())
    clips.write(tmp_path / "b.ts", Setting(), small)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert numbers(read_clip(joined, ALL)) == EVERY * 2


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(), audio=True)
    clip = read_clip(tmp_path / "a.mp4", ReadOptions(frames=4, stride=3, width=64, height=64, audio="drop"))
    assert clip.origin is not None and clip.origin.summary == (
        f"{tmp_path}/a.mp4: 4 of 24 frames are read, one in 3 (1.00 of 2.00 s); 4 instead of 12 frames/s; "
        "of its 160x96 the middle 96x96 is edited, at 64x64; its sound is left out"
    )
    assert clip.origin.audio
    clips.write(tmp_path / "b.mp4", Setting())
    whole = read_clip(tmp_path / "b.mp4", ReadOptions(frames=None))
    assert whole.origin is not None and whole.origin.summary is None


def test_further_sound_tracks_and_subtitles_are_said_to_be_left_out(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(), audio=True)
    with av.open(str(tmp_path / "a.mp4")) as given, av.open(str(tmp_path / "b.mkv"), "w") as file:
        pictures, sound = given.streams.video[0], given.streams.audio[0]
        outs = [file.add_stream_from_template(each) for each in (pictures, sound, sound)]
        for packet in given.demux():
            for out in outs if packet.size else []:
                if out.type != packet.stream.type:
                    continue
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, out
                file.mux(copy)
    kept, dropped = (read_clip(tmp_path / "b.mkv", replace(ALL, audio=audio)).origin for audio in ("keep", "drop"))
    assert kept is not None and kept.notes == ("one of its 2 sound tracks is kept",)
    assert dropped is not None and dropped.notes == ("its sound is left out",)


def test_a_list_of_other_files_is_no_clip(base: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{base}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"list\.mp4"):
        read_clip(playlist)
    named = tmp_path / "a:b %d.mp4"
    named.write_bytes(base.read_bytes())
    assert len(read_clip(named, ALL).frames) == COUNT
