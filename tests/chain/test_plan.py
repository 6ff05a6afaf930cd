"""What is done, what must run, and why. Finished stages are made up: the plan reads small files only."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.plan import StagePlan, make_plan
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.errors import ConfigError, RunFolderError
from geobind_core.files import write_json
from geobind_core.plugins.manager import PluginManager

CHAIN = """\
binding: satellite
modalities:
  ground_image: {model: geobind-tiny}
  text: {model: geobind-tiny}
  satellite: {model: geobind-tiny, init_from: ground_image}
  audio: {model: geobind-tiny, sample_rate: 16000}
data:
  earth: {source: table, path: earth.csv}
  sounds: {source: table, path: sounds.csv}
stages:
  - name: clip
    train: [ground_image, text]
    anchor: []
    data: earth
  - name: satellite
    train: satellite
    anchor: ground_image
    data: earth
    optimizer: {lr: 1.0e-4}
  - name: audio
    train: audio
    data: sounds
"""
MORE = """\
  - name: bats
    train: bats
    data: sounds
"""


@dataclass
class Place:
    """A folder with a chain, its tables and its run."""

    folder: Path
    plugins: PluginManager
    text: str = CHAIN
    run: RunFolder = field(init=False)

    def __post_init__(self) -> None:
        self.run = RunFolder(self.folder / "run")
        for name in ("earth", "sounds"):
            self.table(name).write_text("key,satellite,ground_image,text,audio\n1,a,b,c,d\n2,e,f,g,h\n")

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.csv"

    def change(self, old: str, new: str) -> None:
        assert self.text.count(old) == 1, old
        self.text = self.text.replace(old, new)

    def plan(self, until: str | None = None) -> list[StagePlan]:
        path = self.folder / "stages.yaml"
        path.write_text(self.text)
        return make_plan(load_chain(path, self.plugins), self.run, until)

    def actions(self, until: str | None = None) -> dict[str, str]:
        return {plan.name: plan.action for plan in self.plan(until)}

    def why(self, stage: str) -> str:
        (why,) = [plan.why for plan in self.plan() if plan.name == stage]
        return why

    def finish(self, *stages: str) -> None:
        """Leaves behind what `geobind run` leaves behind of a finished stage."""
        for plan in self.plan():
            if plan.name in stages or not stages:
                folder = self.run.claim_stage_folder(plan.number, plan.name)
                used = [*plan.stage.trains(), *plan.stage.uses()]
                write_json(
                    folder / "stage.json",
                    {
                        "name": plan.name,
                        "status": "done",
                        "fingerprint": plan.fingerprint,
                        "inputs": plan.inputs,
                        "outputs": {name: f"hash of {name}" for name in used},
                    },
                )
                for name in plan.provides:
                    weights = self.run.weights(folder, name)
                    weights.mkdir(parents=True, exist_ok=True)
                    (weights / "model.safetensors").write_bytes(b"")

    def edit(self, stage: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.run.find_stage(stage) / "stage.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    def interrupt(self, stage: str, *, fingerprint: str | None = None, step: int | None = 7) -> None:
        self.edit(stage, lambda record: record.update(status="running"))
        if step is not None:
            folder = self.run.find_stage(stage)
            stored = json.loads((folder / "stage.json").read_text())["fingerprint"]
            (folder / "checkpoint").mkdir()
            write_json(
                folder / "checkpoint" / "stage_state.json",
                {"fingerprint": fingerprint or stored, "step": step, "seconds": 1.0, "bad": []},
            )


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return plugin_manager()


@pytest.fixture
def place(tmp_path: Path, plugins: PluginManager) -> Place:
    return Place(tmp_path, plugins)


@pytest.fixture
def done(place: Place) -> Place:
    """A place whose stages are all finished."""
    place.finish()
    return place


ALL_DONE = {"clip": "done", "satellite": "done", "audio": "done"}


class TestFirst:
    def test_everything_runs(self, place: Place) -> None:
        plans = place.plan()
        assert [(p.number, p.name, p.action, p.why) for p in plans] == [
            (1, "clip", "run", "has not been run"),
            (2, "satellite", "run", "has not been run"),
            (3, "audio", "run", "has not been run"),
        ]
        assert len({p.fingerprint for p in plans}) == 3

    def test_who_stores_which_weights(self, place: Place) -> None:
        place.change("anchor: ground_image", "anchor: [ground_image, other]")
        place.change("  text:", "  other: {plugin: text, pretrained: openai}\n  text:")
        place.table("earth").write_text("satellite,ground_image,text,other\n")
        starts = {p.name: p.starts for p in place.plan()}
        provides = {p.name: p.provides for p in place.plan()}
        assert starts == {"clip": ("ground_image", "text"), "satellite": ("satellite", "other"), "audio": ("audio",)}
        assert provides == starts

    def test_a_modality_that_is_trained_again_is_stored_again(self, place: Place) -> None:
        place.text += "  - {name: again, train: text, data: earth, anchor: satellite}\n"
        again = place.plan()[3]
        assert (again.starts, again.provides) == ((), ("text",))

    def test_what_the_hooks_are_told(self, place: Place) -> None:
        info = place.plan()[1].info(place.run)
        assert (info.name, info.number, info.trains, info.anchors) == (
            "satellite",
            2,
            ("satellite",),
            ("ground_image",),
        )
        assert info.folder == place.run.path / "stages" / "02-satellite"

    def test_planning_writes_nothing(self, place: Place) -> None:
        place.plan()
        assert not place.run.path.exists()

    def test_the_same_chain_has_the_same_fingerprints(self, place: Place) -> None:
        assert [p.fingerprint for p in place.plan()] == [p.fingerprint for p in place.plan()]


class TestDone:
    def test_nothing_changed(self, done: Place) -> None:
        assert done.actions() == ALL_DONE
        assert {p.why for p in done.plan()} == {"nothing changed"}

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("    optimizer: {lr: 1.0e-4}", "    optimizer: {lr: 1.0e-4}\n    micro_batch_size: 8"),
            ("    optimizer: {lr: 1.0e-4}", "    optimizer: {lr: 1.0e-4}\n    checkpoint: {minutes: 1}"),
            ("    optimizer: {lr: 1.0e-4}", "    optimizer: {lr: 1.0e-4}\n    max_bad_samples: 0.5"),
            ("    optimizer: {lr: 1.0e-4}", "    optimizer: {lr: 0.0001}"),
            ("    optimizer: {lr: 1.0e-4}", "    optimizer: {name: adamw, lr: 1.0e-4, betas: [0.9, 0.98]}"),
            ("    anchor: ground_image", "    anchor: [ground_image]"),
            ("    train: audio", "    train: audio\n    anchor: satellite"),
            ("    train: audio", "    train: audio\n    pairs: [[audio, satellite]]"),
            ("binding:", "name: other\nbinding:"),
            ("binding:", "log_with: []\nbinding:"),
            ("binding:", "loader: {workers: 0}\nbinding:"),
            ("binding:", "evaluate: {gallery: 7}\nbinding:"),
            ("binding:", "# a comment\nbinding:"),
        ],
    )
    def test_what_does_not_change_the_result_runs_nothing(self, done: Place, old: str, new: str) -> None:
        done.change(old, new)
        assert done.actions() == ALL_DONE

    def test_data_that_is_gone_undoes_nothing(self, done: Place) -> None:
        done.table("earth").unlink()
        assert done.actions() == ALL_DONE

    def test_the_binding_modality_counts_where_it_is_the_anchor(self, done: Place) -> None:
        done.change("binding: satellite", "binding: text")
        assert done.actions() == {"clip": "done", "satellite": "done", "audio": "run"}

    def test_a_stage_may_have_the_name_of_what_comes_before_all(self, place: Place) -> None:
        place.change("- name: clip", "- name: initial")
        write_json(place.run.claim_stage_folder(0, "initial") / "stage.json", {"status": "done", "modalities": {}})
        assert place.why("initial") == "has not been run"
        place.finish()
        place.run.claim_stage_folder(0, "initial")
        assert place.actions()["initial"] == "done"
        assert sorted(p.name for p in (place.run.path / "stages").iterdir()) == [
            "00-initial",
            "01-initial",
            "02-satellite",
            "03-audio",
        ]


class TestChanged:
    def test_a_stage_and_what_builds_on_it_run_again(self, done: Place) -> None:
        done.change("lr: 1.0e-4", "lr: 2.0e-4")
        assert done.actions() == {"clip": "done", "satellite": "run", "audio": "run"}
        assert done.why("satellite") == "optimizer.lr: 0.0001 -> 0.0002"
        assert done.why("audio") == "'satellite' is retrained by stage 'satellite'"

    def test_what_builds_on_it_runs_again_though_the_run_was_stopped_in_between(self, done: Place) -> None:
        done.change("lr: 1.0e-4", "lr: 2.0e-4")
        done.finish("satellite")
        assert done.actions() == {**ALL_DONE, "audio": "run"}

    def test_the_last_stage_alone(self, done: Place) -> None:
        done.change("    train: audio", "    train: audio\n    epochs: 3")
        assert done.actions() == {**ALL_DONE, "audio": "run"}
        assert done.why("audio") == "epochs: 10 -> 3"

    @pytest.mark.parametrize(
        ("old", "new", "last", "why"),
        [
            ("sample_rate: 16000", "sample_rate: 8000", 1, "modalities.audio.sample_rate: 16000 -> 8000"),
            ("binding:", "seed: 3\nbinding:", 3, "seed: 0 -> 3"),
            ("binding:", "mixed_precision: bf16\nbinding:", 3, 'mixed_precision: null -> "bf16"'),
            (
                "train: audio",
                "train: audio\n    augment: {satellite: flips}",
                1,
                'augment.satellite: null -> ["flips"]',
            ),
            ("path: sounds.csv", "path: sounds.csv, fields: {audio: text, satellite: text}", 1, "data.fields"),
            ("path: sounds.csv", "path: sounds.csv, split: {by: none}", 1, "data.split"),
            ("anchor: ground_image", "anchor: text", 2, 'anchor: ["ground_image"] -> ["text"]'),
        ],
    )
    def test_the_reason_names_the_value(self, done: Place, old: str, new: str, last: int, why: str) -> None:
        done.change(old, new)
        rerun = ["clip", "satellite", "audio"][-last:]
        assert [name for name, action in done.actions().items() if action == "run"] == rerun
        assert done.why(rerun[0]).startswith(why)

    def test_the_reason_names_the_value_within_a_pair(self, done: Place) -> None:
        done.change("train: audio", "train: audio\n    pairs: [{modalities: [audio, satellite], weight: 2}]")
        assert done.why("audio") == "pairs[0].weight: 1.0 -> 2.0"

    def test_a_long_list_of_reasons_is_cut(self, done: Place) -> None:
        done.change(
            "train: audio",
            "train: audio\n    epochs: 1\n    batch_size: 2\n    optimizer: {lr: 1, eps: 1, clip_norm: 1}",
        )
        assert done.why("audio") == "batch_size: 256 -> 2; epochs: 10 -> 1; optimizer.lr: 5e-05 -> 1.0; and 2 more"

    def test_what_a_modality_starts_from(self, place: Place) -> None:
        # ground_image takes part in nothing but as the start of satellite.
        place.change("train: [ground_image, text]", "train: [audio, text]")
        place.change("anchor: ground_image", "anchor: text")
        place.finish()
        place.change("ground_image: {model: geobind-tiny}", "ground_image: {model: geobind-tiny, image_size: 32}")
        assert place.actions() == {"clip": "done", "satellite": "run", "audio": "run"}
        assert place.why("satellite") == "'satellite' starts otherwise"

    def test_data(self, done: Place) -> None:
        with done.table("sounds").open("a") as file:
            file.write("3,i,j,k,l\n")
        assert done.actions() == {**ALL_DONE, "audio": "run"}
        assert done.why("audio") == "the data changed"

    def test_data_that_was_gone_and_came_back_changed(self, done: Place) -> None:
        content = done.table("sounds").read_text()
        done.table("sounds").unlink()
        assert done.actions() == ALL_DONE
        done.table("sounds").write_text(content)
        assert done.actions() == ALL_DONE
        done.table("sounds").write_text(content + "3,i,j,k,l\n")
        assert done.actions() == {**ALL_DONE, "audio": "run"}

    def test_a_renamed_stage_is_another(self, done: Place) -> None:
        done.change("- name: audio", "- name: sound")
        assert done.actions() == {"clip": "done", "satellite": "done", "sound": "run"}

    @pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", '{"status": "done"}'])
    def test_a_damaged_record_is_none(self, done: Place, content: str) -> None:
        (done.run.find_stage("audio") / "stage.json").write_text(content)
        assert done.actions() == {**ALL_DONE, "audio": "run"}


class TestChain:
    def test_a_stage_more(self, done: Place) -> None:
        done.change("data:\n  earth", "  bats: {plugin: audio, model: geobind-tiny}\ndata:\n  earth")
        done.text += MORE
        assert done.actions() == {**ALL_DONE, "bats": "run"}

    def test_a_stage_more_in_between_renumbers(self, done: Place) -> None:
        done.change("data:\n  earth", "  bats: {plugin: audio, model: geobind-tiny}\ndata:\n  earth")
        done.change("  - name: audio\n", MORE + "  - name: audio\n")
        assert [(p.number, p.name, p.action) for p in done.plan()] == [
            (1, "clip", "done"),
            (2, "satellite", "done"),
            (3, "bats", "run"),
            (4, "audio", "done"),
        ]
        assert done.run.claim_stage_folder(4, "audio").name == "04-audio"
        assert sorted(p.name for p in (done.run.path / "stages").iterdir()) == ["01-clip", "02-satellite", "04-audio"]
        assert done.actions()["audio"] == "done"

    def test_a_stage_less(self, done: Place) -> None:
        done.text = done.text[: done.text.index("  - name: audio")]
        assert done.actions() == {"clip": "done", "satellite": "done"}

    def test_a_stage_whose_name_ends_like_anothers(self, done: Place) -> None:
        done.change("- name: audio", "- name: more-audio")
        done.finish("more-audio")
        assert done.run.find_stage("audio").name == "03-audio"
        assert done.run.find_stage("more-audio").name == "03-more-audio"
        assert not done.run.find_stage("io").exists()


class TestWeights:
    def test_gone(self, done: Place) -> None:
        (done.run.find_stage("audio") / "encoders" / "audio" / "model.safetensors").unlink()
        assert done.actions() == {**ALL_DONE, "audio": "run"}
        assert done.why("audio") == "the weights of audio are gone"

    def test_what_was_aligned_to_weights_that_are_gone_runs_again(self, done: Place) -> None:
        (done.run.find_stage("satellite") / "encoders" / "satellite" / "model.safetensors").unlink()
        assert done.actions() == {"clip": "done", "satellite": "run", "audio": "run"}
        assert done.why("audio") == "'satellite' is retrained by stage 'satellite'"

    def test_what_was_aligned_to_other_weights_runs_again(self, done: Place) -> None:
        # Satellite was repeated on an accelerator, and the run was stopped before audio.
        done.edit("satellite", lambda record: record["outputs"].update(satellite="another hash"))
        assert done.actions() == {**ALL_DONE, "audio": "run"}
        assert done.why("audio") == "'satellite' is retrained by stage 'satellite'"

    def test_cut_off_while_they_were_replaced(self, done: Place) -> None:
        encoders = done.run.find_stage("audio") / "encoders"
        (encoders / "audio").rename(encoders / ".audio.old")
        assert done.actions() == ALL_DONE


class TestInterrupted:
    def test_goes_on_from_its_checkpoint(self, done: Place) -> None:
        done.interrupt("audio", step=7)
        assert done.actions() == {**ALL_DONE, "audio": "continue"}
        assert done.why("audio") == "was interrupted; goes on from step 7"

    def test_before_its_first_checkpoint(self, done: Place) -> None:
        done.interrupt("audio", step=None)
        assert done.actions() == {**ALL_DONE, "audio": "run"}
        assert done.why("audio") == "was interrupted before its first checkpoint"

    def test_a_checkpoint_of_other_settings_is_not_continued(self, done: Place) -> None:
        done.interrupt("audio", fingerprint="of other settings")
        assert done.actions() == {**ALL_DONE, "audio": "run"}

    def test_settings_changed_meanwhile(self, done: Place) -> None:
        done.interrupt("audio")
        done.change("    train: audio", "    train: audio\n    epochs: 3")
        assert (done.actions()["audio"], done.why("audio")) == ("run", "epochs: 10 -> 3")

    def test_a_smaller_micro_batch_goes_on(self, done: Place) -> None:
        done.interrupt("audio")
        done.change("    train: audio", "    train: audio\n    micro_batch_size: 4")
        assert done.actions()["audio"] == "continue"

    def test_what_builds_on_it_runs(self, done: Place) -> None:
        done.interrupt("satellite")
        assert done.actions() == {"clip": "done", "satellite": "continue", "audio": "run"}


class TestUntil:
    def test_what_comes_after_is_for_later(self, place: Place) -> None:
        assert place.actions("satellite") == {"clip": "run", "satellite": "run", "audio": "later"}
        assert place.plan("satellite")[2].why == "comes after --until satellite"

    def test_the_last_stage(self, place: Place) -> None:
        assert place.actions("audio") == {"clip": "run", "satellite": "run", "audio": "run"}

    def test_what_is_done_stays_done(self, done: Place) -> None:
        assert done.actions("clip") == ALL_DONE

    def test_what_comes_after_and_must_run_again_is_for_later(self, done: Place) -> None:
        done.change("lr: 1.0e-4", "lr: 2.0e-4")
        assert done.actions("clip") == {"clip": "done", "satellite": "later", "audio": "later"}
        assert done.actions("satellite") == {"clip": "done", "satellite": "run", "audio": "later"}

    def test_no_such_stage(self, place: Place) -> None:
        with pytest.raises(ConfigError) as caught:
            place.plan("adio")
        assert str(caught.value) == "--until: no stage 'adio'. Available: audio, clip, satellite. Did you mean 'audio'?"


class TestRunFolder:
    def test_where_its_chain_came_from(self, place: Place) -> None:
        place.run.path.mkdir()
        place.run.write_chain({"binding": "satellite", "name": "Küste"}, place.folder / "stages.yaml")
        assert place.run.chain_base() == place.folder
        assert place.run.chain.read_text(encoding="utf-8").splitlines()[1:] == ["binding: satellite", "name: Küste"]

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"chain_file": 3}'])
    def test_no_run(self, place: Place, content: str) -> None:
        place.run.path.mkdir()
        place.run.chain.write_text("")
        (place.run.path / "run.json").write_text(content)
        with pytest.raises(RunFolderError, match="no run here"):
            place.run.chain_base()

    def test_one_run_at_a_time(self, place: Place) -> None:
        with place.run.locked(), pytest.raises(RunFolderError, match="another run"), place.run.locked():
            pass
        with place.run.locked():
            pass
