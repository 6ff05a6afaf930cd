"""What is frozen is embedded once: cached and live are the same, and what the cache has is not read again."""

import itertools
import json
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import GroundImage, Satellite
from geobind_plugin_imagery.text import Text
from torch import nn

from geobind_core.config.models import AlignConfig, PairConfig, RunConfig
from geobind_core.data.cache_entries import StoredEntry, cache_root, list_entries
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.errors import DataError
from geobind_core.plugins.modality import Augmentation, Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.progress import Reporter
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.training import anchors, loop, setup
from geobind_core.training.align import Align
from geobind_core.training.edges import BatchRows, EdgeLosses
from geobind_core.training.losses import InfoNCE, InfoNCEConfig
from geobind_core.training.seeds import derived_seed

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "every_step")

Modalities = Mapping[str, Modality[Any]]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs every step, so that curves can be compared point by point."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


# ---------------------------------------------------------------------- a stage without a chain


def align(train: str, anchor: str | list[str] = "ground_image", **settings: Any) -> AlignConfig:
    named = [anchor] if isinstance(anchor, str) else anchor
    loss = {"name": "infonce", "direction": "both", **settings.pop("loss", {})}
    pairs = [PairConfig(modalities=(train, a), loss=loss) for a in named]
    chosen = {"batch_size": 8, "epochs": 5, "optimizer": {"lr": 1e-3}, "name": "stage", **settings}
    return AlignConfig.model_validate({"train": train, "anchor": named, "data": "rows", "pairs": pairs, **chosen})


def run_stage(
    folder: Path,
    config: AlignConfig,
    data: PairedData,
    modalities: Modalities,
    encoders: Mapping[str, SpaceEncoder],
    **run: Any,
) -> StageResult:
    stage_folder = folder / "stages" / "01-stage"
    stage_folder.mkdir(parents=True)
    return Align(config).run(
        StageContext(
            run=RunConfig.model_validate({"log_with": [], "loader": {"workers": 0}, **run}),
            folder=stage_folder,
            fingerprint="one",
            modalities=modalities,
            encoders=encoders,
            data=data,
            make_loss=lambda settings: InfoNCE(InfoNCEConfig.model_validate(settings)),
            reporter=Reporter(quiet=True),
        )
    )


def log_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "stages" / "01-stage" / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in log_of(folder) if "loss" in record]


def bad_of(folder: Path) -> list[tuple[str, str]]:
    return [(r["key"], r["modality"]) for r in log_of(folder) if r.get("event") == "bad_sample"]


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    wanted = expected.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def entries() -> list[StoredEntry]:
    return list_entries(cache_root())


# ---------------------------------------------------------------------- real networks, real files


FIELDS = {name: name for name in ("satellite", "ground_image", "audio", "text")}


def places_of(world: Any, **columns: Sequence[Any]) -> PairedData:
    table = pa.csv.read_csv(world.table)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return PairedData("rows", Observations(table, world.folder, FIELDS, split="split"))


@pytest.fixture(scope="module")
def photos_and_captions(clip_folder: Path, clap_folder: Path) -> dict[str, Modality[Any]]:
    return {
        "satellite": Satellite(Satellite.Config(pretrained=str(clip_folder))),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
        "text": Text(Text.Config(pretrained=str(clip_folder))),
        "audio": Audio(Audio.Config(pretrained=str(clap_folder), sample_rate=16_000, seconds=1)),
    }


def encoders_of(modalities: Modalities, *names: str) -> dict[str, SpaceEncoder]:
    """The networks of some modalities, the same ones every time."""
    built = {}
    for name in names:
        torch.manual_seed(3)
        raw = 20 if name == "audio" else 24
        built[name] = SpaceEncoder(modalities[name].build_encoder(), raw, 24, projected=raw != 24)
    return built


