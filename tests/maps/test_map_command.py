"""`geobind map`, from the command to the file: what a user types, and what GDAL and pyarrow then read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rio_cogeo import cog_validate

from geobind_core import Space
from geobind_core.data.geography import Places, great_circle_km

from .conftest import PLACES, Mapped, save_index

pytestmark = pytest.mark.usefixtures("one_thread")
FIJI = [(longitude % 360, latitude) for longitude, latitude in PLACES]
"""The places, with longitudes as a map across the antimeridian has them."""


@pytest.fixture
def geobind(in_process: Any, tmp_path: Path) -> Callable[..., Any]:
    run: Callable[..., Any] = in_process(tmp_path)
    return run


@pytest.fixture(scope="module")
def similarities(mapped: Mapped) -> npt.NDArray[np.float32]:
    """`[2, 24]`: of two queries with all images, by the space alone."""
    space = Space.load(mapped.space)
    queries = space.embed("text", ["waves on a beach", "a dense forest"])
    return space.similarity(queries, space.embed("satellite", mapped.images)).numpy()


def sampled(path: Path, at: list[tuple[float, float]]) -> npt.NDArray[np.float32]:
    with rasterio.open(path) as dataset:
        return np.array(list(dataset.sample(at))).T


# ---------------------------------------------------------------------- what it writes


def test_a_map_has_the_scores_where_the_places_are(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, similarities: npt.NDArray[np.float32]
) -> None:
    done = geobind("map", str(mapped.space), str(mapped.index), "--query", "waves on a beach", "-o", "surf.tif")
    assert done.returncode == 0, done.stderr
    assert "1 of 24 rows have no coordinates" in done.stderr
    valid, errors, warnings = cog_validate(str(tmp_path / "surf.tif"), strict=True)
    assert valid, (errors, warnings)
    with rasterio.open(tmp_path / "surf.tif") as dataset:
        west, south, east, north = dataset.bounds
        tags, of_band = dataset.tags(), dataset.tags(1)
        assert dataset.descriptions == ("waves on a beach",)
        assert dataset.units == ("cosine similarity",)
        values = dataset.read(1)
    # The least part of the Earth with all places: across the antimeridian, and not around it.
    assert 150 < west < 163
    assert 181 < east < 190
    assert -50 < south < -38
    assert -16 < north < -8
    np.testing.assert_allclose(sampled(tmp_path / "surf.tif", FIJI)[0], similarities[0, : len(FIJI)], atol=1e-5)
    assert np.nanmax(values) == pytest.approx(similarities[0, :-1].max(), abs=1e-5)
    assert np.isnan(values).any()
    lineage = json.loads(tags["GEOBIND_LINEAGE"])
    record = Space.load(mapped.space).record
    assert {name: about["content_hash"] for name, about in lineage.items()} == {
        name: record.modalities[name].content_hash for name in ("satellite", "text")
    }
    assert len(tags["GEOBIND_SPACE"]) == 64
    assert tags["GEOBIND_OBSERVATIONS"] == "23"
    assert json.loads(of_band["QUERY"]) == [{"modality": "text", "item": "waves on a beach", "weight": 1.0}]
    assert (of_band["TIME_START"], of_band["TIME_END"]) == ("2024-01-01T00:00:00Z", "2024-08-08T00:00:00Z")
    assert tags["TIFFTAG_DATETIME"] == "2024:08:08 00:00:00"
    with Image.open(tmp_path / "surf.png") as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["surf.png", "surf.tif"]


def test_every_cell_is_that_of_its_nearest_place(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, similarities: npt.NDArray[np.float32]
) -> None:
    """All cells of a map across the antimeridian, against the distance to each place by another formula."""
    done = geobind(
        "map", str(mapped.space), str(mapped.index), "-q", "waves on a beach", "-o", "a.tif", "--no-png",
        "--bbox", "178,-20,-178,-15", "--resolution", "0.05", "--max-distance", "80", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["bounds"], told["width"], told["height"], told["png"]) == ([178, -20, 182, -15], 80, 100, None)
    table = pq.read_table(mapped.table)
    places = Places.of(*(table[c].to_numpy(zero_copy_only=False) for c in ("longitude", "latitude"))).take(
        np.arange(23)
    )
    with rasterio.open(tmp_path / "a.tif") as dataset:
        found = dataset.read(1)
        x, y = (np.asarray(v) for v in dataset.xy(*(v.ravel() for v in np.indices(found.shape))))
    np.testing.assert_allclose(x, 178 + 0.05 * (np.indices(found.shape)[1].ravel() + 0.5), atol=1e-9)
    expected = np.full(found.size, np.nan)
    for number, (longitude, latitude) in enumerate(zip(x, y, strict=True)):
        here = Places.of(np.full(23, longitude), np.full(23, latitude))
        distances = great_circle_km(here, places)
        if distances.min() <= 80:
            expected[number] = similarities[0, distances.argmin()]
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)
    assert told["bands"][0]["cells"] == int((~np.isnan(expected)).sum())
    assert not (tmp_path / "a.png").exists()


def test_queries_are_bands_and_can_be_compared(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, similarities: npt.NDArray[np.float32]
) -> None:
    common = ["map", str(mapped.space), str(mapped.index), "-q", "waves on a beach", "-q", "a dense forest"]
    expected = similarities[:, : len(FIJI)]
    assert geobind(*common, "-o", "two.tif").returncode == 0
    np.testing.assert_allclose(sampled(tmp_path / "two.tif", FIJI), expected, atol=1e-5)
    assert geobind(*common, "-o", "minus.tif", "--difference").returncode == 0
    np.testing.assert_allclose(sampled(tmp_path / "minus.tif", FIJI), expected[:1] - expected[1:], atol=1e-5)
    done = geobind(*common, "-o", "soft.tif", "--normalise", "softmax", "--temperature", "0.05")
    assert done.returncode == 0
    odds = np.exp(expected / 0.05)
    np.testing.assert_allclose(sampled(tmp_path / "soft.tif", FIJI), odds / odds.sum(axis=0), atol=1e-4)
    with rasterio.open(tmp_path / "minus.tif") as dataset:
        assert dataset.descriptions == ("waves on a beach minus a dense forest",)
        assert json.loads(dataset.tags(1)["MINUS"])[0]["item"] == "a dense forest"
        assert dataset.units == ("difference of cosine similarities",)
    with rasterio.open(tmp_path / "soft.tif") as dataset:
        assert dataset.descriptions == ("waves on a beach", "a dense forest")
        assert dataset.tags()["GEOBIND_TEMPERATURE"] == "0.05"


def test_a_query_may_be_an_image_and_a_text_with_weights(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path
) -> None:
    image = shutil.copy(mapped.images[2], tmp_path / "here.jpg")
    query = f"text=a beach + satellite={image}*-0.5"
    done = geobind("map", str(mapped.space), str(mapped.index), "-q", query, "-o", "map.tif", "--no-png")
    assert done.returncode == 0, done.stderr
    space = Space.load(mapped.space)
    vector = space.embed("text", ["a beach"]) - 0.5 * space.embed("satellite", [image])
    expected = space.similarity(vector, space.embed("satellite", mapped.images[: len(FIJI)]))
    np.testing.assert_allclose(sampled(tmp_path / "map.tif", FIJI), expected.numpy(), atol=1e-5)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        parts = json.loads(dataset.tags(1)["QUERY"])
    assert parts[1] == {"modality": "satellite", "item": "here.jpg", "weight": -0.5}  # and not where it lay


def test_only_some_time_in_another_coordinate_system(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, similarities: npt.NDArray[np.float32]
) -> None:
    done = geobind(
        "map", str(mapped.space), str(mapped.index), "-q", "waves on a beach", "-o", "map.tif",
        "--time", "2024-01-05/2024-01-31", "--crs", "EPSG:3832", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["observations"], told["crs"]) == (3, "EPSG:3832")  # of 11, 21 and 31 January, the last day included
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.crs.to_epsg() == 3832
        assert dataset.tags(1)["TIME_END"] == "2024-01-31T00:00:00Z"
        x, y = rasterio.warp.transform("EPSG:4326", dataset.crs, *map(list, zip(*PLACES, strict=True)))
    found = sampled(tmp_path / "map.tif", list(zip(x[1:4], y[1:4], strict=True)))
    np.testing.assert_allclose(found[0], similarities[0, 1:4], atol=1e-5)


def test_a_folder_of_tiles_is_embedded_and_burnt_in(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, similarities: npt.NDArray[np.float32]
) -> None:
    """Two images side by side at the antimeridian, one in a UTM zone, one that cannot be read."""
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for number, (crs, left, top, step) in enumerate(
        [("EPSG:4326", 179.6, -17, 0.01), ("EPSG:4326", -180, -17, 0.01), ("EPSG:32760", 700_000, 8_000_000, 500)]
    ):
        with Image.open(mapped.images[number]) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        transform = Affine.translation(left, top) @ Affine.scale(step, -step)
        with rasterio.open(
            tiles / f"{number}.tif", "w", driver="GTiff", width=40, height=40, count=3, dtype="uint8", crs=crs,
            transform=transform,
        ) as dataset:  # fmt: skip
            dataset.write(pixels)
    (tiles / "broken.tif").write_bytes(b"nothing")
    command = ["map", str(mapped.space), "tiles", "-q", "waves on a beach", "--modality", "satellite"]
    for _ in range(2):  # the second time, a map lies among the tiles
        done = geobind(*command, "-o", "tiles/map.tif", "--json")
        assert done.returncode == 0, done.stderr
        assert "left out: tiles/broken.tif: the tile cannot be read" in done.stderr
        assert json.loads(done.stdout)["observations"] == 3
    with rasterio.open(tiles / "map.tif") as dataset:
        assert dataset.bounds.left < 178.9
        assert dataset.bounds.right == pytest.approx(180.4, abs=0.06)
        x, y = rasterio.warp.transform("EPSG:32760", "EPSG:4326", [710_000], [7_990_000])
    found = sampled(tiles / "map.tif", [(179.8, -17.2), (180.2, -17.2), (x[0] % 360, y[0]), (179.8, -17.5)])[0]
    np.testing.assert_allclose(found[:3], similarities[0, :3], atol=2e-3)  # JPEG or its pixels: read in another way
    assert np.isnan(found[3])

    coarse = geobind(*command, "-o", "coarse.tif", "--resolution", "60km")
    assert coarse.returncode == 0, coarse.stderr
    assert "1 of 3 tiles are smaller than a cell" in " ".join(coarse.stderr.split())
    assert "smaller than a cell" not in done.stderr


# ---------------------------------------------------------------------- what it refuses


def test_its_own_map_is_replaced_and_no_other_file(mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path) -> None:
    command = ["map", str(mapped.space), str(mapped.index), "-q", "a dense forest", "-o", "map.tif"]
    (tmp_path / "map.png").write_bytes(b"a photo")
    done = geobind(*command)
    assert done.returncode == 2
    assert "map.png: a file is here that `geobind map` did not write" in done.stderr
    assert (tmp_path / "map.png").read_bytes() == b"a photo"
    assert not (tmp_path / "map.tif").exists()
    (tmp_path / "map.png").unlink()
    assert geobind(*command).returncode == 0
    before = (tmp_path / "map.tif").read_bytes()
    assert geobind(*command[:4], "waves", *command[5:]).returncode == 0
    assert (tmp_path / "map.tif").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bbox", "0,50,10,40"], "the south (50) is not below the north (40)"),
        (["--bbox", "one,two"], "these are not four numbers"),
        (["--bbox", "10,40,20,50"], "no cell of the map has a value"),
        (["--resolution", "0.000001"], "cells would take"),
        (["--resolution", "tiny"], "expected a size of cells"),
        (["--crs", "EPSG:123456"], "no such coordinate system"),
        (["--crs", "EPSG:3857"], "lies across the antimeridian, where this coordinate system is cut in two"),
        (["--method", "kriging"], "no 'kriging'"),
        (["--normalise", "soft"], "Did you mean 'softmax'"),
        (["--normalise", "softmax"], "a softmax over one query is 1 everywhere"),
        (["--difference"], "found 1; a difference needs exactly two queries"),
        (["--difference", "--normalise", "softmax"], "leave --normalise out"),
        (["--max-distance", "-3"], "--max-distance: found -3; expected a number above 0"),
        (["--temperature", "0"], "--temperature: found 0"),
        (["--time", "yesterday"], "expected START/END"),
        (["--time", "2024-05-01/2024-01-01"], "the start is after the end"),
        (["--time", "1999-01-01/1999-12-31"], "none of the 24 rows passes"),
        (["--modality", "satellite"], "an index has a modality of its own"),
        (["-q", "smell=roses*0"], "no modality 'smell'"),
        (["-q", "missing.jpg"], "no such file"),
        (["-o", "map.jpg"], "expected the name of a .tif file"),
        (["-o", "nowhere/map.tif"], "there is no such folder"),
        (["--png", "map.tif"], "expected the name of a .png file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    query = [] if "-q" in arguments else ["-q", "waves on a beach"]
    done = geobind("map", str(mapped.space), str(mapped.index), *query, "-o", "map.tif", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_does_not_do_is_refused(
    mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path, new_space: Callable[[Path, int], Path]
) -> None:
    def refused(space: Path, index: str, *more: str) -> str:
        done = geobind("map", str(space), index, "-q", "waves on a beach", "-o", "map.tif", *more)
        assert done.returncode == 2
        assert not (tmp_path / "map.tif").exists()
        return str(done.stderr)

    assert "no such index" in refused(mapped.space, "missing.parquet")
    whole = mapped.index.read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    assert "no whole Parquet file" in refused(mapped.space, "half.parquet")
    shutil.copy(mapped.table, tmp_path / "table.parquet")
    assert "is no index" in refused(mapped.space, "table.parquet")
    table = pq.read_table(mapped.index)
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    assert "the index has no rows" in refused(mapped.space, "empty.parquet")
    other = new_space(tmp_path / "other", 1)
    assert "the index belongs to another space" in refused(other, str(mapped.index))
    plain = mapped.table.parent / "plain.parquet"
    pq.write_table(pq.read_table(mapped.table).drop_columns(["longitude", "latitude", "time"]), plain)
    save_index(mapped.space, plain, tmp_path / "plain.parquet")
    assert "the index has no coordinates" in refused(mapped.space, "plain.parquet")
    blank = mapped.table.parent / "blank.parquet"
    rows = pq.read_table(mapped.table)
    nothing = pa.nulls(len(rows), pa.float64())
    pq.write_table(rows.set_column(2, "longitude", nothing), blank)
    save_index(mapped.space, blank, tmp_path / "blank.parquet")
    assert "the index has no coordinates" in refused(mapped.space, "blank.parquet")


def test_a_folder_that_does_not_do_is_refused(mapped: Mapped, geobind: Callable[..., Any], tmp_path: Path) -> None:
    def refused(*more: str) -> str:
        done = geobind("map", str(mapped.space), "tiles", "-q", "waves on a beach", "-o", "map.tif", *more)
        assert done.returncode == 2
        return str(done.stderr)

    (tmp_path / "tiles").mkdir()
    assert "--modality satellite" in refused()
    assert "Did you mean 'satellite'" in refused("--modality", "satelite")
    assert "'text' does not read files" in refused("--modality", "text")
    assert "no georeferenced tiles here" in refused("--modality", "satellite")
    assert "tiles have no times" in refused("--modality", "satellite", "--time", "2024-01-01/..")
    assert "tiles are drawn where they lie" in refused("--modality", "satellite", "--method", "idw")
    assert "--max-distance: tiles" in refused("--modality", "satellite", "--max-distance", "20")
    missing = geobind("map", str(mapped.space), "tilse", "-q", "a", "-o", "map.tif", "--modality", "satellite")
    assert (missing.returncode, "tilse: no such index, and no such folder" in missing.stderr) == (2, True)
    with rasterio.open(
        tmp_path / "tiles" / "a.tif", "w", driver="GTiff", width=8, height=8, count=4, dtype="complex64",
        crs="EPSG:4326", transform=rasterio.transform.from_bounds(0, 0, 1, 1, 8, 8),
    ) as dataset:  # fmt: skip
        dataset.write(np.ones((4, 8, 8), dtype=np.complex64))
    assert "cannot be read" in refused("--modality", "satellite")
