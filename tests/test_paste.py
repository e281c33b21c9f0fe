"""The same clip, edited: size, shape, times, colours and sound are the file's, samples outside of the edit its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
import torch
from clips import COUNT, HEIGHT, SHOWN, WIDTH, Setting, drawn, number_of
from PIL import Image
from runs import call, options
from test_readers import SETTINGS, VARYING

import tave.edit
from tave.config import ReadOptions
from tave.files import read_json
from tave.train import train
from tave.video import (
    Clip,
    Footage,
    Overlay,
    VideoError,
    kept_as_pictures,
    open_footage,
    pasted,
    read_clip,
    write_like,
)
from tave.video.frames import fit_frames, to_pixels
from tave.video.paste import planes
from tave.video.view import View, whole_view

HALF = ReadOptions(frames=None, width=WIDTH // 2, height=HEIGHT // 2)
GREEN = (30, 150, 60)
EDITED, APART = (slice(52, 68), slice(84, 116)), (slice(44, 76), slice(76, 124))  # surely inside, surely outside


def overlay(count: int = COUNT, size: tuple[int, int] = (WIDTH // 2, HEIGHT // 2)) -> Overlay:
    """A green rectangle: at half the size of the drawn clip, its pixels 80 to 119 across and 48 to 71 down."""
    width, height = size
    alpha = torch.zeros(count, 1, height, width)
    alpha[:, :, height // 2 : height * 3 // 4, width // 2 : width * 3 // 4] = 1
    green = torch.tensor(GREEN).view(1, 3, 1, 1) / 127.5 - 1
    return Overlay(green.expand(count, 3, height, width), alpha)


def edited(path: Path, cut: ReadOptions = HALF, view: View | None = None, edit: Overlay | None = None) -> Path:
    """The file with the :func:`overlay` laid over it, beside it."""
    clip = read_clip(path, cut, view)
    assert clip.view is not None
    footage, made = Footage(path, cut, clip.view), path.with_name("edited.mp4")
    edit = edit or overlay(len(clip.frames), (clip.frames.shape[-1], clip.frames.shape[-2]))
    with open_footage(footage) as opened:
        write_like(made, opened, (base for base, _ in pasted(opened, edit, footage.view)), footage)
    return made


def shown(path: Path) -> Clip:
    return read_clip(path, ReadOptions(multiple=1))


def expect_edit(path: Path, made: Path, tolerance: float = 4) -> None:
    """Green inside, the file's own colours outside; the frames in their order, at their times and in their size."""
    one, other = shown(path), shown(made)
    assert one.origin is not None and other.origin is not None
    assert other.origin.size == one.origin.size
    steps = [[float(time - origin.times[0]) for time in origin.times] for origin in (one.origin, other.origin)]
    assert steps[1] == pytest.approx(steps[0], abs=1e-4)
    assert max(np.diff(steps)[0]) > 0.1 or other.fps == pytest.approx(one.fps, rel=1e-3)  # unless they vary
    for number, (before, after) in enumerate(zip(to_pixels(one.frames), to_pixels(other.frames), strict=True)):
        error = np.abs(after.astype(float) - before)
        error[APART] = 0
        assert error.mean() < 1, number
        assert np.abs(after[EDITED].mean((0, 1)) - GREEN).max() < tolerance, number


@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_of_file_comes_back_edited(name: str, tmp_path: Path) -> None:
    clips.write(tmp_path / name, SETTINGS[name])
    expect_edit(tmp_path / name, edited(tmp_path / name))


@pytest.mark.parametrize("name", ["h264.mp4", "full.mp4", "444.mp4", "full_ten_bit.mp4", "prores.mov", "bt709.mp4"])
def test_outside_of_the_edit_the_encoder_gets_the_files_own_samples(name: str, tmp_path: Path) -> None:
    clips.write(tmp_path / name, SETTINGS[name])
    clip = read_clip(tmp_path / name, HALF)
    assert clip.view is not None
    footage = Footage(tmp_path / name, HALF, clip.view)
    with open_footage(footage) as opened, av.open(str(tmp_path / name)) as file:
        stored = opened.stored
        for frame, (base, alpha) in zip(file.decode(video=0), pasted(opened, overlay(), footage.view), strict=True):
            assert alpha[EDITED].min() == 1 and alpha[0].max() == 0
            for ours, own in zip(planes(base.frame), planes(frame), strict=True):
                across, down = WIDTH // own.shape[1], HEIGHT // own.shape[0]
                cells = alpha.reshape(own.shape[0], down, own.shape[1], across).max((1, 3))
                assert np.array_equal(ours[cells == 0], own[cells == 0])
                assert not np.array_equal(ours, own)
    with av.open(str(edited(tmp_path / name))) as file:
        stream = file.streams.video[0]
        frame = next(file.decode(stream))
        assert frame.format.name.replace("yuvj", "yuv") == stored.pixel_format
        context = stream.codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, int(frame.color_range) == 2
        assert tags == (*stored.colour[:3], stored.colour.full)
        assert file.metadata["comment"].startswith("Generated with tave")


