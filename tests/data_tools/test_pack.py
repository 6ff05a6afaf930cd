"""`geobind data pack`: what is in the shards, that they can be used, and that a kill does no harm."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import rasterio
import webdataset
import yaml
from PIL import Image

from geobind_core import DataError
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.resolve import load_chain
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.data_tools.pack_samples import safe_key, smaller_image

FIELDS = ("--field", "satellite=satellite", "--field", "audio=audio", "--field", "text=text")


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards(folder)}


def write_large_world(folder: Path, rows: int = 400, side: int = 200) -> None:
    """Writes images that take a while to make smaller."""
    (folder / "tiles").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    lines = ["key,satellite,text"]
    for i in range(rows):
        Image.fromarray(np.roll(noise, i, axis=1)).save(folder / f"tiles/{i}.jpg", quality=80)
        lines.append(f"{i},tiles/{i}.jpg,place {i}")
    (folder / "table.csv").write_text("\n".join(lines))


class TestContent:
    def test_files_are_copied_and_columns_are_json(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        done = geobind("data", "pack", "world/table.csv", "out", *FIELDS)
        assert done.returncode == 0, done.stderr
        (path,) = shards(tmp_path / "out")
        found = members(path)
        assert list(found)[:3] == ["000.audio.flac", "000.json", "000.satellite.jpg"]
        assert len(found) == 3 * 24
        for row in own_world.rows:
            assert found[f"{row['key']}.satellite.jpg"] == (own_world.folder / row["satellite"]).read_bytes()
            assert found[f"{row['key']}.audio.flac"] == (own_world.folder / row["audio"]).read_bytes()
            assert json.loads(found[f"{row['key']}.json"]) == {
                name: row[name] for name in ("key", "ground_image", "text", "label", "split")
            }

    def test_webdataset_reads_them(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        geobind("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-samples", "10")
        names = str(tmp_path / "out/shard-{000000..000002}.tar")
        samples = list(webdataset.WebDataset(names, shardshuffle=False).decode("rgb8"))
        assert [sample["__key__"] for sample in samples] == [row["key"] for row in own_world.rows]
        assert samples[5]["satellite.jpg"].shape == (40, 40, 3)
        assert samples[5]["json"]["text"] == own_world.rows[5]["text"]

    def test_what_is_printed_is_a_data_set_of_a_chain(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        done = geobind("data", "pack", "chain.yaml", "out", "--data", "world", "--shard-samples", "10")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("packed 24 of 24 rows into 3 shards, ")
        printed = yaml.safe_load(done.stdout.partition("\n\n")[2])
        chain = yaml.safe_load((tmp_path / "chain.yaml").read_text())
        chain["data"] = {"world": printed["data"]["out"]}
        (tmp_path / "packed.yaml").write_text(yaml.safe_dump(chain))
        before, after = (load_chain(tmp_path / name, plugin_manager()) for name in ("chain.yaml", "packed.yaml"))
        old, new = (
            PairedData("w", c.sources["world"].observations(), c.sources["world"].config) for c in (before, after)
        )
        for split in ("train", "test"):
            rows = old.rows(split, list(before.modalities)), new.rows(split, list(after.modalities))
            assert [old.key(row) for row in rows[0]] == [new.key(row) for row in rows[1]]
        for name, known in before.modalities.items():
            readers = [SampleReader(data, name, known.modality, train=False, seed=0) for data in (old, new)]
            for row in (0, 17):
                samples = [reader.finish(reader.read(row), row, 0) for reader in readers]
                assert np.array_equal(np.asarray(samples[0]), np.asarray(samples[1]))
        assert np.array_equal(old.labels("caption"), new.labels("caption"))  # type: ignore[arg-type]

    def test_shards_by_size(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        geobind("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-size", "100kB")
        sizes = [path.stat().st_size for path in shards(tmp_path / "out")]
        assert len(sizes) > 3
        assert max(sizes) <= 100_000 + tarfile.RECORDSIZE
        assert sum(len(members(path)) for path in shards(tmp_path / "out")) == 72

    def test_values_of_all_types(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        table = pa.table(
            {
                "satellite": [row["satellite"] for row in own_world.rows[:2]],
                "number": [1.5, float("nan")],
                "time": pa.array([0, None], pa.timestamp("s", "UTC")),
                "vector": pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32())),
                "nested": [{"a": [1]}, None],
                "blob": [b"\0", None],
                "split": ["test", "train"],
            }
        )
        pyarrow.parquet.write_table(table, own_world.folder / "types.parquet")
        done = geobind("data", "pack", "world/types.parquet", "out")
        assert done.returncode == 0, done.stderr
        assert "left out: blob" in done.stdout
        found = members(shards(tmp_path / "out")[0])
        rows = [json.loads(found[f"{i}.json"]) for i in range(2)]
        assert rows[0] == {
            "key": "0", "row": "0", "number": 1.5, "time": "1970-01-01T00:00:00+00:00", "vector": [1.0, 2.0],
            "vector.0": 1.0, "vector.1": 2.0, "nested": {"a": [1]}, "split": "test",
        }  # fmt: skip
        assert (rows[1]["number"], rows[1]["time"], rows[1]["vector.1"], rows[1]["nested"]) == (None,) * 4

    def test_files_inside_a_table(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        content = [(own_world.folder / row["satellite"]).read_bytes() for row in own_world.rows[:3]]
        cells = [{"bytes": content[0], "path": "a.jpg"}, {"bytes": content[1], "path": None}, None]
        pyarrow.parquet.write_table(pa.table({"satellite": cells, "key": ["a", "b", "c"]}), tmp_path / "t.parquet")
        geobind("data", "pack", "t.parquet", "out")
        found = members(shards(tmp_path / "out")[0])
        assert found["a.satellite.jpg"] == content[0]
        assert found["b.satellite.jpg"] == content[1]
        assert not [name for name in found if name.startswith("c.")]

    @pytest.mark.parametrize("key", ["a", "a.b", "a/b", "../x", "a b", "é", "a%2Eb", "x" * 300, "y" * 59 + ".", "~"])
    def test_keys_are_names_before_the_first_dot(self, key: str) -> None:
        name = safe_key(key)
        assert 0 < len(name.encode()) <= 60
        assert not set("./\\ ") & set(name)

    def test_different_keys_have_different_names(self) -> None:
        keys = ["a.b", "a/b", "a_b", "a%2Eb", "x" * 60, "x" * 61, "x" * 62, "a", "A"]
        assert len({safe_key(key) for key in keys}) == len(keys)


class TestSmaller:
    def test_shorter_side_and_what_is_small_is_the_same_file(
        self, geobind: Any, own_world: Any, tmp_path: Path
    ) -> None:
        large = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB")
        large.save(own_world.folder / own_world.rows[0]["satellite"], quality=95)
        done = geobind(
            "data", "pack", "world/table.csv", "out", *FIELDS, "--resize", "satellite=100", "--quality", "90"
        )
        assert done.returncode == 0, done.stderr
        found = members(shards(tmp_path / "out")[0])
        with Image.open(BytesIO(found["000.satellite.jpg"])) as image:
            assert (image.size, image.format) == ((150, 100), "JPEG")
            assert np.abs(np.asarray(image, int) - np.asarray(large.resize((150, 100), 1), int)).mean() < 4
        assert found["001.satellite.jpg"] == (own_world.folder / own_world.rows[1]["satellite"]).read_bytes()

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1", "LA"])
    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_images_of_any_kind(self, mode: str, suffix: str) -> None:
        source = Image.linear_gradient("L").resize((128, 96)).convert("RGB").convert(mode)
        form = "TIFF" if mode == "CMYK" else "PNG"
        file = BytesIO()
        source.save(file, form)
        with Image.open(BytesIO(smaller_image(file.getvalue(), 48, suffix, 90))) as image:
            assert image.size == (64, 48)
            difference = np.asarray(image.convert("L"), int) - np.asarray(source.convert("L").resize((64, 48), 1), int)
        assert np.abs(difference).mean() < 12

    def test_photos_are_turned_upright_and_keep_their_colours(self) -> None:
        source = Image.new("RGB", (120, 80), (10, 200, 30))
        source.paste((250, 10, 10), (0, 0, 60, 80))
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held on its side
        file = BytesIO()
        source.save(file, "JPEG", exif=exif, icc_profile=b"profile", quality=95)
        with Image.open(BytesIO(smaller_image(file.getvalue(), 40, "jpg", 95))) as image:
            assert image.size == (40, 60)
            assert image.getexif().get(0x0112, 1) == 1
            assert image.info["icc_profile"] == b"profile"
            top, bottom = image.getpixel((20, 10)), image.getpixel((20, 50))
        assert top[0] > 200  # type: ignore[index]
        assert bottom[1] > 150  # type: ignore[index]

    def test_of_another_format(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        """A PNG stays one; what is neither that nor JPEG nor WebP becomes a JPEG."""
        for suffix, form in (("png", "PNG"), ("tif", "TIFF")):
            folder = own_world.folder / suffix
            folder.mkdir()
            Image.new("RGB", (90, 60)).save(folder / f"a.{suffix}", form)
            (folder / "t.csv").write_text(f"key,satellite\na,a.{suffix}\n")
            geobind("data", "pack", f"world/{suffix}/t.csv", f"out-{suffix}", "--resize", "satellite=30")
        assert "a.satellite.png" in members(shards(tmp_path / "out-png")[0])
        assert members(shards(tmp_path / "out-tif")[0])["a.satellite.jpg"][:3] == b"\xff\xd8\xff"

    def test_what_pillow_does_not_know_is_named_without_an_object_in_memory(self) -> None:
        values = np.zeros((4, 50, 50), np.uint16)
        with rasterio.MemoryFile() as file:
            with file.open(driver="GTiff", width=50, height=50, count=4, dtype="uint16") as dataset:
                dataset.write(values)
            content = file.read()
        with pytest.raises(DataError, match="Pillow does not know this kind of image") as raised:
            smaller_image(content, 40, "tif", 90)
        assert "0x" not in str(raised.value)


class TestSkipped:
    @pytest.fixture
    def broken(self, own_world: Any) -> Any:
        files = [own_world.folder / row["satellite"] for row in own_world.rows]
        files[2].unlink()
        files[5].write_bytes(files[5].read_bytes()[:400])
        files[23].write_bytes(b"")
        return own_world

    def test_rows_that_cannot_be_read(self, geobind: Any, broken: Any, tmp_path: Path) -> None:
        done = geobind("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-samples", "7", "--json")
        assert done.returncode == 0
        found = json.loads(done.stdout)
        assert (found["rows"], found["samples"]) == (24, 21)
        assert [(row["key"], row["modality"]) for row in found["skipped"]] == [
            (k, "satellite") for k in ("002", "005", "023")
        ]
        assert all(row["reason"] for row in found["skipped"])
        report = json.loads((tmp_path / "out/report.json").read_text())
        assert report["skipped"] == found["skipped"]
        assert [shard["samples"] for shard in report["shards"]] == [7, 7, 7]
        assert (
            "3 rows skipped, such as 002 (satellite)"
            in geobind("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-samples", "7").stdout
        )

    def test_without_a_look(self, geobind: Any, broken: Any) -> None:
        done = geobind("data", "pack", "world/table.csv", "out", *FIELDS, "--no-check", "--json")
        assert [row["key"] for row in json.loads(done.stdout)["skipped"]] == ["002", "023"]

    def test_all_of_them(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        for row in own_world.rows:
            (own_world.folder / row["satellite"]).write_bytes(b"nothing")
        command = ("data", "pack", "world/table.csv", "out", *FIELDS)
        done = geobind(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "not one of 24 rows can be packed. 000 (satellite)" in done.stderr
        assert len(json.loads((tmp_path / "out/report.json").read_text())["skipped"]) == 24
        Image.new("RGB", (9, 9)).save(own_world.folder / own_world.rows[3]["satellite"])
        assert geobind(*command).stdout.startswith("packed 1 of 24 rows")


class TestAgain:
    def test_the_same_to_the_byte_with_any_number_of_threads(
        self, geobind: Any, own_world: Any, tmp_path: Path
    ) -> None:
        for out, workers in (("one", "1"), ("two", "5")):
            geobind("data", "pack", "world/table.csv", out, *FIELDS, "--shard-samples", "10", "--workers", workers)
        assert digests(tmp_path / "one") == digests(tmp_path / "two")
        assert len(digests(tmp_path / "one")) == 3

    def test_finished_shards_stay_as_they_are(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        command = ("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-samples", "5")
        first = geobind(*command)
        times = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path / "out")}
        before = digests(tmp_path / "out")
        (tmp_path / "out/shard-000002.tar").unlink()
        second = geobind(*command)
        assert (second.returncode, second.stdout) == (0, first.stdout)
        assert digests(tmp_path / "out") == before
        after = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path / "out")}
        assert [name for name in times if after[name] != times[name]] == ["shard-000002.tar"]

    def test_goes_on_after_kills(self, tmp_path: Path) -> None:
        write_large_world(tmp_path / "world")
        command = [sys.executable, "-m", "geobind_core.cli", "data", "pack", "world/table.csv"]
        options = ["--resize", "satellite=64", "--shard-samples", "20", "--workers", "1"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
        subprocess.run([*command, "whole", *options], check=True, **quiet)
        kills, finished = 0, dict[str, int]()
        while True:
            process = subprocess.Popen([*command, "out", *options], **quiet)
            already = len(finished)
            while process.poll() is None and len(shards(tmp_path / "out")) < already + 3 + kills:
                time.sleep(0.002)
            if process.poll() is not None or kills == 3:
                break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            times = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path / "out")}
            assert finished.items() <= times.items()
            finished = times
        assert process.wait() == 0
        assert kills == 3
        assert {path.name: path.stat().st_mtime_ns for path in shards(tmp_path / "out")}.items() >= finished.items()
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")
        assert len(digests(tmp_path / "out")) == 20
        assert (tmp_path / "out/report.json").read_bytes() == (tmp_path / "whole/report.json").read_bytes()
        assert not list((tmp_path / "out").glob("*.tmp"))

    @pytest.mark.parametrize("cut", ["before the name", "in the journal"])
    def test_every_moment_of_a_kill(self, geobind: Any, own_world: Any, tmp_path: Path, cut: str) -> None:
        command = ("data", "pack", "world/table.csv", "out", *FIELDS, "--shard-samples", "10")
        geobind(*command)
        before, out = digests(tmp_path / "out"), tmp_path / "out"
        last = out / "shard-000002.tar"
        if cut == "before the name":  # noted, but not renamed
            changed = last.stat().st_mtime_ns
            last.rename(out / ".shard-000002.tar.tmp")
        else:
            journal = out / ".pack.jsonl"
            journal.write_bytes(journal.read_bytes()[:-7])
            last.rename(out / ".shard-000002.tar.tmp")
        assert geobind(*command).returncode == 0
        assert digests(out) == before
        if cut == "before the name":
            assert last.stat().st_mtime_ns == changed


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--resize", "satelite=64"), ("--resize satelite", "'satellite'?")),
            (("--resize", "text=64"), ("--resize text", "audio, satellite")),
            (("--resize", "satellite"), ("expected MODALITY=PIXELS",)),
            (("--resize", "satellite=0"), ("expected MODALITY=PIXELS",)),
            (("--shard-size", "much"), ("--shard-size", "10GiB")),
            (("--field", "audio=sound"), ("no column 'sound'",)),
        ],
    )
    def test_options(self, geobind: Any, own_world: Any, tmp_path: Path, arguments: Any, words: Any) -> None:
        done = geobind("data", "pack", "world/table.csv", "out", *FIELDS, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        for word in words:
            assert word in done.stderr
        assert not (tmp_path / "out").exists()

    def test_a_folder_made_from_something_else(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        geobind("data", "pack", "world/table.csv", "out", *FIELDS)
        before = digests(tmp_path / "out")
        for arguments, word in ((("--resize", "satellite=32"), "resize"), (("--shard-samples", "3"), "samples")):
            done = geobind("data", "pack", "world/table.csv", "out", *FIELDS, *arguments)
            assert done.returncode == 2
            assert f"what differs is: {word}" in done.stderr
        own_world.table.write_text(own_world.table.read_text().replace("a red place", "a dead place"))
        done = geobind("data", "pack", "world/table.csv", "out", *FIELDS)
        assert done.returncode == 2
        assert "what differs is: data" in done.stderr
        assert digests(tmp_path / "out") == before

    def test_a_folder_with_other_files(self, geobind: Any, own_world: Any) -> None:
        done = geobind("data", "pack", "world/table.csv", "world", *FIELDS)
        assert done.returncode == 2
        assert "world: it is not empty" in done.stderr

    def test_a_file_in_the_way(self, geobind: Any, own_world: Any) -> None:
        done = geobind("data", "pack", "world/table.csv", "chain.yaml", *FIELDS)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr

    def test_two_at_a_time(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        from filelock import FileLock

        command = ("data", "pack", "world/table.csv", "out", *FIELDS)
        geobind(*command)
        with FileLock(tmp_path / "out/.pack.lock"):
            done = geobind(*command)
        assert done.returncode == 2
        assert "another process is packing" in done.stderr

    def test_a_full_disk(self, own_world: Any, tmp_path: Path) -> None:
        """With a limit to the size of files, which fails as a full disk does; then the same without."""
        limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + (
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
            "from geobind_core.cli import main; sys.argv[0] = 'geobind'; main()"
        )
        arguments = ["data", "pack", "world/table.csv", "out", *FIELDS, "--no-check"]  # which imports no torch
        done = subprocess.run(
            [sys.executable, "-c", limited, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "the shards cannot be written: File too large" in done.stderr
        again = [sys.executable, "-m", "geobind_core.cli", *arguments]
        assert subprocess.run(again, cwd=tmp_path, capture_output=True, check=False).returncode == 0
        assert len(members(tmp_path / "out/shard-000000.tar")) == 72
