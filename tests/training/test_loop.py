"""Whole `align` stages on real networks and real files, and on small ones where many are needed."""

import itertools
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from accelerate import Accelerator
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import GroundImage, Satellite
from geobind_plugin_imagery.text import Text
from torch import nn

from geobind_core.config.models import AlignConfig, LoaderConfig, PairConfig, RunConfig
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.errors import DataError, RunFolderError, TrainingError
from geobind_core.plugins.modality import EncoderOutput, Modality, ModalityConfig
from geobind_core.plugins.source import Observations
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.progress import Reporter, Task
from geobind_core.space.embed import embed_rows
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.training import checkpoint
from geobind_core.training.align import Align
from geobind_core.training.infonce import info_nce
from geobind_core.training.losses import InfoNCE, InfoNCEConfig

pytestmark = pytest.mark.usefixtures("one_thread")

# ---------------------------------------------------------------------- a stage without a chain


class Numbers(Modality[ModalityConfig]):
    """A row of numbers through a small network that drops units."""

    name: ClassVar[str] = "numbers"
    augmentations: ClassVar[Mapping[str, str]] = {"jitter": "noise on every number"}

    def build_encoder(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))

    def read(self, cell: Any) -> list[float]:
        if cell[0] > 1e6:
            raise ValueError(f"{cell[0]:g} is out of range")
        return list(cell)

    def transform(self, sample: list[float], *, train: bool, rng: np.random.Generator) -> list[float]:
        noise = rng.normal(0, 0.1, len(sample)) if train and self.augment else np.zeros(len(sample))
        return [float(a + b) for a, b in zip(sample, noise, strict=True)]


def numbers(count: int = 40, *, broken: Mapping[str, int] | None = None, empty: int = 0) -> PairedData:
    """Rows of numbers, of which every modality is a rotation; row `broken[modality]` cannot be read."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(count, 4))
    table = {"key": [f"row{i}" for i in range(count)]}
    for i, name in enumerate(("satellite", "ground", "audio")):
        values = (base @ np.linalg.qr(np.random.default_rng(i).normal(size=(4, 4)))[0]).tolist()
        for row in [r for m, r in (broken or {}).items() if m == name]:
            values[row][0] = 1e9
        table[name] = [None if j < empty else v for j, v in enumerate(values)]
    fields = {name: name for name in ("satellite", "ground", "audio")}
    return PairedData("rows", Observations(pa.table(table), Path(), fields), _everything_trains())


def _everything_trains() -> Any:
    from geobind_core.plugins.source import SourceConfig, SplitConfig

    return SourceConfig(source="memory", split=SplitConfig(by="none"))


def encoder_of(modality: Modality[Any], seed: int, raw: int = 8, dim: int = 8) -> SpaceEncoder:
    torch.manual_seed(seed)
    return SpaceEncoder(modality.build_encoder(), raw, dim, projected=raw != dim)


def small(*names: str) -> dict[str, SpaceEncoder]:
    return {name: encoder_of(Numbers(ModalityConfig()), seed) for seed, name in enumerate(names)}


def align(train: str | list[str], anchor: str | list[str] = "ground", **settings: Any) -> AlignConfig:
    """Settings as the chain hands them over: anchors, pairs and directions filled in."""
    trained, anchors = ([x] if isinstance(x, str) else x for x in (train, anchor))
    edges = [(t, a) for t in trained for a in anchors] or list(itertools.combinations(trained, 2))
    loss = {"name": "infonce", "direction": "both", **settings.pop("loss", {})}
    pairs = settings.pop("pairs", None) or [PairConfig(modalities=edge, loss=loss) for edge in edges]
    chosen = {"batch_size": 8, "epochs": 5, "optimizer": {"lr": 5e-3}, **settings}
    return AlignConfig.model_validate(
        {"name": "stage", "train": trained, "anchor": anchors, "data": "rows", "pairs": pairs, **chosen}
    )


class Quiet(Reporter):
    """Says nothing to the screen, and remembers warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def run_stage(
    folder: Path,
    config: AlignConfig,
    data: PairedData,
    encoders: Mapping[str, SpaceEncoder],
    modalities: Mapping[str, Modality[Any]] | None = None,
    *,
    reporter: Reporter | None = None,
    fingerprint: str = "one",
    **run: Any,
) -> StageResult:
    """Runs a stage as the chain does; `folder` is a run folder."""
    stage_folder = folder / "stages" / "01-stage"
    stage_folder.mkdir(parents=True, exist_ok=True)
    context = StageContext(
        run=RunConfig.model_validate({"log_with": [], **run}),
        folder=stage_folder,
        fingerprint=fingerprint,
        modalities=modalities or {name: Numbers(ModalityConfig()) for name in encoders},
        encoders=encoders,
        data=data,
        make_loss=lambda settings: InfoNCE(InfoNCEConfig.model_validate(settings)),
        reporter=reporter or Quiet(),
    )
    return Align(config).run(context)


