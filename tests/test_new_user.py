"""A new user: built wheels in a clean environment, and nothing but the documentation.

The environment is made once. It takes packages from the registry that uv and pip are set up with.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/pages/write-a-plugin.md"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EMBED = """\
import sys
from geobind_core import Space
from safetensors.torch import save_file
space = Space.load("runs/stages/space")
tiles = sorted(__import__("pathlib").Path("data").rglob("satellite/*.jpg"))[:20]
found = {"satellite": space.embed("satellite", tiles), "text": space.embed("text", ["a beach", "a road in the snow"])}
save_file(found, sys.argv[1])
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Clean:
    """A clean environment, and the wheels of all distributions by their names."""

    folder: Path
    wheels: dict[str, Path]

    @property
    def variables(self) -> dict[str, str]:
        own = ("VIRTUAL_ENV", "PYTHON", "GEOBIND", "UV_PROJECT")  # what belongs to the environment of the tests
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        cache = str(self.folder / "cache")
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{kept['PATH']}", "GEOBIND_CACHE": cache}

    def run(self, *command: str | Path, cwd: Path) -> str:
        return run(*command, cwd=cwd, env=self.variables)

    def uv(self, action: str, *what: str | Path) -> None:
        run("uv", "pip", action, "--python", self.folder / "bin" / "python", *what)

    def plugins(self, cwd: Path) -> dict[str, list[str]]:
        """Returns what is listed: distribution -> what it provides."""
        listed = json.loads(self.run("geobind", "plugins", "--json", cwd=cwd))
        assert {row["status"] for row in listed} <= {"loaded"}
        return {row["distribution"]: json.dumps(row["provides"]) for row in listed}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    for folder in (ROOT, *sorted(ROOT.glob("geobind_plugins/*/"))):
        run("uv", "build", "--wheel", "--out-dir", out, folder)
    return {path.name.split("-")[0].replace("_", "-"): path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def clean(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """An environment with the core only, in the versions that the tests pass with."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    run("uv", "venv", "--seed", "--python", sys.executable, folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(project["tool"]["uv"]["constraint-dependencies"]))
    found = Clean(folder, wheels)
    found.uv("install", "--constraint", constraints, wheels["geobind"])
    return found


def test_wheels_own_disjoint_files_and_contain_no_tests(wheels: dict[str, Path]) -> None:
    folders = {path.name for path in ROOT.glob("geobind_plugins/*/")}
    assert set(wheels) == {"geobind", *folders}
    owners: dict[str, str] = {}
    for name, wheel in wheels.items():
        for path in zipfile.ZipFile(wheel).namelist():
            assert path not in owners, f"{path} is in {name} and in {owners[path]}"
            owners[path] = name
            words = set(Path(path).parts)
            assert not words & {"tests", "test", "conftest.py", "docs", "examples"}, path
            assert not Path(path).name.startswith("test_"), path
    own = {path for path, name in owners.items() if name == "geobind"}
    assert "geobind_core/testing/__init__.py" in own
    assert "geobind_core/plugins/templates/module.py.jinja" in own
    for name in folders:
        assert {owner for path, owner in owners.items() if path.startswith(name.replace("-", "_") + "/")} == {name}


def test_a_modality_arrives_and_leaves_with_its_wheel(clean: Clean, tmp_path: Path) -> None:
    assert clean.plugins(tmp_path) == {}
    (tmp_path / "chain.yaml").write_text(
        "binding: audio\nmodalities: {audio: {model: geobind-tiny}}\ndata: {d: {source: table, path: table.csv}}\n"
        "stages: [{name: a, train: [audio], anchor: [], pairs: [[audio, audio]], data: d}]\n"
    )
    clean.run("pip", "install", clean.wheels["geobind-plugin-audio"], cwd=tmp_path)
    assert list(clean.plugins(tmp_path)) == ["geobind-plugin-audio"]
    assert "audio" in clean.plugins(tmp_path)["geobind-plugin-audio"]
    clean.run("pip", "uninstall", "--yes", "geobind-plugin-audio", cwd=tmp_path)
    assert clean.plugins(tmp_path) == {}
    command = [clean.folder / "bin" / "geobind", "run", "chain.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=clean.variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{clean.folder / 'bin' / 'python'} -m pip install geobind-plugin-audio" in done.stderr


def blocks() -> list[tuple[str, str, str]]:
    """Returns the steps of the page: language, title and text of each block that is to be written or run."""
    found = []
    for language, info, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]*)"', info)
        found.append((language, title[1] if title else "", text))
    return found


def test_the_page_alone_leads_to_a_bound_modality(clean: Clean, tmp_path: Path) -> None:
    here, python = tmp_path / "a folder of mine", clean.folder / "bin" / "python"
    here.mkdir()
    (tmp_path / "embed.py").write_text(EMBED)
    for name in ("geobind-plugin-imagery", "geobind-plugin-synthetic-earth"):
        clean.uv("install", clean.wheels[name])
    said, commands = "", 0
    for language, title, text in blocks():
        if title:
            (here / title).write_text(text, encoding="utf-8")
        elif language == "bash":
            for command in text.splitlines():
                commands += 1
                said += f"$ {command}\n{clean.run(*shlex.split(command), cwd=here)}\n"
                if command == "geobind run stages.yaml" and not (tmp_path / "before").exists():
                    before = {path: path.read_bytes() for path in (here / "runs/stages/space").rglob("*.safetensors")}
                    clean.run(python, tmp_path / "embed.py", tmp_path / "before", cwd=here)
        elif language == "python":
            said += clean.run(python, "-c", text, cwd=here)
    assert commands == 11
    assert re.search(r"geobind-plugin-weather +0\.1\.0 +loaded +modality: weather", said)
    assert said.count("19 ok, 1 skipped") == 2
    assert re.search(r"satellite .*done", said)
    assert re.search(r"weather .*run", said)
    assert " passed" in said
    assert "tensor([[" in said

    # It is in the matrix, with all the others, and better than chance.
    pairs = json.loads((here / "runs/stages/metrics.json").read_text())["pairs"]
    assert {name for name in pairs if "weather" in name} == {
        f"{a}_to_{b}" for m in ("satellite", "ground_image", "text") for a, b in (("weather", m), (m, "weather"))
    }
    trained, emergent = pairs["weather_to_satellite"], pairs["weather_to_text"]
    assert (trained["trained_in"], trained["emergent"], emergent["emergent"]) == ("weather", False, True)
    assert trained["recall@10"] > 2 * trained["chance_recall@10"]
    # What was bound before has not moved by one bit.
    assert len(before) == 3
    assert {path: path.read_bytes() for path in before} == before
    clean.run(python, tmp_path / "embed.py", tmp_path / "after", cwd=here)
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    # The wheel is short, and has no tests.
    (wheel,) = (here / "dist").glob("geobind_plugin_weather-*.whl")
    content = zipfile.ZipFile(wheel)
    assert [path for path in content.namelist() if ".dist-info/" not in path] == ["geobind_plugin_weather.py"]
    assert len(content.read("geobind_plugin_weather.py").decode().splitlines()) <= 60
