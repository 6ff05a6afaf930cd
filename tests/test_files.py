"""Files are whole or not there."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from geobind_core.files import (
    link_or_copy,
    read_json,
    recover_folder,
    replacing_folder,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half_and_fail(folder: Path) -> None:
    (folder / "half").write_text("half")
    raise KeyError


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(content)
    return path


class TestText:
    def test_replaces_the_old_content_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.json"
        path.write_text("old")
        write_text(path, "Küste\n")
        assert path.read_bytes() == "Küste\n".encode()
        assert names(tmp_path) == ["metrics.json"]

    def test_a_reader_keeps_what_it_has_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.json"
        path.write_text("old")
        with path.open() as reader:
            write_text(path, "new")
            assert reader.read() == "old"
        assert path.read_text() == "new"

    def test_a_failure_leaves_the_old_content_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.json"
        path.write_text("old")
        with pytest.raises(UnicodeEncodeError):
            write_text(path, "half \ud800")
        assert path.read_text() == "old"
        assert names(tmp_path) == ["metrics.json"]

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.json").mkdir()
        with pytest.raises(OSError, match="directory"):
            write_text(tmp_path / "metrics.json", "new")
        assert names(tmp_path) == ["metrics.json"]


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "stage.json"
        value = {"name": "Küste", "loss": 0.1, "trains": ["audio"], "anchor": None}
        write_json(path, value)
        assert read_json(path) == value
        assert path.read_text(encoding="utf-8") == json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1,}'])
    def test_what_is_not_json_is_nothing(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "stage.json"
        path.write_bytes(content)
        assert read_json(path) is None

    def test_what_is_not_there_is_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        assert read_json(tmp_path / "missing.json") is None
        assert read_json(tmp_path / "file" / "stage.json") is None


class TestFolder:
    def test_a_new_one(self, tmp_path: Path) -> None:
        with replacing_folder(tmp_path / "deep" / "audio") as temporary:
            (temporary / "weights").write_text("new")
            assert not (tmp_path / "deep" / "audio").exists()
        assert (tmp_path / "deep" / "audio" / "weights").read_text() == "new"
        assert names(tmp_path / "deep") == ["audio"]

    def test_takes_the_place_of_the_old_one_with_all_that_was_in_it(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path / "audio", "old")
        (path / "more").write_text("old")
        with replacing_folder(path) as temporary:
            (temporary / "weights").write_text("new")
            assert (path / "weights").read_text() == "old"
        assert names(path) == ["weights"]
        assert (path / "weights").read_text() == "new"
        assert names(tmp_path) == ["audio"]

    def test_a_failure_leaves_the_old_one(self, tmp_path: Path) -> None:
        path = folder_with(tmp_path / "audio", "old")
        with pytest.raises(KeyError), replacing_folder(path) as temporary:
            write_half_and_fail(temporary)
        assert names(path) == ["weights"]
        assert (path / "weights").read_text() == "old"

    def test_what_a_failure_left_is_not_mixed_in(self, tmp_path: Path) -> None:
        path = tmp_path / "audio"
        with pytest.raises(KeyError), replacing_folder(path) as temporary:
            write_half_and_fail(temporary)
        with replacing_folder(path) as temporary:
            (temporary / "weights").write_text("new")
        assert names(path) == ["weights"]
        assert names(tmp_path) == ["audio"]

    def test_cut_off_between_the_renames_the_old_one_comes_back(self, tmp_path: Path) -> None:
        folder_with(tmp_path / ".audio.old", "old")
        folder_with(tmp_path / ".audio.tmp", "new")
        recover_folder(tmp_path / "audio")
        assert (tmp_path / "audio" / "weights").read_text() == "old"

    def test_cut_off_after_the_renames_the_new_one_stays(self, tmp_path: Path) -> None:
        folder_with(tmp_path / ".audio.old", "old")
        folder_with(tmp_path / "audio", "new")
        recover_folder(tmp_path / "audio")
        assert (tmp_path / "audio" / "weights").read_text() == "new"

    def test_nothing_to_recover(self, tmp_path: Path) -> None:
        recover_folder(tmp_path / "audio")
        assert names(tmp_path) == []

    def test_replacing_what_was_cut_off_keeps_the_old_one_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        folder_with(tmp_path / ".audio.old", "old")
        with pytest.raises(KeyError), replacing_folder(tmp_path / "audio"):
            raise KeyError
        assert (tmp_path / "audio" / "weights").read_text() == "old"


class TestLink:
    def test_the_same_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("x")
        link_or_copy(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "a").samefile(tmp_path / "b")

    @pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system to go to")
    def test_a_copy_on_another_file_system(self, tmp_path: Path) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
            source = Path(other) / "a"
            source.write_text("x")
            if source.stat().st_dev == tmp_path.stat().st_dev:
                pytest.skip("no second file system to go to")
            link_or_copy(source, tmp_path / "b")
            assert (tmp_path / "b").read_text() == "x"
            assert not source.samefile(tmp_path / "b")