def log_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "stages" / "01-stage" / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [record for record in log_of(folder) if "loss" in record]


def without_speed(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in records]


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    wanted = expected.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


# ---------------------------------------------------------------------- real networks, real files


@pytest.fixture(scope="module")
def places(world: Any) -> PairedData:
    """The world's table: 20 rows to train on, 4 held out."""
    table = pa.csv.read_csv(world.table)
    fields = {name: name for name in ("satellite", "ground_image", "audio", "text")}
    return PairedData("rows", Observations(table, world.folder, fields, split="split"))


def loss_on(
    data: PairedData, modalities: Mapping[str, Modality[Any]], encoders: Mapping[str, SpaceEncoder], *pair: str
) -> float:
    """Returns the one-way loss over all training rows, as they are, at the first temperature."""
    rows, embeddings = data.rows("train", pair), []
    for name in pair:
        reader = SampleReader(data, name, modalities[name], train=False, seed=0)
        encoder = encoders[name].eval()
        embeddings.append(
            embed_rows(
                reader, encoder, rows, batch_size=20, loader=LoaderConfig(workers=0), device=torch.device("cpu")
            ).embeddings
        )
    return float(info_nce(*embeddings, 1 / 0.07))


def test_the_papers_stages(places: PairedData, clip_folder: Path, clap_folder: Path, tmp_path: Path) -> None:
    """Satellite towards frozen photos, one way; then audio towards frozen satellite, with a projection."""
    photos = GroundImage(GroundImage.Config(pretrained=str(clip_folder)))
    above = Satellite(Satellite.Config(pretrained=str(clip_folder)))
    sounds = Audio(Audio.Config(pretrained=str(clap_folder), sample_rate=16_000, seconds=1))
    modalities = {"ground_image": photos, "satellite": above, "audio": sounds}
    encoders = {
        "ground_image": encoder_of(photos, 0, 24, 24),
        "satellite": encoder_of(above, 1, 24, 24),
        "audio": encoder_of(sounds, 2, 20, 24),
    }
    before = {name: content_hash(encoder) for name, encoder in encoders.items()}
    untrained = loss_on(places, modalities, encoders, "satellite", "ground_image")

    first = align(
        "satellite",
        "ground_image",
        loss={"direction": "first_to_second"},
        epochs=30,
        batch_size=10,
        optimizer={"lr": 2e-3, "betas": [0.99, 0.98]},
        scheduler={"name": "cosine_warm_restarts", "t0": 30, "unit": "step"},
        augment={"satellite": "randaugment(3)"},
    )
    used = {name: encoders[name] for name in ("satellite", "ground_image")}
    result = run_stage(tmp_path / "one", first, places, used, modalities)
    records = steps_of(tmp_path / "one")
    assert [r["step"] for r in records] == [10, 20, 30, 40, 50, 60]
    assert loss_on(places, modalities, encoders, "satellite", "ground_image") < untrained - 0.3
    assert result.summary["rows"] == 20
    assert result.summary["steps"] == 60
    assert result.summary["bad_samples"] == []
    for record in records:
        assert set(record) == {"step", "epoch", "loss", "logit_scale", "lr", "samples_per_second"}
        assert record["epoch"] == (record["step"] - 1) // 2
    last = 2e-3 * (1 + math.cos(math.pi * 29 / 30)) / 2
    assert records[2]["lr"] == pytest.approx(last), "step 30 is the last of a cycle, and this is the rate that it used"
    assert content_hash(encoders["ground_image"]) == before["ground_image"]
    assert content_hash(encoders["satellite"]) != before["satellite"]
    satellite = content_hash(encoders["satellite"])

    untrained = loss_on(places, modalities, encoders, "audio", "satellite")
    second = align("audio", "satellite", epochs=30, optimizer={"lr": 2e-3})
    used = {name: encoders[name] for name in ("audio", "satellite")}
    projection = encoders["audio"].projection
    assert projection is not None
    head = projection.weight.detach().clone()
    run_stage(tmp_path / "two", second, places, used, modalities)
    assert loss_on(places, modalities, encoders, "audio", "satellite") < untrained - 0.3
    assert content_hash(encoders["satellite"]) == satellite, "a frozen encoder may not move by one bit"
    assert (projection.weight - head).abs().max() > 1e-3, "the head from 20 to 24 dimensions is trained"
    assert all(p.isfinite().all() for p in encoders["audio"].parameters())
    for encoder in encoders.values():
        assert not encoder.training
        assert not any(p.requires_grad for p in encoder.parameters())


