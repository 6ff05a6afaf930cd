"""The JSON Schema of chain files, for editors."""

from __future__ import annotations

from typing import Any

from geobind_core.config.models import ChainConfig
from geobind_core.plugins.manager import PluginManager


def chain_schema(plugins: PluginManager) -> dict[str, Any]:
    """Returns a schema that knows the settings of every installed plugin."""
    plugins.load_all()
    schema = ChainConfig.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})

    def variants(kind: str, key: str | None) -> list[dict[str, Any]]:
        found = []
        for name in plugins.registry.names(kind):
            own = plugins.registry.get(kind, name)[0].cls.Config.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(own.pop("$defs", {}))
            if key is not None:
                own["properties"][key] = {"const": name, **_described(own["properties"].get(key, {}))}
            definitions[f"{kind}:{name}"] = own
            found.append({"$ref": f"#/$defs/{kind}:{name}"})
        return found

    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "GeoBind chain"
    # Which settings a modality has follows from its name or its `plugin`.
    modalities = variants("modality", None)
    schema["properties"]["modalities"]["additionalProperties"] = {"anyOf": [*modalities, {"type": "object"}]}
    schema["properties"]["modalities"].pop("patternProperties", None)
    for name in plugins.registry.names("modality"):
        schema["properties"]["modalities"].setdefault("properties", {})[name] = {"$ref": f"#/$defs/modality:{name}"}
    schema["properties"]["data"]["additionalProperties"] = {"anyOf": variants("source", "source")}
    schema["properties"]["data"].pop("patternProperties", None)
    schema["properties"]["stages"]["items"] = {"anyOf": variants("stage_kind", "kind")}
    losses = {"anyOf": variants("loss", "name")}
    for definition in definitions.values():
        if "loss" in definition.get("properties", {}):
            definition["properties"]["loss"] = losses
    return schema


def _described(existing: dict[str, Any]) -> dict[str, Any]:
    return {k: existing[k] for k in ("description", "default") if k in existing}
