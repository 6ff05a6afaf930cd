"""Whole runs of a small chain on a small synthetic Earth: skip, rerun, extend, go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.plan import make_plan
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.progress import Reporter
from geobind_core.space.encoder import content_hash

ROOT = Path(__file__).parents[2]


def chain_document(earth: Path) -> dict[str, Any]:
    """The default chain, small."""
    chain: dict[str, Any] = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))
    chain["data"]["earth"] |= {"places": 160, "held_out": 40, "root": str(earth), "satellite_pixels": 32}
    chain["data"]["earth"] |= {"ground_pixels": 32, "seconds": 1.0}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    for name in ("ground_image", "text", "satellite"):
        chain["modalities"][name]["model"] = model
    chain["modalities"]["audio"]["seconds"] = 1
    for stage in chain["stages"]:
        stage |= {"batch_size": 40, "epochs": 1}
    chain["evaluate"] = {"recall_at": [1, 10]}
    return chain


def write(path: Path, chain: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(chain), encoding="utf-8")
    return path


def run(path: Path, out: Path, *assignments: str, until: str | None = None) -> dict[str, Any] | None:
    chain = load_chain(path, plugin_manager(), assignments)
    return run_chain(chain, RunFolder(out), Reporter(quiet=True), until)


def actions(path: Path, out: Path, *assignments: str) -> dict[str, str]:
    return {p.name: p.action for p in make_plan(load_chain(path, plugin_manager(), assignments), RunFolder(out))}


def hashes(out: Path) -> dict[str, str]:
    modalities = json.loads((out / "space/space.json").read_text())["modalities"]
    return {name: record["content_hash"] for name, record in modalities.items()}


def stage_times(out: Path) -> dict[str, str]:
    return {p.parent.name: json.loads(p.read_text())["finished"] for p in (out / "stages").glob("*/stage.json")}


@pytest.fixture(scope="module")
def earth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("earth")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, earth: Path) -> tuple[Path, Path]:
    """A chain file and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    path = write(folder / "chain.yaml", chain_document(earth))
    run(path, folder / "run")
    return path, folder / "run"


def test_the_run_folder_is_as_promised(finished: tuple[Path, Path]) -> None:
    _, out = finished
    assert (out / "chain.yaml").is_file()
    assert (out / "report.html").is_file()
    for number, name in enumerate(("clip", "satellite", "audio"), start=1):
        folder = out / "stages" / f"{number:02d}-{name}"
        stage = json.loads((folder / "stage.json").read_text())
        assert stage["status"] == "done"
        assert stage["fingerprint"]
        assert not (folder / "checkpoint").exists()
        steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert {"step", "epoch", "loss", "logit_scale", "lr", "samples_per_second"} <= steps[-1].keys()
    space = json.loads((out / "space/space.json").read_text())
    assert space["binding"] == "satellite"
    for name, record in space["modalities"].items():
        assert {p.name for p in (out / "space" / name).iterdir()} == {"config.json", "model.safetensors"}
        assert record["plugin"] == name
    assert space["modalities"]["audio"]["stage"] == "audio"
    assert space["modalities"]["audio"]["aligned_to"] == {"satellite": space["modalities"]["satellite"]["content_hash"]}
    assert list(out.rglob("*.tfevents*"))


def test_metrics_have_every_ordered_pair(finished: tuple[Path, Path]) -> None:
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    names = ("ground_image", "text", "satellite", "audio")
    assert set(metrics["pairs"]) == {f"{a}_to_{b}" for a in names for b in names if a != b}
    assert metrics["gallery"] == 40
    trained = {n: p["trained_in"] for n, p in metrics["pairs"].items() if not p["emergent"]}
    assert trained == {
        "ground_image_to_text": "clip", "text_to_ground_image": "clip",
        "satellite_to_ground_image": "satellite", "ground_image_to_satellite": "satellite",
        "audio_to_satellite": "audio", "satellite_to_audio": "audio",
    }  # fmt: skip
    pair = metrics["pairs"]["satellite_to_audio"]
    assert pair["chance_recall@10"] == 10 / 40
    assert 0 <= pair["recall@1"] <= pair["recall@10"] <= 1
    assert (
        metrics["pairs"]["satellite_to_text"]["strict"]["recall@10"]
        <= metrics["pairs"]["satellite_to_text"]["recall@10"]
    )


def test_the_saved_space_is_what_the_lineage_says(finished: tuple[Path, Path]) -> None:
    space = Space.load(finished[1])
    space.verify()
    assert space.embed("text", ["waves on a beach", "a quiet forest"]).shape == (2, 32)


def test_a_second_run_trains_nothing(finished: tuple[Path, Path]) -> None:
    path, out = finished
    before = stage_times(out), hashes(out), (out / "metrics.json").stat().st_mtime_ns
    run(path, out)
    assert (stage_times(out), hashes(out), (out / "metrics.json").stat().st_mtime_ns) == before
    assert set(actions(path, out).values()) == {"done"}


