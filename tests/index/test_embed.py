"""`geobind embed`: what it writes, who can open it, and what happens when it is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import torch

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.embed import embed_to, open_data
from geobind_core.chain.launch import Launch
from geobind_core.chain.run_folder import RunFolder
from geobind_core.data.geography import great_circle_km
from geobind_core.errors import DataError, SpaceError
from geobind_core.index.embed import EmbedOptions
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.parquet import IndexFile, open_writer
from geobind_core.progress import Reporter
from tests.conftest import WORLD_CLASSES

from .conftest import PLACES, Indexed, write_table

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def geobind(in_process: Any, tmp_path: Path) -> Callable[..., Any]:
    run: Callable[..., Any] = in_process(tmp_path)
    return run


def written(done: subprocess.CompletedProcess[str], path: Path) -> EmbeddingIndex:
    assert done.returncode == 0, done.stderr
    return EmbeddingIndex.open(path)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr


def expected_places() -> list[tuple[float, float]]:
    return [((longitude + 180) % 360 - 180, latitude) for longitude, latitude in PLACES]


# ---------------------------------------------------------------------- what is in it


def test_embeddings_are_those_of_the_space(indexed: Indexed) -> None:
    index = EmbeddingIndex.open(indexed.index)
    images = [indexed.table.parent / name for name in pq.read_table(indexed.table)["satellite"].to_pylist()]
    found = np.concatenate([chunk for _, chunk in index.chunks()])
    np.testing.assert_array_equal(found, indexed.space.embed("satellite", images).numpy())
    assert index.keys().to_pylist() == pq.read_table(indexed.table)["key"].to_pylist()
    assert index.record.content_hash == indexed.space.record.modalities["satellite"].content_hash
    assert index.record.space == indexed.space.record
    assert index.column("label").to_pylist() == pq.read_table(indexed.table)["label"].to_pylist()
    assert index.cell("satellite", 5) == images[5]
    assert index.cell("text", 5) == "a grey place, number 5"


def test_chunks_are_cut_where_they_are_asked_to_be(indexed: Indexed) -> None:
    index = EmbeddingIndex.open(indexed.index)
    pieces = list(index.chunks(7))
    assert [(first, len(piece)) for first, piece in pieces] == [(0, 7), (7, 7), (14, 7), (21, 3)]


def test_geopandas_opens_it_with_places_right_to_a_millionth_of_a_degree(indexed: Indexed) -> None:
    frame = geopandas.read_parquet(indexed.index)
    assert frame.crs == "OGC:CRS84"
    assert frame.geometry.isna().tolist() == [False] * 23 + [True]
    for point, (longitude, latitude) in zip(frame.geometry, expected_places(), strict=False):
        assert abs(point.x - longitude) < 1e-9
        assert abs(point.y - latitude) < 1e-9
    assert np.stack(frame["embedding"]).shape == (24, 24)
    # The bounding boxes that row groups are chosen by.
    inside = geopandas.read_parquet(indexed.index, bbox=(8, 47, 9, 48))
    assert inside["key"].tolist() == ["006"]


def test_duckdb_opens_it(indexed: Indexed) -> None:
    with duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}) as database:
        rows = database.execute(
            "select key, geometry, bbox.xmin, embedding, epoch_us(time) from read_parquet(?)", [str(indexed.index)]
        ).fetchall()
    points = shapely.from_wkb([bytes(row[1]) if row[1] is not None else None for row in rows])
    for point, row, (longitude, latitude) in zip(points, rows, expected_places(), strict=False):
        assert max(abs(point.x - longitude), abs(row[2] - longitude), abs(point.y - latitude)) < 1e-9
    found = np.array([row[3] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(found, np.concatenate([c for _, c in EmbeddingIndex.open(indexed.index).chunks()]))
    assert rows[0][4] == 1_704_110_400_000_000  # 2024-01-01T12:00Z


def test_the_footer_is_geoparquet_1_1(indexed: Indexed) -> None:
    """The rules of the specification's JSON schema, by hand; it is not on this machine."""
    file = pq.ParquetFile(indexed.index)
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert set(geo) == {"version", "primary_column", "columns"}
    assert geo["version"] == "1.1.0"
    assert list(geo["columns"]) == [geo["primary_column"]] == ["geometry"]
    column = geo["columns"]["geometry"]
    assert set(column) <= {"encoding", "geometry_types", "crs", "orientation", "edges", "bbox", "epoch", "covering"}
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Point"]
    assert column["crs"]["id"] == {"authority": "OGC", "code": "CRS84"}
    west, south, east, north = column["bbox"]
    assert (west, south, north) == (-180.0, -90.0, 90.0)
    assert 179.9999993 < east < 180
    assert column["covering"] == {"bbox": {axis: ["bbox", axis] for axis in ("xmin", "ymin", "xmax", "ymax")}}
    schema = file.schema_arrow
    assert schema.field("geometry").type == pa.binary()
    assert {(field.name, field.type) for field in schema.field("bbox").type} == {
        (axis, pa.float64()) for axis in ("xmin", "ymin", "xmax", "ymax")
    }
    assert schema.field("embedding").type == pa.list_(pa.field("element", pa.float32(), nullable=False), 24)
    chunks = [file.metadata.row_group(0).column(i) for i in range(file.metadata.row_group(0).num_columns)]
    stored = {chunk.path_in_schema: chunk.compression for chunk in chunks}
    assert stored.pop("embedding.list.element") == "UNCOMPRESSED"  # read as it lies there; see `index/parquet.py`
    assert set(stored.values()) == {"ZSTD"}
    limits = {chunk.path_in_schema: chunk.statistics for chunk in chunks}
    assert limits["bbox.xmin"].min == -180.0
    assert limits["embedding.list.element"] is None


