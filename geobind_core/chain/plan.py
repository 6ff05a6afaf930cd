"""The plan: which stages are done, which must run, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from geobind_core.chain.model import Chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.config.problems import suggest
from geobind_core.errors import ConfigError, DataError
from geobind_core.files import read_json
from geobind_core.plugins.stage_kind import StageInfo, StageKind
from geobind_core.training import checkpoint

Action = Literal["done", "continue", "run", "later"]

# Settings of a stage that leave its result as it is.
_WITHOUT_EFFECT = frozenset({"name", "micro_batch_size", "checkpoint", "max_bad_samples"})
_SHOWN_CHANGES = 3


@dataclass(frozen=True)
class StagePlan:
    """What will happen to one stage.

    Attributes:
        number: Its place in the chain, from 1.
        stage: The stage.
        inputs: Everything that its result depends on.
        fingerprint: A hash of `inputs`.
        action: `done`: nothing; `continue`: from a checkpoint; `run`: from the start; `later`: not
            in this run, because it comes after the stage given with `--until`.
        why: In words.
        starts: The modalities that are first used here, and start from their initial weights.
    """

    number: int
    stage: StageKind[Any]
    inputs: Mapping[str, Any]
    fingerprint: str
    action: Action
    why: str
    starts: tuple[str, ...]

    @property
    def provides(self) -> tuple[str, ...]:
        """The modalities whose weights this stage stores: those trained and those started here."""
        return tuple(dict.fromkeys([*self.stage.trains(), *self.starts]))

    @property
    def name(self) -> str:
        """The stage's name."""
        return str(self.stage.config.name)

    def info(self, run: RunFolder) -> StageInfo:
        """Returns what life-cycle hooks are told."""
        return StageInfo(
            self.name, self.number, run.stage_folder(self.number, self.name), self.stage.trains(), self.stage.uses()
        )


def make_plan(chain: Chain, run: RunFolder, until: str | None = None) -> list[StagePlan]:
    """Plans a run. Reads small files only; writes nothing and imports no torch.

    Args:
        chain: The chain.
        run: The run folder, which need not exist.
        until: The last stage to run; None for all.

    Raises:
        ConfigError: There is no stage called `until`.
    """
    names = [stage.config.name for stage in chain.stages]
    if until is not None and until not in names:
        raise ConfigError(f"no stage '{until}'. {suggest(until, names)}", place="--until")
    identities: dict[str, Any] = {}
    contents: dict[str, str | None] = {}
    trained_by: dict[str, str] = {}
    retrained: set[str] = set()
    outputs: dict[str, str] = {}
    plans: list[StagePlan] = []
    past_end = False
    for number, stage in enumerate(chain.stages, start=1):
        name = stage.config.name
        used = [*stage.trains(), *stage.uses()]
        first_used = [m for m in used if m not in identities]
        for modality in first_used:
            identities[modality] = _initial_identity(chain, modality, identities)
        stage_file = run.find_stage(name) / "stage.json"
        record = read_json(stage_file)
        stored = record if isinstance(record, dict) else {}
        inputs = _inputs(chain, stage, identities, contents, stored.get("inputs", {}))
        fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        provides = tuple(dict.fromkeys([*stage.trains(), *first_used]))
        action, why = _action(run, name, stored, inputs, fingerprint, provides)
        if stage_file.is_file() and not stored:
            why = "its stage.json is damaged"
        # A stage whose weights are lost is repeated with the same inputs. On an accelerator the new weights
        # differ in their last bits, and what was aligned to the old ones would be aligned to nothing.
        hashes = stored.get("outputs", {})
        moved = [m for m in used if m in retrained]
        moved += [m for m in stage.uses() if m in outputs and hashes.get(m, outputs[m]) != outputs[m]]
        if moved and action in ("done", "continue"):
            action, why = "run", f"'{moved[0]}' is retrained by stage '{trained_by[moved[0]]}'"
        if past_end and action != "done":
            action, why = "later", f"comes after --until {until}"
        past_end = past_end or name == until
        plans.append(StagePlan(number, stage, inputs, fingerprint, action, why, tuple(first_used)))
        for modality in stage.trains():
            identities[modality] = {"stage": name, "fingerprint": fingerprint}
            trained_by[modality] = name
            if action != "done":
                retrained.add(modality)
            elif modality in hashes:
                outputs[modality] = hashes[modality]
    return plans