def test_data_that_is_gone_undoes_nothing(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing is trained or measured again just because the files were deleted after the run."""
    out = tmp_path / "run"
    table = tmp_path / "table.csv"
    table.write_text("key,text,ground_image\n" + "".join(f"k{i},words {i},words {i}\n" for i in range(40)))
    chain = yaml.safe_load(finished[0].read_text())
    model = chain["modalities"]["text"]["model"]
    chain["modalities"] = {name: {"plugin": "text", "model": model} for name in ("text", "ground_image")}
    chain |= {"binding": "text", "data": {"earth": {"source": "table", "path": "table.csv"}}}
    chain["data"]["earth"]["split"] = {"by": "hash", "test": 0.3}
    chain["stages"] = [{**chain["stages"][0], "augment": {}, "batch_size": 8}]
    path = write(tmp_path / "words.yaml", chain)
    measured = run(path, out)
    table.unlink()
    assert actions(path, out) == {"clip": "done"}
    assert run(path, out) == measured


def test_a_change_reruns_its_stage_and_what_depends_on_it(finished: tuple[Path, Path]) -> None:
    path, out = finished
    assert actions(path, out, "stages.audio.optimizer.lr=0.0005") == {
        "clip": "done", "satellite": "done", "audio": "run"
    }  # fmt: skip
    assert actions(path, out, "stages.satellite.epochs=2") == {"clip": "done", "satellite": "run", "audio": "run"}
    assert set(actions(path, out, "seed=1").values()) == {"run"}


def test_a_new_stage_leaves_the_others_as_they_are(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = finished
    before, times = hashes(out), stage_times(out)
    chain = yaml.safe_load(path.read_text())
    chain["modalities"]["sound_text"] = {**chain["modalities"]["text"], "plugin": "text"}
    chain["data"]["earth"]["fields"] = {"sound_text": "sound_text"}
    chain["stages"].append({**chain["stages"][2], "name": "words", "train": "sound_text", "anchor": "audio"})
    run(write(tmp_path / "longer.yaml", chain), out)
    after = hashes(out)
    assert {name: after[name] for name in before} == before
    assert "sound_text" in after
    assert {name: t for name, t in stage_times(out).items() if name != "04-words"} == times
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pairs"]["sound_text_to_satellite"]["emergent"]


def test_the_same_chain_gives_the_same_weights(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = finished
    run(path, tmp_path / "again", until="satellite")
    again = hashes(tmp_path / "again")
    assert again == {name: hashes(out)[name] for name in ("ground_image", "text", "satellite")}
    run(path, tmp_path / "again")
    assert hashes(tmp_path / "again")["audio"] == hashes(out)["audio"]


def test_kill_9_in_a_stage_goes_on_to_the_same_weights(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = finished
    longer = ["stages.clip.epochs=12", "stages.clip.checkpoint.steps=3"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(path, undisturbed, *longer, until="clip")

    command = [sys.executable, "-m", "geobind_core.cli", "run", str(path), "--out", str(killed), "--until", "clip"]
    process = subprocess.Popen(
        [*command, *(f"--set={assignment}" for assignment in longer)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    state = killed / "stages/01-clip/checkpoint/stage_state.json"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    plan = make_plan(load_chain(path, plugin_manager(), longer), RunFolder(killed), "clip")[0]
    assert plan.action == "continue"
    assert "goes on from step" in plan.why

    run(path, killed, *longer, until="clip")
    assert hashes(killed) == hashes(undisturbed)
    steps = [json.loads(line).get("step") for line in (killed / "stages/01-clip/log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "a step is logged twice"


def test_weights_that_are_gone_are_made_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = finished
    out = tmp_path / "run"
    run(path, out, until="clip")
    first = hashes(out)
    (out / "stages/01-clip/encoders/text/model.safetensors").unlink()
    plan = make_plan(load_chain(path, plugin_manager()), RunFolder(out))[0]
    assert (plan.action, plan.why) == ("run", "the weights of text are gone")
    run(path, out, until="clip")
    assert hashes(out) == first


def test_a_damaged_record_is_called_so(finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = finished
    run(path, tmp_path / "run", until="clip")
    (tmp_path / "run/stages/01-clip/stage.json").write_text("{")
    plan = make_plan(load_chain(path, plugin_manager()), RunFolder(tmp_path / "run"))[0]
    assert (plan.action, plan.why) == ("run", "its stage.json is damaged")


def test_init_from_starts_at_the_other_modality(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """With a learning rate of next to nothing, satellite must stay where ground_image is."""
    path, _ = finished
    out = tmp_path / "run"
    run(path, out, "stages.satellite.optimizer.lr=1e-30", until="satellite")
    space = Space.load(out)
    ground, satellite = space.encoder("ground_image").state_dict(), space.encoder("satellite").state_dict()
    assert ground.keys() == satellite.keys()
    assert all((ground[k] - satellite[k]).abs().max() < 1e-6 for k in ground)
    assert content_hash(space.encoder("ground_image")) == hashes(out)["ground_image"]


def test_the_evaluation_can_be_repeated_from_the_run_folder(finished: tuple[Path, Path]) -> None:
    path, out = finished
    run(path, out)  # whatever ran before, the chain of the file is in the folder again
    before = json.loads((out / "metrics.json").read_text())["pairs"]
    done = subprocess.run(
        [sys.executable, "-m", "geobind_core.cli", "eval", str(out), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == before
