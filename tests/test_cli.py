"""The command line, as a shell sees it: exit codes, what goes where, and nothing that only a programmer reads."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[1]
VERBS = ("run", "init", "validate", "schema", "plugins", "eval")
GEOBIND = (sys.executable, "-m", "geobind_core.cli")
CHAIN = """\
    binding: satellite
    modalities:
      satellite: {model: geobind-tiny}
      text: {model: geobind-tiny}
    data:
      earth: {source: table, path: earth.csv, fields: {satellite: tile, text: caption}}
    stages:
      - {name: one, train: [satellite, text], anchor: [], data: earth, epochs: 1}
      - {name: two, train: text, data: earth, epochs: 1}
    """
TABLE = "key,tile,caption\n" + "".join(f"{i},{i}.png,place {i}\n" for i in range(20))

Done = subprocess.CompletedProcess[str]
Geobind = Callable[..., Done]
"""Calls the command line with these arguments."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a chain over a small table."""
    (tmp_path / "chain.yaml").write_text(dedent(CHAIN))
    (tmp_path / "earth.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture
def process(folder: Path) -> Geobind:
    """Calls it in a process of its own."""

    def geobind(*arguments: str) -> Done:
        return subprocess.run([*GEOBIND, *arguments], cwd=folder, capture_output=True, text=True, check=False)

    return geobind


@pytest.fixture
def geobind(folder: Path, in_process: Callable[[Path], Geobind]) -> Geobind:
    """Calls it in this process, which is ten times as fast."""
    return in_process(folder)


def assert_refused(done: Done, *words: str) -> None:
    """The input is at fault: exit code 2, nothing on standard output, words for people on standard error."""
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def modules_after(folder: Path, *calls: tuple[str, ...]) -> set[str]:
    """Calls it several times in one process and returns what has been imported by then."""
    script = dedent(f"""\
        import sys
        from geobind_core.cli import main
        for arguments in {calls!r}:
            sys.argv = ["geobind", *arguments]
            try:
                main()
            except SystemExit as done:
                assert not done.code, arguments
        sys.stderr.write(" ".join(sys.modules))
        """)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


class TestHelp:
    def test_names_every_verb_on_standard_output(self, process: Geobind) -> None:
        done = process("--help")
        assert (done.returncode, done.stderr) == (0, "")
        verbs = [line for line in done.stdout.partition("Commands:\n")[2].splitlines() if line.strip()]
        assert set(VERBS) <= {line.split()[0] for line in verbs}
        assert not [line for line in verbs if line.endswith("...")]  # a sentence that was cut

    @pytest.mark.parametrize("verb", ["run", "eval"])
    def test_of_a_verb(self, process: Geobind, verb: str) -> None:
        done = process(verb, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert "--disable-plugin NAME" in done.stdout

    def test_is_there_at_once(self, folder: Path) -> None:
        """Beside what any command of typer takes on this machine at this moment."""

        def seconds(command: list[str]) -> float:
            started = time.perf_counter()
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
            return time.perf_counter() - started

        floor = [sys.executable, "-c", "import typer, typer.core"]
        taken = [(seconds([*GEOBIND, "--help"]), seconds(floor)) for _ in range(5)]
        assert min(ours for ours, _ in taken) < 2.5 * min(least for _, least in taken)

    def test_imports_nothing_heavy(self, folder: Path) -> None:
        found = modules_after(folder, ("--help",))
        assert found & {"torch", "numpy", "pyarrow", "pydantic", "yaml", "rich"} == set()

    def test_version(self, process: Geobind) -> None:
        done = process("--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("geobind 0.")


def test_torch_is_not_imported_where_nothing_is_computed(folder: Path) -> None:
    found = modules_after(
        folder,
        ("plugins",),
        ("validate", "chain.yaml"),
        ("schema",),
        ("run", "chain.yaml", "--dry-run"),
        ("init", "new.yaml"),
    )
    assert "geobind_plugin_audio" in found
    assert found & {"torch", "transformers", "open_clip", "accelerate", "matplotlib"} == set()


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "Usage: "),
            (("rnu",), "error: no command 'rnu'. Available: cache, "),
            (("run",), "Missing argument 'CHAIN'"),
            (("run", "chain.yaml", "--util", "one"), "No such option: --util"),
            (("validate", "chain.yaml", "--set"), "--set"),
        ],
        ids=str,
    )
    def test_wrong(self, geobind: Geobind, arguments: tuple[str, ...], words: str) -> None:
        assert_refused(geobind(*arguments), words)


