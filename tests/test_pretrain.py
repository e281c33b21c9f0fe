"""Pre-training: losses against written-out references, batches that depend on the step alone, a fair exam."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tave.backbone import Backbone, load_backbone
from tave.config import PACKAGE, BackboneOptions, PartOptions, PretrainOptions
from tave.files import FileError
from tave.roadside.cases import NAMED, STUDY, benchmark
from tave.roadside.pretrain import __main__ as main
from tave.roadside.pretrain import contrastive, data, denoising, exam, networks, training
from tave.roadside.pretrain.__main__ import START, WEIGHTS, _started, encode_data, pretrain, save, take_over
from tave.roadside.pretrain.data import Picture, TrainingSet, box_of, square_crop, to_signed
from tave.roadside.sample import sample_scene
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    HOURS,
    KINDS,
    PLACES,
    SECTORS,
    Subject,
    caption,
    held_out,
    vocabulary,
)

SHIPPED = PACKAGE / "roadside" / "weights"
YAWS = (0, 90, 180, 270)  # one of each heading in the picture


@pytest.fixture(scope="module")
def drawn() -> TrainingSet:
    sheet = exam.held_out_frames(6, 48)
    described = zip(sheet.scenes, sheet.masks, strict=True)
    pictures = [Picture(s.subject, s.place, s.hour, s.heading(s.frames // 2), box_of(m)) for s, m in described]
    return TrainingSet(sheet.frames, sheet.frames[:, :32, :32].copy(), pictures, sheet.frames[:2])


@pytest.fixture(scope="module")
def shipped() -> Backbone:
    return load_backbone(BackboneOptions(path=str(SHIPPED / "backbone")))


def test_contrastive_loss_with_one_positive_each_is_the_symmetric_cross_entropy() -> None:
    images, texts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(7.0)
    logits = 7 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    expected = F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))
    assert torch.allclose(contrastive.contrastive(images, texts, torch.eye(5), scale), expected)


def test_equal_captions_are_all_positives() -> None:
    positive = contrastive.same(["a red car", "a red bus"], ["a red car", "a red bus", "a red car"])
    assert positive.tolist() == [[1, 0, 1], [0, 1, 0]]
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    texts = images[[0, 1, 0]]
    sharp = contrastive.contrastive(images, texts, positive, torch.tensor(100.0))
    assert sharp == pytest.approx(np.log(2) / 2, abs=1e-4)  # half of the rows share their mass between two captions


def test_a_step_fixes_its_batch(drawn: TrainingSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(step: int) -> float:
        torch.manual_seed(0)
        monkeypatch.setattr(training.AutoencoderTraining, "global_step", step)
        part = training.AutoencoderTraining(networks.autoencoder(32), drawn, 32, steps=4, batch=2, lr=1e-3, seed=1)
        return float(part.loss().detach())

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


class Recorder(torch.nn.Module):
    """Keeps what a UNet is given, and predicts zero."""

    given: dict[str, Tensor]

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor):
        self.given = {"z": z, "t": t, "text": encoder_hidden_states, "image": class_labels}
        return type("Out", (), {"sample": torch.zeros_like(z)})


def recorded(drawn: TrainingSet, latents: Tensor, empty: Tensor) -> tuple[denoising.UNetTraining, Recorder]:
    """Return a training of a Recorder, which is given zeros for no words and ones for a caption."""

    def text(captions: list[str]) -> Tensor:
        return torch.tensor([float(caption != "") for caption in captions])[:, None, None].expand(-1, 2, 4)

    network, encoded = Recorder(), denoising.Encoded(latents, torch.randn(6, 4), torch.randn(6, 4), empty)
    settings = {"steps": 1, "batch": 400, "lr": 1e-3, "seed": 0}
    return denoising.UNetTraining(network, encoded, drawn.pictures, text, 12, **settings), network


def test_the_unet_learns_velocity_and_drops_conditions(drawn: TrainingSet) -> None:
    part, network = recorded(drawn, torch.randn(6, 8, 4, 4), torch.randn(3, 8, 4, 4))
    assert float(part.loss()) == pytest.approx(1.0, abs=0.05)  # v of unit data and unit noise has unit variance
    mute, blind = ((network.given[name] == 0).flatten(1).all(1).numpy() for name in ("text", "image"))
    shares = [(mute & blind).mean(), (blind & ~mute).mean(), (mute & ~blind).mean()]
    with_object = 1 - denoising.NO_OBJECT
    dropped = [with_object * each for each in (denoising.NEITHER, denoising.NO_PICTURE, denoising.NO_WORDS)]
    assert shares == pytest.approx([denoising.NO_OBJECT + dropped[0], *dropped[1:]], abs=0.05)


def test_scenes_without_an_object_are_the_unconditional_ones(drawn: TrainingSet) -> None:
    """Else every branch of guidance would show an object, and guidance would not keep one from vanishing."""
    part, network = recorded(drawn, torch.zeros(6, 8, 4, 4), torch.full((3, 8, 4, 4), 100.0))
    part.loss()
    seen = network.given
    without = seen["z"].mean((1, 2, 3)) / part.alphas[seen["t"]].sqrt() > 50
    assert float(without.float().mean()) == pytest.approx(denoising.NO_OBJECT, abs=0.05)
    assert not seen["text"][without].any() and not seen["image"][without].any()
    assert seen["text"][~without].any() and seen["image"][~without].any()


def test_place_hour_yaw_and_box_are_read_from_whole_frames_alone(drawn: TrainingSet) -> None:
    readout = contrastive.AttributeReadout(4)
    with torch.no_grad():
        for head in readout.heads.values():
            for parameter in head.parameters():
                parameter.zero_()
        readout.box.weight.copy_(torch.eye(4))
        readout.box.bias.zero_()
    x0, y0, x1, y1 = (torch.tensor([p.box for p in drawn.pictures]) / 48).unbind(1)
    right = torch.stack([(x0 + x1) / 2, y1, x1 - x0, y1 - y0], 1)
    whole = np.log(6) + np.log(4) + np.log(SECTORS)  # place, hour and range of yaw
    indifferent = 0.5 * float(np.log(4) + np.log(9) + whole)
    frames, photographs = [True] * 6, [False] * 6
    striped = any(p.subject.pattern != "plain" for p in drawn.pictures)
    assert striped and float(readout(right, drawn.pictures, frames, 48).detach()) == pytest.approx(
        indifferent, abs=1e-4
    )
    assert float(readout(right + 0.2, drawn.pictures, frames, 48).detach()) > indifferent + 5
    of_photographs = float(readout(right + 0.2, drawn.pictures, photographs, 48).detach())
    assert of_photographs == pytest.approx(0.5 * float(np.log(4) + np.log(9)), abs=1e-4)


def test_what_is_inside_the_box_counts_more_and_the_scale_of_the_loss_stays() -> None:
    weight = training.object_weight(np.array([[2, 4, 6, 6], [-5, -5, -1, -1]]), 8)
    assert torch.allclose(weight.mean(dim=(1, 2, 3)), torch.ones(2))
    assert float(weight[0, 0, 4, 2] / weight[0, 0, 3, 2]) == pytest.approx(training.OBJECT_WEIGHT)
    assert box_of((weight[0, 0] > weight[0, 0].min()).numpy()) == (2, 4, 6, 6)
    assert torch.equal(weight[1], torch.ones(1, 8, 8))  # no object in this crop


def test_the_judges_view_is_a_square_around_the_box() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[10:14, 20:30] = 255
    view = square_crop(frame, (20, 10, 30, 14), 50)
    mask = view[..., 0] > 127
    assert box_of(mask) == pytest.approx((5, 17, 45, 33), abs=1)  # 10 of 12.5 px wide, in the middle


def test_the_exam_names_the_class_of_the_closest_caption() -> None:
    known = {caption(Subject(kind, "red")): F.one_hot(torch.tensor(i), 9).float() for i, kind in enumerate(KINDS)}
    classes = {kind: [caption(Subject(kind, "red"))] for kind in KINDS}

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return pictures, torch.stack([known[text] for text in texts])

    assert exam.classify(torch.eye(9), embed, classes) == list(KINDS)


def test_the_exam_finds_what_stands_in_an_empty_scene(shipped: Backbone) -> None:
    """A judge that sees colours classifies true frames by what is in their holes; an empty scene shows nothing."""
    rng, scenes = np.random.default_rng(3), []
    while len(scenes) < 8:
        scene = sample_scene(rng, unseen=True)
        if scene.subject.color in ("red", "yellow") and scene.subject.pattern == "plain" and scene.hour == "noon":
            scenes.append(replace(scene, x=0.0, speed=0.0, pan=0.0, tilt=0.0, z=70.0, occluder=None))
    sheet = exam.held_out(scenes, 96)
    into = exam.holes(shipped, sheet)

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        red, green, blue = (pictures.flatten(2) / 2 + 0.5).unbind(1)
        redness, yellowness = red - torch.maximum(green, blue), torch.minimum(red, green) - blue
        strongest = [score.topk(100, dim=1).values.mean(1) for score in (redness, yellowness)]
        return torch.stack(strongest, 1), torch.eye(2)

    classes = {"red": ["a red car"], "yellow": ["a yellow car"]}
    assert exam.recognised(sheet.frames, into, embed, classes) == sheet.truth("color")
    empty = ((into.empty + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert exam.recognised(empty, into, embed, classes) == ["nothing"] * len(scenes)
    assert len({float(one.sum()) for one in into.cells}) == 1  # the hole has one size for all objects

    invented = sheet.frames.copy()  # another skyline behind the object, red and yellow
    for frame, cells in zip(invented, into.cells[:, 0, 0], strict=True):
        x0, y0, x1, _ = (4 * edge for edge in box_of(cells.numpy() > 0))
        frame[y0 : y0 + 5, x0:x1] = (255, 0, 0)
        frame[y0 : y0 + 5, x0 : (x0 + x1) // 2] = (255, 255, 0)
    assert exam.recognised(invented, into, embed, classes) == sheet.truth("color")


def test_holes_are_filled_and_the_road_is_kept(shipped: Backbone) -> None:
    sheet = exam.held_out_frames(2, 96, seed=8)
    into = exam.holes(shipped, sheet)
    condition = exam.conditions_for(shipped, sheet, text=True, image=True)
    sampled = to_signed(exam.sample_into(shipped, condition, into, steps=2))
    inside = F.interpolate(into.cells[:, 0], sampled.shape[-2:], mode="nearest-exact").expand_as(sampled) > 0
    change = (sampled - into.empty).abs()
    # The decoder normalises over whole pictures, so what is kept isn't equal to the bit.
    assert change[inside].mean() > 0.05 and change[~inside].mean() < change[inside].mean() / 3


def test_shipped_configurations_contain_no_absolute_path() -> None:
    listed = sorted(SHIPPED.rglob("*config.json"))
    assert listed
    for path in listed:
        values = json.loads(path.read_text()).values()
        assert not [value for value in values if isinstance(value, str) and Path(value).is_absolute()], path


def test_any_text_encodes() -> None:
    words = networks.tokenizer()
    assert words.unk_token_id not in words("an unheard-of zeppelin", truncation=True).input_ids[1:-1]
    assert str(words.decode(words("a red suv").input_ids, skip_special_tokens=True)).strip() == "a red suv"


def test_every_caption_is_read_whole() -> None:
    """A word is one token, so no caption loses its place at the end, where the tokenizer cuts."""
    words = networks.tokenizer()
    for word in vocabulary():
        pieces = re.split("(-)", word)
        assert len(words(word).input_ids) == 2 + len(pieces), word
    subject = Subject("sneaker", "white", "two-tone", "orange")
    longest = caption(subject, "toward the camera", "mountain", "overcast", pattern=True)
    assert len(words(longest).input_ids) <= networks.TOKENS


def test_a_description_and_its_picture_are_mirrored_alike(drawn: TrainingSet) -> None:
    picture, width = drawn.pictures[0], drawn.frames.shape[2]
    mirrored = picture.mirrored(width)
    mask = np.zeros((width, width), bool)
    x0, y0, x1, y1 = picture.box
    mask[y0:y1, x0:x1] = True
    assert box_of(mask[:, ::-1]) == mirrored.box
    assert mirrored.mirrored(width).yaw == pytest.approx(picture.yaw % 360)
    right = replace(picture, yaw=10.0)
    assert "right" in right.caption(place=True, motion=True)
    assert "left" in right.mirrored(width).caption(place=True, motion=True)


def test_photographs_of_the_exam_are_held_out_and_in_another_place() -> None:
    rng = np.random.default_rng(0)
    for scene in (sample_scene(rng, unseen=True) for _ in range(40)):
        photo = exam.photograph_of(scene, rng)
        assert held_out(photo.subject, photo.place, photo.hour, photo.yaw)
        assert photo.subject == scene.subject and photo.place != scene.place and photo.seed >= FIRST_HELD_OUT_SEED


def test_frames_of_the_exam_are_held_out_as_they_are_and_mirrored() -> None:
    for scene in exam.held_out_frames(12, 32).scenes:
        yaw = scene.heading(scene.frames // 2)
        assert all(held_out(scene.subject, scene.place, scene.hour, each) for each in (yaw, 180 - yaw))


def test_prompts_have_no_word_that_training_captions_lack() -> None:
    def words(text: str) -> set[str]:
        return set(text.split())

    subjects = [Subject(kind, color) for kind in KINDS for color in COLORS]
    pictures = [Picture(s, p, h, y, (0, 0, 1, 1)) for s in subjects for p in PLACES for h in HOURS for y in YAWS]
    known = set().union(*(words(each.caption(place=True, motion=True, hour=True)) for each in pictures))
    cases = [*NAMED.values(), *STUDY.values(), *benchmark()]
    assert not set().union(*(words(c.source_prompt) | words(c.target_prompt) for c in cases)) - known


def test_training_pictures_show_nothing_that_is_held_out() -> None:
    chunk = data.draw_chunk(0, 32, 32, seed=5)
    assert not [p for p in chunk.pictures if held_out(p.subject, p.place, p.hour, p.yaw)]
    assert chunk.empty.shape == (data.EMPTY, 32, 32, 3)


def test_windows_hold_the_middle_of_the_object() -> None:
    latents = torch.arange(24 * 24).float().view(1, 1, 24, 24).expand(40, 2, 24, 24)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, size=(40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 4, size=(40, 2))], 1)
    cut, moved = denoising.windows(latents, boxes, 16, rng)
    assert cut.shape == (40, 2, 16, 16)
    middles = np.stack([moved[:, [0, 2]].mean(1), moved[:, [1, 3]].mean(1)], 1)
    assert (middles >= 0).all() and (middles <= 16).all()
    assert np.allclose(moved[:, 2:] - moved[:, :2], boxes[:, 2:] - boxes[:, :2])
    for one, (x, y), (old_x, old_y) in zip(cut[:, 0], moved[:, :2], boxes[:, :2], strict=True):
        assert int(one[0, 0]) == round(old_y - y) * 24 + round(old_x - x)  # where the cut begins


def test_the_patches_of_clips_first_pictures_are_those_near_the_object() -> None:
    rng = np.random.default_rng(0)
    size, grid = 96, 96 // networks.PATCH
    boxes = np.array([[40, 40, 60, 50], [0, 0, 96, 96]])
    small, whole = contrastive.patches_near(boxes, size, contrastive.LOOKED_AT, rng)
    assert len(set(small.tolist())) == len(set(whole.tolist())) == contrastive.LOOKED_AT
    inside = {row * grid + column for row in range(5, 6) for column in range(5, 7)}
    assert inside <= set(small.tolist())  # all patches of a small object
    rows, columns = whole // grid, whole % grid
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == grid  # any of an object that fills the picture


def test_all_patches_in_any_order_are_the_picture() -> None:
    words = networks.tokenizer()
    embed = networks.clip_embedder(networks.clip(words).eval().requires_grad_(False), words)
    pictures = torch.rand(2, 3, networks.VISION_SIZE, networks.VISION_SIZE) * 2 - 1
    shuffled = torch.stack([torch.randperm((networks.VISION_SIZE // networks.PATCH) ** 2) for _ in pictures])
    whole, again = embed(pictures, ["a car"])[0], embed(pictures, ["a car"], shuffled)[0]
    assert torch.allclose(whole, again, atol=1e-4)
    assert not torch.allclose(whole, embed(pictures, ["a car"], shuffled[:, :48])[0], atol=1e-3)


def test_loss_weights_grow_with_the_noise_up_to_a_limit() -> None:
    alphas = torch.tensor([0.999, 0.95, 0.5, 0.01])
    weight = denoising.snr_weight(alphas)
    assert float(weight.mean()) == pytest.approx(1)
    snr = alphas / (1 - alphas)
    as_clean = weight * (snr + 1)  # the weight of an error of the clean latents
    assert torch.allclose(as_clean[0], as_clean[1]) and as_clean[2] < as_clean[1] and weight[2] == weight[3]


def test_timesteps_are_drawn_as_often_as_their_losses_weigh() -> None:
    weights, rng = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0]), np.random.default_rng(0)
    for _ in range(5):  # each batch alone: one from each eighth of the distribution
        assert torch.bincount(denoising.timesteps(weights, 8, rng), minlength=5).tolist() == [0, 1, 3, 0, 4]
    every = torch.cat([denoising.timesteps(weights, 3, rng) for _ in range(4000)])
    shares = torch.bincount(every, minlength=5) / len(every)
    assert torch.allclose(shares, weights / weights.sum(), atol=0.01)


def test_the_judges_negatives_differ_in_the_pattern_alone() -> None:
    subject = Subject("car", "red", "striped", "blue")
    wrong = contrastive.other_patterns(subject)
    assert wrong == ["a plain red car", "a red and blue dotted car", "a red and blue two-tone car"]
    assert contrastive.other_patterns(Subject("bike", "red", "plain", "blue")) == []  # too thin for any other pattern


def test_a_network_of_another_size_starts_from_what_fits(tmp_path: Path) -> None:
    words = networks.tokenizer()
    larger, network = networks.clip(words), networks.clip(words)
    state = {name: tensor + 1 for name, tensor in larger.state_dict().items() if tensor.is_floating_point()}
    state["text_model.embeddings.token_embedding.weight"] = torch.zeros(7, networks.TEXT_WIDTH)  # another vocabulary
    save({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / START)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    started = _started(network, tmp_path).state_dict()
    words_table = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(started[words_table], before[words_table])
    assert torch.equal(started["visual_projection.weight"], state["visual_projection.weight"])


def test_weights_can_be_trained_on(tmp_path: Path) -> None:
    """A folder of shipped parts: some are the start of a training, the others its result."""
    network = networks.unet(12)
    shipped = {"unet": dict(network.state_dict()), "autoencoder": dict(networks.autoencoder(48).state_dict())}
    take_over(shipped, tmp_path, ["unet"])
    assert (tmp_path / "unet" / START).exists() and (tmp_path / "autoencoder" / WEIGHTS).exists()
    save({"kept": torch.ones(1)}, tmp_path / "unet" / START)
    take_over(shipped, tmp_path, ["unet"])  # a training that has begun keeps its start
    assert (tmp_path / "unet" / START).stat().st_size < 1000


def test_a_part_that_was_taken_over_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sittings with other stages copy the shipped UNet as a result; that is no reason not to train it."""
    trained = []

    def fit(part: str, folder: Path, *_: object, **__: object) -> None:
        trained.append(part)
        save({"w": torch.ones(1)}, folder / WEIGHTS, steps="3")

    shipped = {"unet": {"w": torch.zeros(1)}}
    monkeypatch.setattr(main, "read_shipped", lambda _: shipped)
    monkeypatch.setattr(main, "fit", fit)
    monkeypatch.setattr(main, "STAGES", {"unet": lambda *_: "unet"})
    for stages in ([], ["unet"], ["unet"], []):
        pretrain(PretrainOptions(folder=str(tmp_path), start="shipped", stages=stages))
    assert trained == ["unet"]
    assert (tmp_path / "unet" / START).exists() and load_file(tmp_path / "unet" / WEIGHTS)["w"] == 1


