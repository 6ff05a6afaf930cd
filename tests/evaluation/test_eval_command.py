"""`geobind eval` on a small space of open_clip networks: composed queries, classes, other data, refusals."""

import html
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.progress import Reporter
from tests.conftest import CLIP_ARCHITECTURE, WORLD_CLASSES, World

pytestmark = pytest.mark.usefixtures("one_thread")

Geobind = Callable[..., subprocess.CompletedProcess[str]]
COLOURS = {
    "data": "world",
    "modality": "satellite",
    "text": "text",
    "label": "label",
    "classes": {name: [name, f"{name} place"] for name in WORLD_CLASSES},
    "templates": ["a picture of a {}", "{} from above"],
}


def chain_of(world: World) -> dict[str, Any]:
    names = ("satellite", "ground_image", "text")
    return {
        "binding": "satellite",
        "modalities": {name: {"model": CLIP_ARCHITECTURE} for name in names},
        "data": {
            "world": {
                "source": "table",
                "path": str(world.table),
                "fields": {name: name for name in names},
                "labels": {"text": "label"},
                "split": {"by": "hash", "test": 0.6},
            }
        },
        "stages": [
            {"name": "first", "train": ["satellite", "text"], "anchor": [], "data": "world", "epochs": 1},
            {"name": "second", "train": "ground_image", "anchor": "satellite", "data": "world", "epochs": 1},
        ],
        "evaluate": {
            "recall_at": [1, "25%"],
            "compose": [["ground_image", "text"], ["satellite", "text"]],
            "zero_shot": {"colours": COLOURS},
            "bootstrap": 200,
        },
        "log_with": [],
    }


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("eval")
    path = folder / "chain.yaml"
    path.write_text(yaml.safe_dump(chain_of(world), sort_keys=False))
    run_chain(load_chain(path, plugin_manager()), RunFolder(folder / "run"), Reporter(quiet=True))
    return folder / "run"


@pytest.fixture
def geobind(in_process: Callable[[Path], Geobind], tmp_path: Path) -> Geobind:
    return in_process(tmp_path)


def metrics_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def held_out(world: World, run: Path) -> list[dict[str, str]]:
    """The rows that a hash of their key holds out."""
    from geobind_core.data.paired import PairedData

    source = load_chain(run / "chain.yaml", plugin_manager(), base=run.parent).sources["world"]
    rows = PairedData("world", source.observations(), source.config).rows("test", ["satellite"])
    return [world.rows[row] for row in rows]


def test_a_run_has_intervals_composed_queries_and_classes(run: Path) -> None:
    metrics = metrics_of(run)
    composed = {"ground_image+text_to_satellite", "satellite+text_to_ground_image"}
    assert composed < set(metrics["pairs"])
    assert len(metrics["pairs"]) == 6 + 2
    for figures in metrics["pairs"].values():
        assert {"recall@1", "recall@25%", "mean_reciprocal_rank", "chance_recall@25%"} <= figures.keys()
        for name, (low, high) in figures["intervals"].items():
            assert low <= figures[name] <= high
    assert metrics["pairs"]["ground_image+text_to_satellite"]["trained_in"] == "second, first"
    emergent = metrics["pairs"]["satellite+text_to_ground_image"]
    assert (emergent["emergent"], emergent["trained_in"]) == (True, None)
    assert emergent["composed"] == ["satellite", "text"]


def test_composed_queries_are_sums_of_unit_embeddings(world: World, run: Path) -> None:
    rows, space = held_out(world, run), Space.load(run)
    embedded = {
        name: space.embed(name, [row[name] if name == "text" else world.folder / row[name] for row in rows]).double()
        for name in space.modalities
    }
    similarity = unit(embedded["ground_image"] + embedded["text"]) @ embedded["satellite"].T
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(dim=1)
    found = metrics_of(run)["pairs"]["ground_image+text_to_satellite"]
    assert found["gallery"] == len(rows)
    assert found["mean_reciprocal_rank"] == pytest.approx(float((1 / ranks).mean()))
    assert "strict" not in found, "the photo tells places with the same label apart"


