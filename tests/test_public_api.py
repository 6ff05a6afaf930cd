"""The names that users and plugins import, and the schema that editors read."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import geobind_core
from geobind_core import Loss, LossConfig, StageKind, hookimpl
from geobind_core.chain import builtin
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.schema import chain_schema
from geobind_core.config.models import StageConfig
from geobind_core.plugins.manager import PluginManager

ROOT = Path(__file__).parents[1]
PUBLIC = [
    "Augmentation",
    "DataError",
    "EncoderOutput",
    "ExportError",
    "ExportPart",
    "Exporter",
    "ExtraItems",
    "GeoBindError",
    "LocalPair",
    "Loss",
    "LossConfig",
    "LossOutput",
    "Metric",
    "MetricConfig",
    "Modality",
    "ModalityConfig",
    "Observations",
    "Preview",
    "Progress",
    "Reference",
    "Retrieval",
    "Source",
    "SourceConfig",
    "Space",
    "StageContext",
    "StageInfo",
    "StageKind",
    "StageResult",
    "Stored",
    "WeightsError",
    "Written",
    "hookimpl",
    "require_hub_files",
]


class TestNames:
    def test_all(self) -> None:
        assert geobind_core.__all__ == PUBLIC
        assert set(PUBLIC) <= set(dir(geobind_core))

    @pytest.mark.parametrize("name", PUBLIC)
    def test_each_can_be_imported_and_says_what_it_is(self, name: str) -> None:
        found = getattr(geobind_core, name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__name__ == name
            # Of its own: a class would inherit its base's.
            assert vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__
        else:
            assert name in ("Progress", "hookimpl")

    def test_public_methods_say_what_they_do(self) -> None:
        silent, checked = [], 0
        for name in PUBLIC:
            found = getattr(geobind_core, name)
            for key, member in vars(found).items() if inspect.isclass(found) else ():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if inspect.isfunction(function) and not key.startswith("_") and key != "model_post_init":
                    checked += 1
                    silent += [] if inspect.getdoc(getattr(found, key)) else [f"{name}.{key}"]
        assert checked > 20
        assert silent == []

    def test_type_checkers_know_the_same_names(self) -> None:
        source = Path(str(geobind_core.__file__)).read_text()
        assert sorted(re.findall(r"import (\w+) as \1\n", source)) == PUBLIC

    def test_there_are_no_others(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'Spaces'"):
            geobind_core.Spaces  # noqa: B018
        with pytest.raises(ImportError):
            exec("from geobind_core import Spaces", {})

    @pytest.mark.parametrize(
        "statement",
        [
            "import geobind_core",
            "from geobind_core import Modality, ModalityConfig, hookimpl, EncoderOutput, Augmentation",
            "from geobind_core import Loss, Source, StageKind, StageContext, Observations",
        ],
    )
    def test_importing_imports_no_torch(self, statement: str) -> None:
        script = f"import sys\n{statement}\nassert 'torch' not in sys.modules\nassert 'numpy' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """Returns what a schema finds wrong."""
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]


class HingeConfig(LossConfig):
    margin: float = 1.0


class Hinge(Loss[HingeConfig]):
    name = "hinge"
    Config = HingeConfig


class IndexConfig(StageConfig):
    lists: int = 1


class Index(StageKind[IndexConfig]):
    name = "index"
    Config = IndexConfig


@hookimpl
def geobind_register_losses() -> list[type[Loss[Any]]]:
    return [Hinge]


@hookimpl
def geobind_register_stage_kinds() -> list[type[StageKind[Any]]]:
    return [Index]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(chain_schema(plugin_manager())))
    return found


@pytest.fixture
def chain() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))
    return found


class TestSchema:
    def test_accepts_the_default_chain(self, schema: dict[str, Any], chain: dict[str, Any]) -> None:
        assert faults(chain, schema) == []

    def test_is_itself_valid(self, schema: dict[str, Any]) -> None:
        jsonschema.Draft202012Validator.check_schema(schema)

    def test_settings_of_another_loss_or_kind_need_its_name(self, chain: dict[str, Any]) -> None:
        schema = chain_schema(PluginManager(builtin=[builtin, sys.modules[__name__]]))

        def fits(**stage: object) -> bool:
            return not faults({**chain, "stages": [{"name": "a", **stage}]}, schema)

        assert fits(train="x", data="d", loss={"name": "hinge", "margin": 2})
        assert not fits(train="x", data="d", loss={"margin": 2})
        assert not fits(train="x", data="d", loss={"name": "infonce", "margin": 2})
        assert fits(kind="index", lists=3)
        assert not fits(lists=3)
        assert not fits(kind="align", lists=3)

    def test_says_which_draft_it_is(self, schema: dict[str, Any]) -> None:
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    def test_every_reference_leads_somewhere(self, schema: dict[str, Any]) -> None:
        references = re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema))
        assert references
        assert set(references) <= set(schema["$defs"])

    def test_has_the_settings_of_every_plugin(self, schema: dict[str, Any]) -> None:
        for name in ("modality:audio", "modality:satellite", "source:table", "loss:infonce", "stage_kind:align"):
            assert schema["$defs"][name]["additionalProperties"] is False
        assert "sample_rate" in schema["$defs"]["modality:audio"]["properties"]

    @pytest.mark.parametrize(
        ("section", "value"),
        [
            ("modalities", {"text": None, "caption": {"plugin": "text"}, "audio": {"plugin": "text", "model": "x"}}),
            ("modalities", {"audio": {"model": "geobind-tiny", "sample_rate": 8000, "features": {"min_hz": 1}}}),
            ("stages", [{"name": "a", "train": "x", "data": "d", "pairs": [["x", "y"], {"modalities": ["x", "z"]}]}]),
            ("stages", [{"name": "a", "kind": "align", "train": ["x"], "anchor": "y", "data": "d"}]),
            ("stages", [{"name": "a", "train": ["x"], "anchor": ["y"], "data": "d", "augment": {"x": "flips"}}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "loss": {"direction": "both"}}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "scheduler": {"name": "constant"}}]),
            ("log_with", "wandb"),
            ("log_with", []),
            ("mixed_precision", "no"),
            ("evaluate", {"metrics": ["median_km"]}),
            ("evaluate", {"metrics": [{"name": "median_km"}]}),
            ("plugins", "audio"),
        ],
    )
    def test_accepts(self, schema: dict[str, Any], chain: dict[str, Any], section: str, value: object) -> None:
        assert faults({**chain, section: value}, schema) == []

    @pytest.mark.parametrize(
        ("section", "value"),
        [
            ("evalute", {}),
            ("evaluate", {"metrics": ["median_mm"]}),
            ("evaluate", {"metrics": [{"name": "median_km", "unit": "m"}]}),
            ("seed", "x"),
            ("seed", -1),
            ("modalities", {}),
            ("modalities", {"audio": {"sample_rat": 8000}}),
            ("modalities", {"audio": {"features": {"min_hs": 1}}}),
            ("modalities", {"text": "clip"}),
            ("data", {"earth": {"source": "tabel", "path": "x.csv"}}),
            ("data", {"earth": {"path": "x.csv"}}),
            ("data", {"earth": {"source": "table"}}),
            ("data", {"earth": {"source": "table", "path": "x.csv", "split": {"by": "luck"}}}),
            ("stages", []),
            ("stages", [{"name": "a", "data": "d"}]),
            ("stages", [{"name": "my stage", "train": "x", "data": "d"}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "epoch": 3}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "kind": "aling"}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "pairs": [["x"]]}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "loss": {"name": "infoncee"}}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "loss": {"direction": "sideways"}}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "optimizer": {"lr": 0}}]),
            ("stages", [{"name": "a", "train": "x", "data": "d", "scheduler": {"t0": 3}}]),
            ("mixed_precision", "fp8"),
        ],
    )
    def test_refuses(self, schema: dict[str, Any], chain: dict[str, Any], section: str, value: object) -> None:
        assert faults({**chain, section: value}, schema) != []