def test_places_of_an_index_are_where_the_data_says(indexed: Indexed) -> None:
    from geobind_core.data.geography import Places

    found = EmbeddingIndex.open(indexed.index).places()
    assert found is not None
    wanted = Places.of(*zip(*PLACES, strict=True))
    assert great_circle_km(found.take(np.arange(len(PLACES))), wanted).max() < 1e-4  # kilometres: 0.1 m
    assert found.known.tolist() == [True] * 23 + [False]
    times = EmbeddingIndex.open(indexed.index).times()
    assert times is not None
    assert times.null_count == 1
    assert times[0].as_py().isoformat() == "2024-01-01T12:00:00+00:00"


# ---------------------------------------------------------------------- how it is laid out

LAYOUTS: dict[str, dict[str, Any]] = {
    "as pyarrow writes by default": {},
    "uncompressed, with a dictionary": {"compression": "none"},
    "uncompressed, in several pages": {
        "compression": "none",
        "use_dictionary": False,
        "data_page_size": 2_000,
        "write_batch_size": 64,
    },
    "with a second page format": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
    "split by significance": {
        "compression": "zstd",
        "use_dictionary": False,
        "use_byte_stream_split": ["embedding.list.element"],
    },
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_however_a_file_was_rewritten_it_is_read_right(
    indexed: Indexed, tmp_path: Path, layout: str | None, dtype: str
) -> None:
    """Only numbers that lie in one page as they are in memory are read from there; the others are decoded."""
    rows = 5000
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((rows, 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)
    lists = pa.list_(pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False), 24)
    record = json.loads(pq.read_metadata(indexed.index).metadata[b"geobind"]) | {"dtype": dtype}
    table = pa.table(
        {
            "key": [str(i) for i in range(rows)],
            "embedding": pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=lists),
        },
        schema=pa.schema([("key", pa.string()), pa.field("embedding", lists, nullable=False)]),
    ).replace_schema_metadata({b"geobind": json.dumps(record)})
    path = tmp_path / "i.parquet"
    if layout is None:
        with open_writer(path, table.schema) as file:
            file.write_table(table, row_group_size=2000)
    else:
        pq.write_table(table, path, row_group_size=2000, **LAYOUTS[layout])
    found = IndexFile(path)
    if layout in (None, "uncompressed, in several pages"):
        assert found._is_plain == (layout is None)
    np.testing.assert_array_equal(np.concatenate([found.embeddings(group) for group in range(3)]), vectors)