def test_two_encoders_towards_each_other(places: PairedData, clip_architecture: dict[str, Any], tmp_path: Path) -> None:
    modalities = {
        "ground_image": GroundImage(GroundImage.Config(model=clip_architecture)),
        "text": Text(Text.Config(model=clip_architecture)),
    }
    encoders = {name: encoder_of(m, seed, 24, 24) for seed, (name, m) in enumerate(modalities.items())}
    before = {name: content_hash(encoder) for name, encoder in encoders.items()}
    config = align(["ground_image", "text"], [], epochs=20, optimizer={"lr": 2e-3}, micro_batch_size=3)
    run_stage(tmp_path, config, places, encoders, modalities)
    records = steps_of(tmp_path)
    assert records[-1]["loss"] < records[0]["loss"] - 0.3
    assert all(content_hash(encoder) != before[name] for name, encoder in encoders.items())


# ---------------------------------------------------------------------- what is frozen stays


class Shared(Numbers):
    """Hands the same network to whoever asks, as a module shared between modalities would be."""

    network: ClassVar[nn.Module]

    def build_encoder(self) -> nn.Module:
        return nn.Sequential(self.network, nn.Linear(8, 8))


def test_an_anchor_that_changes_is_an_error(tmp_path: Path) -> None:
    Shared.network = Numbers(ModalityConfig()).build_encoder()
    modality = Shared(ModalityConfig())
    encoders = {"satellite": encoder_of(modality, 0), "ground": encoder_of(modality, 1)}
    with pytest.raises(TrainingError, match="'ground' changed during the stage") as raised:
        run_stage(tmp_path, align("satellite"), numbers(), encoders)
    assert raised.value.hint


class PartlyFixed(Numbers):
    """Trains its last layer only, as an encoder over a frozen trunk does."""

    def build_encoder(self) -> nn.Module:
        network = super().build_encoder()
        network[0].requires_grad_(False)  # type: ignore[index]
        return network


def test_what_a_plugin_has_fixed_is_not_trained(tmp_path: Path) -> None:
    encoders = {"satellite": encoder_of(PartlyFixed(ModalityConfig()), 0), "ground": small("ground")["ground"]}
    first, last = encoders["satellite"].encoder[0].weight, encoders["satellite"].encoder[3].weight  # type: ignore[index]
    before = first.clone(), last.detach().clone()
    for _ in range(2):  # a stage freezes what it trained; the next one must still know the difference
        run_stage(tmp_path, align("satellite"), numbers(), encoders)
    assert torch.equal(first, before[0])
    assert not torch.equal(last, before[1])


# ---------------------------------------------------------------------- kill it anywhere


class Interrupted(Exception):
    """Raised out of a reporter, as an interruption is out of anywhere."""


class Interrupting(Quiet):
    """Stops the stage when so many steps are done."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        with super().task(title, total, unit, done) as task:
            update = task.update

            def stop(done: int, *args: Any, **kwargs: Any) -> None:
                update(done, *args, **kwargs)
                if unit == "steps" and done >= self.after:
                    raise Interrupted

            task.update = stop  # type: ignore[method-assign]
            yield task


DEMANDING: dict[str, Any] = {
    "epochs": 12,
    "checkpoint": {"steps": 7},
    "augment": {"satellite": "jitter"},
    "micro_batch_size": 3,
    "optimizer": {"lr": 5e-3, "clip_norm": 0.5},
    "scheduler": {"name": "cosine_warm_restarts", "t0": 9, "t_mult": 2},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SpaceEncoder, list[dict[str, Any]]]:
    """The weights and the log of a demanding stage that nothing disturbed: 60 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    encoders = small("satellite", "ground")
    run_stage(folder, align("satellite", **DEMANDING), numbers(), encoders)
    return encoders["satellite"], steps_of(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_gives_the_same_weights_to_the_bit(
    tmp_path: Path, undisturbed: tuple[SpaceEncoder, list[dict[str, Any]]], workers: int
) -> None:
    config, loader = align("satellite", **DEMANDING), {"workers": workers}
    for stop in (20, 40):  # twice in a row, each time some steps after a checkpoint
        with pytest.raises(Interrupted):
            run_stage(
                tmp_path, config, numbers(), small("satellite", "ground"), reporter=Interrupting(stop), loader=loader
            )
    encoders = small("satellite", "ground")
    result = run_stage(tmp_path, config, numbers(), encoders, loader=loader)
    expected, log = undisturbed
    assert_same_weights(encoders["satellite"], expected)
    assert without_speed(steps_of(tmp_path)) == without_speed(log)
    assert result.summary["steps"] == 60


@pytest.mark.parametrize("name", ["satellite", "audio", "text"])
def test_real_networks_go_on_to_the_same_weights(
    name: str,
    places: PairedData,
    clip_architecture: dict[str, Any],
    clip_folder: Path,
    clap_folder: Path,
    tmp_path: Path,
) -> None:
    """Everything that a network keeps, spectrograms and running statistics too, is in the checkpoint."""
    residual = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None}
    modalities = {
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
        "satellite": Satellite(Satellite.Config(model={**clip_architecture, "vision_cfg": residual})),
        "text": Text(Text.Config(model=clip_architecture)),
        "audio": Audio(Audio.Config(pretrained=str(clap_folder), sample_rate=16_000, seconds=1)),
    }
    config = align(name, "ground_image", epochs=4, checkpoint={"steps": 3}, batch_size=10)

    def encoders() -> dict[str, SpaceEncoder]:
        raw = 20 if name == "audio" else 24
        return {
            name: encoder_of(modalities[name], 1, raw, 24),
            "ground_image": encoder_of(modalities["ground_image"], 0, 24, 24),
        }

    undisturbed, going_on = encoders(), encoders()
    run_stage(tmp_path / "undisturbed", config, places, undisturbed, modalities)
    with pytest.raises(Interrupted):
        run_stage(tmp_path / "killed", config, places, encoders(), modalities, reporter=Interrupting(8))
    assert checkpoint.read_state(tmp_path / "killed/stages/01-stage", "one").step == 6  # type: ignore[union-attr]
    run_stage(tmp_path / "killed", config, places, going_on, modalities)
    assert_same_weights(going_on[name], undisturbed[name])