def test_classification_is_by_the_mean_of_all_texts(world: World, run: Path) -> None:
    rows, space = held_out(world, run), Space.load(run)
    images = space.embed("satellite", [world.folder / row["satellite"] for row in rows])
    classes = []
    for phrases in COLOURS["classes"].values():  # type: ignore[attr-defined]
        texts = [template.format(phrase) for template in COLOURS["templates"] for phrase in phrases]
        classes.append(unit(space.embed("text", texts).mean(dim=0)))
    guessed = (images @ torch.stack(classes).T).argsort(dim=1, descending=True)
    right = torch.tensor([WORLD_CLASSES.index(row["label"]) for row in rows])
    found = metrics_of(run)["zero_shot"]["colours"]
    assert found["rows"] == len(rows) > 8
    assert found["accuracy@1"] == pytest.approx(float((guessed[:, 0] == right).double().mean()))
    assert found["accuracy@5"] == pytest.approx(float((guessed[:, :5] == right[:, None]).any(dim=1).double().mean()))
    assert (found["chance_accuracy@1"], found["classes"]) == (pytest.approx(1 / 6), list(WORLD_CLASSES))
    confusion = np.array(found["confusion"])
    assert confusion.sum() == len(rows)
    assert np.trace(confusion) / len(rows) == pytest.approx(found["accuracy@1"])
    assert confusion.sum(axis=1).tolist() == [int((right == i).sum()) for i in range(6)]
    recalls = [found["recall"][name] for name in WORLD_CLASSES if found["recall"][name] is not None]
    assert found["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert found["intervals"].keys() == {"accuracy@1", "accuracy@5"}


def test_classes_that_tie_with_the_right_one_come_before_it(run: Path, geobind: Geobind) -> None:
    """CLIP's tokens have no capitals, so that these classes are all the same: nothing is recognised."""
    classes = "{red: red, green: Red, blue: rEd, yellow: reD, purple: RED, grey: REd}"
    task = "evaluate.zero_shot.colours"
    done = geobind("eval", str(run), "--data", "world", "--json", "--set", f"{task}.classes={classes}",
                   "--set", f"{task}.templates=['{{}}']")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["zero_shot"]["colours"]
    assert (found["accuracy@1"], found["accuracy@5"], found["mean_per_class_recall"]) == (0, 0, 0)
    assert np.trace(np.array(found["confusion"])) == 0


def test_eval_measures_again_with_other_settings(run: Path, geobind: Geobind, tmp_path: Path) -> None:
    before = metrics_of(run)
    done = geobind("eval", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == before["pairs"]
    assert json.loads(done.stdout)["zero_shot"] == before["zero_shot"]
    done = geobind("eval", str(run), "--data", "world", "--set", "evaluate.gallery=5", "--legacy-strict",
                   "--out", "figures.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert metrics_of(run) == before, "of one data set, nothing is written"
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["gallery"] == 5
    pair = written["pairs"]["satellite_to_text"]
    assert pair["legacy_strict"]["recall@1"] == 0
    assert "rank < k with ranks from 1" in pair["legacy_strict"]["convention"]
    assert "legacy recall@25%" in done.stdout
    assert "colours" in done.stdout
    assert "satellite by text, world.label" in done.stdout


def test_data_that_changed_since_training_is_named(world: World, geobind: Geobind, tmp_path: Path) -> None:
    """With other rows, a hash of their keys holds out the same; with other keys, what was trained on."""
    document = chain_of(world)
    table = tmp_path / "table.csv"
    text = world.table.read_text()
    table.write_text(text)
    document["data"]["world"] |= {"path": str(table), "root": str(world.folder)}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert geobind("run", "chain.yaml", "--out", "run", "--until", "first").returncode == 0
    half = geobind("eval", "run")
    assert half.returncode == 0, half.stderr
    assert half.stderr.count("the chain is not finished; measured without stage 'second'.") == 1
    assert geobind("run", "chain.yaml", "--out", "run").returncode == 0
    same = geobind("eval", "run")
    assert same.returncode == 0
    assert same.stderr.endswith("metrics: run/metrics.json\nreport: run/report.html\n")
    assert "has changed" not in same.stdout + same.stderr
    assert "warnings" not in metrics_of(tmp_path / "run")

    table.write_text(text.rstrip("\n").rpartition("\n")[0] + "\n")
    told = "data.world has changed since stage 'first', 'second' trained on it."
    other = geobind("eval", "run")
    assert other.returncode == 0, other.stderr
    assert told in " ".join((other.stdout + other.stderr).split())
    assert any(warning.startswith(told) for warning in metrics_of(tmp_path / "run")["warnings"])
    assert told in " ".join(html.unescape((tmp_path / "run/report.html").read_text()).split())


def test_a_data_set_of_the_run_comes_before_a_folder_of_its_name(run: Path, geobind: Geobind, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    done = geobind("eval", str(run), "--data", "world", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"]["satellite_to_text"]["data"] == "world"
    assert geobind("eval", str(run), "--data", "./world").returncode == 2


def test_what_cannot_be_read_is_left_out_said_once_and_written_down(
    world: World, own_world: World, run: Path, geobind: Geobind, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    chain = tmp_path / "run/chain.yaml"
    chain.write_text(chain.read_text().replace(str(world.table), str(own_world.table)))
    broken = held_out(world, run)[0]
    (own_world.folder / broken["satellite"]).write_bytes(b"no image")
    refused = geobind("eval", "run")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "more than evaluate.max_bad_samples: 0.01 allows (0)" in refused.stderr
    assert "or raise evaluate.max_bad_samples." in refused.stderr

    done = geobind("eval", "run", "--set", "evaluate.max_bad_samples=0.5")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "run")
    assert done.stderr.count("left out of the evaluation: ") == 1, "pairs and classification ask for the same image"
    assert metrics["skipped"].keys() == {"world"}
    assert metrics["skipped"]["world"]["samples"] == 1
    (first,) = metrics["skipped"]["world"]["first"]
    assert (first["key"], first["modality"]) == (broken["key"], "satellite")
    assert f"{broken['key']} (satellite): {first['reason']}" in done.stderr
    assert metrics["zero_shot"]["colours"]["rows"] == len(held_out(world, run)) - 1
    page = html.unescape((tmp_path / "run/report.html").read_text())
    assert "<h3>Evaluation on world</h3>" in page
    assert "1 sample could not be read and was left out:" in page
    assert first["reason"] in page
    assert "skipped" not in metrics_of(run)

    done = geobind("eval", "run/space", "--data", str(own_world.table), "--set", "evaluate.max_bad_samples=0.5",
                   "--split", "all", "--json")  # fmt: skip
    assert json.loads(done.stdout)["skipped"]["table"]["first"] == [first]


def test_other_data_and_a_space_alone(world: World, run: Path, geobind: Geobind, tmp_path: Path) -> None:
    before = metrics_of(run)
    arguments = ("--data", str(world.table), "--set", "data.split={by: none}", "--split", "all", "--json")
    done = geobind("eval", str(run), *arguments)
    assert done.returncode == 0, done.stderr
    of_run = json.loads(done.stdout)
    assert of_run["gallery"] == len(world.rows)
    assert "ground_image+text_to_satellite" in of_run["pairs"]
    assert metrics_of(run) == before

    colours = yaml.safe_dump({**COLOURS, "data": "table"}, default_flow_style=True, width=10_000).strip()
    done = geobind("eval", str(run / "space"), *arguments, "--set", f"evaluate.zero_shot.colours={colours}")
    assert done.returncode == 0, done.stderr
    of_space = json.loads(done.stdout)
    assert of_space["gallery"] == len(world.rows)
    assert "recall@10" in of_space["pairs"]["satellite_to_text"]
    assert of_space["zero_shot"]["colours"]["rows"] == len(world.rows)
    assert of_run["pairs"]["satellite_to_text"]["median_rank"] == of_space["pairs"]["satellite_to_text"]["median_rank"]

    # Images and a column of numbers, with no pair at all; without a split, all rows are measured.
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    lines = ["key,tile,cover", "a,red.png,3", "b,red.png,", "c,red.png,7", "d,red.png,3"]
    (tmp_path / "tiles.csv").write_text("\n".join(lines) + "\n")
    cover = "{data: tiles, modality: satellite, text: text, label: cover, classes: {3: red, 7: [blue, sea]}}"
    done = geobind("eval", str(run / "space"), "--data", "tiles.csv", "--field", "satellite=tile", "--json",
                   "--set", f"evaluate.zero_shot.cover={cover}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["pairs"], found["zero_shot"]["cover"]["rows"]) == ({}, 3)
    assert np.array(found["zero_shot"]["cover"]["confusion"]).sum(axis=1).tolist() == [2, 1]


REFUSED = {
    "unknown data set": (("--data", "wrold"), "no data set 'wrold', and no such file or folder. Available: world"),
    "missing file": (("--data", "nothing.csv"), "nothing.csv"),
    "unknown modality": (("--data", "{table}", "--field", "sattelite=satellite"), "sattelite"),
    "column that is not there": (("--data", "{table}", "--field", "satellite=tile"), "no column 'tile'"),
    "field of a chain": (("--field", "satellite=tile"), "a chain says itself what its columns hold"),
    "split": (("--split", "tset"), "--split: found 'tset'; expected one of train, validation, test, all"),
    "training rows of a chain": (("--split", "train"), "found 'train'; expected 'validation' or 'test'"),
    "name of the output": (("--out", "figures.txt"), "--out: found 'figures.txt'; expected the name of a .json file"),
    "another setting": (("--set", "stages.first.epochs=3"), "expected evaluate.SETTING=VALUE"),
    "share of nonsense": (("--set", "evaluate.recall_at=[1, 0%]"), "found 0%; expected a whole number, 1 or more, or"),
    "k of nothing": (("--set", "evaluate.recall_at=[0]"), "found 0; expected a whole number, 1 or more, or a share"),
    "k twice": (("--set", "evaluate.recall_at=[1%, 1.0%]"), "1% is given twice"),
    "composed of the unknown": (("--set", "evaluate.compose=[[text, sond]]"), "no modality 'sond'. Available: "),
    "composed of one": (("--set", "evaluate.compose=[[text]]"), "found [text]; expected two modalities or more"),
    "composed twice": (("--set", "evaluate.compose=[[text, text]]"), "found [text, text]; expected two modalities or"),
    "classified modality": (("--set", "evaluate.zero_shot.colours.modality=satelite"), "Did you mean 'satellite'?"),
    "reader of phrases": (("--set", "evaluate.zero_shot.colours.text=txt"), "no modality 'txt'"),
    "data of a classification": (("--set", "evaluate.zero_shot.colours.data=w"), "no data set 'w'. Available: world"),
    "column of a classification": (
        ("--set", "evaluate.zero_shot.colours.label=colour"),
        "evaluate.zero_shot.colours.label: data set 'world' has no column 'colour'. Available: ",
    ),
    "classes that are missing": (
        ("--set", "evaluate.zero_shot.colours.classes=[red, green]"),
        "column 'label' has 'blue', 'grey', 'purple', 'yellow', which no class has. Available: green, red.",
    ),
    "one class": (("--set", "evaluate.zero_shot.colours.classes=[red]"), "there is one class; expected 2 or more"),
    "classes that are alike": (
        ("--set", "evaluate.zero_shot.colours.classes={red: [warm, sun], blue: cold, rot: [sun, warm]}"),
        "labels 'red' and 'rot' have the same phrases; nothing tells them apart",
    ),
    "class without a phrase": (("--set", "evaluate.zero_shot.colours.classes={red: , b: c}"), "'red' has no phrase"),
    "template without a place": (
        ("--set", "evaluate.zero_shot.colours.templates=[a picture]"),
        "found 'a picture'; expected a text with one {} where the phrase of a class goes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(case: str, run: Path, world: World, geobind: Geobind) -> None:
    arguments, words = REFUSED[case]
    before = (run / "metrics.json").read_bytes()
    done = geobind("eval", str(run), *(argument.replace("{table}", str(world.table)) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "metrics.json").read_bytes() == before


def test_no_run_and_no_data(run: Path, geobind: Geobind, world: World, tmp_path: Path) -> None:
    done = geobind("eval", "nothing", "--data", str(world.table))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no space.json here" in done.stderr
    (tmp_path / "empty.csv").write_text("key,satellite,text\n")
    done = geobind("eval", str(run), "--data", "empty.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the table has no rows" in done.stderr
    (tmp_path / "one.csv").write_text("key,satellite\na,red.png\n")
    done = geobind("eval", str(run), "--data", "one.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected two modalities, or a classification" in done.stderr


def test_what_a_chain_file_says_wrong_has_its_line(world: World, tmp_path: Path, geobind: Geobind) -> None:
    chain = chain_of(world)
    chain["evaluate"] = {"compose": [["text", "sond"]], "zero_shot": {"a": {**COLOURS, "text": "txt"}}}
    text = yaml.safe_dump(chain, sort_keys=False)
    (tmp_path / "chain.yaml").write_text(text)
    done = geobind("validate", "chain.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    lines = text.splitlines()
    assert f"chain.yaml:{lines.index('  - - text') + 2} evaluate.compose[0][1]: no modality 'sond'" in done.stderr
    assert (
        f"chain.yaml:{lines.index('      text: txt') + 1} evaluate.zero_shot.a.text: no modality 'txt'" in done.stderr
    )


def test_a_label_that_no_class_has_is_said_before_training(world: World, tmp_path: Path, geobind: Geobind) -> None:
    chain = chain_of(world)
    chain["evaluate"]["zero_shot"]["colours"] = {**COLOURS, "classes": ["red", "green"]}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain))
    done = geobind("run", "chain.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "which no class has" in done.stderr
    assert not list((tmp_path / "runs").rglob("stage.json"))
