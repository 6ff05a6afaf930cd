"""Searching: the same rows as a brute-force search finds, in every form that they are printed in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.errors import ConfigError, DataError, SpaceError
from geobind_core.index.approximate import ApproximateIndex, lists_path
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.period import parse_period
from geobind_core.index.query import QueryPart, embed_query, parse_query
from geobind_core.index.search import scores, search
from geobind_core.progress import Reporter

from .conftest import Indexed

pytestmark = pytest.mark.usefixtures("one_thread")
FIJI = (178.0, -20.0, -178.0, 1.0)
"""Across the antimeridian: the first four rows."""


@pytest.fixture
def geobind(in_process: Any, tmp_path: Path) -> Callable[..., Any]:
    run: Callable[..., Any] = in_process(tmp_path)
    return run


@pytest.fixture(scope="module")
def index(indexed: Indexed) -> EmbeddingIndex:
    return EmbeddingIndex.open(indexed.index)


@pytest.fixture(scope="module")
def large(indexed: Indexed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.float32]]:
    """6,000 rows in eight row groups, around 40 directions; the first two are the same."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((40, 24))
    vectors = centres[rng.integers(0, 40, 6000)] + 0.3 * rng.standard_normal((6000, 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[1] = vectors[0]
    few = pq.read_table(indexed.index)
    longitude = pa.array(np.linspace(-180, 180, 6000, endpoint=False))
    zero = pa.array(np.zeros(6000))
    axes = ["xmin", "ymin", "xmax", "ymax"]
    table = pa.table(
        {
            "key": [f"{i:04d}" for i in range(6000)],
            "bbox": pa.StructArray.from_arrays([longitude, zero, longitude, zero], axes),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 24),
        },
        metadata={b"geobind": few.schema.metadata[b"geobind"]},
    )
    path = tmp_path_factory.mktemp("large") / "large.parquet"
    pq.write_table(table, path, row_group_size=800)
    return path, vectors


def brute_force(vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32], k: int) -> list[int]:
    found = vectors.astype(np.float64) @ query.astype(np.float64)
    order: list[int] = np.lexsort((np.arange(len(found)), -np.round(found, 7)))[:k].tolist()
    return order