def test_a_checkpoint_cut_off_while_being_written_leaves_the_one_before(
    tmp_path: Path, undisturbed: tuple[SpaceEncoder, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = align("satellite", **DEMANDING)
    write, written = Accelerator.save_state, []

    def full_disk(self: Accelerator, folder: str, **kwargs: Any) -> str:
        path = write(self, folder, **kwargs)
        written.append(path)
        if len(written) == 4:
            next(Path(folder).glob("*.safetensors")).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return path

    with monkeypatch.context() as patched:
        patched.setattr(Accelerator, "save_state", full_disk)
        with pytest.raises(RunFolderError, match="No space left"):
            run_stage(tmp_path, config, numbers(), small("satellite", "ground"))
    stage = tmp_path / "stages" / "01-stage"
    assert checkpoint.read_state(stage, "one").step == 21  # type: ignore[union-attr]
    encoders = small("satellite", "ground")
    run_stage(tmp_path, config, numbers(), encoders)
    assert_same_weights(encoders["satellite"], undisturbed[0])
    checkpoint.remove(stage)
    assert not list(stage.glob("*checkpoint*")), "nothing of it may stay behind"


def test_a_checkpoint_cut_off_between_its_renames_is_found(
    tmp_path: Path, undisturbed: tuple[SpaceEncoder, list[dict[str, Any]]]
) -> None:
    config = align("satellite", **DEMANDING)
    with pytest.raises(Interrupted):
        run_stage(tmp_path, config, numbers(), small("satellite", "ground"), reporter=Interrupting(20))
    stage = tmp_path / "stages" / "01-stage"
    (stage / "checkpoint").rename(stage / ".checkpoint.old")
    encoders = small("satellite", "ground")
    said: list[str] = []
    reporter = Quiet()
    reporter.say = lambda text, **style: said.append(text)  # type: ignore[method-assign, assignment]
    run_stage(tmp_path, config, numbers(), encoders, reporter=reporter)
    assert any("going on from step 14 of 60" in line for line in said)
    assert_same_weights(encoders["satellite"], undisturbed[0])


def test_a_checkpoint_of_another_fingerprint_is_not_continued(
    tmp_path: Path, undisturbed: tuple[SpaceEncoder, list[dict[str, Any]]]
) -> None:
    other = align("satellite", **{**DEMANDING, "optimizer": {"lr": 0.5}})
    with pytest.raises(Interrupted):
        run_stage(
            tmp_path,
            other,
            numbers(),
            small("satellite", "ground"),
            reporter=Interrupting(20),
            fingerprint="another",
        )
    encoders = small("satellite", "ground")
    run_stage(tmp_path, align("satellite", **DEMANDING), numbers(), encoders)
    assert_same_weights(encoders["satellite"], undisturbed[0])
    assert without_speed(steps_of(tmp_path)) == without_speed(undisturbed[1]), "the other's log is gone too"


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
import numpy as np, pyarrow as pa, torch
from torch import nn
from geobind_core.config.models import AlignConfig, PairConfig, RunConfig
from geobind_core.data.paired import PairedData
from geobind_core.plugins.modality import Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.progress import Reporter
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.training.align import Align
from geobind_core.training.losses import InfoNCE, InfoNCEConfig


class Numbers(Modality):
    name = "numbers"
    left = None

    def build_encoder(self):
        return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8))

    def transform(self, sample, *, train, rng):
        if train and Numbers.left is not None:
            Numbers.left -= 1
            if Numbers.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return [float(v + rng.normal(0, 0.1)) for v in sample]


