"""Weights are found on this disk or not at all, and are what they should be; optional encoders on tiny models."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model
from transformers.utils.logging import enable_progress_bar

from eval import EvalError, WeightsError
from eval.encoders import ALEXNET, Dino, Lpips, OpenClip, PickScore, Weights, load_encoder, load_folder, verify
from eval.regions import background_lpips
from tave.backbone.tiny import byte_tokenizer

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
    return load_folder(folder)


def test_numbers_are_those_of_open_clip_itself(encoder: OpenClip, folder: Path) -> None:
    import numpy as np
    import open_clip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")  # type: ignore[misc]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)  # type: ignore[operator,index]
    ours = encoder.images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    assert torch.allclose(ours, expected, atol=1e-5) and (encoder.size, encoder.fit) == (32, "stretch")
    captions = encoder.texts(["a red car", "a blue bus"])
    assert torch.allclose(captions.norm(dim=1), torch.ones(2)) and not torch.allclose(captions[0], captions[1])


def kept(cache: Path, repository: str, files: dict[str, bytes]) -> Path:
    """A snapshot as the hub's client keeps it: names that point to blobs named by their hash."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", "snapshots/abc"):
        (root / part).mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (root / "snapshots" / "abc" / name).symlink_to(blob)
    return root


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    kept(tmp_path, "here/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
    return tmp_path


def test_a_cached_hub_name_loads_and_is_named_with_its_hash(folder: Path, cache: Path) -> None:
    made, same = load_encoder("hf-hub:here/tiny", cache=cache), load_folder(folder)
    digest = hashlib.sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert made.id == f"here/tiny@{digest[:12]}" and same.id == f"{folder.name}@{digest[:12]}"
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(made.images(picture), same.images(picture))
    assert load_encoder(str(folder), digest).id == same.id


def test_damaged_weights_are_refused(folder: Path, cache: Path, tmp_path: Path) -> None:
    weights = max((cache / "models--here--tiny" / "blobs").iterdir(), key=lambda blob: blob.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(WeightsError, match="damaged or another file"):
        load_encoder("hf-hub:here/tiny", cache=cache)
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    save_file({"visual.proj": torch.zeros(2, 2)}, bad / "open_clip_model.safetensors")
    with pytest.raises(EvalError, match="bad isn't a model that open_clip can load"):
        load_folder(bad)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit-l-14", r"no weights of ViT-L-14 \(openai, "),
        ("ViT-B-32:laion2b_s34b_b79k", r"no weights of ViT-B-32"),
        ("ViT-B-32:nowhere.pt", "neither a file"),
        ("hf-hub:nobody/nothing", "not in the hub's local cache"),
        ("hf-hub:a/b/c", "no name of the hub"),
        ("my-clip", "no folder"),
    ],
)
def test_missing_weights_are_named_in_one_line(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(name, cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tag_is_found_in_the_hubs_cache_and_in_open_clips_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import factory, pretrained

    content = (folder / "open_clip_model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    config = {"hf_hub": "here/tagged/", "mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.1), "resize_mode": "squash"}
    url = f"https://host/mlfoundations/tiny-{digest[:8]}.safetensors"
    monkeypatch.setitem(factory._MODEL_CONFIGS, "Tiny-B-8", MODEL)
    monkeypatch.setitem(pretrained._PRETRAINED, "Tiny-B-8", {"one": config, "two": {"url": url}})
    monkeypatch.setenv("HOME", str(tmp_path))
    kept(tmp_path, "here/tagged", {"open_clip_model.safetensors": content})
    made, picture = load_encoder("tiny-b-8", cache=tmp_path), torch.rand(1, 3, 32, 32)
    assert made.id == f"Tiny-B-8:one@{digest[:12]}"
    assert torch.equal(made.images(picture), load_folder(folder).images(picture))
    own = tmp_path / ".cache" / "clip" / url.rpartition("/")[2]
    own.parent.mkdir(parents=True)
    own.write_bytes(content)
    assert load_encoder("tiny-b-8:two", cache=tmp_path).id == f"Tiny-B-8:two@{digest[:12]}"
    own.write_bytes(b"cut")
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder("tiny-b-8:two", cache=tmp_path)
    file = folder / "open_clip_model.safetensors"
    assert load_encoder(f"tiny-b-8:{file}").id == f"Tiny-B-8:{file.stem}@{digest[:12]}"
    with pytest.raises(WeightsError, match="not 0123"):
        load_encoder(f"tiny-b-8:{file}", "0123")


def test_the_conditioning_encoder_is_recognised(folder: Path, tmp_path: Path) -> None:
    encoder, key = load_folder(folder), "vision_model.embeddings.patch_embedding.weight"
    patches = encoder._model.visual.conv1.weight
    assert not encoder.conditions(tmp_path)
    save_file({key: patches.half()}, tmp_path / "model.safetensors")
    assert encoder.conditions(tmp_path)
    save_file({key: torch.randn_like(patches)}, tmp_path / "model.safetensors")
    assert not encoder.conditions(tmp_path)


def test_dino_is_the_class_token_of_transformers_own_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures = (torch.rand(2, 3, 28, 28) * 255).round() / 127.5 - 1
    with torch.no_grad():
        pixels = processor(images=[((p + 1) * 127.5).round().to(torch.uint8) for p in pictures], return_tensors="pt")
        expected = model(pixel_values=pixels["pixel_values"]).last_hidden_state[:, 0]
    enable_progress_bar()
    capfd.readouterr()
    dino = Dino(str(tmp_path))
    assert not capfd.readouterr().err  # "Loading weights: 100%"
    assert torch.allclose(dino.images(pictures), torch.nn.functional.normalize(expected, dim=1), atol=1e-5)
    assert dino.id == f"{tmp_path.name}@{verify(tmp_path / 'model.safetensors').sha256[:12]}"


def test_pickscore_is_the_models_own_logit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(("a", "red", "car"), 12)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = CLIPProcessor(pixels, tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures = (torch.rand(3, 3, 16, 16) * 255).round() / 127.5 - 1
    images = [((p + 1) * 127.5).round().to(torch.uint8) for p in pictures]
    asked = processor(images=images, text=["a red car"], return_tensors="pt")  # type: ignore[call-arg]
    with torch.no_grad():
        expected = model(**asked).logits_per_image.mean().item()
    scorer = PickScore(str(tmp_path))
    assert scorer.score(pictures, "a red car") == pytest.approx(expected, rel=1e-4)
    scorer.score(pictures, "a red car " * 40)  # longer than the model reads


@pytest.mark.parametrize(("make", "key"), [(Dino, "dino"), (PickScore, "pickscore")])
def test_missing_optional_weights_are_named(make: type, key: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{key}=some/model: neither a folder nor in .* nothing is downloaded"):
        make("some/model", tmp_path)
    with pytest.raises(WeightsError, match=r"the folder has none of model\.safetensors"):
        make(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match=f"{key}=.*transformers can't load it"):
        make(str(tmp_path))


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 1_000_000}, {"num_hidden_layers": 300}, {"hidden_size": 9**9}]
)
def test_a_dino_of_absurd_size_is_not_built(change: dict[str, int], tmp_path: Path) -> None:
    small = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(small).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=rf"dino={tmp_path}: {file}: {next(iter(change))}=") as caught:
        Dino(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_lpips_of_the_background(tmp_path: Path) -> None:
    """torchmetrics' own distance, pooled over the region; the trunk is torchvision's."""
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import alexnet

    with pytest.raises(WeightsError, match="no such weights"):
        Lpips(verify(tmp_path / ALEXNET))
    torch.manual_seed(0)
    trunk, file = alexnet(weights=None).features.eval(), tmp_path / "trunk.pth"
    torch.save({f"features.{name}": value for name, value in trunk.state_dict().items()}, file)
    lpips, whole = Lpips(Weights(file, "0" * 64)), _LPIPS(net="alex", pnet_rand=True, spatial=True).eval()
    layers = [layer for part in whole.net.children() for layer in part.children()]
    for layer, source in zip(layers, trunk, strict=False):
        layer.load_state_dict(source.state_dict())
    source, edited = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (1, 2))
    region = torch.zeros(2, 64, 64, dtype=torch.bool)
    region[:, :, :40] = True
    with torch.no_grad():
        expected = whole(torch.where(region[:, None], edited, source), source)[:, 0][region].mean().item()
    assert expected > 0 and background_lpips(edited, source, region, lpips) == pytest.approx(expected, rel=1e-4)
    assert background_lpips(torch.where(region[:, None], source, edited), source, region, lpips) == 0
    assert background_lpips(edited, source, ~region & region, lpips) is None
    assert background_lpips(edited[..., :32], source[..., :32], region[..., :32], lpips) is None
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="isn't torchvision's AlexNet"):
        Lpips(Weights(file, "0" * 64))
