"""Batches: their order, what they hold, and that neither workers nor interruptions change them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import Satellite
from geobind_plugin_imagery.text import Text

from geobind_core.config.models import LoaderConfig
from geobind_core.data.loading import (
    BatchRequest,
    SequentialBatches,
    Shard,
    TrainingBatches,
    batches,
    epoch_order,
    plan_workers,
)
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.data.table_files import read_table
from geobind_core.plugins.modality import Augmentation, Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig

# ---------------------------------------------------------------------- which rows, in which order


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    rows = np.arange(100, 160)
    np.random.seed(0)
    first = epoch_order(rows, 3, 5)
    np.random.seed(99)
    np.testing.assert_array_equal(first, epoch_order(rows, 3, 5))
    assert sorted(first.tolist()) == rows.tolist()
    others = [epoch_order(rows, 3, 6), epoch_order(rows, 4, 5), epoch_order(rows, 5, 3)]
    assert not any(np.array_equal(first, other) for other in others)


def requests(start: int = 0, rows: int = 23, size: int = 5, epochs: int = 3) -> list[tuple[int, int, tuple[int, ...]]]:
    sampler = TrainingBatches(np.arange(rows), size, epochs, seed=1, start_step=start)
    found = [(r.epoch, r.step, tuple(r.rows.tolist())) for r in sampler]
    assert len(sampler) == len(found)
    return found


def test_the_incomplete_batch_is_left_out_and_changes() -> None:
    found = requests()
    assert [(epoch, step) for epoch, step, _ in found] == [(step // 4, step) for step in range(12)]
    left_out = []
    for epoch in range(3):
        rows = [row for e, _, batch in found if e == epoch for row in batch]
        assert len(rows) == len(set(rows)) == 20
        left_out.append(frozenset(range(23)) - set(rows))
    assert len(set(left_out)) == 3


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 11, 12])
def test_starting_at_a_step_gives_the_same_batches(start: int) -> None:
    assert requests(start) == requests()[start:]


def test_few_rows_make_one_batch() -> None:
    found = requests(rows=4, size=10, epochs=2)
    assert [sorted(batch) for _, _, batch in found] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_sequential_batches_hold_every_row_once() -> None:
    sampler = SequentialBatches(np.arange(11), 4)
    found = [request.rows.tolist() for request in sampler]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert len(sampler) == 3


# ---------------------------------------------------------------------- what they hold


@pytest.fixture(scope="module")
def places(world: Any) -> PairedData:
    fields = {name: name for name in ("satellite", "audio", "text")}
    return PairedData("d", Observations(read_table(world.table), world.folder, fields, split="split"))


def readers(places: PairedData, clip_architecture: dict[str, Any]) -> dict[str, SampleReader]:
    """Images that are augmented, recordings that are cut at random, and text."""
    image = Satellite(Satellite.Config(model=clip_architecture)).with_augment(
        [Augmentation("randaugment", (3.0,)), Augmentation("dihedral"), Augmentation("random_resized_crop", (0.5,))]
    )
    sound = Audio(Audio.Config(model="geobind-tiny", sample_rate=8_000, seconds=0.3))
    text = Text(Text.Config(model=clip_architecture))
    modalities = {"satellite": image, "audio": sound, "text": text}
    return {name: SampleReader(places, name, m, train=True, seed=7) for name, m in modalities.items()}


def loaded(found: dict[str, SampleReader], workers: int, start: int = 0, epochs: int = 2) -> list[dict[str, Any]]:
    rows = next(iter(found.values())).data.rows("train", found)
    sampler = TrainingBatches(rows, 6, epochs, seed=2, start_step=start)
    return list(batches(found, sampler, workers=workers, pin_memory=False))


def assert_same_batches(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["epoch"], ours["step"], ours["bad"]) == (theirs["epoch"], theirs["step"], theirs["bad"])
        assert torch.equal(ours["rows"], theirs["rows"])
        assert set(ours["inputs"]) == set(theirs["inputs"])
        for name, value in theirs["inputs"].items():
            assert torch.equal(ours["inputs"][name], value), name


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As in the training process; loader workers have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_workers_change_nothing(places: PairedData, clip_architecture: dict[str, Any]) -> None:
    expected = loaded(readers(places, clip_architecture), workers=0)
    assert len(expected) == 6
    assert expected[0]["inputs"]["satellite"].shape == (6, 3, 32, 32)
    assert expected[0]["inputs"]["audio"].shape == (6, 2_400)
    assert expected[0]["inputs"]["text"].shape == (6, 16)
    assert_same_batches(loaded(readers(places, clip_architecture), workers=2), expected)
    assert_same_batches(loaded(readers(places, clip_architecture), workers=0, start=4), expected[4:])


def test_samples_differ_between_epochs_and_not_between_runs(
    places: PairedData, clip_architecture: dict[str, Any]
) -> None:
    found = readers(places, clip_architecture)
    for name in ("satellite", "audio"):
        decoded = found[name].read(3)
        again = found[name].finish(decoded, 3, epoch=0)
        assert torch.equal(found[name].finish(decoded, 3, epoch=0), again)
        later = [found[name].finish(decoded, 3, epoch=epoch) for epoch in range(1, 5)]
        assert not all(torch.equal(sample, again) for sample in later), name
    other = SampleReader(places, "audio", found["audio"].modality, train=True, seed=8)
    seeds = [torch.equal(other.finish(other.read(r), r, 0), found["audio"].finish(other.read(r), r, 0)) for r in (3, 4)]
    assert not all(seeds)


def test_loading_leaves_the_global_random_streams_alone(places: PairedData, clip_architecture: dict[str, Any]) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    for workers in (0, 1):
        loaded(readers(places, clip_architecture), workers=workers, epochs=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]


# ---------------------------------------------------------------------- memory, and what cannot be read


class Blocks(Modality[ModalityConfig]):
    """Arrays of 1000 bytes, decoded from a number; remembers what it decoded."""

    name: ClassVar[str] = "blocks"
    decoded: ClassVar[list[int]] = []

    def read(self, cell: Any) -> np.ndarray[Any, Any]:
        Blocks.decoded.append(cell)
        if cell in (4, 5):
            raise OSError(f"cannot open\n  block {cell}")
        return np.full(1000, cell, dtype=np.uint8)


def blocks(broken_too: bool = False) -> SampleReader:
    Blocks.decoded.clear()
    count = 20 if broken_too else 4
    table = pa.table({"key": [f"k{i}" for i in range(count)], "blocks": list(range(count))})
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    data = PairedData("d", Observations(table, Path(), {"blocks": "blocks"}), config)
    return SampleReader(data, "blocks", Blocks(ModalityConfig()), train=True, seed=0)


def test_the_cache_of_decoded_samples_is_bounded() -> None:
    reader = blocks(broken_too=True)
    reader.keep_up_to(7_500)
    sampler = TrainingBatches(np.arange(20), 5, 3, seed=0)
    found = list(batches({"blocks": reader}, sampler, workers=0, pin_memory=False))
    # 20 in the first epoch; 7 of 1000 bytes were kept, and so are the reasons of the two bad ones while there is room.
    kept = [sample for sample in reader._decoded.values() if isinstance(sample, np.ndarray)]
    assert len(kept) == 7
    once = [n for n in range(20) if Blocks.decoded.count(n) == 1]
    assert len([n for n in once if n not in (4, 5)]) == 7
    assert all(Blocks.decoded.count(n) == 3 for n in range(20) if n not in once)
    for batch in found:  # and what comes out of the cache is what went in
        rows = batch["rows"].tolist()
        assert batch["inputs"]["blocks"][:, 0].tolist() == rows


def test_without_room_nothing_is_kept() -> None:
    reader = blocks()
    list(batches({"blocks": reader}, TrainingBatches(np.arange(4), 2, 2, seed=0), workers=0, pin_memory=False))
    assert sorted(Blocks.decoded) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_left_out_of_all_modalities(workers: int) -> None:
    reader = blocks(broken_too=True)
    pair = {"blocks": reader, "same": reader}
    found = list(batches(pair, SequentialBatches(np.arange(20), 4), workers=workers, pin_memory=False))
    second = found[1]
    assert second["rows"].tolist() == [6, 7]
    assert second["inputs"]["blocks"][:, 0].tolist() == second["inputs"]["same"][:, 0].tolist() == [6, 7]
    assert {(bad.key, bad.modality) for bad in second["bad"]} == {("k4", "blocks"), ("k5", "blocks")}
    assert {bad.reason for bad in second["bad"]} == {"OSError: cannot open block 4", "OSError: cannot open block 5"}
    assert [b["rows"].tolist() for b in found[2:]] == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]


def test_a_batch_of_nothing() -> None:
    reader = blocks(broken_too=True)
    (batch,) = batches({"blocks": reader}, SequentialBatches(np.array([4, 5]), 4), workers=0, pin_memory=False)
    assert batch["rows"].shape == (0,)
    assert batch["inputs"] == {}
    assert len(batch["bad"]) == 2


def test_workers_are_planned_by_what_fits() -> None:
    reader = blocks()
    rows, cpu, accelerator = np.arange(4), torch.device("cpu"), torch.device("cuda")
    small, large = LoaderConfig(decoded_cache_mib=1), LoaderConfig(workers=3, decoded_cache_mib=3)
    assert plan_workers({"blocks": reader}, rows, small, cpu) == (0, 2**20)
    many = np.zeros(2_000, dtype=np.int64)  # as many rows as do not fit in 1 MiB
    workers, room = plan_workers({"blocks": reader, "more": reader}, many, small, cpu)
    assert workers >= 1
    assert room == 2**20 // 2 // workers
    assert plan_workers({"blocks": reader}, many, large, cpu) == (3, 2**20)
    assert plan_workers({"blocks": reader}, many, LoaderConfig(workers=0, decoded_cache_mib=0), cpu) == (0, 0)
    workers, room = plan_workers({"blocks": reader}, rows, small, accelerator)
    assert workers >= 1, "an accelerator does not wait, whatever fits"
    assert room == 2**20 // workers
    assert plan_workers({"blocks": reader}, rows, LoaderConfig(workers=0), accelerator)[0] == 0


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    found = {}
    for processes in ("1", "4", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        found[processes], _ = plan_workers({"b": blocks()}, np.arange(4), LoaderConfig(), torch.device("cuda"))
    assert found == {"1": 15, "4": 3, "64": 1}


def test_what_is_only_looked_up_needs_no_workers() -> None:
    for device in (torch.device("cpu"), torch.device("cuda")):
        assert plan_workers({}, np.arange(4), LoaderConfig(), device) == (0, 0)
        assert plan_workers({}, np.arange(4), LoaderConfig(workers=2), device)[0] == 2


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 24])
def test_shards_are_all_of_it_in_order(count: int, rows: int) -> None:
    parts = [Shard(i, count).of(np.arange(rows)) for i in range(count)]
    assert np.concatenate(parts).tolist() == list(range(rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [2, 3])
def test_processes_read_the_batches_of_one(count: int) -> None:
    """Rows and random rows, put together, are those of a single process; so are the steps."""
    settings: dict[str, Any] = {"random": {"a": 7, "b": 4}, "drawn": ["b"], "start_step": 3}
    whole = list(TrainingBatches(np.arange(23), 8, 3, 1, **settings))
    parts = [list(TrainingBatches(np.arange(23), 8, 3, 1, shard=Shard(i, count), **settings)) for i in range(count)]
    assert len(whole) == 3
    for i, request in enumerate(whole):
        mine = [part[i] for part in parts]
        assert {(r.epoch, r.step) for r in mine} == {(request.epoch, request.step)}
        assert np.concatenate([r.rows for r in mine]).tolist() == request.rows.tolist()
        for name in ("a", "b"):
            assert np.concatenate([r.random[name] for r in mine]).tolist() == request.random[name].tolist()


# ---------------------------------------------------------------------- random rows, and columns


def test_random_rows_are_a_pure_function_of_seed_step_and_modality() -> None:
    rows = np.arange(100, 140)

    def random(seed: int = 1, start: int = 0, size: int = 8) -> dict[int, tuple[int, ...]]:
        sampler = TrainingBatches(rows, size, 4, seed, start_step=start, random={"a": 6, "b": 6})
        np.random.seed(start)
        return {r.step: (*r.random["a"].tolist(), *r.random["b"].tolist()) for r in sampler}

    expected = random()
    assert len(set(expected.values())) == len(expected) == 20
    assert random(start=7) == {step: found for step, found in expected.items() if step >= 7}
    assert random(size=4)[3] == expected[3], "whatever the batch"
    assert not set(random(seed=2).values()) & set(expected.values())
    assert all(found[:6] != found[6:] for found in expected.values())
    assert {row for found in expected.values() for row in found} <= set(rows.tolist())
    more_than_there_are = TrainingBatches(rows[:3], 2, 1, 1, random={"a": 50})
    assert len(next(iter(more_than_there_are)).random["a"]) == 50


class Drawing(Blocks):
    """Draws a thousand of one number; 7 cannot be transformed."""

    name: ClassVar[str] = "drawing"

    def draw(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return np.full(1000, rng.integers(200, 250), dtype=np.uint8)

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        if sample[0] % 8 == 7:
            raise ValueError("no sevens")
        return sample


def drawing(seed: int = 0) -> SampleReader:
    reader = blocks(broken_too=True)
    return SampleReader(reader.data, "blocks", Drawing(ModalityConfig()), train=True, seed=seed)


def numbers_of(batch: dict[str, Any]) -> list[int]:
    found: list[int] = batch["inputs"]["blocks"][:, 0].tolist()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_random_rows_stand_behind_those_of_the_batch(workers: int) -> None:
    sampler = TrainingBatches(np.arange(20), 5, 3, seed=0, random={"blocks": 6})
    requests = {request.step: request for request in sampler}
    found = list(batches({"blocks": blocks(broken_too=True)}, sampler, workers=workers, pin_memory=False))
    assert len(found) == 12
    for batch in found:
        request = requests[batch["step"]]
        assert batch["rows"].tolist() == [row for row in request.rows.tolist() if row not in (4, 5)]
        assert batch["random"]["blocks"].tolist() == [r for r in request.random["blocks"].tolist() if r not in (4, 5)]
        assert numbers_of(batch) == [*batch["rows"].tolist(), *batch["random"]["blocks"].tolist()]
        bad = [row for row in (*request.rows.tolist(), *request.random["blocks"].tolist()) if row in (4, 5)]
        assert sorted(sample.key for sample in batch["bad"]) == sorted(f"k{row}" for row in bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_drawn_observations_are_a_pure_function_of_seed_and_step(workers: int) -> None:
    def drawn(seed: int = 0, start: int = 0) -> dict[int, tuple[list[int], list[int]]]:
        sampler = TrainingBatches(np.arange(8, 15), 5, 12, 0, start_step=start, random={"blocks": 6}, drawn=["blocks"])
        loader = batches({"blocks": drawing(seed)}, sampler, workers=workers, pin_memory=False)
        return {b["step"]: (b["random"]["blocks"].tolist(), numbers_of(b)[len(b["rows"]) :]) for b in loader}

    found = drawn()
    assert len(found) == 12
    for numbers, values in found.values():
        assert len(numbers) == len(values)
        assert set(numbers) <= {-1, -2, -3, -4, -5, -6}
        assert all(200 <= value < 250 and value % 8 != 7 for value in values)
    assert min(len(values) for _, values in found.values()) < 6, "one of eight cannot be had"
    assert len({tuple(values) for _, values in found.values()}) == 12
    assert drawn(start=5) == {step: value for step, value in found.items() if step >= 5}
    assert drawn(seed=1) != found


def test_a_drawn_observation_that_fails_is_named() -> None:
    sampler = TrainingBatches(np.arange(8, 15), 5, 12, 0, random={"blocks": 6}, drawn=["blocks"])
    loader = batches({"blocks": drawing()}, sampler, workers=0, pin_memory=False)
    named = [(b["step"], str(bad)) for b in loader for bad in b["bad"] if bad.key.startswith("random")]
    assert named
    for step, text in named:
        assert text.startswith("random ")
        assert text.endswith(f" of step {step} (blocks): ValueError: no sevens")


class Known:
    """Something known of each row, in each epoch."""

    def of(self, rows: Any, epoch: int) -> Any:
        return np.stack([rows * 10.0, np.full(len(rows), float(epoch))], 1).astype(np.float32)


@pytest.mark.parametrize("workers", [0, 2])
def test_columns_stand_in_for_samples(workers: int) -> None:
    """They have the rows that are left when the others have been read, and the random ones behind them."""
    sampler = TrainingBatches(np.arange(20), 5, 2, seed=0, random={"known": 3})
    reader = {"blocks": blocks(broken_too=True)}
    found = list(batches(reader, sampler, workers=workers, pin_memory=False, columns={"known": Known()}))
    assert [len(batch["rows"]) for batch in found] != [5] * 8, "two rows cannot be read"
    for batch in found:
        rows = [*batch["rows"].tolist(), *batch["random"]["known"].tolist()]
        assert len(batch["random"]["known"]) == 3
        assert batch["inputs"]["known"].dtype == torch.float32
        assert batch["inputs"]["known"].tolist() == [[row * 10.0, float(batch["epoch"])] for row in rows]
        assert numbers_of(batch) == batch["rows"].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_columns_alone(workers: int) -> None:
    sampler = TrainingBatches(np.arange(20), 8, 1, seed=0)
    found = list(batches({}, sampler, workers=workers, pin_memory=False, columns={"known": Known()}))
    assert [batch["rows"].tolist() for batch in found] == [request.rows.tolist() for request in sampler]
    assert all(batch["inputs"]["known"][:, 0].tolist() == [r * 10.0 for r in batch["rows"].tolist()] for batch in found)


def test_a_batch_of_nothing_but_random_rows() -> None:
    sampler = [BatchRequest(0, 0, np.array([4, 5]), {"blocks": np.array([9, 4])})]
    (batch,) = batches({"blocks": blocks(broken_too=True)}, sampler, workers=0, pin_memory=False)
    assert batch["rows"].tolist() == []
    assert batch["random"]["blocks"].tolist() == numbers_of(batch) == [9]
    assert len(batch["bad"]) == 3