def run(folder, samples=None):
    Numbers.left = samples
    values = np.random.default_rng(0).normal(size=(40, 4)).tolist()
    table = pa.table({"key": [str(i) for i in range(40)], "a": values, "b": values})
    source = SourceConfig(source="memory", split=SplitConfig(by="none"))
    data = PairedData("rows", Observations(table, Path(), {"a": "a", "b": "b"}), source)
    encoders = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        encoders[name] = SpaceEncoder(Numbers(ModalityConfig()).build_encoder(), 8, 8, projected=False)
    pair = PairConfig(modalities=("a", "b"), loss={"name": "infonce", "direction": "both"})
    config = AlignConfig.model_validate(dict(
        name="stage", train=["a"], anchor=["b"], data="rows", pairs=[pair], batch_size=8, epochs=8,
        optimizer={"lr": 5e-3}, checkpoint={"steps": 4}))
    stage = Path(folder) / "stages" / "01-stage"
    stage.mkdir(parents=True, exist_ok=True)
    Align(config).run(StageContext(
        RunConfig(log_with=[], loader={"workers": 0}), stage, "f", {n: Numbers(ModalityConfig()) for n in "ab"},
        encoders, data, lambda s: InfoNCE(InfoNCEConfig.model_validate(s)), Reporter(quiet=True)))
    return content_hash(encoders["a"])


if __name__ == "__main__":
    print(run(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_without_warning(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    run: Callable[..., str] = runpy.run_path(str(script))["run"]
    # 8 of each batch: killed while reading the batch of step 23, after the checkpoint of step 20.
    killed = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "killed"), str(8 * 22 + 3)],
        capture_output=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},  # as `one_thread` has it here
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    state = checkpoint.read_state(tmp_path / "killed" / "stages" / "01-stage", "f")
    assert state is not None
    assert state.step == 20
    assert run(tmp_path / "killed") == run(tmp_path / "undisturbed")
    log = without_speed(steps_of(tmp_path / "killed"))
    assert [r["step"] for r in log] == [10, 20, 30, 40]
    assert log == without_speed(steps_of(tmp_path / "undisturbed"))


# ---------------------------------------------------------------------- what goes wrong


class Exploding(Numbers):
    """Its network returns NaN from a certain call on."""

    def build_encoder(self) -> nn.Module:
        return ExplodingNetwork()


class ExplodingNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.calls = 0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.linear(batch)
        return out * (float("nan") if self.calls > 16 else 1.0)


def test_a_loss_that_is_not_a_number_stops_the_stage(tmp_path: Path) -> None:
    encoders = {"satellite": encoder_of(Exploding(ModalityConfig()), 0), "ground": small("ground")["ground"]}
    config = align("satellite", epochs=8, checkpoint={"steps": 3})
    with pytest.raises(TrainingError, match="the loss is nan at step") as raised:
        run_stage(tmp_path, config, numbers(), encoders)
    assert "optimizer.lr" in str(raised.value)
    assert "clip_norm" in str(raised.value)
    stage = tmp_path / "stages" / "01-stage"
    assert checkpoint.read_state(stage, "one").step == 15  # type: ignore[union-attr]
    from safetensors.torch import load_file

    weights = load_file(stage / "checkpoint" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values()), "the last checkpoint is a good one"


class SharpRoot(Numbers):
    """A finite loss whose gradient is not: the square root of zero."""

    def build_encoder(self) -> nn.Module:
        class Root(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.zeros(8))

            def forward(self, batch: torch.Tensor) -> torch.Tensor:
                return batch.repeat(1, 2) + self.scale.sqrt()

        return Root()


def test_a_finite_loss_with_an_infinite_gradient_is_found_before_it_is_stored(tmp_path: Path) -> None:
    encoders = {"satellite": encoder_of(SharpRoot(ModalityConfig()), 0), "ground": small("ground")["ground"]}
    config = align("satellite", epochs=1, batch_size=40)  # a single step: its loss is fine
    with pytest.raises(TrainingError, match=r"not finite after step 1"):
        run_stage(tmp_path, config, numbers(), encoders)