def keys(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [row["key"] for row in json.loads(done.stdout)]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr


# ---------------------------------------------------------------------- exact


@pytest.mark.parametrize("k", [1, 10, 6000, 7000])
def test_an_exact_search_finds_what_brute_force_finds(large: tuple[Path, npt.NDArray[np.float32]], k: int) -> None:
    path, vectors = large
    opened = EmbeddingIndex.open(path)
    for query in (vectors[17], -vectors[3], vectors[0]):
        found = search(opened, query, k)
        expected = brute_force(vectors, query, k)
        assert len(found) == min(k, 6000)
        # Rows whose scores differ in the last bit may change places between two ways to add.
        assert {hit.row for hit in found[:10]} == set(expected[:10])
        np.testing.assert_allclose([hit.score for hit in found], (vectors @ query)[expected], atol=1e-6)
        assert [hit.key for hit in found] == [f"{hit.row:04d}" for hit in found]
    assert [hit.row for hit in search(opened, vectors[0], 2)] == [0, 1]  # of equals, the first comes first


def test_scores_are_those_of_all_rows(large: tuple[Path, npt.NDArray[np.float32]]) -> None:
    path, vectors = large
    found = scores(EmbeddingIndex.open(path), vectors[:3])
    assert found.shape == (3, 6000)
    np.testing.assert_allclose(found, vectors[:3] @ vectors.T, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected \[Q, 24\]"):
        scores(EmbeddingIndex.open(path), vectors[:3, :5])


def test_a_box_may_reach_over_the_antimeridian(index: EmbeddingIndex, indexed: Indexed) -> None:
    query = indexed.space.embed("text", ["a red place"])[0].numpy()
    assert sorted(hit.row for hit in search(index, query, 99, bbox=FIJI)) == [0, 1, 2, 3]
    # 180 degrees are -180 degrees, at whichever end of a box.
    assert sorted(hit.row for hit in search(index, query, 99, bbox=(179.0, -1.0, 180.0, 1.0))) == [0, 1]
    assert sorted(hit.row for hit in search(index, query, 99, bbox=(-180.0, -90.0, 180.0, 90.0))) == list(range(23))
    assert sorted(hit.row for hit in search(index, query, 99, bbox=(-180.0, 90.0, 180.0, 90.0))) == [4]
    with pytest.raises(DataError, match="none of the 24 rows"):
        search(index, query, 99, bbox=(0.0, 0.0, 1.0, 1.0))


def test_row_groups_that_no_row_is_wanted_of_are_not_read(
    large: tuple[Path, npt.NDArray[np.float32]], tmp_path: Path
) -> None:
    path, vectors = large
    whole = path.read_bytes()
    metadata = pq.read_metadata(path)
    column = metadata.row_group(7).column(metadata.num_columns - 1)
    assert column.path_in_schema.startswith("embedding")
    start = column.dictionary_page_offset or column.data_page_offset
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole[:start] + bytes(column.total_compressed_size) + whole[start + column.total_compressed_size :])
    opened = EmbeddingIndex.open(cut)
    with pytest.raises(DataError, match="the index is damaged"):
        search(opened, vectors[0], 3)
    assert len(search(opened, vectors[0], 3, bbox=(-180.0, -1.0, 0.0, 1.0))) == 3


def test_a_period_may_be_open_and_a_day_lasts_to_its_end(index: EmbeddingIndex, indexed: Indexed) -> None:
    query = indexed.space.embed("text", ["a red place"])[0].numpy()

    def found(text: str) -> list[int]:
        return sorted(hit.row for hit in search(index, query, 99, time=parse_period(text)))

    assert found("2024-01-01/2024-01-21") == [0, 1, 2]
    assert found("2024-01-11T12:00Z/2024-01-21T12:00Z") == [1, 2]
    assert found("2024-01-11T14:00+02:00/2024-01-11T14:00+02:00") == [1]
    assert found("/2024-01-12") == [0, 1]
    assert found("2024-08-08/..") == [23]  # row 22 has no time
    assert found("2024-01-11") == [1]
    hit = search(index, query, 1, time=parse_period("2024-01-11"))[0]
    assert hit.time == datetime(2024, 1, 11, 12, tzinfo=UTC)
    for wrong in ("yesterday", "2024-02-01/2024-01-01", "2024-13-01/"):
        with pytest.raises(ConfigError, match="--time"):
            parse_period(wrong)


# ---------------------------------------------------------------------- approximate


def test_an_approximate_search_finds_nearly_all_and_keeps_its_lists(
    large: tuple[Path, npt.NDArray[np.float32]],
) -> None:
    path, vectors = large
    opened = EmbeddingIndex.open(path)
    quiet = Reporter(quiet=True)
    lists = ApproximateIndex.open(opened, quiet)
    rng = np.random.default_rng(9)
    queries = vectors[rng.integers(0, 6000, 50)] + 0.05 * rng.standard_normal((50, 24)).astype(np.float32)
    right = 0
    for query in queries:
        found = lists.search(query, 10)
        right += len({hit.row for hit in found} & set(brute_force(vectors, query, 10)))
        np.testing.assert_allclose([h.score for h in found], (vectors @ query)[[h.row for h in found]], atol=2e-3)
    assert right / 500 > 0.95
    there = lists_path(opened)
    made = there.stat().st_mtime_ns
    ApproximateIndex.open(opened, quiet)
    assert there.stat().st_mtime_ns == made
    # Filters hold, and where too few pass them the search is exact.
    box = (-90.0, -1.0, 90.0, 1.0)
    exact = search(opened, queries[0], 10, bbox=box)
    assert {h.row for h in lists.search(queries[0], 10, bbox=box)} == {h.row for h in exact}
    narrow = (0.0, -1.0, 3.0, 1.0)
    assert lists.search(queries[0], 99, bbox=narrow) == search(opened, queries[0], 99, bbox=narrow)
    assert len(lists.search(queries[0], 6000)) == 6000
    # A damaged file of lists is made again.
    before = [hit.row for hit in lists.search(queries[0], 10)]
    whole = there.read_bytes()
    for damaged in (b"damaged", whole[: len(whole) // 2], whole[-1000:] + whole[1000:]):
        there.unlink()  # what is mapped stays what it was
        there.write_bytes(damaged)
        again = ApproximateIndex.open(opened, quiet).search(queries[0], 10)
        assert [hit.row for hit in again] == before


def test_lists_of_an_index_that_was_replaced_are_not_used(indexed: Indexed, tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    whole = pq.read_table(indexed.index)
    pq.write_table(whole, path)
    quiet = Reporter(quiet=True)
    query = indexed.space.embed("text", ["a red place"])[0].numpy()
    first = ApproximateIndex.open(EmbeddingIndex.open(path), quiet).search(query, 24)
    pq.write_table(whole.slice(12), path)
    second = ApproximateIndex.open(EmbeddingIndex.open(path), quiet).search(query, 24)
    assert [hit.key for hit in second] == [hit.key for hit in first if hit.row >= 12]
    assert len(list(tmp_path.glob("*.faiss"))) == 1


def test_without_faiss_it_says_what_to_install(
    indexed: Indexed, geobind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    done = geobind("search", indexed.folder, str(indexed.index), "text=red", "--approximate")
    refused(done, "faiss", "pip install 'geobind[approximate]'")


# ---------------------------------------------------------------------- queries


def test_a_query_goes_to_the_one_modality_that_can_read_it(indexed: Indexed) -> None:
    space, world = indexed.space, indexed.table.parent
    assert parse_query("waves on a beach", space) == [QueryPart("text", "waves on a beach")]
    assert parse_query(str(world / "sounds/3.flac"), space) == [QueryPart("audio", world / "sounds/3.flac")]
    image = world / "images/satellite_3.jpg"
    assert parse_query(str(image), space) == [QueryPart("satellite", image)]
    assert parse_query("location=8.5,47.3", space) == [QueryPart("location", "8.5,47.3")]
    assert parse_query("8.5,47.3", space, modality="location") == [QueryPart("location", "8.5,47.3")]
    with pytest.raises(ConfigError, match="text, location can all read this"):
        parse_query("8.5,47.3", space)
    combined = parse_query(f"text=1 + 1 + text=snow*-0.5 + audio={world / 'sounds/3.flac'}*2", space)
    assert combined == [
        QueryPart("text", "1 + 1"),
        QueryPart("text", "snow", -0.5),
        QueryPart("audio", world / "sounds/3.flac", 2.0),
    ]


def test_what_is_no_query_says_why(indexed: Indexed) -> None:
    space = indexed.space
    with pytest.raises(DataError, match=r"no such file(.|\n)*text=surf\.flac"):
        parse_query("surf.flac", space)
    with pytest.raises(DataError, match="'audio' is read from files"):
        parse_query("audio=missing.wav", space)
    with pytest.raises(SpaceError, match=r"no modality 'adio'(.|\n)*'audio'"):
        parse_query("adio=surf.flac", space)
    with pytest.raises(ConfigError, match="weight is 0"):
        parse_query("text=a beach*0", space)
    for text in ("text=a beach*2,5", "text=a beach*"):
        with pytest.raises(ConfigError, match=r"behind `\*` is no number"):
            parse_query(text, space)
    with pytest.raises(ConfigError, match=r"does not say its modality(.|\n)*text=a beach\*2"):
        parse_query("a beach*2", space)
    with pytest.raises(ConfigError, match="the query is empty"):
        parse_query("  ", space)
    with pytest.raises(ConfigError, match=r"no modality of the space can read this file(.|\n)*satellite: "):
        parse_query(str(indexed.table), space)
    with pytest.raises(DataError, match=r"location=\[8\.0, 99\.0\]"):
        embed_query(space, parse_query("location=8,99", space))


def test_numbers_are_not_taken_for_words(save_space: Any, clip_folder: Path) -> None:
    space = save_space(24, text={"pretrained": str(clip_folder)})
    with pytest.raises(ConfigError, match=r"these are numbers(.|\n)*text=8\.5,47\.4"):
        parse_query("8.5,47.4", space)
    assert parse_query("text=8.5,47.4", space) == [QueryPart("text", "8.5,47.4")]


def test_a_text_needs_no_plugin_but_its_own(indexed: Indexed) -> None:
    space = Space.load(indexed.folder, plugins=plugin_manager(["audio"]))
    assert parse_query("waves on a beach", space) == [QueryPart("text", "waves on a beach")]
    with pytest.raises(DataError, match=r"no such file(.|\n)*text=surf\.flac"):
        parse_query("surf.flac", space)


def test_parts_are_added_with_their_weights(indexed: Indexed) -> None:
    space, sound = indexed.space, indexed.table.parent / "sounds/3.flac"
    text, audio = space.embed("text", ["a beach"])[0].numpy(), space.embed("audio", [sound])[0].numpy()
    found = embed_query(space, [QueryPart("text", "a beach", 2.0), QueryPart("audio", sound, -0.5)])
    wanted = 2.0 * text - 0.5 * audio
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-6)
    assert found.dtype == np.float32
    with pytest.raises(DataError, match="cancel each other"):
        embed_query(space, [QueryPart("text", "a beach"), QueryPart("text", "a beach", -1.0)])


# ---------------------------------------------------------------------- the command


def nearest_keys(index: EmbeddingIndex, query: npt.NDArray[np.float32]) -> list[str]:
    vectors = np.concatenate([chunk for _, chunk in index.chunks()])
    found: list[str] = np.array(index.keys().to_pylist())[np.argsort(-(vectors @ query), kind="stable")].tolist()
    return found


@pytest.mark.parametrize("options", [[], ["--approximate"]])
def test_the_command_finds_what_the_space_says(
    indexed: Indexed, index: EmbeddingIndex, geobind: Callable[..., Any], options: list[str]
) -> None:
    space: Space = indexed.space
    command = ("search", indexed.folder, str(indexed.index))
    text = space.embed("text", ["a red place, number 6"])[0].numpy()
    assert keys(geobind(*command, "a red place, number 6", "--json", *options)) == nearest_keys(index, text)[:10]
    image = str(indexed.table.parent / "images/satellite_7.jpg")
    assert keys(geobind(*command, image, "-k", "1", "--json", *options)) == ["007"]
    sound = str(indexed.table.parent / "sounds/7.flac")
    both = embed_query(space, [QueryPart("text", "a red place"), QueryPart("audio", sound, -2.0)])
    done = geobind(*command, "a red place", "--query", f"audio={sound}*-2", "-k", "5", "--json", *options)
    assert keys(done) == nearest_keys(index, both)[:5]
    filtered = geobind(*command, image, "--bbox", "178,-20,-178,1", "--time", "2024-01-05/", "--json", *options)
    assert sorted(keys(filtered)) == ["001", "002", "003"]


def test_it_prints_a_table_and_geojson(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    command = ("search", indexed.folder, str(indexed.index), "a red place", "-k", "24")
    printed = geobind(*command, "--geojson", "found.geojson").stdout
    assert len(printed.strip().splitlines()) == 25
    assert "47.37689" in printed
    assert "a red place, number 6" in printed
    assert "2024-03-01T12:00:00Z" in printed
    found = json.loads((tmp_path / "found.geojson").read_text())
    assert json.loads(geobind(*command, "--geojson", "-").stdout) == found
    # RFC 7946: a collection of features, each with a geometry or null, positions as longitude and latitude.
    assert set(found) == {"type", "features"}
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == 24
    for feature in found["features"]:
        assert feature["type"] == "Feature"
        assert isinstance(feature["properties"], dict)
        if feature["id"] == "023":
            assert feature["geometry"] is None
            continue
        longitude, latitude = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Point"
        assert -180 <= longitude <= 180
        assert -90 <= latitude <= 90
    zurich = next(feature for feature in found["features"] if feature["id"] == "006")
    assert zurich["geometry"]["coordinates"] == pytest.approx([8.541694, 47.376888], abs=1e-9)
    assert zurich["properties"]["text"] == "a red place, number 6"
    assert zurich["properties"]["satellite"] == "images/satellite_6.jpg"
    import geopandas

    assert len(geopandas.read_file(tmp_path / "found.geojson")) == 24


def test_it_draws_what_it_found(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    command = ("search", indexed.folder, str(indexed.index), "a red place")
    done = geobind(*command, "-k", "7", "--show", "sheet.png", "--json")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (12 + 5 * 232, 48 + 2 * 294)  # five boxes, and two below
        middles = [sheet.getpixel((12 + 232 * (i % 5) + 110, 48 + 294 * (i // 5) + 110)) for i in range(10)]
    paper = (0xEE, 0xF1, 0xF4)
    assert [middle == paper for middle in middles] == [False] * 7 + [True] * 3
    # Each is drawn in the colour of its place.
    for key, middle in zip(keys(done), middles, strict=False):
        with Image.open(indexed.table.parent / f"images/satellite_{int(key)}.jpg") as image:
            wanted = np.asarray(image).mean(axis=(0, 1))
        assert np.abs(wanted - np.array(middle)).max() < 90


def test_what_cannot_be_drawn_is_said(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "index.parquet"
    moved.parent.mkdir()
    moved.write_bytes(indexed.index.read_bytes())
    done = geobind("search", indexed.folder, str(moved), "a red place", "-k", "3", "--show", "sheet.png")
    assert done.returncode == 0
    assert "3 of 3 could not be drawn" in done.stderr
    assert (tmp_path / "sheet.png").is_file()
    table = pq.read_table(indexed.index)
    record = json.loads(table.schema.metadata[b"geobind"]) | {"cells": {}}
    pq.write_table(table.replace_schema_metadata({b"geobind": json.dumps(record)}), moved)
    done = geobind("search", indexed.folder, str(moved), "a red place", "--show", "sheet.png")
    refused(done, "does not know where its observations of 'satellite' are")


def test_bad_input_is_said_with_what_to_do(indexed: Indexed, geobind: Callable[..., Any], tmp_path: Path) -> None:
    command = ("search", indexed.folder, str(indexed.index))
    refused(geobind(*command), "nothing to search by")
    refused(geobind(*command, "red", "--bbox", "1,2,3"), "--bbox 1,2,3", "W,S,E,N")
    refused(geobind(*command, "red", "--bbox", "1,20,3,10"), "south")
    refused(geobind(*command, "red", "--time", "summer"), "--time summer", "START/END")
    refused(geobind(*command, "red", "--show", "sheet.gif"), ".png")
    refused(geobind(*command, "red", "--as", "txt"), "no modality 'txt'", "Did you mean 'text'?")
    refused(geobind(*command, "red", "--json", "--geojson", "-"), "leave one out")
    refused(geobind("search", indexed.folder, "none.parquet", "red"), "no such index", "geobind embed")
    refused(geobind("search", indexed.folder, str(indexed.table), "red"), "is no index", "geobind embed")
    (tmp_path / "text.parquet").write_text("no Parquet")
    refused(geobind("search", indexed.folder, "text.parquet", "red"), "no whole Parquet file")
    refused(geobind("search", "nowhere", str(indexed.index), "red"), "no space.json")
