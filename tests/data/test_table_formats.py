"""Tables as other programs write them: encodings, GeoParquet, one file for each split."""

import gzip
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import shapely

from geobind_core.data.paired import PairedData
from geobind_core.data.splits import Split
from geobind_core.data.table import Table, TableConfig
from geobind_core.errors import DataError

PLACES = np.array([[-0.13, 51.51], [179.99, -16.5], [13.4, 52.52]])
TEXT = "key;caption;lon;lat\n1;Café;-0,13;51.51\n2;;200;-16.5\n3;NA;13.4;n/a\n"


def opened(file: Path, **settings: Any) -> PairedData:
    document = {"source": "table", "path": file.name, "split": {"by": "none"}, **settings}
    config = TableConfig.model_validate({k: v for k, v in document.items() if v is not None})
    return PairedData("mine", Table(config, file.parent).observations(), config)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_encodings_and_delimiters(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.encode(encoding))
    said = {"encoding": encoding} if encoding == "cp1252" else {}
    data = opened(path, delimiter=";", fields={"text": "caption"}, **said)
    assert data.cell("text", 0, is_file=False) == "Café"
    assert data.rows("train", ["text"]).tolist() == [0, 2], "an empty cell is missing; NA is a text"
    assert data.cell("text", 2, is_file=False) == "NA"
    assert data.places is not None
    assert data.places.longitude[1] == -160, "0 to 360 is understood"
    assert data.places.known.tolist() == [False, True, False], "what is no number is no coordinate"


def test_another_encoding_than_said_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text in ("key,caption\n1,Café\n", "key,café\n1,x\n", "clé,caption\n1,x\n", "key,caption\né,x\n"):
        path.write_bytes(text.encode("cp1252"))
        with pytest.raises(DataError, match=r"not written in utf-8.*\n.*encoding: cp1252"):
            opened(path)
    with pytest.raises(DataError, match="no encoding 'klingon'"):
        opened(path, encoding="klingon")


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("key;lon;lat\n1;8,39729;47,1\n2;;\n")
    where = {"delimiter": ";", "longitude": "lon", "latitude": "lat"}
    places = opened(path, decimal=",", **where).places
    assert places is not None
    assert places.longitude[0] == 8.39729
    assert places.known.tolist() == [True, False]
    with pytest.raises(
        DataError, match=r"the first are '8,39729' in 'lon' and '47,1' in 'lat'(.|\n)*decimal: "
    ) as raised:
        opened(path, **where)
    assert raised.value.place == "data.mine.longitude"
    found = opened(path, delimiter=";")
    assert found.places is not None, "columns that nobody named may be called like coordinates and be none"
    assert found.notes == ["no row has usable coordinates; the first are '8,39729' in 'lon' and '47,1' in 'lat'."]


@pytest.mark.parametrize("lines", ["key;caption\n1;Tor, gelb\n", "key|caption\n1|a\n", "key;caption\n1;a\n"])
def test_another_delimiter_is_named(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(lines)
    delimiter = lines[3]
    with pytest.raises(DataError) as raised:
        opened(path)
    assert f'`delimiter: "{delimiter}"`' in str(raised.value)
    assert len(opened(path, delimiter=delimiter)) == 1


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"key,value\na,1\n"))
    assert opened(path).cell("value", 0, is_file=False) == 1


def frame(**columns: Any) -> geopandas.GeoDataFrame:
    points = geopandas.points_from_xy(*PLACES.T)
    return geopandas.GeoDataFrame({"key": ["a", "b", "c"], **columns}, geometry=points, crs="EPSG:4326")


@pytest.mark.parametrize(
    ("crs", "encoding"), [("EPSG:4326", "WKB"), ("OGC:CRS84", "geoarrow"), ("EPSG:3857", "WKB"), ("EPSG:8857", "WKB")]
)
def test_geoparquet_as_geopandas_writes_it(tmp_path: Path, crs: str, encoding: str) -> None:
    path = tmp_path / "t.parquet"
    frame(note=["x", "y", "z"]).to_crs(crs).to_parquet(path, geometry_encoding=encoding)
    data = opened(path)
    assert data.places is not None
    np.testing.assert_allclose(np.stack([data.places.longitude, data.places.latitude], 1), PLACES, atol=1e-7)
    assert "geometry" not in data.fields
    assert data.cell("note", 1, is_file=False) == "y"


def test_geometries_that_are_no_points(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    shapes = shapely.buffer(shapely.points(PLACES), 0.001).tolist()
    geopandas.GeoDataFrame({"key": ["a", "b", "c"]}, geometry=[shapes[0], None, shapely.Point()], crs=4326).to_parquet(
        path
    )
    places = opened(path).places
    assert places is not None
    assert places.known.tolist() == [True, False, False]
    np.testing.assert_allclose([places.longitude[0], places.latitude[0]], PLACES[0], atol=1e-6)


def test_columns_win_over_the_geometry(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    frame(longitude=[1.0, 2.0, 3.0], latitude=[4.0, 5.0, 6.0]).to_parquet(path)
    places = opened(path).places
    assert places is not None
    assert places.longitude.tolist() == [1, 2, 3]


def test_a_geometry_that_cannot_be_understood(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    frame().set_crs(None, allow_override=True).to_parquet(path)
    with pytest.raises(DataError, match="coordinate system is not known"):
        opened(path)
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"geo": '{"version": "1.1.0"}'})
    pa.parquet.write_table(table, path)
    with pytest.raises(DataError, match="cannot be understood: KeyError"):
        opened(path)


def test_one_table_for_each_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("key,value\n1,1\n2,2\n")
    (tmp_path / "test.csv").write_text("key,value,more\n3,3.5,x\n")
    paths = {"train": "train.csv", "test": "test.csv"}
    data = opened(tmp_path / "any", path=paths, split=None)
    wanted: dict[Split, list[int]] = {"train": [0, 1], "test": [2], "validation": []}
    assert {split: data.rows(split, ["value"]).tolist() for split in wanted} == wanted
    assert data.cell("value", 2, is_file=False) == 3.5

    (tmp_path / "test.csv").write_text("key,value\n2,3\n4,4\n")
    with pytest.raises(DataError, match="1 keys are in train and in test: 2"):
        opened(tmp_path / "any", path=paths, split=None)
    (tmp_path / "test.csv").write_text("key,value\n5,word\n")
    with pytest.raises(DataError, match="do not fit together"):
        opened(tmp_path / "any", path=paths, split=None)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "test.csv").write_text("key,value\n5,3\n")
    elsewhere = {"train": "train.csv", "test": "sub/test.csv"}
    with pytest.raises(DataError, match=r"several folders(.|\n)*`root`"):
        opened(tmp_path / "any", path=elsewhere, split=None)
    assert len(opened(tmp_path / "any", path=elsewhere, split=None, root="sub")) == 3


def test_the_fingerprint_has_every_table_in_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("key\n1\n")
    (tmp_path / "test.csv").write_text("key\n2\n")

    def fingerprint(**settings: Any) -> str:
        document = {"source": "table", "path": {"train": "train.csv", "test": "test.csv"}, **settings}
        return Table(TableConfig.model_validate(document), tmp_path).fingerprint()

    first = fingerprint()
    assert first == fingerprint(encoding="UTF-8")
    assert first != fingerprint(encoding="cp1252")
    assert first != fingerprint(path={"train": "test.csv", "test": "train.csv"})
    (tmp_path / "test.csv").write_text("key\n3\n")
    assert fingerprint() != first
