"""The documentation says what is so: its snippets run, its tables are those of the code, its links lead somewhere."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from geobind_plugin_audio.config import AudioConfig, FeatureConfig
from geobind_plugin_environment.config import EnvironmentConfig
from geobind_plugin_imagery.config import ClipConfig, ImageConfig
from geobind_plugin_location.config import LocationConfig
from geobind_plugin_synthetic_earth.source import SyntheticEarthConfig
from pydantic import BaseModel

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.resolve import load_chain
from geobind_core.cli import app
from geobind_core.config import models
from geobind_core.data.huggingface import HuggingFaceConfig
from geobind_core.data.soundingearth import SoundingEarthConfig
from geobind_core.data.table import TableConfig
from geobind_core.data.webdataset import WebDatasetConfig
from geobind_core.plugins.loss import LogitScaleConfig, LossConfig
from geobind_core.plugins.modality import ModalityConfig
from geobind_core.plugins.source import SourceConfig, SplitConfig
from geobind_core.testing import loss_checks, modality_checks, source_checks
from geobind_core.training.losses import InfoNCEConfig, SigmoidConfig

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/pages"
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    + [path for folder in ("docs/pages", "geobind_plugins", "examples") for path in (ROOT / folder).rglob("*.md")]
)
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block of code."""

    document: Path
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def snippets_of(document: Path) -> list[Snippet]:
    text = document.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent, info, body = match.groups()
        title = re.search(r'title="([^"]*)"', info)
        found.append(
            Snippet(
                document,
                text.count("\n", 0, match.start()) + 1,
                info.split()[0] if info.split() else "",
                title[1] if title else "",
                re.sub(f"^{indent}", "", body, flags=re.MULTILINE),
            )
        )
    return found


SNIPPETS = [snippet for document in DOCUMENTS for snippet in snippets_of(document)]


def in_language(*languages: str) -> list[Any]:
    return [pytest.param(s, id=str(s)) for s in SNIPPETS if s.language in languages]


def is_chain(snippet: Snippet) -> bool:
    return {"binding", "stages"} <= set(yaml.safe_load(snippet.text) or ())


def titled(document: Path, title: str) -> str:
    (found,) = [s.text for s in snippets_of(document) if s.title == title]
    return found


# ---------------------------------------------------------------------- the site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    config = ROOT / "docs/mkdocs.yml"
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(tmp_path / "site")],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not loaded, f"{page.name} makes a request to {loaded}"


# ---------------------------------------------------------------------- snippets


@pytest.mark.parametrize("snippet", in_language("python"))
def test_python_compiles(snippet: Snippet) -> None:
    compile(snippet.text, str(snippet), "exec")


@pytest.mark.parametrize("snippet", in_language("yaml", "json", "toml"))
def test_data_parses(snippet: Snippet) -> None:
    {"yaml": yaml.safe_load, "json": json.loads, "toml": tomllib.loads}[snippet.language](snippet.text)


CHAINS = [parameter for parameter in in_language("yaml") if is_chain(parameter.values[0])]


def test_there_are_chains() -> None:
    assert len(CHAINS) >= 4