@pytest.mark.parametrize(("warmup", "unit", "steps"), [(26, "step", 26), (6, "epoch", 30)])
def test_a_warmup_longer_than_the_stage_is_said(tmp_path: Path, warmup: int, unit: str, steps: int) -> None:
    data, encoders, reporter = numbers(40), small("satellite", "ground"), Quiet()
    schedule = {"name": "cosine_warmup", "warmup": warmup, "unit": unit}
    run_stage(tmp_path, align("satellite", scheduler=schedule), data, encoders, reporter=reporter)
    (said,) = (text for text in reporter.warnings if "warm-up" in text)
    assert f"the warm-up takes {steps} steps and the stage has 25" in said
    assert steps_of(tmp_path)[-1]["lr"] == pytest.approx(5e-3 * 25 / (steps + 1))
    assert f"rises to {steps_of(tmp_path)[-1]['lr']:.2g} and not to 0.005" in said
    run_stage(tmp_path / "whole", align("satellite", scheduler={**schedule, "warmup": 25, "unit": "step"}), data,
              encoders, reporter=(quiet := Quiet()))  # fmt: skip
    assert not quiet.warnings


def test_bad_samples_are_counted_named_and_skipped(tmp_path: Path) -> None:
    data = numbers(100, broken={"satellite": 17, "ground": 60})
    config = align("satellite", max_bad_samples=0.02, epochs=3)
    result = run_stage(tmp_path, config, data, small("satellite", "ground"))
    bad = [record for record in log_of(tmp_path) if record.get("event") == "bad_sample"]
    assert {(r["key"], r["modality"]) for r in bad} == {("row17", "satellite"), ("row60", "ground")}
    assert len(bad) == 2, "each is named once, whatever the number of epochs"
    assert all("1e+09 is out of range" in r["reason"] for r in bad)
    assert sorted(result.summary["bad_samples"]) == [
        "row17 (satellite): ValueError: 1e+09 is out of range",
        "row60 (ground): ValueError: 1e+09 is out of range",
    ]


@pytest.mark.parametrize("modality", ["satellite", "ground"])
def test_too_many_bad_samples_stop_the_stage_with_the_list(tmp_path: Path, modality: str) -> None:
    data = numbers(100, broken={modality: 17})
    config = align("satellite", max_bad_samples=0.005)
    with pytest.raises(DataError, match=rf"row17 \({modality}\): ValueError: 1e\+09 is out of range") as raised:
        run_stage(tmp_path, config, data, small("satellite", "ground"))
    assert "1 of 100 rows cannot be read, more than stages.stage.max_bad_samples: 0.005 allows (0)" in str(raised.value)
    assert "raise stages.stage.max_bad_samples" in str(raised.value)
    assert [r["key"] for r in log_of(tmp_path) if r.get("event") == "bad_sample"] == ["row17"]


def test_bad_samples_found_before_an_interruption_still_count(tmp_path: Path) -> None:
    data = numbers(40, broken={"satellite": 5})
    config = align("satellite", max_bad_samples=0.03, epochs=10, checkpoint={"steps": 9})
    with pytest.raises(Interrupted):
        run_stage(tmp_path, config, data, small("satellite", "ground"), reporter=Interrupting(30))
    result = run_stage(tmp_path, config, data, small("satellite", "ground"))
    assert len(result.summary["bad_samples"]) == 1
    assert len([r for r in log_of(tmp_path) if r.get("event") == "bad_sample"]) == 1


def test_files_that_are_broken(own_world: Any, clip_folder: Path, tmp_path: Path) -> None:
    (own_world.folder / own_world.rows[3]["satellite"]).write_bytes(b"not a JPEG")
    cut = own_world.folder / own_world.rows[4]["ground_image"]
    cut.write_bytes(cut.read_bytes()[:200])
    (own_world.folder / own_world.rows[5]["satellite"]).unlink()
    modalities = {
        "satellite": Satellite(Satellite.Config(pretrained=str(clip_folder))),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
    }
    encoders = {name: encoder_of(m, 0, 24, 24) for name, m in modalities.items()}
    table = pa.csv.read_csv(own_world.table)
    fields = {name: name for name in modalities}
    data = PairedData("rows", Observations(table, own_world.folder, fields, split="split"))
    config = align("satellite", "ground_image", max_bad_samples=0.2, epochs=1)
    result = run_stage(tmp_path, config, data, encoders, modalities)
    named = sorted(text.split(":")[0] for text in result.summary["bad_samples"])
    assert named == ["3 (satellite)", "4 (ground_image)", "5 (satellite)"]
    assert "no such file: " in next(t for t in result.summary["bad_samples"] if t.startswith("5 "))


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    data = numbers(2, broken={"satellite": 0})
    config = align("satellite", max_bad_samples=1.0, epochs=2)
    with pytest.raises(DataError, match="no batch has two readable rows"):
        run_stage(tmp_path, config, data, small("satellite", "ground"))
    data = numbers(2, broken={"ground": 0})
    with pytest.raises(DataError, match="1 training rows can be read"):
        run_stage(tmp_path, config, data, small("satellite", "ground"))
    with pytest.raises(DataError, match="1 training rows have all of satellite, ground"):
        run_stage(tmp_path, config, numbers(5, empty=4), small("satellite", "ground"))


