"""The image and text towers against open_clip itself, and images as users have them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from geobind_plugin_imagery.config import ClipConfig, ImageConfig
from geobind_plugin_imagery.images import GroundImage, Image, Satellite
from geobind_plugin_imagery.text import Text
from geobind_plugin_imagery.towers import resolve
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import save_file

from geobind_core import Augmentation, DataError, WeightsError
from geobind_core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = ["waves on a beach", "a forest", "a very long caption " * 20]
OPENAI_PIXELS = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def some_pixels(count: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()


def normalised(pixels: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def assert_equal_to(model: Any, image: ImageConfig, text: ClipConfig, mean: Any, std: Any) -> None:
    """Compares both towers with open_clip's own model of the same weights."""
    size = model.visual.image_size
    pixels = some_pixels(size=size[0] if isinstance(size, tuple) else size)
    found = Satellite(image).build_encoder().eval()(pixels)
    torch.testing.assert_close(found, model.encode_image(normalised(pixels, mean, std)), atol=1e-4, rtol=0)
    modality = Text(text)
    tokens = modality.collate(CAPTIONS)
    assert tokens.equal(open_clip.SimpleTokenizer(context_length=tokens.shape[1])(CAPTIONS))
    torch.testing.assert_close(modality.build_encoder().eval()(tokens), model.encode_text(tokens), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_in_a_file(clip_model: Any, clip_architecture: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(clip_model.state_dict(), path)
    else:
        # A training checkpoint of open_clip: the state under a key, `module.` in front of every name.
        state = {f"module.{name}": tensor for name, tensor in clip_model.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state} if suffix == ".pt" else clip_model.state_dict(), path)
    image, text = (C(model=clip_architecture, pretrained=str(path)) for C in (ImageConfig, ClipConfig))
    assert_equal_to(clip_model, image, text, *OPENAI_PIXELS)


def test_weights_in_a_folder(clip_model: Any, clip_folder: Path) -> None:
    described = json.loads((clip_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert tuple(described["mean"]) != open_clip.OPENAI_DATASET_MEAN
    image, text = (C(pretrained=str(clip_folder)) for C in (ImageConfig, ClipConfig))
    assert_equal_to(clip_model, image, text, described["mean"], described["std"])


def test_a_model_of_custom_text(tmp_path: Path, clip_architecture: dict[str, Any]) -> None:
    torch.manual_seed(3)
    model = open_clip.CustomTextCLIP(**clip_architecture, init_logit_bias=-10).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    architecture = {**clip_architecture, "custom_text": True, "init_logit_bias": -10}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    image, text = (C(pretrained=str(tmp_path)) for C in (ImageConfig, ClipConfig))
    assert_equal_to(model, image, text, *OPENAI_PIXELS)
    names = list(Text(text).build_encoder().state_dict())
    assert not [n for n in names if "visual" in n or "logit" in n], "what text does not need is not kept"


def test_a_model_with_a_caption_decoder(tmp_path: Path, clip_architecture: dict[str, Any]) -> None:
    architecture = json.loads(json.dumps(clip_architecture))
    architecture["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    architecture["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    architecture["multimodal_cfg"] = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(3)
    model = open_clip.CoCa(**architecture).eval()
    path = tmp_path / "coca.pt"
    torch.save(model.state_dict(), path)
    with torch.no_grad():
        pixels = some_pixels()
        found = Satellite(ImageConfig(model=architecture, pretrained=str(path))).build_encoder().eval()(pixels)
        expected = model.encode_image(normalised(pixels, *OPENAI_PIXELS), normalize=False)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        text = Text(ClipConfig(model=architecture, pretrained=str(path)))
        tokens = text.collate(CAPTIONS)
        encoder = text.build_encoder().eval()
        torch.testing.assert_close(encoder(tokens), model.encode_text(tokens), atol=1e-4, rtol=0)
    assert not [name for name in encoder.state_dict() if "text_decoder" in name]


def test_both_image_modalities_and_only_the_name_differ(clip_folder: Path) -> None:
    config = ImageConfig(pretrained=str(clip_folder))
    satellite, ground = (M(config).build_encoder().state_dict() for M in (Satellite, GroundImage))
    assert all(torch.equal(ground[name], tensor) for name, tensor in satellite.items())
    assert (Satellite.name, GroundImage.name, Text.name) == ("satellite", "ground_image", "text")


def test_an_architecture_with_other_weights_is_refused(clip_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(clip_model.state_dict(), path)
    with pytest.raises(WeightsError, match="do not fit the network of 'satellite'") as raised:
        Satellite(ImageConfig(model="geobind-tiny", pretrained=str(path))).build_encoder()
    assert raised.value.place == str(path)


@pytest.mark.parametrize("damage", ["truncated", "text"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_weights(
    clip_model: Any, clip_architecture: dict[str, Any], tmp_path: Path, suffix: str, damage: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(clip_model.state_dict(), path)
    else:
        save_file(clip_model.state_dict(), path)
    path.write_bytes(
        path.read_bytes()[:-5000] if damage == "truncated" else b"version https://git-lfs.github.com/spec/v1"
    )
    with pytest.raises(WeightsError) as raised:
        Text(ClipConfig(model=clip_architecture, pretrained=str(path))).build_encoder()
    assert raised.value.place == str(path)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, clip_architecture: dict[str, Any]) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"weights": Harmful()}))
    with pytest.raises(WeightsError):
        Satellite(ImageConfig(model=clip_architecture, pretrained=str(path))).build_encoder()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_half_a_folder(clip_folder: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(clip_folder, folder)
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=missing.split(".")[0]) as raised:
        Satellite(ImageConfig(pretrained=str(folder))).build_encoder()
    assert raised.value.place == str(folder)


# ---------------------------------------------------------------------- names


def test_a_tag_that_is_not_there() -> None:
    with pytest.raises(WeightsError, match=r"'opnai' is neither a file or folder nor a tag of 'ViT-B-32'") as raised:
        Satellite(ImageConfig(model="ViT-B-32", pretrained="opnai")).build_encoder()
    assert "openai" in str(raised.value)
    assert "laion2b_s34b_b79k" in str(raised.value)


def test_a_tag_of_a_model_that_is_written_out(clip_architecture: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"nor a tag of a model that is written out\. Tags: none"):
        Satellite(ImageConfig(model=clip_architecture, pretrained="openai")).build_encoder()


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(WeightsError, match=r"open_clip knows no model 'ViT-B-23'. Did you mean .*ViT-B-32"):
        Satellite(ImageConfig(model="ViT-B-23")).build_encoder()


def test_a_model_that_is_written_out_badly(clip_architecture: dict[str, Any]) -> None:
    for modality in (Satellite(ImageConfig(model={"embed_dim": 3})), Text(ClipConfig(model={"embed_dim": 3}))):
        with pytest.raises(WeightsError, match="has no vision_cfg, text_cfg"):
            modality.build_encoder()
    misspelled = {**clip_architecture, "vision_cfg": {**clip_architecture["vision_cfg"], "widht": 3}}
    with pytest.raises(WeightsError, match=r"cannot build the network of 'satellite'.*widht"):
        Satellite(ImageConfig(model=misspelled)).build_encoder()


@pytest.mark.parametrize("tag", ["openai", "laion2b_s34b_b79k"])
def test_without_a_network_it_is_said_what_to_fetch(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = get_pretrained_cfg("ViT-B-32", tag)["hf_hub"].rstrip("/")
    for modality in (Satellite(ImageConfig(pretrained=tag)), Text(ClipConfig(pretrained=tag))):
        with pytest.raises(WeightsError, match=repository) as raised:
            modality.build_encoder()
        assert f"hf download {repository}" in raised.value.hint
        assert "HF_HUB_OFFLINE" in str(raised.value)
    with pytest.raises(WeightsError, match="someone/some-clip"):
        Satellite(ImageConfig(pretrained="hf-hub:someone/some-clip")).build_encoder()


def test_a_hub_that_does_not_answer_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError, match="the Hub does not answer"):
        Satellite(ImageConfig(pretrained="openai")).build_encoder()


def cached(cache: Path, repository: str, files: Path) -> None:
    """Lays files out as huggingface_hub keeps what it has fetched."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(files, folder / "snapshots" / ("0" * 40))


def test_a_repository_in_the_cache_needs_no_network(
    clip_model: Any, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "someone/some-clip", clip_folder)
    image, text = (C(pretrained="hf-hub:someone/some-clip") for C in (ImageConfig, ClipConfig))
    described = json.loads((clip_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert_equal_to(clip_model, image, text, described["mean"], described["std"])
    untrained = Satellite(ImageConfig(model="hf-hub:someone/some-clip")).build_encoder()
    assert untrained.embed_dim == clip_model.text_projection.shape[1]


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-B-32", "openai"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-32-quickgelu", "openai"),
        ("ViT-B-16-SigLIP", "webli"),
    ],
)
def test_quick_gelu_and_pixels_follow_the_tag(
    model: str, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    described = get_pretrained_cfg(model, tag)
    files = tmp_path / "files"
    files.mkdir()
    save_file({"nothing": torch.zeros(1)}, files / "open_clip_model.safetensors")
    cached(tmp_path, described["hf_hub"].rstrip("/"), files)
    found = resolve(ImageConfig(model=model, pretrained=tag))
    assert found.architecture["quick_gelu"] is bool(described.get("quick_gelu", False))
    assert (found.mean, found.std) == (tuple(described["mean"]), tuple(described["std"]))
    assert Path(str(found.weights)).read_bytes() == (files / "open_clip_model.safetensors").read_bytes()
    if tag == "openai":
        assert found.architecture["quick_gelu"] is True


def test_quick_gelu_is_built(clip_architecture: dict[str, Any]) -> None:
    for quick in (True, False):
        tower = Satellite(ImageConfig(model={**clip_architecture, "quick_gelu": quick})).build_encoder()
        assert any(type(m).__name__ == "QuickGELU" for m in tower.modules()) is quick


# ---------------------------------------------------------------------- rebuilding, starting from another


@pytest.mark.parametrize("size", [None, 48])
def test_saved_settings_rebuild_the_network_without_the_weights(
    clip_folder: Path, tmp_path: Path, size: int | None
) -> None:
    own = tmp_path / "clip"
    shutil.copytree(clip_folder, own)
    image = Satellite(ImageConfig(pretrained=str(own), image_size=size))
    text = Text(ClipConfig(pretrained=str(own)))
    pixels, tokens = some_pixels(size=size or 32), text.collate(CAPTIONS)
    for modality, batch in ((image, pixels), (text, tokens)):
        encoder = modality.build_encoder().eval()
        written = json.loads(json.dumps(modality.rebuild_config(encoder).model_dump(mode="json")))
        shutil.move(own, tmp_path / "gone")
        rebuilt = type(modality)(modality.Config.model_validate(written))
        again = rebuilt.build_encoder().eval()
        again.load_state_dict(encoder.state_dict())
        with torch.no_grad():
            assert torch.equal(again(batch), encoder(batch))
        if isinstance(rebuilt, Image):
            sample = rebuilt.read(np.zeros((50, 60, 3), np.uint8))
            assert rebuilt.transform(sample, train=False, rng=np.random.default_rng(0)).shape[-1] == (size or 32)
        shutil.move(tmp_path / "gone", own)


def test_initial_weights_are_random_without_pretrained(clip_architecture: dict[str, Any]) -> None:
    torch.manual_seed(0)
    one, two = (Satellite(ImageConfig(model=clip_architecture)).build_encoder().state_dict() for _ in range(2))
    assert not torch.equal(one["visual.conv1.weight"], two["visual.conv1.weight"])


def chain(folder: Path, pretrained: Path, satellite: dict[str, Any]) -> Any:
    """Reads a chain of two image modalities on a small table."""
    from geobind_core.chain.builtin import plugin_manager
    from geobind_core.chain.resolve import load_chain

    (folder / "stages.yaml").write_text(
        f"""
binding: satellite
modalities:
  ground_image: {{pretrained: {pretrained}}}
  satellite: {json.dumps(satellite)}
data:
  places: {{source: table, path: table.csv, fields: {{satellite: satellite, ground_image: ground_image}}}}
stages:
  - {{name: one, train: satellite, anchor: ground_image, data: places}}
"""
    )
    return load_chain(folder / "stages.yaml", plugin_manager())


def encoders_of(chain: Any) -> Any:
    from geobind_core.chain.datasets import DataSets
    from geobind_core.chain.encoders import Encoders
    from geobind_core.progress import Reporter

    return Encoders(chain, DataSets(chain, Reporter(quiet=True)))


def test_init_from_starts_with_the_others_weights(
    own_world: Any, clip_folder: Path, clip_architecture: dict[str, Any]
) -> None:
    same = {"model": clip_architecture, "init_from": "ground_image"}
    encoders = encoders_of(chain(own_world.folder, clip_folder, same))
    encoders.preflight(["ground_image", "satellite"], {"satellite"})
    ground, satellite = (encoders.get(name) for name in ("ground_image", "satellite"))
    assert ground is not satellite
    for name, tensor in ground.state_dict().items():
        found = satellite.state_dict()[name]
        assert torch.equal(found, tensor), name
        assert found.data_ptr() != tensor.data_ptr(), "copied, not shared"


@pytest.mark.parametrize("change", [{"image_size": 64}, {"model": "geobind-tiny"}])
def test_init_from_another_network_is_refused(
    own_world: Any, clip_folder: Path, clip_architecture: dict[str, Any], change: dict[str, Any]
) -> None:
    other = {"model": clip_architecture, "init_from": "ground_image", **change}
    encoders = encoders_of(chain(own_world.folder, clip_folder, other))
    with pytest.raises(WeightsError, match=r"'satellite' cannot start from 'ground_image'.*differ") as raised:
        encoders.preflight(["ground_image", "satellite"], {"satellite"})
    assert "same model" in raised.value.hint


# ---------------------------------------------------------------------- text and images


@pytest.fixture
def modality(clip_architecture: dict[str, Any]) -> Satellite:
    return Satellite(ImageConfig(model=clip_architecture))


def test_batches_are_in_order_whatever_the_memory_is(modality: Satellite) -> None:
    samples = [modality.read(np.full((40, 50, 3), i, np.uint8)) for i in range(3)] + [some_pixels(1)[0]]
    batch = modality.collate([modality.transform(s, train=False, rng=np.random.default_rng(0)) for s in samples])
    assert (batch.shape, batch.dtype) == ((4, 3, 32, 32), torch.uint8)
    assert batch[:3, 0, 0, 0].tolist() == [0, 1, 2]
    assert torch.equal(batch[3], some_pixels(1)[0])
    tower = modality.build_encoder().eval()
    with torch.no_grad():
        assert torch.equal(tower(batch), tower(batch.contiguous()))


def test_texts(clip_architecture: dict[str, Any]) -> None:
    text = Text(ClipConfig(model=clip_architecture))
    assert text.read("sea") == "sea"
    assert not text.reads_files
    with pytest.raises(DataError, match="blank"):
        text.read(" \n")
    with pytest.raises(DataError, match="expected a string, found int"):
        text.read(3)
    tokens = text.collate(["sea", "a forest " * 100])
    assert tokens.shape == (2, 16)


# ---------------------------------------------------------------------- augmentations

AUGMENTATIONS = ["randaugment(3)", "randaugment(2, 15)", "flips", "dihedral", "random_resized_crop(0.4)"]


@pytest.mark.parametrize("text", AUGMENTATIONS)
def test_augmentations(modality: Satellite, text: str) -> None:
    augmented = modality.with_augment([Augmentation.parse(text)])
    sample = some_pixels(1, size=40)[0]
    before = sample.clone()
    plain = modality.transform(sample, train=False, rng=np.random.default_rng(0))

    def draw(seed: int, *, train: bool = True) -> torch.Tensor:
        found = augmented.transform(sample, train=train, rng=np.random.default_rng(seed))
        assert (found.shape, found.dtype) == ((3, 32, 32), torch.uint8)
        return found

    global_state = torch.get_rng_state()
    found = [draw(seed) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), global_state)
    assert all(torch.equal(draw(seed), found[seed]) for seed in range(12)), "the same generator, the same sample"
    assert any(not torch.equal(f, plain) for f in found)
    assert any(not torch.equal(f, found[0]) for f in found)
    assert torch.equal(draw(0, train=False), plain), "off when it does not train"
    assert torch.equal(sample, before), "a decoded sample is shared between epochs"


def test_dihedral_turns_and_mirrors_and_loses_nothing(modality: Satellite) -> None:
    augmented = modality.with_augment([Augmentation("dihedral")])
    sample = some_pixels(1)[0]
    eight = [f for k in range(4) for t in [torch.rot90(sample, k, (-2, -1))] for f in (t, t.flip(-1))]
    seen = set()
    for seed in range(80):
        found = augmented.transform(sample, train=True, rng=np.random.default_rng(seed))
        (which,) = [i for i, image in enumerate(eight) if torch.equal(image, found)]
        seen.add(which)
    assert seen == set(range(8))


def test_an_augmentation_that_is_not_there(modality: Satellite) -> None:
    with pytest.raises(ConfigError, match=r"no augmentation 'flip' for 'satellite'.*flips"):
        modality.with_augment([Augmentation("flip")])


def test_modalities_travel_to_workers(clip_folder: Path) -> None:
    image = Satellite(ImageConfig(pretrained=str(clip_folder))).with_augment([Augmentation("randaugment", (3.0,))])
    sample = some_pixels(1, size=40)[0]
    expected = image.transform(sample, train=True, rng=np.random.default_rng(1))
    sent = pickle.loads(pickle.dumps(image))
    assert torch.equal(sent.transform(sample, train=True, rng=np.random.default_rng(1)), expected)
    text = Text(ClipConfig(pretrained=str(clip_folder)))
    assert torch.equal(pickle.loads(pickle.dumps(text)).collate(CAPTIONS), text.collate(CAPTIONS))
