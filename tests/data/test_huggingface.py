"""The source `huggingface`, on folders that `datasets` itself has written."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from geobind_core.chain.builtin import plugin_manager
from geobind_core.data.huggingface import HuggingFace, HuggingFaceConfig
from geobind_core.data.paired import PairedData
from geobind_core.errors import DataError

FEATURES = datasets.Features(
    satellite=datasets.Image(),
    audio=datasets.Audio(),
    text=datasets.Value("string"),
    kind=datasets.ClassLabel(names=["red", "green", "blue", "yellow", "purple", "grey"]),
    longitude=datasets.Value("float64"),
    latitude=datasets.Value("float64"),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def dataset(world: Any) -> datasets.Dataset:
    """The rows of `world` with the files inside."""
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for i, row in enumerate(world.rows):
        for name in ("satellite", "audio"):
            columns[name].append({"bytes": (world.folder / row[name]).read_bytes(), "path": Path(row[name]).name})
        columns["text"].append(row["text"])
        columns["kind"].append(FEATURES["kind"].str2int(row["label"]))
        columns["longitude"].append(i * 10.0)
        columns["latitude"].append(i * 1.0)
    columns["kind"][3] = -1  # no class
    # Handing it rows would ask for torchcodec, to encode recordings that are encoded already.
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns, schema=FEATURES.arrow_schema)))


def source_of(path: Path, **settings: Any) -> HuggingFace:
    return HuggingFace(HuggingFaceConfig(source="huggingface", path=str(path), **settings), path.parent)


def opened(path: Path, **settings: Any) -> PairedData:
    source = source_of(path, **settings)
    source.prepare(lambda done, total, text: None)
    return PairedData("hub", source.observations(), source.config)


class TestSaved:
    def test_files_arrive_as_they_are_and_modalities_read_them(
        self, dataset: datasets.Dataset, world: Any, tmp_path: Path
    ) -> None:
        dataset.save_to_disk(tmp_path / "saved")
        data = opened(tmp_path / "saved")
        assert len(data) == len(world.rows)
        manager = plugin_manager()
        for name in ("satellite", "audio"):
            cell = data.cell(name, 5, is_file=True)
            assert cell["bytes"] == (world.folder / world.rows[5][name]).read_bytes()
            modality_class = manager.find("modality", name).cls
            modality = modality_class(modality_class.Config())
            assert modality.read(cell).shape == modality.read(world.folder / world.rows[5][name]).shape
        assert data.cell("text", 5, is_file=False) == world.rows[5]["text"]
        assert [data.key(row) for row in (0, 23)] == ["0", "23"]
        assert data.places is not None
        assert data.places.longitude[5] == 50.0

    def test_classes_are_names_and_labels(self, dataset: datasets.Dataset, world: Any, tmp_path: Path) -> None:
        dataset.save_to_disk(tmp_path / "saved", num_shards=3)
        data = opened(tmp_path / "saved", fields={"text": "kind", "satellite": "satellite"}, labels={"text": "kind"})
        words = [data.cell("text", row, is_file=False) for row in range(5)]
        assert words == ["red", "green", "blue", None, "purple"]
        labels = data.labels("text")
        assert labels is not None
        assert labels[3] == -1
        assert labels[0] == labels[6] != labels[1]
        assert 3 not in [*data.rows("train", ["text"]), *data.rows("test", ["text"])]

    def test_order_of_a_shuffled_selection(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        chosen = dataset.shuffle(seed=3).select([7, 2, 2, 11])
        assert chosen._indices is not None
        chosen.save_to_disk(tmp_path / "saved")
        data = opened(tmp_path / "saved")
        assert [data.cell("text", row, is_file=False) for row in range(4)] == chosen["text"][:]

    def test_splits_of_a_dict(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        splits = {
            "train": dataset.select(range(18)),
            "validation": dataset.select([18]),
            "test": dataset.select([19, 20]),
        }
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
        data = opened(tmp_path / "saved")
        assert [data.count(split) for split in ("train", "validation", "test")] == [18, 1, 2]
        assert [data.key(row) for row in data.rows("test", [])] == ["test-0", "test-1"]
        row = int(data.rows("test", [])[1])
        assert data.cell("text", row, is_file=False) == "a blue place, number 20"

    def test_own_settings(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        renamed = dataset.rename_columns({"text": "id", "longitude": "x", "latitude": "y"})
        renamed.save_to_disk(tmp_path / "saved")
        data = opened(tmp_path / "saved", key="id", longitude="x", latitude="y")
        assert data.key(1) == "a green place, number 1"
        assert data.places is not None

    def test_nothing_is_copied_into_memory(self, tmp_path: Path) -> None:
        rows = [{"image": {"bytes": bytes([i]) * 2**20, "path": None}} for i in range(64)]
        features = datasets.Features(image=datasets.Image())
        datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved", num_shards=4)
        source = source_of(tmp_path / "saved", fields={"image": "image"})
        before = pa.total_allocated_bytes()
        data = PairedData("hub", source.observations(), source.config)
        assert len(data.rows("train", ["image"])) + len(data.rows("test", ["image"])) == 64
        assert pa.total_allocated_bytes() - before < 2**20
        assert data.cell("image", 63, is_file=True)["bytes"][:2] == b"??"

    def test_an_order_in_a_file_apart_is_refused(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        dataset.save_to_disk(tmp_path / "saved")
        state = json.loads((tmp_path / "saved/state.json").read_text())
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
        (tmp_path / "saved/state.json").write_text(json.dumps(state))
        with pytest.raises(DataError, match="flatten_indices"):
            opened(tmp_path / "saved")


class TestHubLayout:
    @pytest.fixture
    def folder(self, dataset: datasets.Dataset, tmp_path: Path) -> Path:
        folder = tmp_path / "hub"
        (folder / "data").mkdir(parents=True)
        dataset.select(range(10)).to_parquet(folder / "data/train-00000-of-00002.parquet")
        dataset.select(range(10, 18)).to_parquet(folder / "data/train-00001-of-00002.parquet")
        dataset.select(range(18, 24)).to_parquet(folder / "data/test-00000-of-00001.parquet")
        (folder / "README.md").write_text("A data set.\n")
        return folder

    def test_parquet(self, folder: Path, world: Any) -> None:
        data = opened(folder)
        assert [data.count(split) for split in ("train", "validation", "test")] == [18, 0, 6]
        row = int(data.rows("test", ["satellite"])[0])
        assert (
            data.cell("satellite", row, is_file=True)["bytes"]
            == (world.folder / world.rows[18]["satellite"]).read_bytes()
        )

    def test_subsets(self, folder: Path) -> None:
        configurations = "configs:\n- {config_name: all, data_files: data/*.parquet}\n" + (
            "- {config_name: small, data_files: data/test-*.parquet}\n"
        )
        (folder / "README.md").write_text(f"---\n{configurations}---\n")
        assert len(opened(folder, subset="small")) == 6
        with pytest.raises(DataError, match="small"):
            opened(folder)

    def test_images_in_a_folder(self, world: Any, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        (folder / "train").mkdir(parents=True)
        for i in range(3):
            (folder / f"train/{i}.jpg").write_bytes((world.folder / world.rows[i]["satellite"]).read_bytes())
        data = opened(folder, fields={"satellite": "image"})
        assert Path(data.cell("satellite", 2, is_file=True)["path"]) == folder / "train/2.jpg"


class TestFingerprint:
    def test_is_that_of_the_content(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        dataset.save_to_disk(tmp_path / "one")
        before = source_of(tmp_path / "one").fingerprint()
        (tmp_path / "one").rename(tmp_path / "two")
        assert source_of(tmp_path / "two").fingerprint() == before
        dataset.select(range(20)).save_to_disk(tmp_path / "three")
        assert source_of(tmp_path / "three").fingerprint() != before

    def test_of_a_dict_watches_all_splits(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        for name, test in (("one", [3]), ("two", [4])):
            splits = {"train": dataset.select(range(3)), "test": dataset.select(test)}
            datasets.DatasetDict(splits).save_to_disk(tmp_path / name)
        assert source_of(tmp_path / "one").fingerprint() != source_of(tmp_path / "two").fingerprint()

    def test_of_the_hub_layout_reads_the_ends_of_tables(self, tmp_path: Path) -> None:
        folder = tmp_path / "hub"
        folder.mkdir()
        found = set()
        for value in (1, 2):
            pyarrow.parquet.write_table(pa.table({"n": [value] * 10}), folder / "train.parquet")
            found.add(source_of(folder).fingerprint())
        assert len(found) == 2

    def test_needs_no_datasets(
        self, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset.save_to_disk(tmp_path / "one")
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert source_of(tmp_path / "one").fingerprint()


class TestRefused:
    def test_without_datasets(self, dataset: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset.save_to_disk(tmp_path / "saved")
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError) as caught:
            opened(tmp_path / "saved")
        assert "pip install" in caught.value.hint
        assert "'geobind[huggingface]'" in caught.value.hint

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such folder") as caught:
            source_of(tmp_path / "user/name").fingerprint()
        assert "hf download" in caught.value.hint

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="datasets cannot load it"):
            opened(tmp_path / "empty")

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("state.json", "cut"),
            ("data-00000-of-00001.arrow", "cut"),
            ("data-00000-of-00001.arrow", "missing"),
            ("dataset_info.json", "cut"),
            ("dataset_info.json", "missing"),
        ],
    )
    def test_damaged(self, dataset: datasets.Dataset, tmp_path: Path, name: str, damage: str) -> None:
        dataset.save_to_disk(tmp_path / "saved")
        file = tmp_path / "saved" / name
        content = file.read_bytes()
        file.unlink()
        if damage == "cut":
            file.write_bytes(content[: len(content) // 3])
        with pytest.raises(DataError):
            opened(tmp_path / "saved")

    def test_fingerprint_of_what_is_damaged(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        dataset.save_to_disk(tmp_path / "saved")
        (tmp_path / "saved/data-00000-of-00001.arrow").unlink()
        with pytest.raises(DataError):
            source_of(tmp_path / "saved").fingerprint()
