"""Pre-training: its losses against written-out references, batches that depend on the step alone, a fair examiner."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.identity import load_judge
from tave.backbone import load_backbone
from tave.config import PACKAGE
from tave.roadside.pretrain import exam, parts, training
from tave.roadside.pretrain.__main__ import judge_model, load, take_over
from tave.roadside.pretrain.lessons import Lessons, Picture, box_of, square_crop
from tave.roadside.scene import VEHICLES, Vehicle, caption, vocabulary


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    sheet = exam.questions(6, 48)
    pictures = [Picture(s.vehicle, s.place, s.heading, box_of(m)) for s, m in zip(sheet.scenes, sheet.masks, strict=True)]
    return Lessons(sheet.frames, sheet.frames[:, :32, :32].copy(), pictures)


def test_contrastive_loss_with_one_positive_each_is_the_symmetric_cross_entropy() -> None:
    images, texts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(7.0)
    logits = 7 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    expected = F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))
    assert torch.allclose(training.contrastive(images, texts, torch.eye(5), scale), expected)


def test_equal_captions_are_all_positives() -> None:
    positive = training.same(["a red car", "a red bus"], ["a red car", "a red bus", "a red car"])
    assert positive.tolist() == [[1, 0, 1], [0, 1, 0]]
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    texts = images[[0, 1, 0]]
    sharp = training.contrastive(images, texts, positive, torch.tensor(100.0))
    assert sharp == pytest.approx(np.log(2) / 2, abs=1e-4)  # half of the rows share their mass between two captions


def test_a_step_draws_the_same_batch_whoever_asks(lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(step: int) -> float:
        torch.manual_seed(0)
        monkeypatch.setattr(training.AutoencoderPart, "global_step", step)
        part = training.AutoencoderPart(parts.autoencoder(32), lessons, 32, steps=4, batch=2, lr=1e-3, seed=1)
        return float(part.loss().detach())

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_the_unet_learns_velocity_and_drops_conditions(lessons: Lessons) -> None:
    alphas = torch.linspace(0.999, 0.01, 1000)
    seen: list[Tensor] = []

    class Net(torch.nn.Module):
        def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor):
            seen.append(class_labels)
            return type("Out", (), {"sample": torch.zeros_like(z)})

    def told(captions: list[str]) -> Tensor:
        words.extend(captions)
        return torch.zeros(len(captions), 2, 4)

    words: list[str] = []
    part = training.UNetPart(
        Net(),
        torch.randn(6, 8, 4, 4),
        torch.ones(6, 3),
        torch.ones(6, 3),
        lessons.pictures,
        alphas,
        told,
        lambda e, levels, noise: torch.cat([e, e], 1),
        cell=12,
        steps=1,
        batch=400,
        lr=1e-3,
        seed=0,
    )
    assert float(part.loss()) == pytest.approx(1.0, abs=0.05)  # v of unit data and unit noise has unit variance
    mute, blind = np.array([caption == "" for caption in words]), (seen[0] == 0).all(1).numpy()
    shares = [(mute & blind).mean(), (blind & ~mute).mean(), (mute & ~blind).mean()]
    assert shares == pytest.approx([training.NEITHER, training.NO_PICTURE, training.NO_WORDS], abs=0.05)


def test_image_vectors_are_asked_where_the_vehicle_stands_in_frames_alone(lessons: Lessons) -> None:
    sight = training.Sight(4)
    with torch.no_grad():
        for head in sight.heads.values():
            for parameter in head.parameters():
                parameter.zero_()
        sight.box.weight.copy_(torch.eye(4))
        sight.box.bias.zero_()
    x0, y0, x1, y1 = (torch.tensor([p.box for p in lessons.pictures]) / 48).unbind(1)
    right = torch.stack([(x0 + x1) / 2, y1, x1 - x0, y1 - y0], 1)
    indifferent = 0.5 * float(np.log(4) + np.log(8) + np.log(5) + np.log(2))
    frames, portraits = [True] * 6, [False] * 6
    striped = any(p.vehicle.pattern != "plain" for p in lessons.pictures)
    assert striped and float(sight(right, lessons.pictures, frames, 48).detach()) == pytest.approx(indifferent, abs=1e-4)
    assert float(sight(right + 0.2, lessons.pictures, frames, 48).detach()) > indifferent + 5
    of_portraits = float(sight(right + 0.2, lessons.pictures, portraits, 48).detach())
    assert of_portraits == pytest.approx(0.5 * float(np.log(4) + np.log(8)), abs=1e-4)


def test_what_is_inside_the_box_counts_more_and_the_scale_of_the_loss_stays() -> None:
    weight = training.object_weight(np.array([[2, 4, 6, 6], [-5, -5, -1, -1]]), 8)
    assert torch.allclose(weight.mean(dim=(1, 2, 3)), torch.ones(2))
    assert float(weight[0, 0, 4, 2] / weight[0, 0, 3, 2]) == pytest.approx(training.OBJECT_WEIGHT)
    assert box_of((weight[0, 0] > weight[0, 0].min()).numpy()) == (2, 4, 6, 6)
    assert torch.equal(weight[1], torch.ones(1, 8, 8))  # no vehicle in this crop


def test_the_judges_view_is_a_square_around_the_box() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[10:14, 20:30] = 255
    view = square_crop(frame, (20, 10, 30, 14), 50)
    mask = view[..., 0] > 127
    assert box_of(mask) == pytest.approx((5, 17, 45, 33), abs=1)  # 10 of 12.5 px wide, in the middle


def test_examiner_names_the_class_of_the_closest_caption() -> None:
    known = {caption(Vehicle(kind, "red")): F.one_hot(torch.tensor(i), 6).float() for i, kind in enumerate(VEHICLES)}

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return pictures, torch.stack([known[t] for t in texts])

    classes = {kind: [caption(Vehicle(kind, "red"))] for kind in VEHICLES}
    found, closeness = exam.answers(torch.eye(6), embed, classes)
    assert found == list(VEHICLES)
    assert torch.allclose(closeness, torch.ones(6))


def test_examiner_finds_what_stands_on_an_empty_road() -> None:
    """True frames are read nearly as well as from their true boxes; an empty road is nothing, whoever is asked about it."""
    backbone = load_backbone(PACKAGE / "roadside" / "weights" / "backbone")
    judge = load_judge(PACKAGE / "roadside" / "weights" / "judge").encoder
    sheet, classes = exam.questions(12, 96, seed=8), exam.captions_by_class()["vehicle"]
    found = exam.holes(backbone, sheet)

    def embed(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return judge.images(pictures), judge.texts(texts)

    truth = [scene.vehicle.kind for scene in sheet.scenes]
    assert exam.share(exam.seen(sheet.frames, found, embed, 64, classes), truth) > 80
    empty = ((found.empty + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert exam.seen(empty, found, embed, 64, classes) == ["nothing"] * 12
    assert len({float(one.sum()) for one in found.cells}) == 1  # the hole's size tells nothing of the vehicle


def test_holes_are_filled_and_the_road_is_kept() -> None:
    backbone = load_backbone(PACKAGE / "roadside" / "weights" / "backbone")
    sheet = exam.questions(2, 96, seed=8)
    found = exam.holes(backbone, sheet)
    condition = exam.conditions_for(backbone, sheet, text=True, image=True)
    painted = training.to_signed(exam.paint(backbone, condition, steps=2, guidance_scale=1.0, seed=3, into=found))
    inside = F.interpolate(found.cells[:, 0], painted.shape[-2:], mode="nearest-exact").expand_as(painted) > 0
    change = (painted - found.empty).abs()
    assert change[~inside].mean() < 0.02  # the decoder normalises over whole pictures, so not to the bit
    assert change[inside].mean() > 0.05


def test_shipped_configurations_name_no_place_of_the_machine_that_made_them() -> None:
    listed = sorted((PACKAGE / "roadside" / "weights").rglob("*config.json"))
    assert listed
    for path in listed:
        values = json.loads(path.read_text()).values()
        assert not [value for value in values if isinstance(value, str) and Path(value).is_absolute()], path


def test_any_text_encodes() -> None:
    words = parts.tokenizer()
    assert words.unk_token_id not in words("an unheard-of zeppelin", truncation=True).input_ids[1:-1]
    assert str(words.decode(words("a red suv").input_ids, skip_special_tokens=True)).strip() == "a red suv"


def test_every_caption_is_read_whole() -> None:
    """A word is one token, so no caption loses its place at the end, where the tokenizer cuts."""
    words = parts.tokenizer()
    for word in vocabulary():
        pieces = re.split("(-)", word)
        assert len(words(word).input_ids) == 2 + len(pieces), word
    longest = caption(Vehicle("truck", "white", "two-tone", "orange"), -1, "mountain", pattern=True)
    assert len(words(longest).input_ids) <= parts.TOKENS


def test_what_is_shipped_can_be_trained_on(tmp_path: Path) -> None:
    shipped = PACKAGE / "roadside" / "weights"
    backbone = load_backbone(shipped / "backbone")
    take_over(shipped, tmp_path, ["autoencoder", "unet"])
    assert not (tmp_path / "autoencoder").exists()  # it is trained, so it starts from the backbone instead
    words = parts.tokenizer()
    clip = load(parts.clip(words), tmp_path / "clip")
    ids = words(["a red suv"], padding="max_length", return_tensors="pt").input_ids
    assert words.get_vocab() == backbone.tokenizer.get_vocab()
    with torch.no_grad():
        expected = backbone.text_encoder(ids).last_hidden_state
        assert torch.allclose(clip.text_model(ids).last_hidden_state, expected, atol=1e-5)
    load(judge_model(tmp_path / "judge"), tmp_path / "judge")
    parts.unet(backbone.unet.config["sample_size"]).load_state_dict(backbone.unet.state_dict())


def test_the_cards_bars_are_judged_by_the_figure() -> None:
    text = exam.card([exam.Mark("a", 96.0, 95), exam.Mark("b", 94.9, 95), exam.Mark("c", 1.0)], {"seed": 0})
    assert "| a | 96.0 % | 95 % | yes |" in text
    assert "| b | 94.9 % | 95 % | no |" in text
    assert "| c | 1.0 % |  |  |" in text
