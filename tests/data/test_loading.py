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
from geobind_core.data.loading import SequentialBatches, TrainingBatches, batches, epoch_order, plan_workers
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.data.table import read_table
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
    rows = np.arange(4)
    assert plan_workers({"blocks": reader}, rows, LoaderConfig(decoded_cache_mib=1)) == (0, 2**20)
    many = np.zeros(2_000, dtype=np.int64)  # as many rows as do not fit in 1 MiB
    workers, room = plan_workers({"blocks": reader, "more": reader}, many, LoaderConfig(decoded_cache_mib=1))
    assert workers >= 1
    assert room == 2**20 // 2 // workers
    assert plan_workers({"blocks": reader}, many, LoaderConfig(workers=3, decoded_cache_mib=3)) == (3, 2**20)
    assert plan_workers({"blocks": reader}, many, LoaderConfig(workers=0, decoded_cache_mib=0)) == (0, 0)
