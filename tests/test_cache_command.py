"""`geobind cache`: what is stored, and removing it; never anything else."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from geobind_core.cli import main
from geobind_core.data.cache_entries import EntryDescription, anchors_folder, list_entries
from geobind_core.data.cache_prune import parse_size, prune
from geobind_core.data.embedding_cache import EmbeddingCache
from geobind_core.errors import InputError, RunFolderError

Done = subprocess.CompletedProcess[str]
Geobind = Callable[..., Done]
DAY = 86_400


def stored(root: Path, modality: str, *, rows: int, days: float = 0) -> EmbeddingCache:
    """Stores rows of 1024 bytes, last used some days ago."""
    description = EntryDescription(modality, "clip", "12ab", "embedding", 256, "no", transform={"rows": rows})
    cache = EmbeddingCache.open(root, description)
    ids = np.random.default_rng(rows).integers(0, 256, (rows, 16), dtype=np.uint8).reshape(-1).view("V16")
    cache.append(ids, np.ones((rows, 256), dtype=np.float32) / 16)
    os.utime(cache.folder / "last_used", (time.time() - days * DAY,) * 2)
    return cache


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A cache with three entries."""
    stored(tmp_path, "satellite", rows=100, days=1.5)
    stored(tmp_path, "text", rows=200, days=10)
    stored(tmp_path, "satellite", rows=300, days=30)
    return tmp_path


