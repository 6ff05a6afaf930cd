"""What makes a stage faster makes no other weights of it."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from geobind_plugin_imagery.images import GroundImage, Satellite
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from geobind_core.config.models import AdamW, AlignConfig, PairConfig, RunConfig
from geobind_core.data.paired import PairedData
from geobind_core.plugins.modality import EncoderOutput, Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.progress import Reporter, Task
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.training import loop, tiles
from geobind_core.training.align import Align
from geobind_core.training.edges import EdgeLosses
from geobind_core.training.losses import InfoNCE, InfoNCEConfig
from geobind_core.training.optimizer import build_optimizer
from geobind_core.training.updates import Updates

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs every step, so that curves can be compared point by point."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


# ---------------------------------------------------------------------- a stage without a chain


class Pixels(Modality[ModalityConfig]):
    """Numbers as a small image `[2, 6, 6]`, through convolutions."""

    name: ClassVar[str] = "pixels"

    def build_encoder(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.GELU(),
            nn.Conv2d(8, 8, 1),
            nn.GELU(),
            nn.Conv2d(8, 4, 3),
            nn.Flatten(),
            nn.Linear(16, 8),
        )

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return np.array(sample, dtype=np.float32).reshape(2, 6, 6)


def pixels(count: int = 40, *, labels: bool = False) -> PairedData:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(count, 72))
    table = {"key": [str(i) for i in range(count)], "kind": [str(i % 5) for i in range(count)]}
    table |= {name: (base + rng.normal(size=base.shape)).tolist() for name in ("satellite", "ground")}
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    fields = {name: name for name in ("satellite", "ground")}
    named = {"satellite": "kind"} if labels else {}
    return PairedData("rows", Observations(pa.table(table), Path(), fields, labels=named), config)


def small() -> dict[str, SpaceEncoder]:
    encoders = {}
    for seed, name in enumerate(("satellite", "ground")):
        torch.manual_seed(seed)
        encoders[name] = SpaceEncoder(Pixels(ModalityConfig()).build_encoder(), 8, 8, projected=False)
    return encoders


def align(anchor: str = "ground", **settings: Any) -> AlignConfig:
    loss = {"name": "infonce", "direction": "both", **settings.pop("loss", {})}
    pairs = [PairConfig(modalities=("satellite", anchor), loss=loss)]
    chosen = {"batch_size": 8, "epochs": 4, "optimizer": {"lr": 5e-3}, "name": "stage", **settings}
    return AlignConfig.model_validate(
        {"train": "satellite", "anchor": anchor, "data": "rows", "pairs": pairs, **chosen}
    )


def run_stage(
    folder: Path,
    config: AlignConfig,
    data: PairedData,
    encoders: Mapping[str, SpaceEncoder],
    modalities: Mapping[str, Modality[Any]] | None = None,
    *,
    reporter: Reporter | None = None,
    **run: Any,
) -> StageResult:
    stage_folder = folder / "stages" / "01-stage"
    stage_folder.mkdir(parents=True, exist_ok=True)
    return Align(config).run(
        StageContext(
            run=RunConfig.model_validate({"log_with": [], "loader": {"workers": 0}, **run}),
            folder=stage_folder,
            fingerprint="one",
            modalities=modalities or dict.fromkeys(encoders, Pixels(ModalityConfig())),
            encoders=encoders,
            data=data,
            make_loss=lambda settings: InfoNCE(InfoNCEConfig.model_validate(settings)),
            reporter=reporter or Reporter(quiet=True),
        )
    )


def train(
    folder: Path, *, reporter: Reporter | None = None, run: Mapping[str, Any] | None = None, **settings: Any
) -> SpaceEncoder:
    encoders = small()
    run_stage(folder, align(**settings), pixels(labels="loss" in settings), encoders, reporter=reporter, **(run or {}))
    return encoders["satellite"]


def curve_of(folder: Path) -> list[float]:
    lines = (folder / "stages" / "01-stage" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def assert_close(found: nn.Module, expected: nn.Module, tolerance: float) -> None:
    wanted = expected.state_dict()
    assert list(found.state_dict()) == list(wanted)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(
            tensor, wanted[name], atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


class Interrupted(Exception):
    """Raised out of a reporter, as an interruption is out of anywhere."""


class Interrupting(Reporter):
    """Stops the stage when so many steps are done."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
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


@pytest.fixture(scope="module")
def photos(
    world: Any, clip_architecture: dict[str, Any], clip_folder: Path
) -> tuple[PairedData, dict[str, Modality[Any]]]:
    """Satellite images through a residual network, and photos through a transformer, from JPEG files."""
    residual = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None}
    modalities: dict[str, Modality[Any]] = {
        "satellite": Satellite(Satellite.Config(model={**clip_architecture, "vision_cfg": residual})),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
    }
    fields = {name: name for name in modalities}
    table = pa.csv.read_csv(world.table)
    return PairedData("rows", Observations(table, world.folder, fields, split="split")), modalities