def train_audio_and_photos(
    folder: Path, data: PairedData, modalities: Modalities, run: Mapping[str, Any] | None = None, **settings: Any
) -> SpaceEncoder:
    """A stage that trains sounds towards photos; returns the trained encoder."""
    encoders = encoders_of(modalities, "audio", "ground_image")
    config = align("audio", **{"epochs": 3, **settings})
    run_stage(folder, config, data, modalities, encoders, **(run or {}))
    return encoders["audio"]


@pytest.mark.parametrize("anchor", ["ground_image", "text", "audio"])
def test_cached_and_live_give_the_same_curve(
    anchor: str, world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    found = {}
    for kind in ("float32", "off"):
        encoders = encoders_of(photos_and_captions, "satellite", anchor)
        config = align("satellite", anchor, anchor_cache=kind, epochs=10)
        run_stage(tmp_path / kind, config, places_of(world), photos_and_captions, encoders)
        found[kind] = encoders["satellite"]
    curve = losses_of(tmp_path / "float32")
    assert len(curve) == 20
    assert curve == pytest.approx(losses_of(tmp_path / "off"), abs=1e-4)
    for name, tensor in found["off"].state_dict().items():
        torch.testing.assert_close(found["float32"].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    assert [entry.rows for entry in entries()] == [20]
    assert not any(entry.description["modality"] == "satellite" for entry in entries()), "what is trained is not kept"


def ruin(files: Sequence[Path]) -> None:
    """Makes files unreadable that look untouched: of the same size, changed at the same time."""
    for path in files:
        known = path.stat()
        path.write_bytes(b"?" * known.st_size)
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_cached_is_not_opened(
    workers: int, own_world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    """In another run folder, and whether the sounds beside it are read by this process or by others."""
    run = {"loader": {"workers": workers}}
    first = train_audio_and_photos(tmp_path / "one", places_of(own_world), photos_and_captions, run)
    photos = [own_world.folder / row["ground_image"] for row in own_world.rows]
    before = [(entry.folder, entry.rows) for entry in entries()]
    ruin(photos)
    second = train_audio_and_photos(tmp_path / "two", places_of(own_world), photos_and_captions, run)
    assert_same_weights(second, first)
    assert losses_of(tmp_path / "two") == losses_of(tmp_path / "one")
    assert [(entry.folder, entry.rows) for entry in entries()] == before
    os.utime(photos[5])
    with pytest.raises(DataError, match=r"5 \(ground_image\)"):  # what looks changed is read again
        train_audio_and_photos(tmp_path / "three", places_of(own_world), photos_and_captions, run)


def test_a_changed_file_is_embedded_anew(
    own_world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    train_audio_and_photos(tmp_path / "one", places_of(own_world), photos_and_captions)
    paths = [own_world.folder / row["ground_image"] for row in own_world.rows]
    ruin([paths[i] for i in range(20) if i != 5])
    paths[5].write_bytes(paths[22].read_bytes())  # another photo under the same name
    train_audio_and_photos(tmp_path / "two", places_of(own_world), photos_and_captions)
    assert [entry.rows for entry in entries()] == [21], "the old one and the new one"
    assert losses_of(tmp_path / "two") != losses_of(tmp_path / "one")


def test_what_decides_on_an_embedding_decides_on_the_entry(
    world: Any, photos_and_captions: dict[str, Modality[Any]], clip_architecture: dict[str, Any], tmp_path: Path
) -> None:
    data, numbers = places_of(world), itertools.count()

    def train(
        modalities: Modalities = photos_and_captions, *, shift: float = 0, precision: str = "no", **settings: Any
    ) -> int:
        encoders = encoders_of(modalities, "satellite", "ground_image")
        with torch.no_grad():
            next(encoders["ground_image"].parameters()).add_(shift)
        config = align("satellite", **{"epochs": 1, **settings})
        run_stage(tmp_path / str(next(numbers)), config, data, modalities, encoders, mixed_precision=precision)
        return len(entries())

    assert train() == 1
    assert train(batch_size=5, epochs=2, micro_batch_size=2, name="another") == 1, (
        "how it is trained makes no difference"
    )
    assert train(shift=1e-3) == 2, "other weights"
    assert train(precision="bf16") == 3
    assert train(anchor_cache="float16") == 4
    assert train(augment={"ground_image": "flips"}, anchor_views=1) == 5
    assert train(augment={"ground_image": "flips"}, anchor_views=2) == 5, "more views of the same"
    assert train(augment={"ground_image": "dihedral"}, anchor_views=1) == 6
    assert train(augment={"ground_image": "flips"}, anchor_views=1, name="another") == 7, "other views: another seed"

    class Cropped(GroundImage):
        """Reads photos in another way."""

    assert train({**photos_and_captions, "ground_image": Cropped(photos_and_captions["ground_image"].config)}) == 8
    assert train() == 8


def test_half_precision_takes_half_the_room(
    world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = []
    cached_column = anchors.cached_column

    def keep(*args: Any) -> Any:
        column, bad = cached_column(*args)
        columns.append(column)
        return column, bad

    monkeypatch.setattr(setup, "cached_column", keep)
    for kind in ("float32", "float16"):
        train_audio_and_photos(tmp_path / kind, places_of(world), photos_and_captions, anchor_cache=kind, epochs=10)
    sizes = {
        entry.description["dtype"]: sum(f.stat().st_size for f in entry.folder.rglob("values.npy"))
        for entry in entries()
    }
    assert sizes == {"float32": 20 * 24 * 4 + 128, "float16": 20 * 24 * 2 + 128}
    rows = np.arange(20)
    exact, half = (column.of(rows, epoch=0) for column in columns)
    assert half.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(half, exact, atol=5e-4)
    assert not np.array_equal(half, exact)
    assert losses_of(tmp_path / "float16") == pytest.approx(losses_of(tmp_path / "float32"), abs=2e-3)


def test_code_decides_on_the_entry_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the class, of what it inherits from, and of the modules beside it; a notebook has none."""
    package = tmp_path / "own_modality"
    package.mkdir()
    (package / "__init__.py").write_text("from own_modality.inner import Inner\n")
    (package / "inner.py").write_text(
        "from geobind_plugin_imagery.images import GroundImage\nclass Inner(GroundImage):\n    name = 'inner'\n"
    )
    (package / "helper.py").write_text("SIZE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_modality  # type: ignore[import-not-found]

    before = anchors._code(own_modality.Inner)
    assert [name.split(":")[1] for name in before] == ["Inner", "GroundImage", "Image"]
    assert all(part["source"] for part in before.values())
    assert anchors._code(own_modality.Inner) == before
    (package / "helper.py").write_text("SIZE = 2\n")
    after = anchors._code(own_modality.Inner)
    assert after != before
    assert {k: v for k, v in after.items() if "inner" not in k} == {k: v for k, v in before.items() if "inner" not in k}
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("from geobind_core import Modality\nclass Typed(Modality):\n    name = 'typed'\n", typed)
    monkeypatch.setitem(sys.modules, "__main__", type(sys)("__main__"))
    assert anchors._code(typed["Typed"]) == {"__main__:Typed": {"version": "", "source": ""}}


# ---------------------------------------------------------------------- views


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, torch.Tensor]]:
    """What the losses get of the photos in each step: row -> embedding."""
    steps: list[dict[int, torch.Tensor]] = []
    forward = EdgeLosses.forward

    def note(self: EdgeLosses, outputs: Mapping[str, Any], batch: BatchRows) -> Any:
        steps.append(dict(zip(batch.rows.tolist(), outputs["ground_image"].embedding.clone(), strict=True)))
        return forward(self, outputs, batch)

    monkeypatch.setattr(EdgeLosses, "forward", note)
    return steps


AUGMENTED = ["random_resized_crop(0.5)", "randaugment(2)", "flips"]


def views_of(data: PairedData, modality: Modality[Any], encoder: SpaceEncoder, row: int, count: int) -> torch.Tensor:
    """The first views of a row `[count, D]`, computed one by one."""
    augmented = modality.with_augment([Augmentation.parse(text) for text in AUGMENTED])
    reader = SampleReader(data, "ground_image", augmented, train=True, seed=derived_seed(0, "stage"))
    samples = [reader.finish(reader.read(row), row, epoch) for epoch in range(count)]
    with torch.inference_mode():
        return torch.cat([encoder.eval()(modality.collate([sample])).embedding for sample in samples])


@pytest.mark.parametrize(("count", "kind"), [(2, "float32"), (4, "float32"), (3, "float16"), (None, "float32")])
def test_views_are_those_of_the_epochs(
    count: int | None,
    kind: str,
    world: Any,
    photos_and_captions: dict[str, Modality[Any]],
    tmp_path: Path,
    seen: list[dict[int, torch.Tensor]],
) -> None:
    """Epoch e has view e mod K; without K, each epoch has its own."""
    data, epochs = places_of(world), 5
    train_audio_and_photos(
        tmp_path,
        data,
        photos_and_captions,
        augment={"ground_image": AUGMENTED},
        anchor_views=count,
        anchor_cache=kind,
        batch_size=20,
        epochs=epochs,
    )
    assert len(seen) == epochs
    encoder = encoders_of(photos_and_captions, "ground_image")["ground_image"]
    for row in (0, 7, 19):
        expected = views_of(data, photos_and_captions["ground_image"], encoder, row, count or epochs)
        assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(expected, 2)), "views differ"
        for epoch in range(epochs):
            found = seen[epoch][row]
            torch.testing.assert_close(
                found, expected[epoch % len(expected)], atol=1e-6 if kind == "float32" else 1e-3, rtol=0
            )
    assert [entry.rows for entry in entries()] == ([20 * count] if count else [])


def test_no_more_views_are_made_than_there_are_epochs(
    world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"augment": {"ground_image": "flips"}, "epochs": 2}
    train_audio_and_photos(tmp_path, places_of(world), photos_and_captions, anchor_views=50, **settings)
    assert [entry.rows for entry in entries()] == [40]


def test_views_belong_to_the_row_and_not_to_the_file(
    world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path, seen: list[dict[int, torch.Tensor]]
) -> None:
    """Samples are a function of seed, epoch and key: also where two rows, or two data sets, share a file."""
    same = [world.rows[0]["ground_image"]] * len(world.rows)
    settings: dict[str, Any] = {
        "augment": {"ground_image": AUGMENTED},
        "anchor_views": 1,
        "batch_size": 20,
        "epochs": 1,
    }
    train_audio_and_photos(tmp_path / "one", places_of(world, ground_image=same), photos_and_captions, **settings)
    renamed = places_of(world, ground_image=same, key=[f"other {i}" for i in range(len(world.rows))])
    train_audio_and_photos(tmp_path / "two", renamed, photos_and_captions, **settings)
    encoder = encoders_of(photos_and_captions, "ground_image")["ground_image"]
    for data, found in zip((places_of(world, ground_image=same), renamed), seen, strict=True):
        for row in (0, 7, 19):
            (expected,) = views_of(data, photos_and_captions["ground_image"], encoder, row, 1)
            torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("augment", [{}, {"ground_image": "flips"}])
def test_bad_anchors_are_counted_named_and_skipped(
    augment: dict[str, str], own_world: Any, photos_and_captions: dict[str, Modality[Any]], tmp_path: Path
) -> None:
    """In the first run and in the second, each once, and every row that shares the file is named."""
    files = [row["ground_image"] for row in own_world.rows]
    files[9] = files[12] = files[3]
    (own_world.folder / files[3]).write_bytes(b"not a JPEG")
    (own_world.folder / files[17]).unlink()
    data = places_of(own_world, ground_image=files)
    settings: dict[str, Any] = {"augment": augment, "anchor_views": 2, "max_bad_samples": 0.2}
    for run in ("one", "two"):
        opened: list[str] = []

        class Noting(GroundImage):
            def read(self, cell: Any, opened: list[str] = opened) -> torch.Tensor:
                opened.append(Path(cell).name)
                return super().read(cell)

        modalities = {**photos_and_captions, "ground_image": Noting(photos_and_captions["ground_image"].config)}
        encoders = encoders_of(modalities, "audio", "ground_image")
        result = run_stage(tmp_path / run, align("audio", **settings), data, modalities, encoders)
        assert result.summary["rows"] == 16
        assert result.summary["steps"] == 10
        assert sorted(bad_of(tmp_path / run)) == [(key, "ground_image") for key in ("12", "17", "3", "9")]
        assert len(result.summary["bad_samples"]) == 4
    assert set(opened) <= {Path(files[3]).name, Path(files[17]).name}, "what was embedded is not opened"
    assert losses_of(tmp_path / "one") == losses_of(tmp_path / "two")
    with pytest.raises(DataError, match="4 of 20 rows cannot be read") as raised:
        train_audio_and_photos(tmp_path / "three", data, photos_and_captions, **{**settings, "max_bad_samples": 0.15})
    for key in (3, 9, 12, 17):
        assert f"{key} (ground_image): " in str(raised.value)
    assert len(bad_of(tmp_path / "three")) == 4


# ---------------------------------------------------------------------- small networks


class Words(Modality[ModalityConfig]):
    """Numbers through a small network that counts what it embeds, and fails when it is told to."""

    name: ClassVar[str] = "words"

    def build_encoder(self) -> nn.Module:
        return Counting()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 8))
        self.batches: list[int] = []
        self.fail_at = -1

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self.fail_at:
            raise InterruptedError("in the middle")
        self.batches.append(len(batch))
        result: torch.Tensor = self.layers(batch)
        return result


def words(count: int = 40, distinct: int | None = None) -> PairedData:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(count, 4))
    table = {"key": [str(i) for i in range(count)], "own": base.tolist()}
    for name in ("first", "second"):
        table[name] = [base[i % (distinct or count)].tolist() for i in range(count)]
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    fields = {name: name for name in ("own", "first", "second")}
    return PairedData("rows", Observations(pa.table(table), Path(), fields), config)


def small(*names: str) -> dict[str, SpaceEncoder]:
    encoders = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        encoders[name] = SpaceEncoder(Counting(), 8, 8, projected=False)
    return encoders


def train_words(folder: Path, data: PairedData, encoders: Mapping[str, SpaceEncoder], **settings: Any) -> SpaceEncoder:
    config = align("own", [name for name in encoders if name != "own"], **settings)
    run_stage(folder, config, data, {name: Words(ModalityConfig()) for name in encoders}, encoders)
    return encoders["own"]


def test_what_repeats_is_embedded_once(tmp_path: Path) -> None:
    encoders = small("own", "first")
    train_words(tmp_path, words(distinct=7), encoders, batch_size=8)
    assert sum(encoders["first"].encoder.batches) == 7  # type: ignore[arg-type]
    assert [entry.rows for entry in entries()] == [7]
    live = small("own", "first")
    trained = train_words(tmp_path / "live", words(distinct=7), live, batch_size=8, anchor_cache="off")
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(encoders["own"].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_an_anchor_of_two_edges_is_embedded_once(tmp_path: Path) -> None:
    encoders = small("own", "first", "second")
    settings: dict[str, Any] = {"batch_size": 8, "epochs": 3}
    config = align("own", ["first", "second"], **settings)
    again = config.model_copy(update={"pairs": [*(config.pairs or []), *(config.pairs or [])]})
    run_stage(tmp_path, again, words(), {name: Words(ModalityConfig()) for name in encoders}, encoders)
    for name in ("first", "second"):
        assert encoders[name].encoder.batches == [8] * 5
    once = small("own", "first", "second")
    run_stage(tmp_path / "once", config, words(), {name: Words(ModalityConfig()) for name in once}, once)
    for name, tensor in once["own"].state_dict().items():  # each edge twice is each edge at the same weight
        torch.testing.assert_close(encoders["own"].state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_cut_off_while_being_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored by then stays, the rest is added, and everything is as if nothing had happened."""
    monkeypatch.setattr(anchors, "_ROWS_PER_SEGMENT", 6)
    settings: dict[str, Any] = {"micro_batch_size": 3, "batch_size": 8}
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "undisturbed"))
    expected = small("own", "first")
    train_words(tmp_path / "one", words(), expected, **settings)
    (undisturbed,) = entries()

    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "killed"))
    failing = small("own", "first")
    failing["first"].encoder.fail_at = 9  # type: ignore[assignment]
    with pytest.raises(InterruptedError):
        train_words(tmp_path / "two", words(), failing, **settings)
    assert [entry.rows for entry in entries()] == [24], "eight batches in four segments; the ninth waited for a tenth"
    going_on = small("own", "first")
    train_words(tmp_path / "three", words(), going_on, **settings)
    assert going_on["first"].encoder.batches == [3] * 5 + [1]
    (found,) = entries()
    assert found.rows == 40

    def content(entry: StoredEntry) -> dict[bytes, bytes]:
        rows = {}
        for folder in entry.folder.glob("seg-*"):
            ids, values = (np.load(folder / name) for name in ("ids.npy", "values.npy"))
            rows |= {i.tobytes(): v.tobytes() for i, v in zip(ids, values, strict=True)}
        return rows

    assert content(found) == content(undisturbed)
    assert_same_weights(going_on["own"], expected["own"])


def test_columns_are_the_same_in_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[anchors.CachedColumn] = []
    cached_column = anchors.cached_column

    def keep(*args: Any) -> Any:
        column, bad = cached_column(*args)
        columns.append(column)
        return column, bad

    monkeypatch.setattr(setup, "cached_column", keep)
    monkeypatch.setattr(anchors, "_ROWS_PER_SEGMENT", 6)
    train_words(tmp_path, words(), small("own", "first"), micro_batch_size=3)
    rows = np.random.default_rng(1).permutation(40)
    copied = pickle.loads(pickle.dumps(columns[0]))
    np.testing.assert_array_equal(copied.of(rows, 3), columns[0].of(rows, 3))


def test_a_cache_that_was_pruned_is_filled_again(tmp_path: Path) -> None:
    import shutil

    first = train_words(tmp_path / "one", words(), small("own", "first"))
    shutil.rmtree(cache_root())
    assert_same_weights(train_words(tmp_path / "two", words(), small("own", "first")), first)
    assert [entry.rows for entry in entries()] == [40]


def test_rows_without_a_cell_are_not_asked_for(tmp_path: Path) -> None:
    data = words()
    table = pa.table(
        {
            "key": [str(i) for i in range(40)],
            "own": [[float(i)] * 4 for i in range(40)],
            "first": [None if i % 4 == 1 else [float(i)] * 4 for i in range(40)],
            "second": [None if i % 5 == 2 else [-float(i)] * 4 for i in range(40)],
        }
    )
    fields = {name: name for name in ("own", "first", "second")}
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    data = PairedData("rows", Observations(table, Path(), fields), config)
    encoders = small("own", "first", "second")
    train_words(tmp_path, data, encoders, batch_size=64, epochs=2)  # fewer rows than a batch as well
    assert sorted(entry.rows for entry in entries()) == [24, 24]
    assert sum(encoders["own"].encoder.batches) == 2 * 24  # type: ignore[arg-type]