@pytest.mark.parametrize("kind", SHOWN)
def test_a_turned_or_mirrored_clip_stays_so(kind: str, tmp_path: Path) -> None:
    """The edit lies where it was made in the picture as players show it; stored pictures and tag are the file's."""
    path = tmp_path / "a.mp4"
    clips.write(path, Setting(), [np.ascontiguousarray(unturned(kind, drawn(i))) for i in range(COUNT)])
    clips.set_matrix(path, kind)
    made = edited(path)
    expect_edit(path, made)
    found = [number_of(frame) for frame in to_pixels(shown(made).frames)]
    assert found == [*range(COUNT)]
    matrices = []
    for file in (path, made):
        with av.open(str(file)) as container:
            frame = next(container.decode(video=0))
            matrices.append((frame.width, frame.height, bytes(frame.side_data["DISPLAYMATRIX"])))  # type: ignore[index]
    assert matrices[0] == matrices[1]


def unturned(kind: str, frame: np.ndarray) -> np.ndarray:
    """The stored picture that is shown as ``frame``."""
    back = {"rot90": "rot270", "rot270": "rot90"}.get(kind, kind)
    return SHOWN[back](frame)


def test_wide_pixels_and_hdr_come_back_as_they_were(tmp_path: Path) -> None:
    wide = [frame.repeat(1, axis=1)[:, ::2] for frame in map(drawn, range(COUNT))]  # shown twice as wide
    clips.write(tmp_path / "wide.mp4", Setting(tags={"sample_aspect_ratio": Fraction(2)}), wide)
    made = edited(tmp_path / "wide.mp4")
    expect_edit(tmp_path / "wide.mp4", made)
    with av.open(str(made)) as file:
        assert (file.streams.video[0].width, file.streams.video[0].sample_aspect_ratio) == (WIDTH // 2, 2)
    for transfer in clips.HDR:
        clips.write_hdr(tmp_path / f"{transfer}.mp4", transfer)
        made = edited(tmp_path / f"{transfer}.mp4")
        expect_edit(tmp_path / f"{transfer}.mp4", made, tolerance=8)  # a coarse step of its curve in the dark
        with av.open(str(made)) as file:
            context = file.streams.video[0].codec_context
            assert (context.color_trc, context.pix_fmt) == (clips.HDR[transfer], "yuv420p10le")


def test_a_folder_of_pictures_and_transparent_ones_become_a_clip(tmp_path: Path) -> None:
    for name, alpha in (("opaque", 255), ("clear", 0)):
        (tmp_path / name).mkdir()
        for index in range(4):
            picture = np.concatenate([drawn(index), np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=2)
            picture[:, -20:, 3] = alpha
            Image.fromarray(picture).save(tmp_path / name / f"{index}.png")
        made = shown(edited(tmp_path / name))
        assert made.fps == 8 and len(made.frames) == 4
        corner = to_pixels(made.frames)[:, 30:, -16:].mean((0, 1, 2))
        assert np.abs(corner - (np.array(clips.SKY) if alpha else 0)).max() < 3
        (tmp_path / "edited.mp4").unlink()


def test_a_box_is_edited_where_it_lies(tmp_path: Path) -> None:
    """The network saw 120x72 pixels at (40, 24) at half the size: the rectangle is 100 to 129 across, 60 to 77 down."""
    clips.write(tmp_path / "a.mp4", Setting())
    view, cut = View(40, 24, 120, 72), replace(HALF, width=60, height=36, multiple=4)
    clip = read_clip(tmp_path / "a.mp4", cut, view)
    whole = shown(tmp_path / "a.mp4").frames[..., 24:96, 40:160]
    small = torch.nn.functional.interpolate(whole, (36, 60), mode="bicubic", antialias=True).clamp(-1, 1)
    assert (clip.frames - small).abs().max() < 0.01
    assert "of its 160x96 the 120x72 around the object is edited, at 60x36" in str(clip.origin and clip.origin.summary)
    made = edited(tmp_path / "a.mp4", cut, view)
    before, after = (to_pixels(shown(path).frames).astype(float) for path in (tmp_path / "a.mp4", made))
    assert np.abs(after[:, 64:74, 104:126].mean((0, 1, 2)) - GREEN).max() < 3
    changed = np.abs(after - before).mean((0, 3)) > 12
    rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
    found = rows[0], rows[-1], columns[0], columns[-1]
    assert max(abs(at - expected) for at, expected in zip(found, (60, 77, 100, 129), strict=True)) <= 2


def test_bars_around_the_frame_are_not_pasted(tmp_path: Path) -> None:
    """With ``video.fit=pad`` the network's 80x80 show 160x160 pixels from -32 down: the rectangle's are 48 to 87."""
    clips.write(tmp_path / "a.mp4", Setting())
    cut = replace(HALF, width=80, height=80, fit="pad")
    after = to_pixels(shown(edited(tmp_path / "a.mp4", cut)).frames)
    assert np.abs(after[:, 52:84, 84:116].mean((0, 1, 2)) - GREEN).max() < 3
    assert np.abs(after[:, 90:, 84:116].mean((0, 1, 2)) - clips.SKY).max() < 3


def test_an_empty_edit_and_a_network_larger_than_the_file(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting())
    cut = replace(HALF, width=320, height=192)
    clip = read_clip(tmp_path / "a.mp4", cut)
    nothing = Overlay(clip.frames * 0, torch.zeros(COUNT, 1, 192, 320))
    before, after = (
        shown(path).frames for path in (tmp_path / "a.mp4", edited(tmp_path / "a.mp4", cut, None, nothing))
    )
    assert (after - before).abs().mean() < 0.005
    own = Overlay(clip.frames, torch.ones(COUNT, 1, 192, 320))  # the clip's own frames everywhere
    assert (shown(edited(tmp_path / "a.mp4", cut, None, own)).frames - before).abs().mean() < 0.02


# ---- time and sound --------------------------------------------------------------------------------------------------


def sound(path: Path) -> list[tuple[float, bytes]]:
    """Seconds and content of each packet of sound."""
    with av.open(str(path)) as file:
        found = file.streams.audio
        packets = [packet for packet in file.demux(found[0]) if packet.size] if found else []
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]  # type: ignore[operator]


def test_sound_is_copied_and_cut_to_the_frames(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(), audio=True)
    own = sound(tmp_path / "a.mp4")
    assert len(own) > 80
    whole = sound(edited(tmp_path / "a.mp4"))
    assert [data for _, data in whole] == [data for _, data in own]
    assert [time for time, _ in whole] == pytest.approx([time for time, _ in own], abs=1e-3)
    part = sound(edited(tmp_path / "a.mp4", replace(HALF, start=6, frames=12)))  # 0.5 s to 1.5 s
    inside = [(time - 0.5, data) for time, data in own if 0.5 <= time < 1.5]
    assert [data for _, data in part] == [data for _, data in inside]
    assert [time for time, _ in part] == pytest.approx([time for time, _ in inside], abs=1e-3)
    every_third = edited(tmp_path / "a.mp4", replace(HALF, stride=3))
    assert [data for _, data in sound(every_third)] == [data for _, data in own]  # at true speed, so all of it
    assert shown(every_third).fps == pytest.approx(4)
    assert not sound(edited(tmp_path / "a.mp4", replace(HALF, audio="drop")))


def test_sound_that_an_mp4_does_not_hold_is_encoded(tmp_path: Path) -> None:
    clips.write(tmp_path / "plain.mp4", Setting(), audio=True)
    with av.open(str(tmp_path / "plain.mp4")) as given, av.open(str(tmp_path / "a.mov"), "w") as file:
        pictures, pcm = file.add_stream_from_template(given.streams.video[0]), file.add_stream("pcm_s16le", rate=44_100)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = pictures
                file.mux(packet)
        given.seek(0)
        for frame in given.decode(audio=0):
            file.mux(pcm.encode(frame))  # type: ignore[union-attr]
    clip = read_clip(tmp_path / "a.mov", HALF)
    assert clip.view is not None
    footage = Footage(tmp_path / "a.mov", HALF, clip.view)
    with open_footage(footage) as opened:
        frames = (base for base, _ in pasted(opened, overlay(), footage.view))
        notes = write_like(tmp_path / "b.mp4", opened, frames, footage)
    assert notes == ["its sound (pcm_s16le) is encoded as AAC"]
    with av.open(str(tmp_path / "b.mp4")) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
    assert samples / 44_100 == pytest.approx(2, abs=0.1)


def test_times_that_vary_and_hidden_frames_stay(tmp_path: Path) -> None:
    clips.write(tmp_path / "base.mp4", Setting(ticks=VARYING), audio=True)
    made = edited(tmp_path / "base.mp4")
    with av.open(str(made)) as file:
        times = [float(frame.time or 0) for frame in file.decode(video=0)]
    assert times == pytest.approx([tick / 120 for tick in VARYING], abs=1e-4)
    made.unlink()
    clips.remux(tmp_path / "hidden.mp4", tmp_path / "base.mp4", shift=-3)
    expect_edit(tmp_path / "hidden.mp4", edited(tmp_path / "hidden.mp4"))


def test_a_file_that_lost_frames_is_refused(tmp_path: Path) -> None:
    clips.write(tmp_path / "a.mp4", Setting(), [drawn(i) for i in range(4)])
    with pytest.raises(VideoError, match=r"has 4 of the 8 frames that were edited"):
        edited(tmp_path / "a.mp4", edit=overlay(8))
    assert not (tmp_path / "edited.mp4").exists()


def test_the_whole_view_is_where_the_reader_takes_its_pixels() -> None:
    """A ramp tells for each pixel that was read from where in the file it came."""
    ramp = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 160), indexing="ij"))
    frames = torch.stack([ramp[1], ramp[0], ramp[0] * 0])[None]
    for fit in ("crop", "stretch", "pad"):
        view = whole_view((160, 96), ReadOptions(width=64, height=64, fit=fit))
        read = fit_frames(frames, 64, 64, fit)[0]
        at = 8 + 0.5  # a pixel's centre, away from borders
        down = 32 + 0.5
        x, y = view.left + at * view.width / 64, view.top + down * view.height / 64
        assert float(read[0, 32, 8]) == pytest.approx((x - 0.5) / 159 * 2 - 1, abs=0.01)
        assert float(read[1, 32, 8]) == pytest.approx((y - 0.5) / 95 * 2 - 1, abs=0.01)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_frames_and_mattes_lie_one_over_the_other(tmp_path: Path) -> None:
    """A turned clip, every second frame from 3 on: pictures as players show them, under their numbers in the file."""
    clips.write(tmp_path / "a.mp4", Setting())
    clips.set_matrix(tmp_path / "a.mp4", "rot90")
    cut = ReadOptions(start=3, stride=2, frames=4, width=48, height=80)
    clip = read_clip(tmp_path / "a.mp4", cut)
    assert clip.view is not None
    footage = Footage(tmp_path / "a.mp4", cut, clip.view)
    with open_footage(footage) as opened:
        frames = kept_as_pictures(tmp_path, pasted(opened, overlay(4, (48, 80)), clip.view), opened, cut)
        write_like(tmp_path / "b.mp4", opened, (base for base, _ in frames), footage)
    names = [f"{number:06d}.png" for number in (3, 5, 7, 9)]
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == names
    for name, after in zip(names, to_pixels(shown(tmp_path / "b.mp4").frames), strict=True):
        picture, matte = (np.asarray(Image.open(tmp_path / kind / name)) for kind in ("frames", "mattes"))
        assert picture.shape == (WIDTH, HEIGHT, 3) and matte.shape == (WIDTH, HEIGHT)
        assert np.abs(picture.astype(float) - after).mean() < 1.5
        assert (matte[82:118, 50:70] == 255).all() and not matte[:70].any()
        assert np.abs(picture[matte == 255].mean(0) - GREEN).max() < 3


