"""Stages that train the projection of an encoder and leave its trunk alone."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import GroundImage
from torch import nn

from geobind_core.config.models import AlignConfig, PairConfig, RunConfig
from geobind_core.data.cache_entries import cache_root, list_entries
from geobind_core.data.paired import PairedData
from geobind_core.errors import ConfigError
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.modality import Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.progress import Reporter, Task
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.training import loop
from geobind_core.training.align import Align
from geobind_core.training.losses import InfoNCE, InfoNCEConfig

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "every_step")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs every step, so that curves can be compared point by point."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


# ---------------------------------------------------------------------- a stage without a chain


class Numbers(Modality[ModalityConfig]):
    """A row of numbers through a small network that drops units and keeps running statistics."""

    name: ClassVar[str] = "numbers"
    augmentations: ClassVar[Mapping[str, str]] = {"jitter": "noise on every number"}
    reads: ClassVar[int] = 0

    def build_encoder(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 12))

    def read(self, cell: Any) -> list[float]:
        Numbers.reads += 1
        return list(cell)

    def transform(self, sample: list[float], *, train: bool, rng: np.random.Generator) -> list[float]:
        noise = rng.normal(0, 0.5, len(sample)) if train and self.augment else np.zeros(len(sample))
        return [float(a + b) for a, b in zip(sample, noise, strict=True)]


def numbers(count: int = 40) -> PairedData:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(count, 4))
    table = {"key": [f"row{i}" for i in range(count)]}
    for i, name in enumerate(("satellite", "ground", "audio")):
        table[name] = (base @ np.linalg.qr(np.random.default_rng(i).normal(size=(4, 4)))[0]).tolist()
    fields = {name: name for name in ("satellite", "ground", "audio")}
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    return PairedData("rows", Observations(pa.table(table), Path(), fields), config)


def small(*names: str) -> dict[str, SpaceEncoder]:
    """Networks of 12 dimensions in a space of 8: each has a projection."""
    encoders = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        encoders[name] = SpaceEncoder(Numbers(ModalityConfig()).build_encoder(), 12, 8, projected=True)
    return encoders


def align(train: str | list[str], anchor: str | list[str] = "ground", **settings: Any) -> AlignConfig:
    trained, anchors = ([x] if isinstance(x, str) else x for x in (train, anchor))
    edges = [(t, a) for t in trained for a in anchors] or list(itertools.combinations(trained, 2))
    loss = {"name": "infonce", "direction": "both", **settings.pop("loss", {})}
    pairs = [PairConfig(modalities=edge, loss=loss) for edge in edges]
    chosen = {"batch_size": 8, "epochs": 5, "optimizer": {"lr": 5e-3}, "freeze_trunk": "satellite", **settings}
    return AlignConfig.model_validate(
        {"name": "stage", "train": trained, "anchor": anchors, "data": "rows", "pairs": pairs, **chosen}
    )


def run_stage(
    folder: Path,
    config: AlignConfig,
    data: PairedData,
    encoders: Mapping[str, SpaceEncoder],
    modalities: Mapping[str, Modality[Any]] | None = None,
    *,
    loss: type[Loss[Any]] = InfoNCE,
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
            modalities=modalities or {name: Numbers(ModalityConfig()) for name in encoders},
            encoders=encoders,
            data=data,
            make_loss=lambda settings: loss(InfoNCEConfig.model_validate(settings)),
            reporter=reporter or Reporter(quiet=True),
        )
    )


def losses_of(folder: Path) -> list[float]:
    lines = (folder / "stages" / "01-stage" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def head_of(encoder: SpaceEncoder) -> torch.Tensor:
    assert encoder.projection is not None
    return encoder.projection.weight.detach().clone()


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("kind", ["float32", "off"])
@pytest.mark.parametrize("micro", [None, 3])
def test_only_the_projection_changes(tmp_path: Path, kind: str, micro: int | None) -> None:
    """Weights, running statistics and all: not by one bit. And what is not in the way of a gradient does not decay."""
    encoders = small("satellite", "ground")
    trunk, head = content_hash(encoders["satellite"].encoder), head_of(encoders["satellite"])
    anchor = content_hash(encoders["ground"])
    optimizer = {"lr": 5e-3, "weight_decay": 0.5}
    run_stage(
        tmp_path,
        align("satellite", anchor_cache=kind, micro_batch_size=micro, optimizer=optimizer),
        numbers(),
        encoders,
    )
    assert content_hash(encoders["satellite"].encoder) == trunk
    assert content_hash(encoders["ground"]) == anchor
    assert (head_of(encoders["satellite"]) - head).abs().max() > 1e-2
    curve = losses_of(tmp_path)
    assert len(curve) == 25
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.1
    assert not encoders["satellite"].training
    assert not any(p.requires_grad for p in encoders["satellite"].parameters())
    outputs = [entry.description["output"] for entry in list_entries(cache_root())]
    assert sorted(outputs) == ([] if kind == "off" else ["embedding", "features"])


class FixedByThePlugin(Numbers):
    """The same network, its trunk held fast in another way: by the plugin, and by a mode that it cannot leave."""

    def build_encoder(self) -> nn.Module:
        network = super().build_encoder()
        network.requires_grad_(False)
        network.eval()
        network.train = lambda mode=True: network  # type: ignore[assignment, method-assign]
        return network


def test_it_is_what_a_live_trunk_in_evaluation_mode_gives(tmp_path: Path) -> None:
    """Against a stage that knows nothing of frozen trunks, which runs the whole network in every step."""
    expected = small("satellite", "ground")
    fixed = FixedByThePlugin(ModalityConfig()).build_encoder()
    fixed.load_state_dict(expected["satellite"].encoder.state_dict())
    whole = SpaceEncoder(fixed, 12, 8, projected=True)
    whole.load_state_dict(expected["satellite"].state_dict())
    expected["satellite"] = whole
    run_stage(tmp_path / "whole", align("satellite", freeze_trunk=[]), numbers(), expected)
    assert not fixed.training
    for kind in ("float32", "off"):
        found = small("satellite", "ground")
        run_stage(tmp_path / kind, align("satellite", anchor_cache=kind), numbers(), found)
        assert losses_of(tmp_path / kind) == pytest.approx(losses_of(tmp_path / "whole"), abs=1e-4)
        torch.testing.assert_close(head_of(found["satellite"]), head_of(whole), atol=1e-4, rtol=1e-3)
    half = small("satellite", "ground")
    run_stage(tmp_path / "half", align("satellite", anchor_cache="float16"), numbers(), half)
    assert losses_of(tmp_path / "half") == pytest.approx(losses_of(tmp_path / "whole"), abs=5e-3)
    torch.testing.assert_close(head_of(half["satellite"]), head_of(whole), atol=5e-3, rtol=0)


def test_a_frozen_trunk_beside_an_encoder_that_is_trained(tmp_path: Path) -> None:
    found = {}
    for kind in ("float32", "off"):
        encoders = small("satellite", "audio", "ground")
        before = {name: content_hash(encoder.encoder) for name, encoder in encoders.items()}
        config = align(["satellite", "audio"], [], anchor_cache=kind, optimizer={"lr": 1e-3})
        both = {name: encoders[name] for name in ("satellite", "audio")}
        run_stage(tmp_path / kind, config, numbers(), both)
        assert content_hash(both["satellite"].encoder) == before["satellite"]
        assert content_hash(both["audio"].encoder) != before["audio"]
        found[kind] = head_of(both["satellite"])
    assert losses_of(tmp_path / "float32") == pytest.approx(losses_of(tmp_path / "off"), abs=1e-4)
    torch.testing.assert_close(found["float32"], found["off"], atol=1e-4, rtol=1e-3)


def test_the_next_stage_may_train_all_of_it(tmp_path: Path) -> None:
    encoders = small("satellite", "ground")
    run_stage(tmp_path / "one", align("satellite"), numbers(), encoders)
    trunk = content_hash(encoders["satellite"].encoder)
    run_stage(tmp_path / "two", align("satellite", freeze_trunk=[]), numbers(), encoders)
    assert content_hash(encoders["satellite"].encoder) != trunk


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


@pytest.mark.parametrize("views", [None, 2])
def test_going_on_gives_the_same_weights_to_the_bit(tmp_path: Path, views: int | None) -> None:
    config = align("satellite", augment={"satellite": "jitter"}, anchor_views=views, checkpoint={"steps": 7})
    undisturbed, going_on = small("satellite", "ground"), small("satellite", "ground")
    run_stage(tmp_path / "undisturbed", config, numbers(), undisturbed)
    with pytest.raises(Interrupted):
        run_stage(tmp_path / "killed", config, numbers(), small("satellite", "ground"), reporter=Interrupting(17))
    run_stage(tmp_path / "killed", config, numbers(), going_on)
    assert content_hash(going_on["satellite"]) == content_hash(undisturbed["satellite"])
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "undisturbed")


# ---------------------------------------------------------------------- what is read


@pytest.fixture(scope="module")
def sounds_and_photos(clip_folder: Path, clap_folder: Path) -> dict[str, Modality[Any]]:
    return {
        "audio": Audio(Audio.Config(pretrained=str(clap_folder), sample_rate=16_000, seconds=0.5)),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_opened_when_all_is_cached(
    workers: int, own_world: Any, sounds_and_photos: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    """CLAP's trunk and CLIP's image tower, both from the cache, and the files of both beyond reading."""
    table = pa.csv.read_csv(own_world.table)
    fields = {name: name for name in sounds_and_photos}
    data = PairedData("rows", Observations(table, own_world.folder, fields, split="split"))
    settings: dict[str, Any] = {"batch_size": 10, "epochs": 10, "freeze_trunk": "audio"}

    def train(name: str, seed: int, **changed: Any) -> SpaceEncoder:
        encoders = {}
        for modality, raw in (("ground_image", 24), ("audio", 20)):
            network = sounds_and_photos[modality].build_encoder()
            torch.manual_seed(seed)
            encoders[modality] = SpaceEncoder(network, raw, 24, projected=raw != 24)
        trunk = content_hash(encoders["audio"].encoder)
        config = align("audio", "ground_image", **{**settings, **changed})
        run_stage(tmp_path / name, config, data, encoders, sounds_and_photos, loader={"workers": workers})
        assert content_hash(encoders["audio"].encoder) == trunk
        return encoders["audio"]

    live = train("live", 1, anchor_cache="off")
    first = train("one", 1)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "live"), abs=1e-4)
    torch.testing.assert_close(head_of(first), head_of(live), atol=1e-4, rtol=1e-3)
    before = [(entry.folder, entry.rows) for entry in list_entries(cache_root())]
    assert [rows for _, rows in before] == [20, 20]
    for row in own_world.rows:
        for name in fields:
            path = own_world.folder / row[name]
            known = path.stat()
            path.write_bytes(b"?" * known.st_size)
            os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert content_hash(train("two", 1)) == content_hash(first)
    other = train("three", 2)  # another projection upon the same features
    assert not torch.equal(head_of(other), head_of(first))
    assert sorted(before) == sorted((entry.folder, entry.rows) for entry in list_entries(cache_root()))


@pytest.mark.parametrize("views", [None, 2])
def test_augmented_samples(tmp_path: Path, views: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live, each epoch has samples of its own; with views it has one of those, and nothing more is read."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(args[0].detach().clone())

    encoders = small("satellite", "ground")
    assert encoders["satellite"].projection is not None
    encoders["satellite"].projection.register_forward_pre_hook(note)
    Numbers.reads = 0
    config = align("satellite", augment={"satellite": "jitter"}, anchor_views=views, batch_size=40, epochs=4)
    run_stage(tmp_path, config, numbers(), encoders, loader={"workers": 0, "decoded_cache_mib": 0})
    assert len(seen) == 4

    def same(a: int, b: int) -> bool:  # in another order, every epoch
        return torch.equal(*(torch.sort(seen[epoch].sum(1)).values for epoch in (a, b)))

    assert [same(0, 1), same(0, 2), same(1, 3)] == ([False, False, False] if views is None else [False, True, True])
    rows = {e.description["output"]: e.rows for e in list_entries(cache_root())}
    assert rows == ({"embedding": 40} if views is None else {"embedding": 40, "features": 80})


# ---------------------------------------------------------------------- what is refused


def test_without_a_projection_there_is_nothing_to_train(tmp_path: Path) -> None:
    encoders = small("satellite", "ground")
    encoders["satellite"] = SpaceEncoder(nn.Linear(4, 8), 8, 8, projected=False)
    with pytest.raises(ConfigError, match="no projection that could be trained") as raised:
        run_stage(tmp_path, align("satellite"), numbers(), encoders)
    assert raised.value.place == "stage stage, freeze_trunk"
    assert raised.value.hint == "Set modalities.satellite.projection: linear."


def test_only_what_is_trained_has_a_trunk_to_freeze() -> None:
    with pytest.raises(ValueError, match="freeze_trunk names ground; expected some of train: satellite"):
        align("satellite", freeze_trunk="ground")


class Demanding(InfoNCE):
    needs: ClassVar[tuple[str, ...]] = ("tokens", "mask")


def test_a_projection_gives_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a loss needs its mask, tokens; a projection has none") as raised:
        run_stage(tmp_path, align("satellite"), numbers(), small("satellite", "ground"), loss=Demanding)
    assert raised.value.place == "stage stage, freeze_trunk"