def _initial_identity(chain: Chain, modality: str, identities: Mapping[str, Any]) -> dict[str, Any]:
    start = chain.modalities[modality].modality.config.init_from
    if start is None:
        return {"initial": True}
    return {
        "init_from": start,
        "config": _settings(chain, start),
        "weights": identities.get(start) or _initial_identity(chain, start, identities),
    }


def _settings(chain: Chain, modality: str) -> dict[str, Any]:
    """Returns a modality's settings; local weights by their path from the chain file, so that a project can move."""
    settings: dict[str, Any] = chain.modalities[modality].modality.config.model_dump(mode="json")
    base = chain.path.absolute().parent
    if settings["pretrained"] is not None and Path(settings["pretrained"]).is_relative_to(base):
        settings["pretrained"] = str(Path(settings["pretrained"]).relative_to(base))
    return settings


def _inputs(
    chain: Chain,
    stage: StageKind[Any],
    identities: Mapping[str, Any],
    contents: dict[str, str | None],
    stored: Mapping[str, Any],
) -> dict[str, Any]:
    config = stage.config.model_dump(mode="json")
    before = stored.get("data") or {}
    data: dict[str, Any] | None = None
    if isinstance(stage.config.data, str):
        data = _data_inputs(chain, stage, stage.config.data, contents, before)
    elif stage.config.data is not None:
        data = {n: _data_inputs(chain, stage, n, contents, before.get(n) or {}) for n in stage.config.data_sets}
    if config.get("anchor_cache") != "float16":
        config.pop("anchor_cache", None)  # from the cache or live, embeddings are the same
    inputs = {
        "stage": {k: v for k, v in config.items() if k not in _WITHOUT_EFFECT},
        "data": data,
        "modalities": {m: _settings(chain, m) for m in (*stage.trains(), *stage.uses())},
        "weights": {m: identities[m] for m in (*stage.trains(), *stage.uses())},
        "seed": chain.config.seed,
        "embed_dim": chain.config.embed_dim,
        "mixed_precision": chain.config.mixed_precision,
    }
    normal: dict[str, Any] = json.loads(json.dumps(inputs))
    return normal


def _data_inputs(
    chain: Chain, stage: StageKind[Any], name: str, contents: dict[str, str | None], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a stage depends on of one of its data sets."""
    source = chain.sources[name]
    if name not in contents:
        try:
            contents[name] = source.fingerprint()
        except DataError:
            contents[name] = None
    # Data that is gone is no reason to undo what was trained on it.
    content = contents[name] or stored.get("content")
    data = {"source": source.name, "split": source.config.model_dump(mode="json")["split"], "content": content}
    # Of the mapping only what this stage reads: a field more for a later stage changes nothing here.
    for key, mapping in (("fields", source.config.fields), ("labels", source.config.labels)):
        data[key] = {m: mapping[m] for m in (*stage.trains(), *stage.uses()) if m in mapping} if mapping else {}
    return data


def _action(
    run: RunFolder,
    name: str,
    stored: Mapping[str, Any],
    inputs: Mapping[str, Any],
    fingerprint: str,
    provides: tuple[str, ...],
) -> tuple[Action, str]:
    folder = run.find_stage(name)
    if not stored:
        return "run", "has not been run"
    if stored.get("fingerprint") == fingerprint:
        if stored.get("status") == "done":
            missing = [m for m in provides if not run.has_weights(folder, m)]
            return ("run", f"the weights of {', '.join(missing)} are gone") if missing else ("done", "nothing changed")
        state = checkpoint.read_state(folder, fingerprint)
        if state is not None:
            return "continue", f"was interrupted; goes on from step {state.step}"
        return "run", "was interrupted before its first checkpoint"
    changes = list(_changes(stored.get("inputs", {}), inputs))
    shown = "; ".join(changes[:_SHOWN_CHANGES])
    more = f"; and {len(changes) - _SHOWN_CHANGES} more" if len(changes) > _SHOWN_CHANGES else ""
    return "run", (shown + more) or "its inputs changed"


def _changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yields what differs between two sets of inputs, in words."""
    if old == new:
        return
    parts = path.split(".")
    if parts[0] == "weights" and len(parts) == 2:
        trained_by = new.get("stage") if isinstance(new, dict) else None
        yield f"'{parts[1]}' is retrained by stage '{trained_by}'" if trained_by else f"'{parts[1]}' starts otherwise"
    elif parts[0] == "data" and parts[-1] == "content":
        yield f"the data of '{parts[1]}' changed" if len(parts) > 2 else "the data changed"
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and isinstance(new[0], dict):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _changes(before, after, f"{path}[{i}]")
    else:
        yield f"{path.removeprefix('stage.')}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