COMMANDS = """\
    import typer
    from geobind_core import hookimpl

    def count(space: str, limit: int = 10) -> None:
        "Count what is in a space."
        print(f"{space}: {limit}")

    index = typer.Typer(help="Look for places among millions.")

    @index.command()
    def build(space: str) -> None:
        "Build an index."
        print(f"built {space}")

    @index.command()
    def burn(space: str) -> None:
        raise ValueError("no matches")

    def odd(what: int | str) -> None:
        pass

    @hookimpl
    def geobind_register_commands():
        return [("count", count), ("index", index), ("odd", odd), ("run", count)]
    """


class TestPluginCommands:
    @pytest.fixture
    def geobind(self, folder: Path, process: Geobind, monkeypatch: pytest.MonkeyPatch) -> Geobind:
        """Calls it in a process of its own, with two plugins that leave a mark when they are imported."""
        installed = folder / "installed"
        for name, source in (("count", COMMANDS), ("moss", "def (:\n"), ("fern", "")):
            module = f"geobind_plugin_{name}"
            info = installed / f"{module}-0.3.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: geobind-plugin-{name}\nVersion: 0.3\n")
            (info / "entry_points.txt").write_text(f"[geobind]\n{name} = {module}\n")
            mark = f"open({str(folder / name)!r}, 'w').close()\n" if name != "moss" else ""
            (installed / f"{module}.py").write_text(mark + dedent(source))
        monkeypatch.setenv("PYTHONPATH", str(installed))
        return process

    def test_help_says_where_they_are_and_imports_none(self, geobind: Geobind, folder: Path) -> None:
        done = geobind("--help")
        assert done.stdout.endswith("  Plugins may add commands; `geobind plugins` lists them.\n")
        assert "count" not in done.stdout
        assert not (folder / "count").exists()

    def test_the_plugin_whose_entry_point_is_so_named_is_enough(self, geobind: Geobind, folder: Path) -> None:
        done = geobind("count", "here", "--limit", "3")
        assert (done.returncode, done.stdout, done.stderr) == (0, "here: 3\n", "")
        assert (folder / "count").exists()
        assert not (folder / "fern").exists()

    def test_otherwise_all_are_asked(self, geobind: Geobind, folder: Path) -> None:
        done = geobind("index", "build", "here")
        assert (done.returncode, done.stdout, done.stderr) == (0, "built here\n", "")
        assert (folder / "fern").exists()

    def test_one_that_raises_is_named_after_its_traceback(self, geobind: Geobind) -> None:
        done = geobind("index", "burn", "here")
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("ValueError: no matches\nin the command 'index' of geobind-plugin-count 0.3\n")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("count", "--help"), ("Count what is in a space.", "--limit")),
            (("index", "--help"), ("Look for places among millions.", "build  Build an index.", "burn")),
        ],
    )
    def test_their_help(self, geobind: Geobind, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
        done = geobind(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(word in done.stdout for word in words)

    def test_the_cores_own_stays_its_own(self, geobind: Geobind) -> None:
        assert geobind("run", "chain.yaml", "--dry-run").returncode == 0
        rows = {row["distribution"]: row for row in json.loads(geobind("plugins", "--json").stdout)}
        row = rows["geobind-plugin-count"]
        assert row["provides"] == {"command": ["count", "index", "odd", "run"]}
        assert (row["status"], row["conflicts"]) == ("conflict", ["run"])
        assert row["error"].startswith("command 'run' is also provided by geobind ")

    def test_what_cannot_be_used(self, geobind: Geobind) -> None:
        assert_refused(geobind("odd", "1"), "error: command 'odd' of geobind-plugin-count 0.3 cannot be used: ")
        assert_refused(geobind("moss"), "command 'moss' is provided by geobind-plugin-moss 0.3, which cannot be loaded")
        broken = geobind("undex")
        assert_refused(broken, "error: no command 'undex'. Available: ", "Did you mean 'index'?", "geobind-plugin-moss")
        assert "install" not in broken.stderr


class TestInit:
    def test_writes_the_very_file_at_the_root(self, process: Geobind, folder: Path) -> None:
        done = process("init")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "wrote stages.yaml; next: geobind run stages.yaml\n"
        assert (folder / "stages.yaml").read_bytes() == (ROOT / "stages.yaml").read_bytes()

    def test_what_it_writes_is_valid(self, geobind: Geobind) -> None:
        geobind("init", "mine.yaml")
        done = geobind("validate", "mine.yaml")
        assert done.returncode == 0
        assert done.stdout.startswith("mine.yaml: valid; ")

    def test_overwrites_nothing(self, geobind: Geobind, folder: Path) -> None:
        (folder / "stages.yaml").write_text("mine\n")
        assert_refused(geobind("init"), "error: stages.yaml: exists already.")
        assert (folder / "stages.yaml").read_text() == "mine\n"

    @pytest.mark.parametrize(
        ("path", "reason"), [("nowhere/x.yaml", "No such file or directory"), ("earth.csv/x.yaml", "Not a directory")]
    )
    def test_where_nothing_can_be_written(self, geobind: Geobind, path: str, reason: str) -> None:
        assert_refused(geobind("init", path), f"error: {path}: cannot be written: {reason}.")


class TestValidate:
    def test_valid(self, geobind: Geobind) -> None:
        done = geobind("validate", "chain.yaml")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "chain.yaml: valid; 2 stages, 2 modalities\n"

    def test_all_mistakes_are_shown_each_on_its_line(self, process: Geobind, folder: Path) -> None:
        text = dedent(CHAIN).replace("epochs: 1", "epochs: 0", 1).replace("train: text", "train: txt")
        (folder / "chain.yaml").write_text(text)
        done = process("validate", "chain.yaml")
        assert_refused(done)
        assert done.stderr.splitlines() == [
            "error: chain.yaml:8 stages[0].epochs: found 0; expected a number greater than or equal to 1 "
            "(Passes over the training rows).",
            "chain.yaml:9 stages[1].train: no modality 'txt'. Available: satellite, text. Did you mean 'text'?",
        ]

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("missing.yaml", "no such file.\n  `geobind init missing.yaml` writes the default chain."),
            (".", "cannot be read: Is a directory."),
            ("binary.yaml", "not text in UTF-8."),
            ("empty.yaml", "found an empty file."),
            ("tabs.yaml", "not valid YAML: "),
        ],
    )
    def test_no_chain_at_all(self, geobind: Geobind, folder: Path, path: str, reason: str) -> None:
        (folder / "binary.yaml").write_bytes(bytes(range(256)))
        (folder / "empty.yaml").write_text("")
        (folder / "tabs.yaml").write_text("a:\n\tb: 1\n")
        assert_refused(geobind("validate", path), f"error: {path}", reason)

    def test_an_assignment(self, geobind: Geobind) -> None:
        assert geobind("validate", "chain.yaml", "--set", "stages.two.epochs=3", "--set", "seed=1").returncode == 0
        done = geobind("validate", "chain.yaml", "--set", "stages.tow.epochs=3")
        assert_refused(done, "error: --set stages.tow.epochs=3: no element 'tow'. Available: one, two.")