@pytest.fixture
def geobind(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Geobind:
    """Calls `geobind cache` on that cache."""

    def geobind(*arguments: str) -> Done:
        monkeypatch.setenv("GEOBIND_CACHE", str(root))
        monkeypatch.setattr(sys, "argv", ["geobind", "cache", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), written.out, written.err)

    return geobind


def rows_left(root: Path) -> list[int]:
    return sorted(entry.rows for entry in list_entries(root))


class TestShow:
    def test_path(self, geobind: Geobind, root: Path) -> None:
        done = geobind("path")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{root}\n", "")

    def test_list(self, geobind: Geobind, root: Path) -> None:
        done = geobind("list")
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert [line[0] for line in lines[1:4]] == ["satellite", "text", "satellite"]
        assert [line[1:3] for line in lines[1:4]] == [["embedding,", "256"]] * 3
        assert [line[3] for line in lines[1:4]] == ["100", "200", "300"]
        assert {line[-1] for line in lines[1:4]} == {entry.folder.name for entry in list_entries(root)}
        assert lines[4][:4] == ["3", "entries,", f"{sum(e.size for e in list_entries(root)) / 1024:.1f}", "KiB,"]

    def test_list_as_json(self, geobind: Geobind, root: Path) -> None:
        done = geobind("list", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        first = json.loads(done.stdout)[0]
        entry = list_entries(root)[0]
        assert first.pop("last_used") < first["created"]
        assert first.pop("created") == entry.created
        assert first == {
            "modality": "satellite",
            "plugin": "clip",
            "output": "embedding",
            "dimension": 256,
            "dtype": "float32",
            "precision": "no",
            "encoder": "12ab",
            "transform": {"rows": 100},
            "rows": 100,
            "bytes": entry.size,
            "key": entry.folder.name,
            "folder": str(entry.folder),
        }

    def test_no_cache(self, geobind: Geobind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert list_entries(tmp_path / "nothing") == []
        prune(tmp_path, everything=True)
        assert json.loads(geobind("list", "--json").stdout) == []
        assert "0 entries, 0 B" in geobind("list").stdout

    def test_where_no_cache_can_be(self, geobind: Geobind, root: Path, tmp_path: Path) -> None:
        prune(root, everything=True)
        anchors_folder(root).rmdir()
        anchors_folder(root).write_text("")
        done = geobind("list")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: {root}: the cache cannot be read: Not a directory." in done.stderr

    def test_imports_nothing_heavy(self, root: Path) -> None:
        script = (
            "import sys\nfrom geobind_core.cli import main\n"
            "def call(*arguments):\n"
            "    sys.argv = ['geobind', *arguments]\n"
            "    try: main()\n"
            "    except SystemExit as done: assert not done.code, arguments\n"
            "call('--help'); call('cache', '--help'); call('cache', 'prune', '--help'); call('cache', 'path')\n"
            "assert not {'torch', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)\n"
            "call('cache', 'list'); call('cache', 'prune', '--all')\n"
            "assert not {'torch', 'pyarrow'} & set(sys.modules)\n"
        )
        environment = {**os.environ, "GEOBIND_CACHE": str(root)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert rows_left(root) == []


class TestPrune:
    @pytest.mark.parametrize(
        ("arguments", "left"),
        [
            (("--older-than", "20"), [100, 200]),
            (("--older-than", "1"), []),
            (("--older-than", "0"), []),
            (("--older-than", "40.5"), [100, 200, 300]),
            (("--max-size", "320KiB"), [100, 200]),
            (("--max-size", "150000"), [100]),
            (("--max-size", "1KB"), []),
            (("--max-size", "0"), []),
            (("--max-size", "1TiB"), [100, 200, 300]),
            (("--max-size", "320KiB", "--older-than", "5"), [100]),
            (("--modality", "satellite"), [200]),
            (("--modality", "satellite", "--older-than", "20"), [100, 200]),
            (("--modality", "satellite", "--max-size", "320KiB"), [100, 200]),
            (("--all",), []),
        ],
        ids=lambda value: " ".join(map(str, value)),
    )
    def test_by(self, geobind: Geobind, root: Path, arguments: tuple[str, ...], left: list[int]) -> None:
        planned = geobind("prune", *arguments, "--dry-run", "--json")
        assert rows_left(root) == [100, 200, 300]
        done = geobind("prune", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert rows_left(root) == left
        removed = json.loads(planned.stdout)
        assert sorted(left + [row["rows"] for row in removed["removed"]]) == [100, 200, 300]
        assert (removed["dry_run"], removed["leftovers"]) == (True, 0)
        assert len(list(anchors_folder(root).iterdir())) == len(left)

    def test_says_what_it_does(self, geobind: Geobind, root: Path) -> None:
        removed = f"1 entry, {list_entries(root)[1].size / 1024:.1f} KiB"
        planned = geobind("prune", "--modality", "text", "--dry-run")
        assert planned.stdout.splitlines()[-1] == f"would remove {removed}"
        done = geobind("prune", "--modality", "text")
        assert done.stdout.splitlines()[-1] == f"removed {removed}"
        assert geobind("prune", "--older-than", "99").stdout == "removed 0 entries, 0 B\n"

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "error: cache prune: nothing says what to remove.\n  Choose with --older-than DAYS, --max-size"),
            (("--dry-run",), "nothing says what to remove"),
            (("--all", "--modality", "text"), "error: --all: found --modality as well"),
            (("--all", "--older-than", "3"), "error: --all: found --older-than as well"),
            (("--older-than", "-1"), "error: --older-than: found -1; expected a number of days, 0 or more."),
            (("--older-than", "nan"), "error: --older-than: found nan"),
            (("--older-than", "soon"), "--older-than"),
            (("--max-size", "10 XB"), "error: --max-size: found '10 XB'; expected a size such as 10GiB or 500MB."),
            (("--max-size", "-1"), "error: --max-size: found '-1'"),
            (("--modality", "txt"), "has nothing of 'txt'. Available: satellite, text. Did you mean 'text'?"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_refused(self, geobind: Geobind, root: Path, arguments: tuple[str, ...], words: str) -> None:
        done = geobind("prune", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert rows_left(root) == [100, 200, 300]

    @pytest.mark.parametrize(
        ("text", "size"),
        [("0", 0), ("10", 10), ("10B", 10), ("1.5 kb", 1500), ("2KiB", 2048), ("10gib", 10 * 2**30), ("1TB", 10**12)],
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert parse_size(text) == size

    @pytest.mark.parametrize("text", ["", "GiB", "1e3", "10Gi", "٣", "1 0", "inf"])
    def test_no_sizes(self, text: str) -> None:
        with pytest.raises(InputError):
            parse_size(text)


class TestSafe:
    def test_foreign_folders_are_never_touched(self, root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        anchors, entry = anchors_folder(root), list_entries(root)[0].folder
        elsewhere = stored(tmp_path_factory.mktemp("elsewhere"), "text", rows=5).folder
        (anchors / "empty").mkdir()
        (anchors / ".removed-mine").mkdir()
        (anchors / "file").write_text("mine")
        (anchors / elsewhere.name).symlink_to(elsewhere)
        for name, text in {
            "photos": "",
            "other": '{"format": "other"}',
            "list": "[1]",
            "copy": (entry / "entry.json").read_text(),
            ".removed-copy": (entry / "entry.json").read_text(),
        }.items():
            (anchors / name).mkdir()
            (anchors / name / "entry.json").write_text(text)
            (anchors / name / "mine.jpg").write_text("mine")
        (root / "mine.txt").write_text("mine")
        (entry / "link").symlink_to(root / "mine.txt")
        (entry / "folder").symlink_to(anchors / "photos")
        before = {
            path for path in root.rglob("*") if not any(e.folder in (path, *path.parents) for e in list_entries(root))
        }
        assert {anchors / "photos" / "mine.jpg", anchors / elsewhere.name, root / "mine.txt"} < before
        prune(root, everything=True)
        assert set(root.rglob("*")) == before
        assert (root / "mine.txt").read_text() == "mine"
        assert list_entries(elsewhere.parents[1])[0].rows == 5

    def test_leftovers_of_killed_processes(self, geobind: Geobind, root: Path) -> None:
        entry, other = (entry.folder for entry in list_entries(root)[:2])
        for name, days in {".tmp-seg-old": 2.0, ".tmp-seg-new": 0.5}.items():
            (entry / name).mkdir()
            (entry / name / "values.npy").write_bytes(b"half")
            os.utime(entry / name, (time.time() - days * DAY,) * 2)
        (entry / ".tmp-entry").write_text("half")
        os.utime(entry / ".tmp-entry", (1, 1))
        other.rename(other.with_name(f".removed-0123-{other.name}"))
        assert rows_left(root) == [100, 300]
        assert json.loads(geobind("prune", "--older-than", "999", "--dry-run", "--json").stdout)["leftovers"] == 3
        done = geobind("prune", "--older-than", "999")
        assert done.stdout == "removed 0 entries, 0 B and 3 leftovers of killed processes\n"
        assert [path.name for path in entry.glob(".tmp*")] == [".tmp-seg-new"]
        assert len(list(anchors_folder(root).iterdir())) == 2
        assert rows_left(root) == [100, 300]

    def test_what_somebody_else_removes_meanwhile(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename

        def removed_first(path: Path, target: Path) -> Path:
            monkeypatch.setattr(Path, "rename", rename)
            prune(root, everything=True)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", removed_first)
        prune(root, everything=True)
        assert rows_left(root) == []

    def test_what_cannot_be_removed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(RunFolderError, match="cannot be removed: Permission denied"):
            prune(root, everything=True)
        assert rows_left(root) == [100, 200, 300]
