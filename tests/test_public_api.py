"""The names that users and plugins import, and the schema that editors read."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    "GeoBindError",
    "Loss",
    "LossConfig",
    "LossOutput",
    "Modality",
    "ModalityConfig",
    "Observations",
    "Progress",
    "Source",
    "SourceConfig",
    "Space",
    "StageContext",
    "StageInfo",
    "StageKind",
    "StageResult",
    "WeightsError",
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


# The part of JSON Schema (draft 2020-12) that is in use. What is not known here fails, and is to be added.
_ANNOTATIONS = {"$schema", "$defs", "title", "description", "default", "format", "discriminator"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def faults(value: Any, schema: dict[str, Any] | bool, root: dict[str, Any], path: str = "") -> list[str]:
    """Returns where and how a value does not conform to a schema."""
    if isinstance(schema, bool):
        return [] if schema else [f"{path}: not allowed"]
    found: list[str] = []
    for keyword, expected in schema.items():
        ok = True
        match keyword:
            case "$ref":
                target = root
                for step in expected.removeprefix("#/").split("/"):
                    target = target[step]
                found += faults(value, target, root, path)
            case "type":
                ok = any(_is(value, kind) for kind in ([expected] if isinstance(expected, str) else expected))
            case "const":
                ok = value == expected
            case "enum":
                ok = value in expected
            case "anyOf":
                ok = any(not faults(value, option, root) for option in expected)
            case "oneOf":
                ok = sum(not faults(value, option, root) for option in expected) == 1
            case "required":
                ok = not isinstance(value, dict) or set(expected) <= set(value)
            case "properties":
                for key in value if isinstance(value, dict) else ():
                    found += faults(value[key], expected.get(key, True), root, f"{path}.{key}")
            case "additionalProperties":
                for key in set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else ():
                    found += faults(value[key], expected, root, f"{path}.{key}")
            case "minProperties":
                ok = not isinstance(value, dict) or len(value) >= expected
            case "prefixItems":
                for i, (item, option) in enumerate(
                    zip(value, expected, strict=False) if isinstance(value, list) else ()
                ):
                    found += faults(item, option, root, f"{path}[{i}]")
            case "items":
                for i, item in enumerate(value if isinstance(value, list) else ()):
                    found += faults(item, expected, root, f"{path}[{i}]")
            case "minItems":
                ok = not isinstance(value, list) or len(value) >= expected
            case "maxItems":
                ok = not isinstance(value, list) or len(value) <= expected
            case "pattern":
                ok = not isinstance(value, str) or re.search(expected, value) is not None
            case "minimum":
                ok = not _is(value, "number") or value >= expected
            case "maximum":
                ok = not _is(value, "number") or value <= expected
            case "exclusiveMinimum":
                ok = not _is(value, "number") or value > expected
            case "exclusiveMaximum":
                ok = not _is(value, "number") or value < expected
            case _:
                assert keyword in _ANNOTATIONS, f"this test does not know the keyword '{keyword}'"
        found += [] if ok else [f"{path}: {keyword} {expected!r}"[:200]]
    return found


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
        assert faults(chain, schema, schema) == []

    @pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="jsonschema is not installed")
    def test_is_valid_and_accepts_the_default_chain_with_jsonschema(
        self, schema: dict[str, Any], chain: dict[str, Any]
    ) -> None:
        import jsonschema

        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(chain)

    def test_settings_of_another_loss_or_kind_need_its_name(self, chain: dict[str, Any]) -> None:
        schema = chain_schema(PluginManager(builtin=[builtin, sys.modules[__name__]]))

        def fits(**stage: object) -> bool:
            return not faults({**chain, "stages": [{"name": "a", **stage}]}, schema, schema)

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
        ],
    )
    def test_accepts(self, schema: dict[str, Any], chain: dict[str, Any], section: str, value: object) -> None:
        assert faults({**chain, section: value}, schema, schema) == []

    @pytest.mark.parametrize(
        ("section", "value"),
        [
            ("evalute", {}),
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
        assert faults({**chain, section: value}, schema, schema) != []