# ---------------------------------------------------------------------- the command


def test_the_same_command_again_does_nothing_and_another_has_to_say_so(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    command = ("embed", indexed.folder, "--modality", "satellite", "--data", str(indexed.table), "-o", "out.parquet")
    index = written(geobind(*command, "--split", "test"), tmp_path / "out.parquet")
    assert index.keys().to_pylist() == ["020", "021", "022", "023"]
    before = (tmp_path / "out.parquet").stat()
    again = geobind(*command, "--split", "test", "--json")
    assert "nothing changed since" in again.stderr
    assert json.loads(again.stdout)["rows"] == 4
    assert (tmp_path / "out.parquet").stat().st_mtime_ns == before.st_mtime_ns
    refused(geobind(*command, "--dtype", "float16"), "made of something else", "--overwrite")
    half = written(geobind(*command, "--dtype", "float16", "--overwrite"), tmp_path / "out.parquet")
    assert half.dtype == np.float16
    whole = np.concatenate([c for _, c in EmbeddingIndex.open(indexed.index).chunks()])
    np.testing.assert_array_equal(np.concatenate([c for _, c in half.chunks()]), whole.astype(np.float16))
    frame = geopandas.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.stack(frame["embedding"]), whole.astype(np.float16))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet"]


def test_a_file_that_is_not_ours_is_never_replaced(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.parquet"
    shutil.copy(indexed.table, mine)
    command = ("embed", indexed.folder, "--modality", "satellite", "--data", str(indexed.table), "-o", "mine.parquet")
    refused(geobind(*command, "--overwrite"), "did not write", "Choose another name")
    assert mine.read_bytes() == indexed.table.read_bytes()


def test_without_places_it_is_a_plain_parquet_file(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    rows = pq.read_table(indexed.table).drop_columns(["longitude", "latitude", "time"])
    pq.write_table(rows, indexed.table.parent / "nowhere.parquet")
    data = str(indexed.table.parent / "nowhere.parquet")
    done = geobind("embed", indexed.folder, "--modality", "text", "--data", data, "-o", "texts.parquet")
    index = written(done, tmp_path / "texts.parquet")
    assert "note: the data has no coordinates" in done.stderr
    assert index.places() is None
    assert index.times() is None
    assert b"geo" not in pq.read_metadata(tmp_path / "texts.parquet").metadata
    refused(
        geobind("search", indexed.folder, "texts.parquet", "text=red", "--bbox", "0,0,1,1"), "no coordinates to filter"
    )
    refused(geobind("search", indexed.folder, "texts.parquet", "text=red", "--time", "2024/.."), "START/END")
    refused(geobind("search", indexed.folder, "texts.parquet", "text=red", "--time", "2024-01-01/"), "no times")


def test_rows_that_cannot_be_read_are_named_and_skipped_up_to_a_limit(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(indexed.table.parent, folder)
    whole = (folder / "images" / "satellite_3.jpg").read_bytes()
    (folder / "images" / "satellite_3.jpg").write_bytes(whole[:50])
    (folder / "images" / "satellite_7.jpg").unlink()
    command = ("embed", indexed.folder, "--modality", "satellite", "--data", "world/places.parquet", "-o", "i.parquet")
    refused(geobind(*command), "2 of 24 rows cannot be read", "003 (satellite)", "007 (satellite)")
    assert not (tmp_path / "i.parquet").exists()
    # One has been mended meanwhile, and is read again.
    (folder / "images" / "satellite_3.jpg").write_bytes(whole)
    done = geobind(*command, "--max-bad-samples", "0.1")
    assert "skipped 007 (satellite)" in done.stderr
    assert "1 rows skipped" in done.stdout
    index = written(done, tmp_path / "i.parquet")
    assert index.record.skipped == 1
    assert "007" not in index.keys().to_pylist()
    assert len(index) == 23
    # Keys and embeddings still belong together.
    one = indexed.space.embed("satellite", [folder / "images" / "satellite_8.jpg"])[0].numpy()
    row = index.keys().to_pylist().index("008")
    np.testing.assert_allclose(next(index.chunks())[1][row], one, atol=1e-6)


def test_a_row_whose_embedding_is_not_finite_is_skipped(
    save_space: Any, clip_folder: Path, indexed: Indexed, tmp_path: Path
) -> None:
    space: Space = save_space(24, text={"pretrained": str(clip_folder)})
    tokens = space.modality("text").collate(["purple"])[0]
    (weights,) = (w for name, w in space.encoder("text").named_parameters() if "token_embedding" in name)
    with torch.no_grad():
        weights[tokens[1]] = float("nan")  # behind the token that starts every text
    reporter = Reporter(quiet=True)
    opened = open_data(space, space.folder, str(indexed.table), "text", ["text=text"], [], plugin_manager(), reporter)
    options = EmbedOptions(max_bad_samples=0.2)
    index = embed_to(tmp_path / "i.parquet", space, opened, "text", options, Launch(), reporter)
    purple = [f"{i:03d}" for i in range(24) if WORLD_CLASSES[i % 6] == "purple"]
    assert index.keys().to_pylist() == [f"{i:03d}" for i in range(24) if f"{i:03d}" not in purple]
    assert index.record.skipped == 4
    with pytest.raises(DataError, match=r"(?s)its embedding is zero or not finite.*or raise --max-bad-samples\."):
        embed_to(tmp_path / "j.parquet", space, opened, "text", EmbedOptions(), Launch(), reporter)


def test_bad_input_is_said_with_what_to_do(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    def embed(modality: str, data: str, *more: str) -> Any:
        return geobind("embed", indexed.folder, "--modality", modality, "--data", data, "-o", "x.parquet", *more)

    table = str(indexed.table)
    refused(embed("sattelite", table), "no modality 'sattelite'", "Did you mean 'satellite'?")
    refused(embed("satellite", "missing.csv"), "no such file or folder", "missing.csv")
    refused(embed("satellite", table, "--keep", "lable"), "no column 'lable'", "Did you mean 'label'?")
    refused(embed("satellite", table, "--time", "label"), "'label' has no times, such as '")
    refused(embed("satellite", table, "--dtype", "int8"), "no 'int8'")
    refused(embed("satellite", table, "--split", "tset"), "Did you mean 'test'?")
    refused(embed("satellite", table, "--split", "validation"), "split 'validation', 0 rows", "nothing for 'satellite'")
    refused(embed("location", table), "no field for 'location'", "--field location=")
    (tmp_path / "empty.csv").write_text("key,satellite\n")
    refused(embed("satellite", "empty.csv"), "the table has no rows")
    (tmp_path / "broken.parquet").write_bytes(indexed.table.read_bytes()[:3000])
    refused(embed("satellite", "broken.parquet"), "cannot be read", "broken.parquet")
    refused(geobind("embed", "nowhere", "--modality", "text", "--data", table, "-o", "x.parquet"), "no space.json")
    refused(geobind("embed", indexed.folder, "--modality", "text", "--data", table, "-o", "x.csv"), ".parquet file")
    refused(geobind("embed", indexed.folder, "--modality", "text", "-o", "x.parquet"), "say what is to be embedded")
    assert not (tmp_path / "x.parquet").exists()


def test_times_that_are_not_understood_are_counted(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    table = pq.read_table(indexed.table).slice(0, 4)
    taken = pa.array(["2024-06-01", "03.06.2024", None, "2024-06-02T10:00"])
    path = indexed.table.parent / "taken.parquet"
    pq.write_table(table.append_column("taken", taken), path)
    command = ("embed", indexed.folder, "--modality", "satellite", "--data", str(path), "--time", "taken")
    done = geobind(*command, "-o", "out.parquet")
    assert done.returncode == 0, done.stderr
    assert "1 rows of 'taken' have no time that is understood, such as '03.06.2024'" in " ".join(done.stderr.split())


def test_several_columns_are_one_cell(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    table = pq.read_table(indexed.table).slice(0, 23)
    pq.write_table(table, tmp_path / "places.parquet")
    done = geobind(
        *("embed", indexed.folder, "--modality", "location", "--data", "places.parquet", "-o", "l.parquet"),
        *("--field", "location=longitude,latitude"),
    )
    index = written(done, tmp_path / "l.parquet")
    assert index.cell("location", 6) == PLACES[6]
    found = geobind("search", indexed.folder, "l.parquet", "location=8.541694,47.376888", "-k", "1", "--json")
    assert json.loads(found.stdout)[0]["key"] == "006"
    assert json.loads(found.stdout)[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_run_knows_its_data_sets(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path, clip_folder: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(indexed.space.folder, run / "space")
    fields = {"satellite": "satellite", "text": "text"}
    document = {
        "binding": "satellite",
        "modalities": {name: {"pretrained": str(clip_folder)} for name in fields},
        "data": {
            "world": {"source": "table", "path": str(indexed.table), "fields": fields},
            "words": {"source": "table", "path": str(indexed.table), "fields": {"text": "text"}},
        },
        "stages": [{"name": "one", "train": ["satellite", "text"], "anchor": [], "data": "world"}],
    }
    RunFolder(run).write_chain(document, tmp_path / "chain.yaml")
    command = ("embed", "run", "-o", "out.parquet", "--modality")
    index = written(geobind(*command, "satellite"), tmp_path / "out.parquet")
    assert index.record.data == "world"
    assert sorted(index.record.cells) == ["satellite", "text"]
    first = [chunk for _, chunk in index.chunks()]
    np.testing.assert_array_equal(first[0], next(EmbeddingIndex.open(indexed.index).chunks())[1])
    refused(geobind(*command, "text"), "say which data set", "world, words")
    refused(geobind(*command, "text", "--data", "wold"), "no such file or folder", "Data sets of the run: world, words")
    refused(geobind(*command, "text", "--data", "run/chain.yaml"), "a chain is no data")
    refused(geobind(*command, "text", "--data", "words", "--field", "text=label"), "whose chain says this")
    assert len(written(geobind(*command, "text", "--data", "words", "--overwrite"), tmp_path / "out.parquet")) == 24


# ---------------------------------------------------------------------- files that are no index


def test_what_is_no_index_says_so(indexed: Indexed, tmp_path: Path) -> None:
    whole = indexed.index.read_bytes()
    cut, damaged = tmp_path / "cut.parquet", tmp_path / "damaged.parquet"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no whole Parquet file"):
        EmbeddingIndex.open(cut)
    with pytest.raises(DataError, match="no such index"):
        EmbeddingIndex.open(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="is no index"):
        EmbeddingIndex.open(indexed.table)
    frame = geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(1, 2)], crs=4326)
    frame.to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(DataError, match="this GeoParquet file is no index"):
        EmbeddingIndex.open(tmp_path / "foreign.parquet")
    with pytest.raises(DataError, match=r"no \.parquet files"):
        EmbeddingIndex.open(_empty(tmp_path))
    # The footer is whole, and the pages are not.
    group = pq.read_metadata(indexed.index).row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name, read in (("key", EmbeddingIndex.keys), ("embedding.list.element", lambda index: list(index.chunks()))):
        start = chunks[name].dictionary_page_offset or chunks[name].data_page_offset
        end = start + chunks[name].total_compressed_size
        damaged.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
        with pytest.raises(DataError, match="the index is damaged"):
            read(EmbeddingIndex.open(damaged))
    newer = pq.read_table(indexed.index)
    record = json.loads(newer.schema.metadata[b"geobind"]) | {"format": 2}
    pq.write_table(newer.replace_schema_metadata({b"geobind": json.dumps(record)}), tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="format 2"):
        EmbeddingIndex.open(tmp_path / "newer.parquet")


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_a_folder_of_parts_is_one_index(indexed: Indexed, tmp_path: Path) -> None:
    whole = pq.read_table(indexed.index)
    for number, (start, end) in enumerate(((0, 10), (10, 24))):
        pq.write_table(whole.slice(start, end - start), tmp_path / f"{number}.parquet")
    index, one = EmbeddingIndex.open(tmp_path), EmbeddingIndex.open(indexed.index)
    assert index.keys().equals(one.keys())
    assert [first for first, _ in index.chunks()] == [0, 10]
    assert [row["key"] for row in index.rows([23, 0, 10], ["key"])] == ["023", "000", "010"]
    record = json.loads(whole.schema.metadata[b"geobind"]) | {"content_hash": "0" * 64}
    other = whole.replace_schema_metadata({b"geobind": json.dumps(record)})
    pq.write_table(other, tmp_path / "2.parquet")
    with pytest.raises(DataError, match="differ in content_hash"):
        EmbeddingIndex.open(tmp_path)


def test_an_index_of_another_space_is_refused(
    indexed: Indexed, geobind: Callable[..., Any], save_space: Any, clip_folder: Path
) -> None:
    clip = {"pretrained": str(clip_folder)}
    other: Space = save_space(24, text=clip, satellite=clip)  # other seeds, so that other noise is added
    with pytest.raises(SpaceError, match="belongs to another space"):
        EmbeddingIndex.open(indexed.index).require_space(other)
    refused(geobind("search", str(other.folder), str(indexed.index), "a beach"), "belongs to another space", "hash")
    texts: Space = save_space(24, text=clip)
    refused(geobind("search", str(texts.folder), str(indexed.index), "a beach"), "does not have")


# ---------------------------------------------------------------------- processes, and how they end


def many_texts(folder: Path, rows: int) -> Path:
    table = {"key": [f"{i:05d}" for i in range(rows)], "text": [f"place number {i} of many" for i in range(rows)]}
    longitude = np.linspace(-180, 180, rows)
    pq.write_table(pa.table({**table, "longitude": longitude, "latitude": longitude / 2}), folder / "many.parquet")
    return folder / "many.parquet"


def test_two_processes_and_a_killed_run_write_the_same_bytes(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    many_texts(tmp_path, 3000)
    command = ["embed", indexed.folder, "--modality", "text", "--data", "many.parquet", "--batch-size", "16"]
    written(geobind(*command, "-o", "one.parquet"), tmp_path / "one.parquet")
    one = (tmp_path / "one.parquet").read_bytes()

    def start(name: str, *launcher: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "geobind_core", *command, "-o", name],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    two, killed = start("two.parquet", *TORCHRUN), start("killed.parquet")
    parts = tmp_path / ".killed.parquet.parts"
    while not list(parts.glob("[0-9]*.arrow")) and killed.poll() is None:
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    left = len(list(parts.glob("[0-9]*.arrow")))
    assert 0 < left < 3, "it was killed in the middle"
    assert not (tmp_path / "killed.parquet").exists()
    said, _ = two.communicate(timeout=120)
    assert two.returncode == 0, said.decode()
    assert said.decode().count("3,000 x 24 float32 of text") == 1
    assert (tmp_path / "two.parquet").read_bytes() == one
    done = geobind(*command, "-o", "killed.parquet")
    assert f"going on: {left} of 3 parts are there" in done.stderr
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed.parquet").read_bytes() == one
    assert not parts.exists()


def test_what_a_run_of_other_data_left_is_not_used(
    indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(indexed.table.parent, tmp_path / "world")
    command = ("embed", indexed.folder, "--modality", "text", "--data", "world/places.parquet", "-o", "t.parquet")
    parts = tmp_path / ".t.parquet.parts"
    parts.mkdir()
    (parts / "plan.json").write_text("{}")
    (parts / "000000.arrow").write_bytes(b"of something else")
    done = geobind(*command)
    assert "starts anew" in done.stderr
    assert len(written(done, tmp_path / "t.parquet")) == 24
    # Another text in the same rows makes another index.
    write_table(tmp_path / "world" / "places.parquet", _rows(indexed), text=["other words"] * 24)
    refused(geobind(*command), "made of something else")


def _rows(indexed: Indexed) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(indexed.table).to_pylist()
    return rows
