"""The matte by a segmentation network: the choice of the instance, its position, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers.models.eomt.configuration_eomt import EomtConfig
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor
from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentation
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentation
from transformers.models.swin.configuration_swin import SwinConfig

from tave.doctor import segmenter as examined
from tave.files import file_digest
from tave.reference.cutout import MatteError
from tave.reference.segmenter import Segmenter, choose, load_segmenter

PROMPT = "a red car turning on a road"
CLASSES = {0: "car", 1: "road"}
KINDS = ("mask2former", "eomt")
SIZE = {"shortest_edge": 64, "longest_edge": 128}


def small(kind: str) -> tuple[Any, Any]:
    """The real class at toy size with random weights, and its image processor; it finds only cars."""
    named: dict[str, Any] = {
        "id2label": CLASSES,
        "label2id": {name: i for i, name in CLASSES.items()},
        "num_queries": 16,
    }
    swin: dict[str, Any] = {"image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]}
    swin |= {"window_size": 4, "out_features": [f"stage{i}" for i in (1, 2, 3, 4)]}
    wide: dict[str, Any] = {"mask_feature_size": 32, "feature_size": 32, "hidden_dim": 32, "encoder_layers": 1}
    wide |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "decoder_layers": 2, "num_attention_heads": 2}
    vit: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
    vit |= {"patch_size": 8, "num_blocks": 1, "num_upscale_blocks": 1, "num_register_tokens": 1, "mlp_ratio": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "mask2former":
            config = Mask2FormerConfig(backbone_config=SwinConfig(**swin), **wide, **named)
            model, processor = Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor(size=SIZE)
        else:
            model = EomtForUniversalSegmentation(EomtConfig(**vit, **named))
            processor = EomtImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
        model.class_predictor.weight.data.zero_()
        model.class_predictor.bias.data = torch.tensor([9.0, 0.0, 0.0])  # car, road, nothing
    return model, processor


@pytest.fixture(scope="module")
def saved_segmenters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scipy", reason="tave[segmenter] is not installed")
    place = tmp_path_factory.mktemp("segmenters")
    for kind in KINDS:
        for part in small(kind):
            part.save_pretrained(place / kind)
    return place


@pytest.fixture
def folder(saved_segmenters: Path, tmp_path: Path) -> Path:
    """A copy of a small Mask2Former."""
    return Path(shutil.copytree(saved_segmenters / "mask2former", tmp_path / "weights"))


# --- which instance ---------------------------------------------------------------------------------------------


def block(top: int, bottom: int, left: int, right: int) -> Tensor:
    """A mask `40 60` of a block."""
    mask = torch.zeros(40, 60)
    mask[top:bottom, left:right] = 1
    return mask


CENTRE, LARGE, CORNER = block(15, 25, 22, 38), block(8, 34, 10, 50), block(0, 12, 0, 16)


@pytest.mark.parametrize(
    ("instances", "prompt", "expected"),
    [
        ([(LARGE, 0.9, "bus"), (CENTRE, 0.9, "car")], PROMPT, 1),  # named in the prompt, though smaller
        ([(LARGE, 0.9, "road"), (CENTRE, 0.9, "car")], PROMPT, 1),  # the road is named as the place
        ([(LARGE, 0.9, "road"), (CENTRE, 0.9, "bus")], "a photo of a Bus in the road", 1),
        ([(CENTRE, 0.9, "bus"), (CORNER, 0.6, "auto, car, automobile")], PROMPT, 1),  # any of its synonyms
        ([(CENTRE, 0.9, "car"), (CORNER, 0.9, "sports car")], "a red sports car", 0),  # both are named: central
        ([(LARGE, 0.9, "traffic light"), (CENTRE, 0.9, "boat")], "a light boat", 1),  # half a name does not count
        ([(LARGE, 0.9, "carpet"), (CENTRE, 0.9, "car")], "a carpet", 0),
        ([(LARGE, 0.4, "car"), (CENTRE, 0.9, "bus")], PROMPT, 1),  # the first is uncertain
        ([(CENTRE, 0.9, "bus"), (LARGE, 0.9, "bus")], PROMPT, 1),  # larger
        ([(CENTRE, 0.9, "bus"), (CORNER, 0.9, "bus")], PROMPT, 0),  # central
        ([(CENTRE, 0.6, "bus"), (CENTRE, 0.9, "bus")], PROMPT, 1),  # more certain
        ([(block(0, 40, 0, 60), 0.99, "car"), (CENTRE, 0.6, "bus")], PROMPT, 1),  # the whole picture
        ([(block(20, 21, 30, 31), 0.99, "car"), (CENTRE, 0.6, "bus")], PROMPT, 1),  # a speck
        ([(CENTRE, 0.3, "car")], PROMPT, None),
        ([(0.4 * CENTRE, 0.9, "car")], PROMPT, None),
    ],
)
def test_the_named_instance_is_chosen_else_a_certain_large_and_central_one(
    instances: list[tuple[Tensor, float, str]], prompt: str, expected: int | None
) -> None:
    masks, scores, names = zip(*instances, strict=True)
    assert choose(torch.stack(masks), torch.tensor(scores), names, prompt) == expected


# --- where it lies ----------------------------------------------------------------------------------------------


class Redness:
    """Stands in for a network: it finds red areas, on a grid of a quarter of its input's size."""

    device = torch.device("cpu")

    def __call__(self, pixel_values: Tensor) -> SimpleNamespace:
        red = pixel_values[:, 0] - pixel_values[:, 1:].mean(1)
        logits = 8 * functional.avg_pool2d(red[:, None] - 1, 4)
        return SimpleNamespace(masks_queries_logits=logits, class_queries_logits=torch.tensor([[[5.0, 0.0, 0.0]]]))