# ---------------------------------------------------------------------- anchors, edges, precision


def test_what_trains_is_in_training_mode_and_only_slices_go_through(tmp_path: Path) -> None:
    encoders = small("satellite", "ground")
    seen: dict[str, set[tuple[int, bool, bool]]] = {name: set() for name in encoders}
    for name, encoder in encoders.items():

        def note(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
            gradients = any(p.requires_grad for p in module.parameters())
            seen[name].add((len(args[0]), module.training, gradients))

        encoder.register_forward_pre_hook(note)
        encoder.freeze()  # as an earlier stage leaves it
    config = align("satellite", augment={"ground": "jitter"}, micro_batch_size=3, epochs=1)
    run_stage(tmp_path, config, numbers(), encoders)
    assert seen == {
        "satellite": {(3, True, True), (2, True, True)},
        "ground": {(3, False, False), (2, False, False)},
    }


def test_an_augmented_anchor_runs_live_and_a_plain_one_does_not(tmp_path: Path) -> None:
    class Counting(Numbers):
        reads: ClassVar[int] = 0

        def read(self, cell: Any) -> list[float]:
            Counting.reads += 1
            return super().read(cell)

    found = {}
    for kind, augment in (("plain", {}), ("live", {"ground": "jitter"})):
        Counting.reads = 0
        encoders = small("satellite", "ground")
        modalities = {"satellite": Numbers(ModalityConfig()), "ground": Counting(ModalityConfig())}
        config = align("satellite", augment=augment, epochs=6, micro_batch_size=3)
        loader = {"decoded_cache_mib": 0, "workers": 0}
        run_stage(tmp_path / kind, config, numbers(), encoders, modalities, loader=loader)
        found[kind] = (Counting.reads, steps_of(tmp_path / kind)[-1]["loss"])
    assert found["plain"][0] < 2 * 40, "each row once, beside a few to measure their size"
    assert found["live"][0] >= 6 * 40
    assert found["plain"][1] != found["live"][1]


class Still(Numbers):
    """An augmentation that does nothing: what runs live must then equal what is cached."""

    def transform(self, sample: list[float], *, train: bool, rng: np.random.Generator) -> list[float]:
        return [float(v) for v in sample]


@pytest.mark.parametrize("micro", [None, 3])
def test_cached_and_live_anchors_give_the_same_weights(tmp_path: Path, micro: int | None) -> None:
    found = {}
    for kind, augment in (("cached", {}), ("live", {"ground": "jitter"})):
        encoders = small("satellite", "ground")
        modalities = {name: Still(ModalityConfig()) for name in encoders}
        run_stage(
            tmp_path / kind,
            align("satellite", augment=augment, micro_batch_size=micro),
            numbers(),
            encoders,
            modalities,
        )
        found[kind] = encoders["satellite"].state_dict()
    for name, tensor in found["cached"].items():
        torch.testing.assert_close(found["live"][name], tensor, atol=1e-5, rtol=1e-4)


def test_slices_do_not_change_what_is_learned(tmp_path: Path) -> None:
    class NoDropout(Numbers):
        def build_encoder(self) -> nn.Module:
            return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 8))

    modality = NoDropout(ModalityConfig())
    found = []
    for i, micro in enumerate((None, 3)):
        encoders = {name: encoder_of(modality, seed) for seed, name in enumerate(("satellite", "ground"))}
        config = align("satellite", micro_batch_size=micro, epochs=3)
        run_stage(tmp_path / str(i), config, numbers(), encoders, dict.fromkeys(encoders, modality))
        found.append(encoders["satellite"].state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("micro", [None, 3, 8])
def test_batch_normalisation_in_slices_is_said_so(tmp_path: Path, micro: int | None) -> None:
    class Normalised(Numbers):
        def build_encoder(self) -> nn.Module:
            return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))

    modality = Normalised(ModalityConfig())
    encoders = {name: encoder_of(modality, seed) for seed, name in enumerate(("satellite", "ground"))}
    reporter = Quiet()
    config = align("satellite", micro_batch_size=micro, epochs=1)
    run_stage(tmp_path, config, numbers(), encoders, dict.fromkeys(encoders, modality), reporter=reporter)
    said = [text for text in reporter.warnings if "'satellite' has batch normalisation" in text]
    assert len(said) == (1 if micro == 3 else 0)
    assert not any("'ground'" in text for text in reporter.warnings), "what is frozen normalises by what it has learned"


