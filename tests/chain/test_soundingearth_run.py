"""The paper's recipe on a SoundingEarth folder, with small weights in the libraries' own formats."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers import ClapAudioConfig, ClapAudioModelWithProjection

ROWS = 240
MISSING_IMAGE, TRUNCATED_IMAGE, MISSING_SOUND, TRUNCATED_SOUND, EMPTY_SOUND = 1003, 1010, 1016, 1021, 1034
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the published archives unpack, with five bad files, and a chain beside it."""
    root = tmp_path_factory.mktemp("paper")
    earth = root / "data" / "SoundingEarth"
    (earth / "images").mkdir(parents=True)
    (earth / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows, pairs = [], []
    for key in range(1000, 1000 + ROWS):
        colour = rng.integers(0, 256, 3)
        pixels = np.clip(colour + rng.integers(-20, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(earth / "images" / f"{key}.jpg")
        Image.fromarray(255 - pixels).save(earth / "images" / f"{key}_ground.jpg")
        tone = np.sin(2 * np.pi * (200 + 10 * colour[0]) * np.arange(16_000) / 16_000) * 0.3
        soundfile.write(earth / "audio" / f"{key}.mp3", tone.astype(np.float32), 16_000)
        rows.append(
            {"key": key, "long_key": f"aporee_{key}", "longitude": rng.uniform(-180, 180),
             "latitude": rng.uniform(-90, 90), "description": f"sound number {key}", "mp3name": f"{key}.mp3"}
        )  # fmt: skip
        pairs.append({"key": key, "satellite": f"images/{key}.jpg", "ground_image": f"images/{key}_ground.jpg"})
    (earth / "images" / f"{MISSING_IMAGE}.jpg").unlink()
    _truncate(earth / "images" / f"{TRUNCATED_IMAGE}.jpg")
    (earth / "audio" / f"{MISSING_SOUND}.mp3").unlink()
    (earth / "audio" / f"{TRUNCATED_SOUND}.mp3").write_bytes(b"ID3 this is no music")
    (earth / "audio" / f"{EMPTY_SOUND}.mp3").write_bytes(b"")
    _write_csv(earth / "metadata.csv", rows)
    _write_csv(earth / "pairs.csv", pairs)
    _save_weights(root / "weights")
    (root / "stages.yaml").write_text(yaml.safe_dump(_chain()), encoding="utf-8")
    return root


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _save_weights(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CLIP)
    save_file({k: v.contiguous().clone() for k, v in clip.state_dict().items()}, folder / "clip.safetensors")
    network = ClapAudioConfig(
        num_mel_bins=16, spec_size=32, patch_size=4, patch_stride=[4, 4], window_size=4, depths=[1, 1],
        num_attention_heads=[1, 2], patch_embeds_hidden_size=16, hidden_size=32, projection_dim=24,
    )  # fmt: skip
    ClapAudioModelWithProjection(network).save_pretrained(folder / "clap")


def _chain() -> dict[str, object]:
    """The example's chain, with the small weights, small batches and few epochs."""
    example = Path(__file__).parents[2] / "examples" / "geobind_paper" / "stages.yaml"
    chain = yaml.safe_load(example.read_text(encoding="utf-8"))
    for name in ("ground_image", "text"):
        chain["modalities"][name] = {"model": CLIP, "pretrained": "weights/clip.safetensors"}
    chain["modalities"]["satellite"] = {"model": CLIP, "init_from": "ground_image"}
    features = {"fft_window": 256, "hop_length": 160, "max_hz": 4000}
    chain["modalities"]["audio"] = {
        "pretrained": "weights/clap", "sample_rate": 8000, "seconds": 1, "features": features
    }  # fmt: skip
    chain["identical_files"] = "off"  # both data sets show the same places here
    chain["data"]["sat2cap"] |= {"path": "data/SoundingEarth/pairs.csv", "split": {"by": "hash", "test": 0.2}}
    for stage in chain["stages"]:
        stage |= {"batch_size": 32, "epochs": 2, "max_bad_samples": 0.05}
        stage.pop("micro_batch_size", None)
    chain["stages"][0]["micro_batch_size"] = 12
    chain["evaluate"] |= {"max_bad_samples": 0.05}
    return dict(chain)


def _geobind(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "geobind_core.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_the_paper_recipe_runs_on_a_damaged_folder(folder: Path) -> None:
    done = _geobind(folder, "run", "stages.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    run = folder / "run"

    satellite = json.loads((run / "stages/01-satellite/stage.json").read_text())
    assert _bad_keys(run / "stages/01-satellite/log.jsonl") <= {str(MISSING_IMAGE), str(TRUNCATED_IMAGE)}
    assert satellite["summary"]["bad_samples"]
    audio = json.loads((run / "stages/02-audio/stage.json").read_text())
    bad = [MISSING_IMAGE, TRUNCATED_IMAGE, MISSING_SOUND, TRUNCATED_SOUND, EMPTY_SOUND]
    in_training = {str(key) for key in bad if str(key)[-1] not in "725"}
    assert (
        _bad_keys(run / "stages/02-audio/log.jsonl")
        == in_training
        == {b.split()[0] for b in audio["summary"]["bad_samples"]}
    )

    space = json.loads((run / "space/space.json").read_text())
    assert set(space["modalities"]) == {"ground_image", "text", "satellite", "audio"}
    assert space["embed_dim"] == 32
    assert space["modalities"]["audio"]["projected"]  # 24 -> 32
    assert space["modalities"]["text"]["stage"] is None
    pairs = json.loads((run / "metrics.json").read_text())["pairs"]
    assert pairs["satellite_to_ground_image"]["trained_in"] == "satellite"
    assert pairs["audio_to_text"]["emergent"]
    assert pairs["satellite_to_audio"]["data"] == "soundingearth"


def _bad_keys(log: Path) -> set[str]:
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {record["key"] for record in records if record.get("event") == "bad_sample"}


@pytest.mark.slow
def test_too_many_bad_rows_stop_the_run_with_their_names(folder: Path) -> None:
    stopped = _geobind(folder, "run", "stages.yaml", "--out", "strict", "--set", "stages.audio.max_bad_samples=0.01")
    assert stopped.returncode == 2
    assert "max_bad_samples" in stopped.stderr
    assert str(MISSING_IMAGE) in stopped.stderr
    assert "Traceback" not in stopped.stderr
    # What was finished before stays.
    assert json.loads((folder / "strict/stages/01-satellite/stage.json").read_text())["status"] == "done"