class TestJson:
    def test_schema(self, process: Geobind) -> None:
        done = process("schema")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["title"] == "GeoBind chain"

    def test_plugins(self, process: Geobind) -> None:
        done = process("plugins", "--json", "--disable-plugin", "audio")
        assert (done.returncode, done.stderr) == (0, "")
        rows = {row["distribution"]: row for row in json.loads(done.stdout)}
        assert rows["geobind-plugin-imagery"]["status"] == "loaded"
        assert rows["geobind-plugin-imagery"]["warnings"] == []
        assert rows["geobind-plugin-imagery"]["provides"] == {"modality": ["ground_image", "satellite", "text"]}
        assert rows["geobind-plugin-audio"]["status"] == "disabled"

    def test_plan(self, process: Geobind) -> None:
        done = process("run", "chain.yaml", "--dry-run", "--json", "--until", "one")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == [
            {
                "stage": "one",
                "trains": ["satellite", "text"],
                "anchors": [],
                "data": "earth",
                "action": "run",
                "why": "has not been run",
            },
            {
                "stage": "two",
                "trains": ["text"],
                "anchors": ["satellite"],
                "data": "earth",
                "action": "later",
                "why": "comes after --until one",
            },
        ]


def test_an_unknown_name_to_disable_is_a_warning(process: Geobind) -> None:
    done = process("validate", "chain.yaml", "--disable-plugin", "adio")
    assert (done.returncode, done.stdout) == (0, "chain.yaml: valid; 2 stages, 2 modalities\n")
    assert done.stderr.startswith("warning: --disable-plugin adio: no plugin has this name. Available: audio, ")
    assert done.stderr.endswith(" Did you mean 'audio'?\n")