def test_several_pairs_have_a_scale_each(tmp_path: Path) -> None:
    hot = {"name": "infonce", "direction": "both", "logit_scale": {"init_temperature": 0.5}}
    fixed = {"name": "infonce", "direction": "first_to_second", "logit_scale": {"learnable": False}}
    pairs = [
        PairConfig(modalities=("satellite", "ground"), loss=hot),
        PairConfig(modalities=("audio", "ground"), loss=fixed, weight=2.0),
        PairConfig(modalities=("satellite", "audio"), loss=hot),
    ]
    encoders = small("satellite", "audio", "ground")
    config = align(["satellite", "audio"], pairs=pairs, epochs=10)
    run_stage(tmp_path, config, numbers(), encoders)
    names = [f"logit_scale/{a}" for a in ("satellite_ground", "audio_ground", "satellite_audio")]
    for record in steps_of(tmp_path):
        scales = [record[name] for name in names]
        assert record["logit_scale"] == pytest.approx(sum(scales) / 3, rel=1e-5)
        assert record[names[1]] == pytest.approx(1 / 0.07, rel=1e-5)
    last = steps_of(tmp_path)[-1]
    assert last[names[0]] != pytest.approx(2.0, rel=1e-3)
    assert last[names[0]] != last[names[2]], "each is trained for itself"


def test_bfloat16_runs_on_a_cpu_and_leaves_float32_behind(tmp_path: Path) -> None:
    losses = {}
    for precision in ("bf16", "no", "bf16"):  # in one process, as in a notebook
        folder = tmp_path / precision
        shutil.rmtree(folder, ignore_errors=True)
        encoders = small("satellite", "ground")
        run_stage(folder, align("satellite", epochs=10), numbers(), encoders, mixed_precision=precision)
        records = steps_of(folder)
        assert records[-1]["loss"] < records[0]["loss"]
        assert {p.dtype for p in encoders["satellite"].parameters()} == {torch.float32}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embedding = encoders["satellite"](torch.randn(20, 4)).embedding
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(20), atol=1e-6, rtol=0)
        losses.setdefault(precision, records[-1]["loss"])
    assert losses["bf16"] != losses["no"], "the precision must have had an effect"
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1)


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_stage(tmp_path, align("satellite"), numbers(), small("satellite", "ground"), log_with=["tensorboard"])
    folder = tmp_path / "tensorboard" / "01-stage"
    assert list(folder.glob("events.out.tfevents.*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    expected = [(r["step"], r["loss"]) for r in steps_of(tmp_path)]
    assert found == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]
    assert {"logit_scale", "lr", "samples_per_second"} <= set(events.Tags()["scalars"])


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    run_stage(tmp_path, align("satellite"), numbers(), small("satellite", "ground"))
    assert [path.name for path in tmp_path.iterdir()] == ["stages"]


def test_too_few_rows_for_a_batch_are_said_so(tmp_path: Path) -> None:
    reporter = Quiet()
    config = align("satellite", batch_size=64, epochs=2)
    result = run_stage(tmp_path, config, numbers(40), small("satellite", "ground"), reporter=reporter)
    assert result.summary["steps"] == 2
    assert any("40 rows make one batch of 40, not of 64" in text for text in reporter.warnings)


def test_the_whole_gradient_is_clipped_the_scale_included(tmp_path: Path) -> None:
    encoders = small("satellite", "ground")
    # With an eps far above the gradient, AdamW's first steps are about lr times the gradient. Two of them:
    # what is logged of a step is the scale before it.
    config = align(
        "satellite", epochs=2, batch_size=40, optimizer={"lr": 1.0, "eps": 1.0, "clip_norm": 1e-3, "weight_decay": 0.0}
    )
    before = [p.detach().clone() for p in encoders["satellite"].parameters()]
    run_stage(tmp_path, config, numbers(), encoders)
    moved = torch.sqrt(
        sum(((p - b) ** 2).sum() for p, b in zip(encoders["satellite"].parameters(), before, strict=True))  # type: ignore[arg-type]
    )
    scale = steps_of(tmp_path)[-1]["logit_scale"]
    assert 0 < float(moved) <= 2.001e-3
    assert scale == pytest.approx(1 / 0.07, rel=1.1e-3)


def test_outputs_beyond_an_embedding_reach_the_loss(tmp_path: Path) -> None:
    class Rich(Numbers):
        def build_encoder(self) -> nn.Module:
            class Network(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.linear = nn.Linear(4, 8)

                def forward(self, batch: torch.Tensor) -> EncoderOutput:
                    out = self.linear(batch)
                    return EncoderOutput(out, log_variance=out.tanh())

            return Network()

    modality = Rich(ModalityConfig())
    encoders = {name: encoder_of(modality, seed) for seed, name in enumerate(("satellite", "ground"))}
    config = align("satellite", micro_batch_size=3, epochs=10)
    run_stage(tmp_path, config, numbers(), encoders, dict.fromkeys(encoders, modality))
    records = steps_of(tmp_path)
    assert records[-1]["loss"] < records[0]["loss"]