def red_block(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A grey picture `3 H W` with a red block off its middle, and the block's true matte `1 H W`."""
    truth = torch.zeros(1, height, width)
    truth[:, height // 3 : height * 7 // 8, width // 8 : width * 5 // 8] = 1
    return torch.cat([truth * 1.6 - 0.8, -0.8 * torch.ones(2, height, width)]), truth


@pytest.mark.parametrize("size", [(96, 160), (150, 61), (64, 64), (501, 400)])
@pytest.mark.parametrize(
    "processor",
    [
        Mask2FormerImageProcessor(size={"height": 96, "width": 96}),
        Mask2FormerImageProcessor(size={"shortest_edge": 128, "longest_edge": 256}),
        EomtImageProcessor(size={"shortest_edge": 128, "longest_edge": 128}, do_pad=True),
    ],
    ids=["stretched", "scaled", "padded"],
)
def test_the_matte_is_where_the_object_is(processor: Any, size: tuple[int, int]) -> None:
    rgb, truth = red_block(*size)
    cut = Segmenter(Redness(), processor, CLASSES, "redness", {}).cut(rgb, PROMPT)
    assert cut.matte.shape == truth.shape and cut.matte.dtype == torch.float32
    assert 0 <= float(cut.matte.min()) < 0.1 and 0.9 < float(cut.matte.max()) <= 1
    one, other = cut.matte > 0.5, truth > 0.5
    assert float((one & other).sum() / (one | other).sum()) > 0.88
    assert cut.name == "car" and cut.confidence > 0.8


def test_a_picture_without_an_object_is_refused() -> None:
    grey = torch.full((3, 64, 64), -0.8)
    processor = EomtImageProcessor(size={"shortest_edge": 128, "longest_edge": 128}, do_pad=True)
    with pytest.raises(MatteError, match=r"finds nothing .* set reference\.matte=auto, and give video\.matte=FILE if"):
        Segmenter(Redness(), processor, CLASSES, "redness", {}).cut(grey, PROMPT)


def test_a_processors_padding_is_turned_off(folder: Path) -> None:
    """The library's post-processing takes it for picture."""
    rgb, _ = red_block(40, 90)
    plain = load_segmenter(folder).cut(rgb, PROMPT).matte
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_size": {"height": 256, "width": 256}}))
    assert torch.equal(load_segmenter(folder).cut(rgb, PROMPT).matte, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_and_gives_a_matte(saved_segmenters: Path, kind: str) -> None:
    loaded = load_segmenter(saved_segmenters / kind)
    assert loaded.classes == CLASSES
    named = ("model.safetensors", "config.json", "preprocessor_config.json")
    assert loaded.hashes == {name: file_digest(saved_segmenters / kind / name) for name in named}
    assert not loaded.model.training and not any(parameter.requires_grad for parameter in loaded.model.parameters())
    rgb, _ = red_block(48, 80)
    cut = loaded.cut(rgb, PROMPT)
    assert cut.matte.shape == (1, 48, 80) and cut.name == "car"
    assert 0 <= float(cut.matte.min()) <= float(cut.matte.max()) <= 1
    assert torch.equal(cut.matte, load_segmenter(str(saved_segmenters / kind)).cut(rgb, PROMPT).matte)


def test_half_precision_and_the_hubs_cache(folder: Path, hub: Callable[[str, Path], Path]) -> None:
    rgb, _ = red_block(48, 80)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(half, folder / "model.fp16.safetensors", metadata={"format": "pt"})
    snapshot = hub("somebody/small-instance", folder)
    loaded = load_segmenter("somebody/small-instance")
    assert loaded.name == "somebody/small-instance" and loaded.model.dtype == torch.float32
    assert loaded.hashes["model.fp16.safetensors"] == file_digest(snapshot / "model.fp16.safetensors")
    assert loaded.cut(rgb, PROMPT).name == "car"


# --- what is refused --------------------------------------------------------------------------------------------


def refused(path: str | Path) -> str:
    with pytest.raises(MatteError) as caught:
        load_segmenter(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"reference.segmenter={path}: ")
    return str(caught.value)


def test_a_folder_without_a_segmenter_is_refused(saved: Path, hub: Callable[[str, Path], Path]) -> None:
    for absent in ("nowhere", "nobody/nothing"):
        assert "neither a folder nor in the hub's local cache: give a folder that has config.json" in refused(absent)
    message = refused(saved / "text_encoder")
    assert "is a clip_text_model, not a supported segmentation network: give one of Mask2Former" in message
    assert "lacks config.json" in refused(saved)


def test_wrong_files_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    processor = (folder / "preprocessor_config.json").read_bytes()
    (folder / "preprocessor_config.json").unlink()
    assert "lacks preprocessor_config.json" in refused(folder)
    (folder / "preprocessor_config.json").write_bytes(processor)
    lacking = {name: tensor for name, tensor in weights.items() if not name.startswith("class_predictor")}
    save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    assert "weights lack class_predictor.bias" in refused(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin, a pickle" in refused(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    assert "model.safetensors is a pickle by another name" in refused(folder)


def test_a_semantic_network_is_refused(saved_segmenters: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(saved_segmenters / "eomt", tmp_path / "semantic"))
    file = place / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_split_image": True}))
    assert "give an instance model" in refused(place)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMine = None\n")
    roles = {"config.json": "AutoModelForUniversalSegmentation", "preprocessor_config.json": "AutoImageProcessor"}
    for name, role in roles.items():
        content = json.loads((folder / name).read_text()) | {"auto_map": {role: "mine.Mine"}}
        (folder / name).write_text(json.dumps(content))
    assert isinstance(load_segmenter(folder).model, Mask2FormerForUniversalSegmentation)
    assert not (tmp_path / "ran").exists()


def test_scipy_is_required(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tave.reference.segmenter.find_spec", lambda _: None)
    assert "pip install scipy" in refused(folder)


def test_the_doctor_tries_it(folder: Path) -> None:
    (fine,) = examined(str(folder))
    assert fine.good and "2 classes" in fine.text
    (folder / "config.json").unlink()
    (broken,) = examined(str(folder))
    assert broken.good is False and not broken.needed and "lacks config.json" in broken.text and broken.remedy