class TestTables:
    def test_plugins(self, geobind: Geobind) -> None:
        done = geobind("plugins")
        assert (done.returncode, done.stderr) == (0, "")
        (row,) = [line for line in done.stdout.splitlines() if "geobind-plugin-imagery" in line]
        assert "loaded" in row
        assert "modality: ground_image, satellite, text" in row

    def test_plan_is_shown_and_nothing_is_written(self, geobind: Geobind, folder: Path) -> None:
        before = sorted(path.name for path in folder.iterdir())
        done = geobind("run", "chain.yaml", "--dry-run")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["1", "one"], ["2", "two"]]
        assert sorted(path.name for path in folder.iterdir()) == before

    def test_no_such_stage(self, geobind: Geobind) -> None:
        done = geobind("run", "chain.yaml", "--dry-run", "--until", "tow")
        assert_refused(done, "error: --until: no stage 'tow'. Available: one, two. Did you mean 'two'?")


class TestRunRefused:
    """What stops a run before anything is trained."""

    def test_another_run_in_the_folder(self, process: Geobind, folder: Path) -> None:
        (folder / "here").mkdir()
        with FileLock(folder / "here" / ".lock"):
            done = process("run", "chain.yaml", "--out", "here")
        assert_refused(done, "error: here: another run is in this folder.")
        assert sorted(path.name for path in (folder / "here").iterdir()) == [".lock"]

    def test_a_folder_under_a_file(self, process: Geobind) -> None:
        done = process("run", "chain.yaml", "--out", "earth.csv/run")
        assert_refused(done, "error: earth.csv/run: the run folder cannot be written: Not a directory.", "--out")

    def test_a_file_for_a_folder(self, geobind: Geobind, folder: Path) -> None:
        assert_refused(geobind("run", "chain.yaml", "--out", "earth.csv"), "error: earth.csv: ", "cannot be written")
        assert (folder / "earth.csv").read_text() == TABLE

    @pytest.mark.parametrize(
        ("assignment", "words"),
        [
            (
                "data.earth.fields.text=captoin",
                "error: data.earth.fields.text: no column 'captoin' in the table. Available: caption, key, tile. "
                "Did you mean 'caption'?",
            ),
            ("data.earth.path=missing.csv", "missing.csv: no such table."),
            ("data.earth.path=cut.parquet", "cut.parquet: the table cannot be read: "),
            ("data.earth.path=picture.csv", "picture.csv: the table cannot be read: "),
            ("data.earth.path=picture.png", "picture.png: expected a table (.csv, .tsv or .parquet), found '.png'."),
            ("data.earth.path=header.csv", "error: data.earth: the table has no rows."),
            ("data.earth.split.test=0.9999", "error: data.earth.split: split 'train' has "),
            ("data.earth.split={by: column, column: key}", "error: data.earth.split: split '0' is none of "),
        ],
    )
    def test_data_that_cannot_be_used(self, geobind: Geobind, folder: Path, assignment: str, words: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"key": ["a"] * 99}), folder / "whole.parquet")
        (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-20])
        for name in ("picture.csv", "picture.png"):
            (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n\x1b[31m,\xff\xfe\n\x07")
        (folder / "header.csv").write_text("key,tile,caption\n")
        done = geobind("run", "chain.yaml", "--set", assignment)
        assert_refused(done, words)
        assert "\x1b" not in done.stderr
        assert not (folder / "runs" / "chain" / "stages").exists()

    def test_no_run_to_measure(self, geobind: Geobind) -> None:
        assert_refused(geobind("eval", "runs/nothing"), "error: runs/nothing: no run here")


class TestEnds:
    def test_interrupted(self, folder: Path) -> None:
        # A pipe that nothing is written into keeps the verb reading until the signal comes.
        os.mkfifo(folder / "pipe.yaml")
        process = subprocess.Popen(
            [*GEOBIND, "validate", "pipe.yaml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and these tests are at times.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with (folder / "pipe.yaml").open("w"):  # opens once the verb has opened its end
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
        assert (process.returncode, output) == (130, "")
        assert errors == "interrupted; run the same command again to go on\n"

    def test_nobody_reads_the_output(self, folder: Path) -> None:
        process = subprocess.Popen([*GEOBIND, "schema"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert (process.wait(timeout=30), errors) == (1, b"")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_what_is_not_the_inputs_fault_is_1(self, folder: Path) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*GEOBIND, "validate", "chain.yaml"], cwd=folder, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 1
        assert b"No space left on device" in done.stderr


def test_the_run_folder_is_named_after_the_chain(geobind: Geobind, folder: Path) -> None:
    (folder / "earth.csv").write_text("key,tile,caption\n")
    geobind("run", "chain.yaml")
    geobind("run", "chain.yaml", "--set", "name=other")
    geobind("run", "chain.yaml", "--out", "deep/er")
    for path, name in (("runs/chain", "chain"), ("runs/other", "other"), ("deep/er", "chain")):
        assert yaml.safe_load((folder / path / "chain.yaml").read_text())["name"] == name
