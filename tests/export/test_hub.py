"""The folder for the Hub, its model card, and the command: of a real run of a small chain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.plan import make_plan
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.errors import SpaceError
from geobind_core.progress import Reporter
from geobind_core.space.exported import read_export

pytestmark = pytest.mark.usefixtures("one_thread")

Geobind = Callable[..., Any]
CITATION = "A. Surveyor.\nTiles of nowhere | 2024."


@pytest.fixture(scope="module")
def chain(world: Any, clip_folder: Path, clap_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Satellite towards a pretrained CLIP's photos, then audio towards satellite; text comes along."""
    clip = {"pretrained": str(clip_folder)}
    stage = {"data": "tiles", "batch_size": 8, "epochs": 1}
    document = {
        "binding": "satellite",
        "log_with": [],
        "modalities": {
            "ground_image": clip,
            "text": clip,
            "satellite": {**clip, "pretrained": None, "model": "x", "init_from": "ground_image"},
            "audio": {"pretrained": str(clap_folder), "sample_rate": 16_000, "seconds": 1},
        },
        "data": {
            "tiles": {
                "source": "table",
                "path": str(world.table),
                "split": {"by": "column", "column": "split"},
                "license": "CC-BY-4.0",
                "citation": CITATION,
                "homepage": "https://example.org/tiles",
            }
        },
        "stages": [
            {"name": "sight", "train": "satellite", "anchor": "ground_image", **stage},
            {"name": "sound", "train": "audio", "loss": {"name": "infonce", "direction": "both"}, **stage},
        ],
        "evaluate": {"recall_at": [1, 2]},
    }
    satellite: dict[str, Any] = document["modalities"]["satellite"]  # type: ignore[index]
    satellite["model"] = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    path = tmp_path_factory.mktemp("chain") / "small.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(chain: Path) -> Path:
    folder = chain.parent / "run"
    run_chain(load_chain(chain, plugin_manager(), []), RunFolder(folder), Reporter(quiet=True))
    return folder


@pytest.fixture
def geobind(tmp_path: Path, in_process: Callable[[Path], Geobind]) -> Geobind:
    return in_process(tmp_path)


def as_json(geobind: Geobind, *arguments: str) -> dict[str, Any]:
    answer = geobind("export", *arguments, "--json")
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def test_the_folder_for_the_hub(geobind: Geobind, run: Path, world: Any, tmp_path: Path) -> None:
    written = as_json(geobind, str(run), "--to", "hub", "-o", "hub", "--license", "MIT")
    space, again = Space.load(run), Space.load(tmp_path / "hub")
    assert set(written["modalities"]) == set(space.modalities) == {"ground_image", "text", "satellite", "audio"}
    assert set(written["files"]) == {p.relative_to("hub").as_posix() for p in Path("hub").rglob("*") if p.is_file()}
    assert again.record == space.record
    again.verify()
    for name in space.modalities:
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / "hub" / name / file).read_bytes() == (run / "space" / name / file).read_bytes()
    sounds = [str(world.folder / row["audio"]) for row in world.rows[:3]]
    assert torch.equal(again.embed("audio", sounds), space.embed("audio", sounds))
    weights = tmp_path / "hub" / "audio" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(SpaceError, match="the weights of 'audio' have hash"):
        again.verify()