@pytest.mark.parametrize("snippet", CHAINS)
def test_whole_chains_are_valid(snippet: Snippet, weather_plugin: Path, tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    path.write_text(snippet.text, encoding="utf-8")
    load_chain(path, plugin_manager())


# ---------------------------------------------------------------------- the plugin


@pytest.fixture
def weather_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of README, as an installed distribution."""
    points = {"geobind": {"weather": "geobind_plugin_weather"}}
    project = {"project": {"name": "geobind-plugin-weather", "version": "0.1.0", "entry-points": points}}
    yield from _installed(tmp_path / "weather", project, ROOT / "README.md", monkeypatch)


def _installed(
    folder: Path, project: dict[str, Any], document: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    points = project["project"]["entry-points"]["geobind"]
    name, version = project["project"]["name"], project["project"]["version"]
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[geobind]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    for module in set(points.values()):
        (folder / f"{module}.py").write_text(titled(document, f"{module}.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    for module in set(points.values()):
        sys.modules.pop(module, None)


def test_the_plugin_works_as_it_is_written(weather_plugin: Path) -> None:
    manager = plugin_manager()
    (record,) = [r for r in manager.records if r.distribution == "geobind-plugin-weather"]
    assert (record.names, record.status) == (["weather"], "available")
    cls = manager.find("modality", "weather").cls
    assert record.status == "loaded"
    results = {check.name: check.result() for check in modality_checks(cls)}
    assert {name: r.message for name, r in results.items() if r.status not in ("ok", "skipped")} == {}
    assert [name for name, r in results.items() if r.status == "skipped"] == ["draw"]


def test_the_plugin_is_at_most_60_lines_and_the_same_everywhere() -> None:
    module = titled(ROOT / "README.md", "geobind_plugin_weather.py")
    assert len(module.splitlines()) <= 60
    assert module == titled(PAGES / "write-a-plugin.md", "geobind-plugin-weather/geobind_plugin_weather.py")


def test_the_source_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = {
        "project": {
            "name": "geojson",
            "version": "1",
            "entry-points": {"geobind": {"geojson": "geobind_plugin_geojson"}},
        }
    }
    for _ in _installed(tmp_path / "plugin", project, PAGES / "write-other-plugins.md", monkeypatch):
        cls = plugin_manager().find("source", "geojson").cls
        features = [
            {"geometry": {"type": "Point", "coordinates": [8.5, 47.4]}, "properties": {"tile": "a.jpg"}, "id": 7},
            {"geometry": {"type": "Point", "coordinates": [9.5, 46.4]}, "properties": {"tile": "b.jpg"}},
        ]
        file = tmp_path / "places.geojson"
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        source = cls(cls.Config(source="geojson", path="places.geojson"), tmp_path)
        observations = source.observations()
        assert observations.table["key"].to_pylist() == ["7", "1"]
        assert observations.table["longitude"].to_pylist() == [8.5, 9.5]
        failed = {str(c): r.message for c in source_checks(source) if (r := c.result()).status == "failed"}
        assert failed == {}
        before = source.fingerprint()
        file.write_text(json.dumps({"type": "FeatureCollection", "features": features[:1]}))
        assert source.fingerprint() != before


def test_the_loss_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from geobind_core import EncoderOutput

    project = {
        "project": {
            "name": "triplet",
            "version": "1",
            "entry-points": {"geobind": {"triplet": "geobind_plugin_triplet"}},
        }
    }
    for _ in _installed(tmp_path, project, PAGES / "write-other-plugins.md", monkeypatch):
        cls = plugin_manager().find("loss", "triplet").cls
        failed = {str(c): r.message for c in loss_checks(cls) if (r := c.result()).status == "failed"}
        assert failed == {}
        loss = cls(cls.Config(name="triplet")).build()
        first = torch.eye(4).requires_grad_()
        own = loss(EncoderOutput(first), EncoderOutput(torch.eye(4)), None)
        other = loss(EncoderOutput(first), EncoderOutput(torch.eye(4).roll(1, 0)), None)
        assert own.value.item() == 0
        assert other.value.item() == pytest.approx(
            0.2 + 1 / 3, rel=1e-5
        )  # the margin, and by how much a third is too near
        other.value.backward()
        assert first.grad is not None
        assert first.grad.abs().sum() > 0
        cluster = torch.zeros(4, 4, dtype=torch.bool)
        cluster[0, 3] = cluster[3, 0] = True
        assert loss(EncoderOutput(first), EncoderOutput(torch.eye(4)), cluster).value.item() == 0


# ---------------------------------------------------------------------- settings

TABLES: list[tuple[str, str, int, type[BaseModel], type[BaseModel] | None]] = [
    ("stages-yaml.md", "The whole", 0, models.ChainConfig, None),
    ("stages-yaml.md", "modalities", 0, ModalityConfig, None),
    ("stages-yaml.md", "data", 0, SourceConfig, None),
    ("stages-yaml.md", "data", 1, SplitConfig, None),
    ("stages-yaml.md", "stages", 0, models.StageConfig, None),
    ("stages/align.md", "align", 0, models.AlignConfig, models.StageConfig),
    ("stages/align.md", "pairs", 0, models.PairConfig, None),
    ("losses/index.md", "loss", 0, LossConfig, None),
    ("losses/infonce.md", "infonce", 0, InfoNCEConfig, LossConfig),
    ("losses/sigmoid.md", "sigmoid", 0, SigmoidConfig, LossConfig),
    ("losses/index.md", "loss", 1, LogitScaleConfig, None),
    ("stages/optimizer.md", "optimizer", 0, models.AdamW, None),
    ("stages/scheduler.md", "scheduler", 0, models.CosineWarmup, None),
    ("stages/scheduler.md", "scheduler", 1, models.CosineWarmRestarts, None),
    ("stages/align.md", "checkpoint", 0, models.CheckpointConfig, None),
    ("stages-yaml.md", "evaluate", 0, models.EvaluateConfig, None),
    ("stages-yaml.md", "loader", 0, models.LoaderConfig, None),
    ("sources/table.md", "table", 0, TableConfig, SourceConfig),
    ("sources/soundingearth.md", "soundingearth", 0, SoundingEarthConfig, SourceConfig),
    ("sources/huggingface.md", "huggingface", 0, HuggingFaceConfig, SourceConfig),
    ("sources/synthetic-earth.md", "synthetic_earth", 0, SyntheticEarthConfig, SourceConfig),
    ("sources/webdataset.md", "webdataset", 0, WebDatasetConfig, SourceConfig),
    ("modalities/images.md", "satellite, ground_image", 0, ImageConfig, ModalityConfig),
    ("modalities/text.md", "text", 0, ClipConfig, ModalityConfig),
    ("modalities/audio.md", "audio", 0, AudioConfig, ModalityConfig),
    ("modalities/audio.md", "audio", 1, FeatureConfig, None),
    ("modalities/location.md", "location", 0, LocationConfig, ModalityConfig),
    ("modalities/environment.md", "environment", 0, EnvironmentConfig, ModalityConfig),
]


@pytest.mark.parametrize(("page", "heading", "number", "model", "base"), TABLES)
def test_tables_of_settings_are_those_of_the_code(
    page: str, heading: str, number: int, model: type[BaseModel], base: type[BaseModel] | None
) -> None:
    documented = _settings(PAGES / page, heading)[number]
    inherited = set(base.model_fields) if base else set()
    assert set(model.model_fields) - inherited <= set(documented) <= set(model.model_fields)
    for key, cell in documented.items():
        assert cell == _shown(model, key, cell), f"{page}, {heading}: {key}"


def _settings(page: Path, heading: str) -> list[dict[str, str]]:
    """Returns the tables below a heading that begin with `key` and `default`, as key -> default."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    section = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    tables: list[dict[str, str]] = []
    for line in section.splitlines():
        if line.startswith("| key | default |"):
            tables.append({})
        elif line.startswith("| `"):
            key, default = (cell.strip() for cell in line.split("|")[1:3])
            tables[-1][key.strip("`")] = default
    return tables


def _shown(model: type[BaseModel], key: str, cell: str) -> str:
    """Returns the cell that a default should have; of several ways to write one, that which is there."""
    field = model.model_fields[key]
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "\N{EN DASH}"
    if isinstance(default, BaseModel):
        return ""
    plain = str(default) if isinstance(default, Path) else list(default) if isinstance(default, tuple) else default
    return cell if cell.startswith("`") and yaml.safe_load(cell.strip("`")) == plain else f"`{plain}`"


# ---------------------------------------------------------------------- commands


def _options(command: Any) -> set[str]:
    """Returns the options of a verb, and of the verbs below it."""
    own = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    return own.union({"--help"}, *(_options(c) for c in getattr(command, "commands", {}).values()))


VERBS: dict[str, set[str]] = {
    name: _options(command)
    for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
OWN_OPTIONS = {"--help", "--version"}
OTHER_PROGRAMS = {"performance.md", "several-processes.md"}  # pages with options that are not GeoBind's


def commands_in(document: Path) -> list[str]:
    """Returns what follows `geobind` in every command of a document, in blocks and in running text."""
    text = document.read_text(encoding="utf-8")
    blocks = [s.text.replace("\\\n", " ") for s in snippets_of(document) if s.language == "bash"]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [m[1] for line in lines if (m := re.search(r"(?:^|&& |uv run )geobind (.*)", line.strip()))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_exist(document: Path) -> None:
    for command in commands_in(document):
        words = command.split("&&")[0].split()
        if words[0] in OWN_OPTIONS:
            continue
        assert words[0] in VERBS, f"geobind {command}"
        options = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
        assert options <= VERBS[words[0]], f"geobind {command}"
    spans = re.findall(r"`(--[a-z-]+)[^`]*`", FENCE.sub("", document.read_text(encoding="utf-8")))
    if document.name in OTHER_PROGRAMS:
        return
    assert set(spans) <= set().union(OWN_OPTIONS, *VERBS.values())


def test_every_verb_is_documented() -> None:
    mentioned = {command.split()[0] for command in commands_in(PAGES / "getting-started.md")}
    assert set(VERBS) <= mentioned


def test_readme_has_the_two_commands() -> None:
    blocks = {s.text.strip() for s in snippets_of(ROOT / "README.md") if s.language == "bash"}
    assert "pip install uv && uv run geobind run stages.yaml" in blocks
    assert "pip install uv && uv run pytest" in blocks


# ---------------------------------------------------------------------- links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{document.name}: {target}"
        assert found.is_relative_to(ROOT), f"{document.name}: {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", found.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{document.name}: {target}"


def _slug(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")
