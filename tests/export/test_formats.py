"""Every format: the other library reproduces the embeddings, and a re-import is the same to the bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from geobind_plugin_imagery import open_clip_export
from geobind_plugin_imagery.open_clip_export import OpenClipExporter
from geobind_plugin_location.location import Location
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from geobind_core import ExportError, ExportPart, Space, Written
from geobind_core.errors import SpaceError
from geobind_core.export import onnx as onnx_export
from geobind_core.export.write import export_space
from geobind_core.space.exported import REST, read_back

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 24
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
WORDS = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
TEXTS = [
    "waves on a beach",
    "A Road!",
    "a village between fields of wheat, with a forest behind it, in the morning sun",
]


def clip(vision: dict[str, Any] | None = None, words: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    architecture = {
        "embed_dim": DIM,
        "vision_cfg": {**VISION, **(vision or {})},
        "text_cfg": {**WORDS, **(words or {})},
    }
    return {"model": {**architecture, **more}}


def pictures(size: int = 32) -> list[Image.Image]:
    """Of the very size that the towers see, so that nobody resizes."""
    rng, colours = np.random.default_rng(3), ((250, 30, 20), (20, 200, 90), (40, 60, 240))
    noise = [rng.integers(-60, 60, (size, size, 3)) * np.linspace(0, 2, size)[:, None] for _ in colours]
    return [
        Image.fromarray((c + n).clip(0, 255).astype(np.uint8)) for c, n in zip(np.array(colours), noise, strict=True)
    ]


def sounds(seconds: float = 1.0, rate: int = 16_000) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(4)
    time = np.arange(round(seconds * rate)) / rate
    return [
        (0.3 * np.sin(2 * np.pi * f * time) + rng.normal(0, 0.02, len(time))).astype(np.float32) for f in (300, 900)
    ]


def items_of(name: str) -> list[Any]:
    if name == "text":
        return TEXTS
    if name == "audio":
        return [(samples, 16_000) for samples in sounds(0.7)]
    return [(8.5, 47.3), (-179.9, -89.5), (0, 0)] if name == "location" else pictures()


def assert_reimported(space: Space, folder: Path, names: list[str]) -> None:
    again = Space.load(folder)
    again.verify()
    assert list(again.modalities) == names
    for name in names:
        assert again.record.modalities[name] == space.record.modalities[name]
        items = items_of(name)
        found, expected = again.embed(name, items), space.embed(name, items)
        assert torch.equal(found, expected), name
        assert (expected[0] - expected[1]).abs().max() > 1e-3, "the examples must be told apart"


# ---------------------------------------------------------------------- other libraries, in a process of their own

PAGES = Path(__file__).parents[2] / "docs/pages"
ELSEWHERE = """
import json, sys
import numpy as np

found = {}
for library, snippet in json.loads(sys.argv[1]).items():
    names = {}
    exec(compile(snippet, library, "exec"), names)
    found |= {f"{library} {name}": names[name] for name in ("tiles", "texts", "sounds", "places") if name in names}
    if library == "open_clip":
        found["open_clip scale"] = names["model"].logit_scale.exp().detach()
assert not [name for name in sys.modules if name.startswith("geobind")], "GeoBind was imported"
np.savez("found.npz", **found)
"""


def snippets(page: str) -> dict[str, str]:
    """Returns the blocks of Python of a page, by their titles."""
    return dict(
        re.findall(r'```python title="([^"]+)"\n(.*?)```', (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)
    )


def test_other_libraries_without_geobind(save_space: Any, tmp_path: Path) -> None:
    """The code of the page, in a process of its own: from the files alone, with the libraries' own preprocessing."""
    audio = {"model": "geobind-tiny", "sample_rate": 16_000, "seconds": 1}
    space = save_space(128, satellite=clip(), text=clip(), audio=audio, location={"width": 32, "embed_dim": 128})
    exports = tmp_path / "exports"
    for to in ("open_clip", "transformers", "clap", "safetensors"):
        export_space(space, to, exports / {"safetensors": "location"}.get(to, to))
    pictures()[0].save(tmp_path / "tile.png")
    soundfile.write(tmp_path / "surf.wav", sounds(0.7)[0], 16_000, subtype="FLOAT")
    written = snippets("export.md")
    assert list(written) == ["open_clip", "transformers", "clap", "location", "onnx"]
    del written["onnx"]  # below
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(written)]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    expected = {
        "tiles": space.embed("satellite", [tmp_path / "tile.png"]),
        "texts": space.embed("text", ["waves on a beach", "a busy road"]),
        "sounds": space.embed("audio", [tmp_path / "surf.wav"]),
        "places": space.embed("location", [(8.54, 47.37), (-70.25, -33.4)]),
    }
    compared = [key for key in found.files if key != "open_clip scale"]
    assert len(compared) == 6
    for key in compared:
        own = expected[key.split()[1]].numpy()
        assert found[key].shape == own.shape, key
        assert np.abs(found[key] - own).max() < 1e-4, key
    assert found["open_clip scale"] == pytest.approx(100)