def test_pictures_are_drawn_once_and_again_for_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 3)
    path = tmp_path / "0000.npz"

    def drawn(seed: int) -> tuple[int, np.ndarray]:
        data.Drawing(tmp_path, 3, 32, 24, seed).draw_file(0)
        with np.load(path) as stored:
            return path.stat().st_mtime_ns, stored["frames"]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first[0] == again[0] and not np.array_equal(again[1], other[1])
    assert len(data.Drawing(tmp_path, 3, 32, 24, 2).load()) == 3
    assert len(data.Drawing(tmp_path, 2, 32, 24, 2).load().frames) == 2  # of whole chunks
    for drawing in (data.Drawing(tmp_path, 3, 32, 24, 1), data.Drawing(tmp_path, 6, 32, 24, 2)):
        with pytest.raises(FileError, match="add data to stages"):
            drawing.load()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_every_stage_from_drawing_to_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CHUNK", 20)
    part = PartOptions(steps=2, batch=2)
    options = PretrainOptions(
        folder=str(tmp_path / "work"), target=str(tmp_path / "weights"), size=48, count=20, crop=32, workers=1,
        exam_frames=4, exam_samples=2, autoencoder=part, clip=part, judge=part, unet=part,
    )  # fmt: skip
    pretrain(options)
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("weights.safetensors"))]
    assert len(stamps) == 4 and "| UNet, image only: shape |" in (tmp_path / "weights/README.md").read_text()
    pretrain(replace(options, stages=list(options.stages[:-1])))
    assert stamps == [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("weights.safetensors"))]
    latents = encode_data(tmp_path / "work", options).latents
    weights = tmp_path / "work/autoencoder" / WEIGHTS
    save({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    changed = encode_data(tmp_path / "work", options).latents
    assert not torch.equal(latents, changed)  # those of other weights aren't read again


def test_the_card_compares_with_the_bars() -> None:
    text = exam.card([exam.Mark("a", 96.0, 95), exam.Mark("b", 94.9, 95), exam.Mark("c", 1.0)], {"seed": "0"})
    for line in ("| a | 96.0 % | 95 % | yes |", "| b | 94.9 % | 95 % | no |", "| c | 1.0 % |  |  |"):
        assert line in text
