"""`geobind plugins new` writes a plugin that works, and `geobind plugins check` tells whether one does."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from geobind_core.chain.builtin import plugin_manager
from geobind_core.cli import app
from geobind_core.errors import PluginError
from geobind_core.plugins.scaffold import new_plugin, next_steps

ROOT = Path(__file__).parents[2]


def installed(folder: Path) -> None:
    """Gives a folder of source code the metadata that an installation would."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["geobind"].items())
    (metadata / "entry_points.txt").write_text(f"[geobind]\n{points}")


@pytest.fixture
def sea_ice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new plugin, as installed."""
    folder = new_plugin("sea_ice", tmp_path / "plugins")
    installed(folder)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("geobind_plugin_sea_ice", None)


def test_it_is_complete_and_short(tmp_path: Path) -> None:
    folder = new_plugin("sea_ice", tmp_path)
    assert folder == tmp_path / "geobind-plugin-sea-ice"
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == [
        ".gitignore",
        "README.md",
        "geobind_plugin_sea_ice.py",
        "pyproject.toml",
        "tests/test_sea_ice.py",
    ]
    assert len((folder / "geobind_plugin_sea_ice.py").read_text().splitlines()) <= 60
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["geobind"] == {"sea_ice": "geobind_plugin_sea_ice"}
    assert "{{" not in "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_its_own_tests_pass_unedited(sea_ice: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=sea_ice, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 1 skipped" in done.stdout, done.stdout  # draw; the registration is that of the installed plugin


def test_it_is_in_the_style_of_geobind(sea_ice: Path) -> None:
    """Formatted, typed strictly."""
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), str(sea_ice / "geobind_plugin_sea_ice.py")]
    for command in ([*ruff, "check", *config], [*ruff, "format", "--check", *config]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["Sea", "sea-ice", "sea ice", "_ice", "ice_", "sea__ice", "2ice", "", "../ice", "é", "x" * 41, "none"]
)
def test_refuses_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"cannot be the name of a plugin|would hide"):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_names_that_are_taken(sea_ice: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="'audio' is provided by geobind-plugin-audio"):
        new_plugin("audio", tmp_path)
    with pytest.raises(PluginError, match=r"'sea_ice' is provided by geobind-plugin-sea-ice 0\.1\.0"):
        new_plugin("sea_ice", tmp_path / "elsewhere")


def test_leaves_alone_what_is_there(tmp_path: Path) -> None:
    there = tmp_path / "geobind-plugin-sea-ice" / "thesis.txt"
    there.parent.mkdir()
    there.write_text("years of work")
    with pytest.raises(PluginError, match="exists already"):
        new_plugin("sea_ice", tmp_path)
    assert there.read_text() == "years of work"


def test_the_command_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["plugins", "new", "sea_ice"])
    assert done.exit_code == 0, done.output
    assert " -e ./geobind-plugin-sea-ice" in done.output
    assert "geobind plugins check sea_ice" in done.output
    assert "geobind_plugin_sea_ice.py" in done.output
    assert sys.executable in next_steps(tmp_path, "sea_ice")
    shown = yaml.safe_load(done.output.split("of your data set:\n")[1].replace("…, ", ""))
    assert shown["stages"] == [{"name": "sea_ice", "train": "sea_ice", "data": "DATA"}]
    assert shown["modalities"] == {"sea_ice": {"numbers": 6}}


MIXED = """
from geobind_core import Loss, Metric, Source, SourceConfig
from geobind_core.training.losses import Sigmoid

class Thaw(Sigmoid):
    name = "thaw"

class Melt(Metric):
    name = "melt"

class Floes(Source):
    name = "floes"

    class Config(SourceConfig):
        path: str

@hookimpl
def geobind_register_losses():
    return [Thaw]

@hookimpl
def geobind_register_metrics():
    return [Melt]

@hookimpl
def geobind_register_sources():
    return [Floes]