def test_the_model_card(geobind: Geobind, run: Path, tmp_path: Path, clip_folder: Path) -> None:
    as_json(geobind, str(run), "--to", "hub", "-o", "hub", "--license", "MIT")
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    matter, metrics = card.data.to_dict(), json.loads((run / "metrics.json").read_text())
    assert yaml.safe_load(text.split("---\n")[1]) == matter
    assert (matter["license"], matter["library_name"], matter["datasets"]) == ("mit", "geobind", ["tiles"])
    assert {"geobind", "satellite", "audio"} <= set(matter["tags"])
    assert matter["metrics"] == ["recall@1", "median_rank"]
    results = card.data.eval_results
    assert results is not None
    assert len(results) == 2 * len(metrics["pairs"]) == 24
    figures = {result.metric_name: result.metric_value for result in results}
    assert figures["recall@1, audio to text (emergent)"] == metrics["pairs"]["audio_to_text"]["recall@1"]
    assert figures["median_rank, audio to satellite (trained)"] == metrics["pairs"]["audio_to_satellite"]["median_rank"]
    pair = metrics["pairs"]["audio_to_text"]
    assert (
        f"| audio → text | {pair['recall@2']:.3f} | {pair['chance_recall@2']:.3f} | {pair['median_rank']:g} |" in text
    )
    assert "| tiles | table | CC-BY-4.0 | https://example.org/tiles |" in text
    assert "> A. Surveyor.\n> Tiles of nowhere | 2024." in text
    stages = [line for line in text.splitlines() if line.startswith(("| sight |", "| sound |"))]
    assert [line.split(" | ")[1:7] for line in stages] == [
        ["satellite", "ground_image", "tiles", "infonce", "8", "1"],
        ["audio", "satellite", "tiles", "infonce", "8", "1"],
    ]
    for name, record in Space.load(run).record.modalities.items():
        assert f"| {name} | {record.stage or 'not trained here'} |" in text
        assert f"`{record.content_hash[:16]}`" in text
    assert "| audio | sound |" in text
    assert "| 20 to 24 |" in text
    assert "pip install geobind geobind-plugin-audio geobind-plugin-imagery" in text
    assert str(clip_folder.parent) not in text + (tmp_path / "hub" / "geobind.json").read_text(), (
        "no path of this machine"
    )
    assert f"a local copy of {clip_folder.name}" in text


def test_a_card_without_a_run_says_so(geobind: Geobind, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "space", tmp_path / "alone")
    written = as_json(geobind, "alone", "--to", "hub", "-o", "hub", "--modality", "text", "--modality", "audio")
    assert sum("no licence was given" in note or "no run folder" in note for note in written["notes"]) == 2
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == "unknown"
    assert card.data.eval_results is None
    assert "Nothing is recorded of how good these embeddings are" in card.text
    space = Space.load(tmp_path / "hub")
    space.verify()
    assert space.modalities == ("text", "audio")


def test_the_trained_scale_goes_along_and_an_export_can_be_exported(
    geobind: Geobind, run: Path, tmp_path: Path
) -> None:
    """Run -> open_clip -> hub -> transformers: the same hashes all the way, and the lineage with them."""
    import open_clip

    first = as_json(geobind, str(run), "--to", "open_clip", "-o", "one")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'one'}")
    trained = json.loads((run / "stages" / "01-sight" / "stage.json").read_text())["summary"]["logit_scale"]
    assert model.logit_scale.exp().item() == pytest.approx(trained, rel=1e-5)
    assert trained != pytest.approx(100)
    assert any("of stage sight" in note for note in first["notes"])
    second = as_json(geobind, "one", "--to", "hub", "-o", "two")
    third = as_json(geobind, "two", "--to", "transformers", "-o", "three")
    fourth = as_json(geobind, "two", "--to", "hub", "-o", "two")
    hashes = [{n: m["content_hash"] for n, m in w["modalities"].items()} for w in (first, second, third, fourth)]
    assert hashes[0] == hashes[1] == hashes[2] == hashes[3]
    assert read_export(tmp_path / "three").lineage == read_export(tmp_path / "one").lineage
    assert "| sight | satellite | ground_image | tiles |" in (tmp_path / "two" / "README.md").read_text()