@pytest.mark.slow  # several runs
def test_another_edit_is_laid_over_the_file_if_it_is_the_recorded_one(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copy(clip / "source.mp4", tmp_path / "clip.mp4"))
    given = options(clip, tmp_path / "cache", f"video.path={source}", "metrics.enabled=false")
    run = train(given, tmp_path / "run", show=False)
    assert read_json(run / "edits/suv/edit.json")["crop"] == [0, 0, 32, 32]

    def edit(name: str, *words: str) -> set[str]:
        target = [f"video.target_image={clip / 'target.png'}", "video.target_prompt=a van", f"video.edit={name}"]
        common = [f"run={run}", f"cache={tmp_path / 'cache'}", "metrics.enabled=false", "logger=none", *words]
        assert call(tave.edit.main, *target, *common) == 0
        return {path.name for path in (run / "edits" / name).iterdir()}

    assert {"edited.mp4", "network.mp4"} <= edit("here")
    pictures = edit("pictures", "output.frames=png")
    assert {"frames", "mattes", "edited.mp4"} <= pictures
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(source, tmp_path / "moved/clip.mp4"))
    assert "network.mp4" not in edit("gone")
    assert "the clip that was tuned on isn't here: the edit has the network's size" in capsys.readouterr().err
    assert "network.mp4" in edit("moved", f"inputs={moved.parent}")
    source.write_bytes(moved.read_bytes()[:-1] + b"x")
    assert "network.mp4" not in edit("changed")
    assert "the clip that was tuned on isn't here: the edit has the network's size" in capsys.readouterr().err