def test_the_exporter_of_the_page_for_plugins(tmp_path: Path) -> None:
    page = (PAGES / "write-a-plugin.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(from geobind_core import Exporter.*?)```", page, re.DOTALL)[0], names)
    exporter = names["PlainWeather"]()
    network, projection = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6)), torch.randn(3, 6)
    part = ExportPart("weather", Location(Location.Config()), network, projection, 3, "")
    written = exporter.write([part], tmp_path, logit_scale=None)
    stored = read_back(tmp_path, written.tensors["weather"])
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        name: tensor.tolist() for name, tensor in network.state_dict().items()
    }
    samples = list(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
    with torch.no_grad():
        expected = network(torch.tensor(np.stack(samples))) @ projection.T
    torch.testing.assert_close(exporter.embed(tmp_path, part, samples), expected)


# ---------------------------------------------------------------------- CLIP


@pytest.mark.parametrize(
    ("settings", "dim"),
    [
        (clip(), DIM),
        (clip(), 40),
        (clip(vision=RESNET), 40),
        (clip(quick_gelu=True), DIM),
        (clip(custom_text=True), 16),
        (clip(vision={"pool_type": "avg", "final_ln_after_pool": True, "ls_init_value": 0.1}), 16),
        (clip(words={"proj_bias": True}), 40),
    ],
    ids=["ViT", "ViT wider", "ResNet wider", "quick_gelu", "custom_text narrower", "average narrower", "bias wider"],
)
def test_open_clip(save_space: Any, tmp_path: Path, settings: dict[str, Any], dim: int) -> None:
    space = save_space(dim, satellite=settings, text=settings)
    written = export_space(space, "open_clip", tmp_path / "out")
    assert set(written.measured) == {"satellite", "text"}
    assert all(m.largest_difference < 1e-5 and m.examples >= 3 for m in written.measured.values())
    assert {"open_clip_config.json", "open_clip_model.safetensors", "geobind.json"} <= set(written.files)
    assert_reimported(space, tmp_path / "out", ["satellite", "text"])
    kept = set(load_file(tmp_path / "out" / REST)) - {"satellite.encoder.mean", "satellite.encoder.std"}
    assert bool(kept) is (dim != DIM), "only what open_clip's file does not have"


@pytest.mark.parametrize(
    ("settings", "words", "dim"),
    [
        (clip(), clip(), DIM),
        (clip(quick_gelu=True), clip(custom_text=True), 16),
        (clip(vision={"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.0, "pos_embed_type": "sin_cos_2d"}), clip(), 40),
    ],
    ids=["ViT", "two activations, narrower", "epsilon, wider"],
)
def test_transformers(save_space: Any, tmp_path: Path, settings: Any, words: Any, dim: int) -> None:
    space = save_space(dim, satellite=settings, text=words)
    written = export_space(space, "transformers", tmp_path / "out")
    assert all(m.largest_difference < 1e-5 for m in written.measured.values())
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= set(written.files)
    assert "CLIPModel.from_pretrained" in written.load
    assert_reimported(space, tmp_path / "out", ["satellite", "text"])


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_bands_and_scale_are_said(save_space: Any, tmp_path: Path, library: str) -> None:
    space = save_space(DIM, satellite={**clip(), "bands": [3, 2, 1], "scale": [0, 200]}, text=clip())
    notes = export_space(space, library, tmp_path / "out").notes
    assert any("'satellite' has `bands: [3, 2, 1]` and `scale: [[0.0, 200.0]]`" in note for note in notes)


def test_one_tower_for_transformers(save_space: Any, tmp_path: Path) -> None:
    """Without a text that CLIPModel knows, or of the text alone."""
    unknown = clip(words={"no_causal_mask": True})
    space = save_space(DIM, satellite=clip(), text=unknown)
    written = export_space(space, "transformers", tmp_path / "image")
    assert list(written.measured) == ["satellite"]
    assert "CLIPVisionModelWithProjection" in written.load
    assert_reimported(space, tmp_path / "image", ["satellite"])
    with pytest.raises(ExportError, match=r"'text' cannot be a CLIP of transformers.*no_causal_mask: True"):
        export_space(space, "transformers", tmp_path / "text", modalities=["satellite", "text"])
    space = save_space(DIM, text=clip())
    written = export_space(space, "transformers", tmp_path / "text")
    assert "CLIPTextModelWithProjection" in written.load
    assert_reimported(space, tmp_path / "text", ["text"])


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        (RESNET, r"a ResNet \(layers: \[1, 1, 1, 1\]\)"),
        ({"ls_init_value": 0.1}, "ls_init_value: 0.1"),
        ({"no_ln_pre": True, "pool_type": "avg"}, "no_ln_pre: True, pool_type: avg"),
        ({"qk_norm": True}, "qk_norm: True"),
        ({"attentional_pool": True, "attn_pooler_queries": 4}, "attentional_pool: True"),
        ({"image_size": [32, 48]}, r"image_size: \[32, 48\]"),
    ],
)
def test_what_transformers_does_not_know(save_space: Any, tmp_path: Path, vision: Any, said: str) -> None:
    space = save_space(DIM, satellite=clip(vision=vision))
    with pytest.raises(ExportError, match=f"'satellite' cannot be a CLIP of transformers, which does not know {said}"):
        export_space(space, "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_towers_of_two_models_in_one_folder_for_open_clip(save_space: Any, tmp_path: Path) -> None:
    """A satellite tower that comes without a text tower of its own is paired with the space's."""
    space = save_space(DIM, satellite=clip(vision=RESNET, embed_dim=32), text=clip(quick_gelu=True, custom_text=True))
    written = export_space(space, "open_clip", tmp_path / "out")
    assert "the image tower is 'satellite', the text tower 'text'" in written.notes
    assert_reimported(space, tmp_path / "out", ["satellite", "text"])


def test_towers_that_open_clip_cannot_put_together(save_space: Any, tmp_path: Path) -> None:
    space = save_space(DIM, satellite=clip(quick_gelu=True), text=clip())
    with pytest.raises(ExportError, match="one has QuickGELU and the other GELU"):
        export_space(space, "open_clip", tmp_path / "out")
    space = save_space(DIM, satellite=clip())
    with pytest.raises(ExportError, match="there is no text tower to go with 'satellite'"):
        export_space(space, "open_clip", tmp_path / "out")
    space = save_space(DIM, satellite=clip(), text=clip(), words={**clip(), "plugin": "text"})
    with pytest.raises(ExportError, match="several text modalities: text, words"):
        export_space(space, "open_clip", tmp_path / "out")
    written = export_space(space, "open_clip", tmp_path / "out", modalities=["words", "satellite"])
    assert list(written.measured) == ["satellite", "words"]


# ---------------------------------------------------------------------- CLAP


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize(("dim", "seconds"), [(20, 1), (32, 0.75)], ids=["as it is", "wider, part of a second"])
def test_clap(
    save_space: Any, tmp_path: Path, clap_folder: Path, fused_clap_folder: Path, fused: bool, dim: int, seconds: float
) -> None:
    pretrained = str(fused_clap_folder if fused else clap_folder)
    space = save_space(dim, audio={"pretrained": pretrained, "sample_rate": 16_000, "seconds": seconds})
    written = export_space(space, "clap", tmp_path / "out")
    assert written.measured["audio"].largest_difference < 1e-4
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= set(written.files)
    assert any("max_length=12000" in note for note in written.notes) is (seconds == 0.75)
    assert_reimported(space, tmp_path / "out", ["audio"])


def test_what_clap_cannot_be(save_space: Any, tmp_path: Path, clap_folder: Path) -> None:
    settings = {"pretrained": str(clap_folder), "sample_rate": 16_000, "seconds": 1}
    with pytest.raises(ExportError, match=r"'audio' has 20 dimensions and the space 12.*cannot narrow"):
        export_space(save_space(12, audio=settings), "clap", tmp_path / "out")
    features = {"fft_window": 512, "hop_length": 160, "min_hz": 40, "max_hz": 7_000, "mel_scale": "htk"}
    with pytest.raises(ExportError, match=r"slaney filters for a model without fusion.*mel_scale: htk"):
        export_space(save_space(20, audio={**settings, "features": features}), "clap", tmp_path / "out")


# ---------------------------------------------------------------------- location


@pytest.mark.parametrize("dim", [48, 20], ids=["as it is", "projected"])
@pytest.mark.parametrize(
    "settings",
    [
        {"legendre_polys": 7, "width": 16},
        {"encoder": "random_fourier", "width": 16, "frequencies": 8, "depth": 2},
        {"encoder": "random_fourier", "width": 16, "sigmas": [2.0], "dropout": 0.5},
    ],
    ids=["harmonics", "Fourier", "one scale"],
)
def test_location(save_space: Any, tmp_path: Path, settings: dict[str, Any], dim: int) -> None:
    space = save_space(dim, location={**settings, "embed_dim": 48})
    written = export_space(space, "safetensors", tmp_path / "out")
    assert written.measured["location"].largest_difference < 1e-5
    assert_reimported(space, tmp_path / "out", ["location"])
    assert (tmp_path / "out" / REST).exists() is (dim == 20), "but for a projection, all is in the one file"


def test_published_location_encoders(save_space: Any, tmp_path: Path) -> None:
    """SatCLIP's and GeoCLIP's sizes, at places where a mistake in either shows: poles, antimeridian, equator."""
    places = [(179.999, 12.0), (-180.0, 12.0), (10.0, 90.0), (33.0, -89.99), (0.0, 0.0), (-70.3, -33.4)]
    for number, settings in enumerate(({}, {"encoder": "random_fourier"})):
        space = save_space(64, location=settings)
        export_space(space, "safetensors", tmp_path / f"{number}")
        sys.path.insert(0, str(tmp_path / f"{number}"))
        try:
            import location_encoder
        finally:
            sys.path.pop(0)
        found = location_encoder.load(tmp_path / f"{number}")(torch.tensor(places))
        # As float32, as a batch has them; a place on the antimeridian and a pole have one pair of numbers.
        assert (found - space.embed("location", places)).abs().max() < 1e-4


# ---------------------------------------------------------------------- ONNX


@pytest.mark.parametrize(
    ("name", "settings", "dim"),
    [
        ("satellite", clip(), DIM),
        pytest.param("satellite", clip(vision=RESNET), 16, marks=pytest.mark.slow),
        pytest.param("text", clip(), DIM, marks=pytest.mark.slow),
        pytest.param("location", {"legendre_polys": 5, "width": 16, "embed_dim": 8}, 8, marks=pytest.mark.slow),
        pytest.param("environment", {"variables": ["elevation", "rain"]}, 16, marks=pytest.mark.slow),
    ],
    ids=["ViT", "ResNet projected", "text", "location", "environment"],
)
def test_onnx(save_space: Any, tmp_path: Path, name: str, settings: dict[str, Any], dim: int) -> None:
    space = save_space(dim, **{name: settings})
    written = export_space(space, "onnx", tmp_path / "out")
    assert written.measured[name].largest_difference < 1e-4
    model = onnx.load(tmp_path / "out" / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] == onnx_export.OPSET
    assert {"geobind.modality", "geobind.input", "geobind.embed_dim"} <= {p.key for p in model.metadata_props}
    # A batch of a size that nobody has tried yet.
    modality, rng = space.modality(name), np.random.default_rng(9)
    cells = [cell for _ in range(3) for cell in modality.example_cells(rng)]
    batch = modality.collate([modality.transform(modality.read(cell), train=False, rng=rng) for cell in cells])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / f"{name}.onnx"))
    found = session.run(["embeddings"], {"input": batch.contiguous().numpy()})[0]
    assert np.abs(found - space.embed(name, cells).numpy()).max() < 1e-4
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    if name == "satellite":  # as the page has it
        pictures()[0].save(tmp_path / "tile.png")
        names: dict[str, Any] = {}
        code = snippets("export.md")["onnx"].replace("exports/onnx", str(tmp_path / "out"))
        exec(code.replace("tile.png", str(tmp_path / "tile.png")), names)
        assert np.abs(names["tiles"] - space.embed(name, [tmp_path / "tile.png"]).numpy()).max() < 1e-4
    with pytest.raises(SpaceError, match="an export to onnx cannot be loaded as a space"):
        Space.load(tmp_path / "out")


@pytest.mark.slow
def test_what_onnx_cannot_be(save_space: Any, tmp_path: Path, clap_folder: Path) -> None:
    space = save_space(20, audio={"pretrained": str(clap_folder), "sample_rate": 16_000, "seconds": 1})
    with pytest.raises(ExportError, match="network of 'audio' cannot be expressed in ONNX") as raised:
        export_space(space, "onnx", tmp_path / "out")
    assert "clap, hub" in raised.value.hint
    assert not list(tmp_path.iterdir())


def test_without_the_extra(save_space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ExportError, match="the format onnx needs onnxscript") as raised:
        export_space(save_space(DIM, satellite=clip()), "onnx", tmp_path / "out")
    assert "geobind[onnx]" in raised.value.hint
    assert sys.executable in raised.value.hint


# ---------------------------------------------------------------------- what is written is compared


class Careless(OpenClipExporter):
    """Writes weights that are a little off."""

    def write(self, parts: Any, folder: Path, *, logit_scale: float | None) -> Written:
        written = super().write(parts, folder, logit_scale=logit_scale)
        state = load_file(folder / open_clip_export.WEIGHTS)
        state["visual.conv1.weight"] = state["visual.conv1.weight"] * 1.01
        save_file(state, folder / open_clip_export.WEIGHTS)
        return written


class Broken(OpenClipExporter):
    def embed(self, folder: Path, part: ExportPart, samples: Any) -> torch.Tensor:
        return super().embed(folder / "elsewhere", part, samples)


@pytest.mark.parametrize(
    ("exporter", "said"),
    [(Careless, "'satellite' differ by up to 0.0.* at most 0.0001"), (Broken, "open_clip cannot use")],
)
def test_what_differs_is_not_kept(
    save_space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: type[OpenClipExporter], said: str
) -> None:
    space = save_space(DIM, satellite=clip(), text=clip())
    export_space(space, "open_clip", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(type(space.modality("satellite")), "exports", lambda self: {"open_clip": exporter()})
    with pytest.raises(ExportError, match=said):
        export_space(space, "open_clip", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before, "the earlier one stays"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_export_is_noticed(save_space: Any, tmp_path: Path) -> None:
    space = save_space(DIM, satellite=clip(), text=clip())
    export_space(space, "transformers", tmp_path / "out")
    weights, record = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "geobind.json"
    good, described = weights.read_bytes(), record.read_text()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(SpaceError, match=r"the weights of '(satellite|text)' have hash"):
        Space.load(tmp_path / "out").verify()
    weights.write_bytes(good[:1000])
    with pytest.raises(SpaceError, match="the weights are damaged"):
        Space.load(tmp_path / "out").embed("satellite", pictures())
    weights.unlink()
    with pytest.raises(SpaceError, match="the weights are missing"):
        Space.load(tmp_path / "out").embed("text", TEXTS)
    for change, said in (
        ('"model.safetensors"', "expected one in this folder"),
        ('"format": 1', "the export has format 7"),
        ('"content_hash"', "the file is damaged"),
    ):
        record.write_text(described.replace(change, {"m": '"../x"', "f": '"format": 7', "c": '"hash"'}[change[1]]))
        with pytest.raises(SpaceError, match=said):
            Space.load(tmp_path / "out").verify()
