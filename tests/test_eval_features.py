"""open_clip through its own folder form, on a tiny random model: unit vectors, the model's own numbers, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.features import FeatureError, OpenClip

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PICTURE = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from open_clip.model import CLIP

    found = tmp_path_factory.mktemp("judge")
    (found / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PICTURE}))
    torch.manual_seed(0)
    model = CLIP(**MODEL)  # type: ignore[arg-type]
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, found / "open_clip_model.safetensors")
    return found


@pytest.fixture(scope="module")
def encoder(folder: Path) -> OpenClip:
    return OpenClip(folder)


def test_pictures_and_captions_become_unit_vectors(encoder: OpenClip) -> None:
    pictures = torch.rand(3, 3, encoder.size, encoder.size) * 2 - 1
    found, said = encoder.images(pictures), encoder.texts(["a red car", "a blue bus"])
    assert encoder.size == 32 and found.shape == (3, 16) and said.shape == (2, 16)
    for vectors in (found, said):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert not vectors.requires_grad and vectors.dtype == torch.float32
    assert not torch.allclose(said[0], said[1])


def test_numbers_are_those_of_open_clip_itself(encoder: OpenClip, folder: Path) -> None:
    import numpy as np
    import open_clip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")  # type: ignore[misc]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)  # type: ignore[operator,index]
    ours = encoder.images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_batches_do_not_change_the_vectors(encoder: OpenClip) -> None:
    pictures = torch.rand(70, 3, 32, 32) * 2 - 1
    assert torch.allclose(encoder.images(pictures)[66:], encoder.images(pictures[66:]), atol=1e-5)


def test_refuses_folders_without_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"open_clip_config\.json"):
        OpenClip(tmp_path / "nowhere")
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(FeatureError, match=r"open_clip_model\.safetensors"):
        OpenClip(tmp_path)
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(FeatureError, match="isn't a model that open_clip can load"):
        OpenClip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"cut")
    with pytest.raises(FeatureError, match="isn't a model that open_clip can load"):
        OpenClip(tmp_path)