"""


class TestCheck:
    def check(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["plugins", "check", *arguments])
        return done.exit_code, done.stdout if done.exit_code in (0, 2) and done.stdout else str(done.exception)

    @pytest.mark.parametrize("name", ["sea_ice", "geobind-plugin-sea-ice"])
    def test_of_what_is_sound(self, sea_ice: Path, name: str) -> None:
        code, text = self.check(name)
        assert code == 0, text
        assert "registration" in text
        assert "19 ok, 1 skipped" in text

    def test_of_what_is_broken(self, sea_ice: Path) -> None:
        module = sea_ice / "geobind_plugin_sea_ice.py"
        written = module.read_text()
        broken = written.replace("np.sign(sample)", "np.random.normal()")
        assert broken != written
        module.write_text(broken)
        code, text = self.check("sea_ice", "--json", "--set", "numbers=3")
        rows = json.loads(text)
        assert code == 2
        failed = {row["check"]: row for row in rows if row["status"] == "failed"}
        assert {"transform_same_seed", "transform_evaluation"} <= set(failed)
        row = failed["transform_same_seed"]
        assert row["message"] == "train=False: sample 0 differs with the same seed"
        assert (row["kind"], row["name"], row["distribution"]) == ("modality", "sea_ice", "geobind-plugin-sea-ice")
        assert row["protects"]
        assert row["hint"]
        code, text = self.check("sea_ice")
        assert code == 2
        assert "hint: Take random numbers from `rng` only" in text

    def test_of_losses_and_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.check("sigmoid", "--set", "init_bias=-5")[0] == 0
        (tmp_path / "table.csv").write_text("key,text\na,one\nb,two\n")
        code, text = self.check("table", "--set", "path=table.csv")
        assert code == 0, text
        assert "fingerprint_is_cheap" in text

    def test_of_a_plugin_of_several_kinds(self, sea_ice: Path, capsys: pytest.CaptureFixture[str]) -> None:
        module = sea_ice / "geobind_plugin_sea_ice.py"
        module.write_text(module.read_text() + MIXED)
        done = CliRunner().invoke(app, ["plugins", "check", "geobind-plugin-sea-ice", "--json", "--set", "numbers=3"])
        assert {(row["kind"], row["name"]) for row in json.loads(done.stdout)} == {
            ("modality", "sea_ice"),
            ("loss", "thaw"),
        }
        assert done.stderr.startswith("warning: source 'floes' is not checked: floes.path: ")
        code, text = self.check("geobind-plugin-sea-ice", "--set", "path=x", "--set", "number=3")
        assert (code, "none of 'sea_ice', 'thaw', 'floes' has a setting 'number'. " in text) == (1, True)

    @pytest.mark.parametrize(
        ("name", "what"),
        [("melt", "metric 'melt'"), ("median_km", "metric 'median_km'"), ("align", "stage kind 'align'")],
    )
    def test_of_what_there_is_no_kit_for(self, sea_ice: Path, name: str, what: str) -> None:
        module = sea_ice / "geobind_plugin_sea_ice.py"
        module.write_text(module.read_text() + MIXED)
        code, text = self.check(name)
        assert code == 1
        assert (
            f"'{name}' stands for {what}; there are conformance kits for modalities, losses and sources only." in text
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["sea_icy"], "no modality 'sea_icy'"),
            (["table"], "table.path"),
            (["sea_ice", "--set", "number=3"], "sea_ice.number"),
            (["sea_ice", "--set", "numbers"], "expected KEY=VALUE"),
            (["sea_ice", "--set", "numbers=[1"], "not valid YAML"),
            (["sea_ice", "--disable-plugin", "sea_ice"], "disabled"),
        ],
    )
    def test_of_what_cannot_be_checked(self, sea_ice: Path, arguments: list[str], message: str) -> None:
        code, text = self.check(*arguments)
        assert code == 1  # of the runner: `main` turns the error into exit code 2
        assert message in text


def test_it_is_found_as_any_plugin(sea_ice: Path) -> None:
    cls = plugin_manager().find("modality", "sea_ice").cls
    assert cls.__name__ == "SeaIce"
