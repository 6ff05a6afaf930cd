"""Tables as files: CSV, TSV, Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from geobind_plugin_imagery.images import Satellite

from geobind_core.data.paired import PairedData
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.data.table import Table, TableConfig
from geobind_core.data.table_files import read_table
from geobind_core.errors import DataError


def opened(path: Path, **settings: Any) -> PairedData:
    """Opens a table as a chain does: the path relative to the chain's folder."""
    config = TableConfig.model_validate({"source": "table", "path": path.name, "split": {"by": "none"}, **settings})
    return PairedData("mine", Table(config, path.parent).observations(), config)


CSV = """key,lon,lat,caption,photo,seen
007,-1.5,50,"a, quoted
caption",one.jpg,2020-01-02
08,2.25,51,"",two.jpg,
x,3,52,"a ""third"" one",sub/three.jpg,2021-05-06
"""


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".CSV", ","), (".tsv", "\t"), (".txt", "\t")])
def test_text(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"table{suffix}"
    text = CSV if delimiter == "," else CSV.replace("a, quoted", "a; quoted").replace(",", "\t").replace(";", ",")
    path.write_text("\ufeff" + text, encoding="utf-8")  # as Excel begins a file
    data = opened(path, fields={"satellite": "photo", "text": "caption", "location": ["lon", "lat"]})
    assert [data.key(i) for i in range(3)] == ["007", "08", "x"], "keys stay as written"
    assert data.cell("satellite", 2, is_file=True) == tmp_path / "sub" / "three.jpg"
    assert data.cell("text", 0, is_file=False) == "a, quoted\ncaption"
    assert data.cell("text", 2, is_file=False) == 'a "third" one'
    assert data.cell("location", 1, is_file=False) == (2.25, 51)
    assert data.rows("train", ["text"]).tolist() == [0, 2]


def test_keys_of_digits_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,x\n007,1\n7,2\n")
    data = opened(tmp_path / "t.csv", key="id")
    assert [data.key(0), data.key(1)] == ["007", "7"]


def test_without_a_key_rows_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("photo,value\na.jpg,1\nb.jpg,2\n")
    data = opened(tmp_path / "t.csv")
    assert [data.key(0), data.key(1)] == ["0", "1"]
    assert set(data.fields) >= {"photo", "value"}
    assert data.cell("value", 1, is_file=False) == 2


def test_parquet_with_bytes_and_values(own_world: Any, clip_architecture: dict[str, Any]) -> None:
    jpeg = (own_world.folder / own_world.rows[0]["satellite"]).read_bytes()
    table = pa.table(
        {
            "key": ["a", "b", "c", "d"],
            "image": pa.array([jpeg, b"no image", None, jpeg]),
            "hub": [
                {"bytes": jpeg, "path": "x.jpg"},
                {"bytes": None, "path": own_world.rows[0]["satellite"]},
                None,
                None,
            ],
            "vector": pa.array([[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        }
    )
    path = own_world.folder / "t.parquet"
    pa.parquet.write_table(table, path, row_group_size=2)
    data = opened(path, fields={"satellite": "image", "hub": "hub", "vector": "vector"})
    assert data.rows("train", ["satellite"]).tolist() == [0, 1, 3]
    assert data.cell("vector", 1, is_file=False) == [3.0, 4.0]

    modality = Satellite(Satellite.Config(model=clip_architecture))
    reader = SampleReader(data, "satellite", modality, train=False, seed=0)
    assert reader.read(0).shape == (3, 32, 32)  # as large as the network sees
    bad = reader.read(1)
    assert isinstance(bad, BadSample)
    assert bad.key == "b"
    assert "expected an image, found text" in bad.reason
    hub = SampleReader(data, "hub", modality, train=False, seed=0)
    assert hub.read(0).equal(reader.read(0)), "bytes as Hugging Face writes them"
    assert hub.read(1).equal(reader.read(0)), "and a path, beside the table"


def test_files_beside_another_folder(own_world: Any, tmp_path: Path, clip_architecture: dict[str, Any]) -> None:
    table = tmp_path / "elsewhere.csv"
    table.write_text(own_world.table.read_text())
    data = opened(table, root=str(own_world.folder), fields={"satellite": "satellite"})
    reader = SampleReader(data, "satellite", Satellite(Satellite.Config(model=clip_architecture)), train=False, seed=0)
    assert reader.read(0).shape == (3, 32, 32)  # as large as the network sees


def test_links_that_lead_elsewhere_are_followed(own_world: Any, tmp_path: Path) -> None:
    """Large folders are linked to from where the table is; a table may also say `..`. Only shards are not trusted."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "images").symlink_to(own_world.folder / "images")
    relative = f"../{own_world.folder.name}/{own_world.rows[1]['satellite']}"
    (project / "t.csv").write_text(f"key,photo\na,{own_world.rows[0]['satellite']}\nb,{relative}\n")
    data = opened(project / "t.csv", fields={"satellite": "photo"})
    for row in range(2):
        expected = (own_world.folder / own_world.rows[row]["satellite"]).read_bytes()
        assert data.cell("satellite", row, is_file=True).read_bytes() == expected


def test_a_missing_file_of_a_row_is_a_bad_sample(own_world: Any, clip_architecture: dict[str, Any]) -> None:
    (own_world.folder / own_world.rows[2]["satellite"]).unlink()
    data = opened(own_world.table, fields={"satellite": "satellite"})
    reader = SampleReader(data, "satellite", Satellite(Satellite.Config(model=clip_architecture)), train=False, seed=0)
    bad = reader.read(2)
    assert isinstance(bad, BadSample)
    assert bad.key == "002"
    assert bad.reason == f"no such file: {own_world.folder / own_world.rows[2]['satellite']}"


def test_a_missing_column_is_named_with_the_nearest(own_world: Any) -> None:
    with pytest.raises(DataError, match=r"no column 'satelite'.*Did you mean 'satellite'") as raised:
        opened(own_world.table, fields={"satellite": "satelite"})
    assert raised.value.place == "data.mine.fields.satellite"
    with pytest.raises(DataError, match=r"no column 'kee'.*Did you mean 'key'"):
        opened(own_world.table, key="kee", fields={"satellite": "satellite"})
    with pytest.raises(DataError, match="no column 'lng'"):
        opened(own_world.table, longitude="lng", fields={"satellite": "satellite"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
        ("t.parquet", b"", "cannot be read"),
        ("t.csv", b"", "cannot be read"),
        ("t.csv", b"key,x\na,1,2,3\n", "cannot be read"),
        ("t.xlsx", b"PK", r"expected a table \(.csv, .tsv or .parquet\), found '.xlsx'"),
        ("table", b"key,x\n", "found 'no suffix'"),
        ("t.csv", b"key,x\n", "no rows"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        opened(tmp_path / name)
    assert raised.value.place


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such table") as raised:
        opened(tmp_path / "gone.csv")
    assert str(tmp_path / "gone.csv") in str(raised.value)
    source = Table(TableConfig(source="table", path="gone.csv"), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        source.fingerprint()


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    def fingerprint(folder: Path, **settings: Any) -> str:
        return Table(TableConfig.model_validate({"source": "table", "path": "t.csv", **settings}), folder).fingerprint()

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text("key,x\na,1\n")
    one = fingerprint(tmp_path / "one")
    assert fingerprint(tmp_path / "two") == one, "where it lies does not count"
    assert fingerprint(tmp_path / "one", key="x") != one
    (tmp_path / "two" / "t.csv").write_text("key,x\na,2\n")
    assert fingerprint(tmp_path / "two") != one


def test_columns_asked_for_as_strings_stay_as_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n01,02\n")
    table = read_table(tmp_path / "t.csv", strings=("a", "absent"))
    assert table.to_pylist() == [{"a": "01", "b": 2}]
