"""The JSON Schema of chain files, for editors."""

from __future__ import annotations

from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema

from geobind_core.config.models import ChainConfig
from geobind_core.plugins.manager import PluginManager

_ANYTHING = {"type": "object"}
_NOTHING = {"type": "null"}


def chain_schema(plugins: PluginManager) -> dict[str, Any]:
    """Returns a schema that knows the settings of every installed plugin."""
    plugins.load_all()
    schema = ChainConfig.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    properties = schema["properties"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "GeoBind chain"

    # Which settings a modality has follows from its `plugin`, or else from its name.
    modalities = _add(definitions, plugins, "modality", None)
    other_plugin = {**_ANYTHING, "required": ["plugin"]}
    properties["modalities"] |= {
        "properties": {name: {"anyOf": [reference, other_plugin, _NOTHING]} for name, reference in modalities.items()},
        "additionalProperties": {"anyOf": [*modalities.values(), _ANYTHING, _NOTHING]},
    }
    properties["data"]["additionalProperties"] = {"anyOf": [*_add(definitions, plugins, "source", "source").values()]}
    metrics = _add(definitions, plugins, "metric", "name")
    definitions["EvaluateConfig"]["properties"]["metrics"]["items"] = {
        "anyOf": [{"enum": list(metrics)}, *metrics.values()]
    }
    for section in ("modalities", "data"):
        properties[section].pop("patternProperties", None)
    properties["stages"]["items"] = {"anyOf": [*_add(definitions, plugins, "stage_kind", "kind").values()]}
    losses = {"anyOf": [*_add(definitions, plugins, "loss", "name").values()]}
    for name, definition in definitions.items():
        if name.startswith("stage_kind:") and "loss" in definition.get("properties", {}):
            definition["properties"]["loss"] |= losses
    return schema


def _add(definitions: dict[str, Any], plugins: PluginManager, kind: str, key: str | None) -> dict[str, dict[str, str]]:
    """Adds the settings of everything of a kind, and returns references to them by name.

    Args:
        definitions: Where they are added.
        plugins: Who provides them.
        kind: The kind.
        key: The setting that chooses one by its name, if there is one.
    """
    references = {}
    for name in plugins.registry.names(kind):
        label = f"{kind}:{name}"
        try:
            # Two plugins may well have settings of the same name within theirs.
            own = plugins.registry.get(kind, name)[0].cls.Config.model_json_schema(
                ref_template=f"#/$defs/{label}.{{model}}"
            )
        except PydanticInvalidForJsonSchema:  # a type that JSON does not have
            own = {**_ANYTHING, "properties": {}}
        definitions |= {f"{label}.{inner}": schema for inner, schema in own.pop("$defs", {}).items()}
        if key is not None:
            chosen = own["properties"].get(key, {})
            own["properties"][key] = {"const": name, **{k: chosen[k] for k in ("description",) if k in chosen}}
            if chosen.get("default") != name and key not in own.get("required", []):
                own["required"] = [*own.get("required", []), key]
        definitions[label] = own
        references[name] = {"$ref": f"#/$defs/{label}"}
    return references