def real(modalities: Mapping[str, Modality[Any]]) -> dict[str, SpaceEncoder]:
    encoders = {}
    for name, modality in modalities.items():
        torch.manual_seed(4)
        encoders[name] = SpaceEncoder(modality.build_encoder(), 24, 24, projected=False)
    return encoders


# ---------------------------------------------------------------------- channels last


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("micro", [None, 3])
def test_channels_last_gives_the_same_curve(tmp_path: Path, micro: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = []
    forward = nn.Conv2d.forward

    def note(self: nn.Conv2d, batch: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad:
            layouts.append(self.weight.is_contiguous(memory_format=torch.channels_last))
        return forward(self, batch)

    monkeypatch.setattr(nn.Conv2d, "forward", note)
    plain = train(tmp_path / "plain", micro_batch_size=micro)
    assert not all(layouts)
    layouts.clear()
    settings = {"micro_batch_size": micro, "checkpoint": {"steps": 5}}
    last = train(tmp_path / "last", run={"channels_last": True}, **settings)
    assert layouts
    assert all(layouts)
    assert curve_of(tmp_path / "last") == pytest.approx(curve_of(tmp_path / "plain"), abs=1e-4)
    assert_close(last, plain, 1e-4)
    assert all(tensor.is_contiguous() for tensor in last.state_dict().values())
    assert content_hash(last) == content_hash(copied(last)), "a hash is one of values, not of their places"
    saved = load_file(tmp_path / "last/stages/01-stage/checkpoint/model.safetensors")
    assert sorted(saved) == sorted(f"encoders.satellite.{name}" for name in plain.state_dict())


def copied(encoder: SpaceEncoder) -> SpaceEncoder:
    fresh = small()["satellite"]
    fresh.load_state_dict(encoder.state_dict())
    return fresh


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_stage_goes_on_in_another_layout(tmp_path: Path, before: bool, after: bool) -> None:
    """Killed on a machine with an accelerator, continued on one without."""
    settings = {"checkpoint": {"steps": 7}}
    undisturbed = train(tmp_path / "undisturbed", run={"channels_last": before}, **settings)
    with pytest.raises(Interrupted):
        train(tmp_path / "killed", reporter=Interrupting(12), run={"channels_last": before}, **settings)
    going_on = train(tmp_path / "killed", run={"channels_last": after}, **settings)
    assert curve_of(tmp_path / "killed") == pytest.approx(curve_of(tmp_path / "undisturbed"), abs=1e-4)
    assert_close(going_on, undisturbed, 0 if before == after else 1e-4)


@pytest.mark.usefixtures("every_step")
def test_channels_last_on_a_residual_network(
    tmp_path: Path, photos: tuple[PairedData, dict[str, Modality[Any]]]
) -> None:
    data, modalities = photos
    found = []
    for last in (False, True):
        encoders = real(modalities)
        config = align("ground_image", batch_size=10, epochs=3, optimizer={"lr": 1e-4})
        run_stage(tmp_path / str(last), config, data, encoders, modalities, channels_last=last)
        found.append(encoders["satellite"])
    assert curve_of(tmp_path / "True") == pytest.approx(curve_of(tmp_path / "False"), abs=1e-4)
    assert all(tensor.is_contiguous() for tensor in found[1].state_dict().values())


# ---------------------------------------------------------------------- the optimizer


@pytest.mark.usefixtures("every_step")
def test_the_fused_optimizer_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_optimizer([nn.Linear(2, 2)], AdamW()).defaults["fused"]
    settings = {"optimizer": {"lr": 1e-3, "clip_norm": 1.0}}
    fused = train(tmp_path / "fused", **settings)
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, **kwargs: adamw(*args, **{**kwargs, "fused": False}))
    assert not build_optimizer([nn.Linear(2, 2)], AdamW()).defaults["fused"]
    plain = train(tmp_path / "plain", **settings)
    assert_close(fused, plain, 1e-6)
    assert curve_of(tmp_path / "fused") == pytest.approx(curve_of(tmp_path / "plain"), abs=1e-5)


class Reading(TorchDispatchMode):
    """Counts the numbers that are read back from tensors, each of which waits for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"lr": 5e-3, "clip_norm": 0.5}},
        {"loss": {"queue": 20, "random_negatives": 4, "same_label": "ignore"}, "micro_batch_size": 3},
    ],
)
def test_nothing_is_read_back_between_logged_steps(
    tmp_path: Path, precision: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, at = Reading(), []
    step = Updates.step

    def note(self: Updates) -> None:
        step(self)
        at.append(reading.count)

    monkeypatch.setattr(Updates, "step", note)
    with reading:
        train(tmp_path, epochs=5, run={"mixed_precision": precision}, **settings)
    read = [b - a for a, b in itertools.pairwise(at)]
    assert len(read) == 24
    assert [i for i, count in enumerate(read, start=2) if count] == [11, 21], "after steps 10 and 20"
    assert 0 < max(read) < 10


# ---------------------------------------------------------------------- half precision


@pytest.mark.usefixtures("every_step")
def test_half_precision_keeps_what_must_be_exact(
    tmp_path: Path, photos: tuple[PairedData, dict[str, Modality[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real networks: embeddings and logits are float32, and anchors from the cache are those of the step."""
    data, modalities = photos
    kinds: set[tuple[str, torch.dtype]] = set()
    anchors: dict[str, list[torch.Tensor]] = {"float32": [], "off": []}
    forward, made = EdgeLosses.forward, tiles.tiles

    def note(self: EdgeLosses, outputs: Mapping[str, EncoderOutput], batch: Any) -> Any:
        kinds.update((name, output.embedding.dtype) for name, output in outputs.items())
        anchors[kind].append(outputs["ground_image"].embedding.clone())
        value, logs = forward(self, outputs, batch)
        kinds.add(("loss", value.dtype))
        return value, logs

    def note_tiles(*args: Any) -> Any:
        for rows, columns, tile in made(*args):
            kinds.add(("logits", tile.dtype))
            yield rows, columns, tile

    monkeypatch.setattr(EdgeLosses, "forward", note)
    monkeypatch.setattr(tiles, "tiles", note_tiles)
    found = {}
    for kind in ("float32", "off"):
        encoders = real(modalities)
        config = align("ground_image", anchor_cache=kind, batch_size=10, epochs=4, optimizer={"lr": 1e-4})
        run_stage(tmp_path / kind, config, data, encoders, modalities, mixed_precision="bf16")
        found[kind] = encoders["satellite"]
        assert all(np.isfinite(curve_of(tmp_path / kind)))
        assert {t.dtype for t in encoders["satellite"].state_dict().values() if t.is_floating_point()} == {
            torch.float32
        }
    assert kinds == {(name, torch.float32) for name in ("satellite", "ground_image", "loss", "logits")}
    for cached, live in zip(anchors["float32"], anchors["off"], strict=True):
        torch.testing.assert_close(cached, live, atol=1e-3, rtol=0)
    assert curve_of(tmp_path / "float32") == pytest.approx(curve_of(tmp_path / "off"), abs=1e-3)
    exact = real(modalities)
    config = align("ground_image", batch_size=10, epochs=4, optimizer={"lr": 1e-4})
    run_stage(tmp_path / "exact", config, data, exact, modalities)
    assert curve_of(tmp_path / "exact") != curve_of(tmp_path / "float32"), "it must have had an effect"
    assert curve_of(tmp_path / "exact") == pytest.approx(curve_of(tmp_path / "float32"), rel=0.1)


# ---------------------------------------------------------------------- torch.compile


@pytest.mark.slow
@pytest.mark.usefixtures("every_step")
def test_compiled_networks_give_the_same_curve(tmp_path: Path) -> None:
    """Weights have their own names all the same, and a checkpoint is one of either kind."""
    plain = train(tmp_path / "plain")
    names = sorted(f"encoders.satellite.{name}" for name in plain.state_dict())
    compiled = train(tmp_path / "compiled", run={"compile": True}, checkpoint={"steps": 7})
    assert curve_of(tmp_path / "compiled") == pytest.approx(curve_of(tmp_path / "plain"), abs=1e-4)
    assert_close(compiled, plain, 1e-4)
    assert type(compiled.encoder) is nn.Sequential
    for before, after in ((True, True), (True, False), (False, True)):
        folder = tmp_path / f"{before} {after}"
        with pytest.raises(Interrupted):
            train(folder, reporter=Interrupting(12), run={"compile": before}, checkpoint={"steps": 7})
        assert sorted(load_file(folder / "stages/01-stage/checkpoint/model.safetensors")) == names
        going_on = train(folder, run={"compile": after}, checkpoint={"steps": 7})
        assert curve_of(folder) == pytest.approx(curve_of(tmp_path / "plain"), abs=1e-4)
        assert_close(going_on, compiled, 0 if before and after else 1e-4)
    everything: dict[str, Any] = {"compile": True, "channels_last": True, "mixed_precision": "bf16"}
    together = train(tmp_path / "together", run=everything, micro_batch_size=3)
    half = train(tmp_path / "half", run={"mixed_precision": "bf16"}, micro_batch_size=3)
    assert curve_of(tmp_path / "together") == pytest.approx(curve_of(tmp_path / "half"), rel=0.05)
    assert_close(together, half, 5e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("every_step")
def test_compiled_real_networks(tmp_path: Path, photos: tuple[PairedData, dict[str, Modality[Any]]]) -> None:
    data, modalities = photos
    modalities = {**modalities, "satellite": Satellite(modalities["ground_image"].config)}
    found = []
    for compiled in (False, True):
        encoders = real(modalities)
        config = align("ground_image", batch_size=10, epochs=3, optimizer={"lr": 1e-4}, micro_batch_size=4)
        run_stage(tmp_path / str(compiled), config, data, encoders, modalities, compile=compiled)
        found.append(encoders["satellite"])
    assert curve_of(tmp_path / "True") == pytest.approx(curve_of(tmp_path / "False"), abs=1e-4)
    assert_close(found[1], found[0], 1e-4)
