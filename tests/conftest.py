"""Small saved models and a small data set, all in the formats that users have.

Nothing here may need a network: weights are drawn at random, once, and saved as open_clip and
transformers save theirs.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported, which reads it once
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch is imported

import pytest

CLIP_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLIP_PIXELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
CLAP_AUDIO: dict[str, Any] = {
    "num_mel_bins": 32,
    "spec_size": 64,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
}
CLAP_FEATURES = {
    "feature_size": 32,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "max_length_s": 1,
    "fft_window_size": 512,
    "frequency_min": 40,
    "frequency_max": 7_000,
}
WORLD_ROWS = 24
WORLD_CLASSES = ("red", "green", "blue", "yellow", "purple", "grey")
_COLOURS = ((200, 30, 30), (30, 180, 40), (40, 60, 210), (220, 210, 50), (150, 40, 160), (120, 120, 120))


# Files that take long, the longest first: begun last, one of them would keep one process busy and the others idle.
LONG = (
    "failures",
    "distributed_run",
    "quality",
    "processes",
    "interrupts",
    "run",
    "soundingearth_run",
    "kill",
    "docs",
    "pack",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long first; `--no-loadscope-reorder` keeps it there."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the tests, and the processes that they start, out of the user's cache."""
    os.environ["GEOBIND_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], Callable[..., subprocess.CompletedProcess[str]]]:
    """Returns what calls the command line in a folder, in this process, as a process of its own would answer."""
    from geobind_core.cli import main

    def in_folder(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        monkeypatch.chdir(folder)

        def geobind(*arguments: str) -> subprocess.CompletedProcess[str]:
            monkeypatch.setattr(sys, "argv", ["geobind", *arguments])
            with pytest.raises(SystemExit) as caught:
                main()
            written = capsys.readouterr()
            return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), written.out, written.err)

        return geobind

    return in_folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running browser, see `tests/browser.py`; without one on this machine, tests that ask for it are skipped."""
    from tests.browser import NAMES, browser_path, started

    if browser_path() is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread: networks as small as these wait for threads longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def clip_architecture() -> dict[str, Any]:
    """An open_clip model configuration of a CLIP with 24 dimensions that sees 32 x 32 pixels."""
    return json.loads(json.dumps(CLIP_ARCHITECTURE))


@pytest.fixture(scope="session")
def clip_model() -> Any:
    """That CLIP, with random weights, in evaluation mode."""
    import open_clip
    import torch

    torch.manual_seed(11)
    return open_clip.CLIP(**CLIP_ARCHITECTURE).eval()


@pytest.fixture(scope="session")
def clip_folder(clip_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That CLIP as open_clip's push_to_hf_hub writes it, with its own pixel statistics."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    description = {"model_cfg": CLIP_ARCHITECTURE, "preprocess_cfg": CLIP_PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    save_file(clip_model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def _save_clap(folder: Path, *, fused: bool) -> Path:
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(12)
    text = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {**CLAP_AUDIO, **({"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {})}
    config = ClapConfig(text_config={**text, "intermediate_size": 16}, audio_config=audio, projection_dim=20)
    ClapModel(config).save_pretrained(folder)
    truncation = "fusion" if fused else "rand_trunc"
    ClapFeatureExtractor(**CLAP_FEATURES, truncation=truncation).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole ClapModel (text half included) and its feature extractor: 20 dimensions, 16 kHz, 1 s."""
    return _save_clap(tmp_path_factory.mktemp("clap"), fused=False)


@pytest.fixture(scope="session")
def fused_clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with feature fusion, as laion/clap-htsat-fused."""
    return _save_clap(tmp_path_factory.mktemp("clap_fused"), fused=True)


@dataclass(frozen=True)
class World:
    """A data set in a folder: `table.csv`, and the files it names.

    Attributes:
        folder: Has `table.csv`, `images/*.jpg` and `sounds/*.flac`.
        rows: The rows as written: key, satellite, ground_image, audio, text, label, split.
    """

    folder: Path
    rows: list[dict[str, str]]

    @property
    def table(self) -> Path:
        return self.folder / "table.csv"


def _write_world(folder: Path) -> World:
    import numpy as np
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(5)
    (folder / "images").mkdir()
    (folder / "sounds").mkdir()
    rows = []
    for i in range(WORLD_ROWS):
        kind = i % len(WORLD_CLASSES)
        row = {"key": f"{i:03d}", "text": f"a {WORLD_CLASSES[kind]} place, number {i}", "label": WORLD_CLASSES[kind]}
        row["split"] = "test" if i >= WORLD_ROWS - 4 else "train"
        for modality, (height, width) in {"satellite": (40, 40), "ground_image": (36, 48)}.items():
            pixels = np.array(_COLOURS[kind]) + rng.normal(0, 25, (height, width, 3))
            row[modality] = f"images/{modality}_{i}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / row[modality], quality=90)
        seconds = np.arange(int(16_000 * (0.4 + 0.05 * i))) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * 300 * (kind + 1) * seconds) + rng.normal(0, 0.02, len(seconds))
        row["audio"] = f"sounds/{i}.flac"
        soundfile.write(folder / row["audio"], tone.astype(np.float32), 16_000)
        rows.append(row)
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return World(folder, rows)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """24 places of 6 kinds, each with two JPEGs, a FLAC and a caption; 4 are held out. Not to be changed."""
    return _write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """A copy of `world` for a test to break."""
    import shutil

    folder = tmp_path / "world"
    shutil.copytree(world.folder, folder)
    return World(folder, [dict(row) for row in world.rows])