def test_words_for_people(geobind: Geobind, run: Path) -> None:
    answer = geobind("export", str(run), "--to", "open_clip", "--modality", "ground_image", "-o", "out")
    assert answer.returncode == 0
    assert "ground_image: largest difference" in answer.stdout
    assert 'open_clip.create_model_and_transforms("local-dir:out")' in answer.stdout
    assert answer.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "opn_clip"], ["no modality of the space has a format 'opn_clip'", "Did you mean 'open_clip'?"]),
        (["--to", "hub", "--modality", "adio"], ["no modality 'adio'", "Did you mean 'audio'?"]),
        (["--to", "clap", "--modality", "text"], ["'text' has no format 'clap'", "hub, onnx, open_clip, transformers"]),
        (
            ["--to", "open_clip", "--modality", "satellite", "--modality", "audio"],
            ["'audio' has no format 'open_clip'"],
        ),
        (
            ["--to", "open_clip", "--modality", "text"],
            ["no image tower to go with 'text'", "Name one as well: --modality"],
        ),
        (
            ["--to", "transformers", "--modality", "satellite", "--modality", "ground_image"],
            ["one image tower and one text tower; found satellite, ground_image", "one by one"],
        ),
    ],
)
def test_what_cannot_be_meant(
    geobind: Geobind, run: Path, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    answer = geobind("export", str(run), "-o", "out", *arguments)
    assert answer.returncode == 2
    assert all(text in answer.stderr for text in said), answer.stderr
    assert answer.stdout == ""
    assert not list(tmp_path.iterdir())


def test_folders_that_are_not_to_be_written(geobind: Geobind, run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    answer = geobind("export", str(run), "--to", "hub", "-o", "thesis")
    assert answer.returncode == 2
    assert "holds something that `geobind export` did not write" in answer.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    answer = geobind("export", str(run), "--to", "hub", "-o", "thesis/chapter.tex")
    assert (answer.returncode, "there is a file of this name" in answer.stderr) == (2, True)
    answer = geobind("export", str(run), "--to", "hub", "-o", "thesis/chapter.tex/deeper")
    assert (answer.returncode, "cannot be written" in answer.stderr) == (2, True)
    shutil.copytree(run / "space", tmp_path / "space")
    answer = geobind("export", str(tmp_path / "space"), "--to", "hub", "-o", "space")
    assert answer.returncode == 2, "a space is no export, and would be lost"
    Space.load(tmp_path / "space").verify()


def test_damaged_spaces(geobind: Geobind, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "space", tmp_path / "space")
    weights = tmp_path / "space" / "satellite" / "model.safetensors"
    good = weights.read_bytes()
    for bad, said in (
        (good[:-1] + bytes([good[-1] ^ 1]), "the weights of 'satellite' have hash"),
        (good[:99], "damaged"),
    ):
        weights.write_bytes(bad)
        for to in ("open_clip", "hub"):
            answer = geobind("export", "space", "--to", to, "-o", "out")
            assert (answer.returncode, said in answer.stderr) == (2, True), answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space"]
    answer = geobind("export", "nowhere", "--to", "hub", "-o", "out")
    assert (answer.returncode, "no space.json here" in answer.stderr) == (2, True)


def test_a_plugin_that_is_missing(geobind: Geobind, run: Path) -> None:
    """The whole space needs none; what asks for the modality itself names it."""
    disabled = ("--disable-plugin", "geobind-plugin-audio")
    assert geobind("export", str(run), "--to", "hub", "-o", "hub", *disabled).returncode == 0
    assert geobind("export", str(run), "--to", "open_clip", "-o", "clip", *disabled).returncode == 0
    answer = geobind("export", str(run), "--to", "clap", "--modality", "audio", "-o", "out", *disabled)
    assert answer.returncode == 2
    assert "geobind-plugin-audio" in answer.stderr


def test_what_is_said_of_data_runs_nothing_again(chain: Path, run: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(chain.read_text(encoding="utf-8"))
    document["data"]["tiles"] |= {"license": "CC0-1.0", "citation": None, "homepage": None}
    other = chain.parent / "other.yaml"
    other.write_text(yaml.safe_dump(document), encoding="utf-8")
    plans = make_plan(load_chain(other, plugin_manager(), []), RunFolder(run))
    assert [plan.action for plan in plans] == ["done", "done"]
