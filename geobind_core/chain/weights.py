"""The weights of a chain: what a stage provides is stored with it, and `space/` is put together from that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geobind_core.chain.model import Chain
from geobind_core.chain.plan import StagePlan
from geobind_core.chain.run_folder import STAGE_FILE, RunFolder
from geobind_core.files import read_json, write_json

if TYPE_CHECKING:
    from geobind_core.chain.encoders import Encoders

_INITIAL = "initial"


def store_outputs(run: RunFolder, plan: StagePlan, encoders: Encoders) -> dict[str, str]:
    """Stores what a stage provides; returns the hash of each of its networks."""
    folder, stage = run.stage_folder(plan.number, plan.name), plan.stage
    trained = set(stage.trains())
    hashes = {name: encoders.hash(name) for name in (*stage.trains(), *stage.uses())}
    for name in plan.provides:
        partners = [b if a == name else a for a, b in stage.pairs() if name in (a, b)]
        encoders.store(
            name,
            run.weights(folder, name),
            stage=plan.name if name in trained else None,
            aligned_to={p: hashes[p] for p in partners} if name in trained else {},
        )
    return hashes


def unused_with_weights(chain: Chain) -> list[str]:
    """Returns the modalities that no stage touches and that come with weights: text, with CLIP."""
    used = {name for stage in chain.stages for name in (*stage.trains(), *stage.uses())}
    return [n for n, m in chain.modalities.items() if n not in used and m.modality.config.pretrained is not None]


def is_stored_initially(chain: Chain, run: RunFolder, name: str) -> bool:
    """Whether a modality that no stage touches is stored as it is configured now."""
    folder = run.stage_folder(0, _INITIAL)
    stored = (read_json(folder / STAGE_FILE) or {}).get("modalities", {})
    config = chain.modalities[name].modality.config.model_dump(mode="json")
    return stored.get(name) == config and run.has_weights(folder, name)


def store_initially(chain: Chain, run: RunFolder, encoders: Encoders, unused: Sequence[str]) -> None:
    """Stores the modalities that no stage touches, before the first stage; those that are stored already stay."""
    if not unused:
        return
    folder = run.claim_stage_folder(0, _INITIAL)
    for name in unused:
        if not is_stored_initially(chain, run, name):
            encoders.store(name, run.weights(folder, name), stage=None, aligned_to={})
    write_json(
        folder / STAGE_FILE,
        {
            "format": 1,
            "status": "done",
            "modalities": {n: chain.modalities[n].modality.config.model_dump(mode="json") for n in unused},
        },
    )


def _weight_folders(run: RunFolder, plans: Sequence[StagePlan], unused: Sequence[str]) -> dict[str, Any]:
    folders = {name: run.weights(run.stage_folder(0, _INITIAL), name) for name in unused}
    for plan in plans:
        folders |= {name: run.weights(run.find_stage(plan.name), name) for name in plan.provides}
    return folders


def space_is_whole(chain: Chain, run: RunFolder, plans: Sequence[StagePlan], unused: Sequence[str]) -> bool:
    """Whether `space/` holds just what the stages have stored."""
    if not all(is_stored_initially(chain, run, name) for name in unused):
        return False
    record = read_json(run.space / "space.json") or {}
    wanted = {name: read_json(folder / "config.json") for name, folder in _weight_folders(run, plans, unused).items()}
    found = record.get("modalities"), record.get("binding"), record.get("pairs")
    return found == (wanted, chain.config.binding, _trained_pairs(plans))


def _trained_pairs(plans: Sequence[StagePlan]) -> list[dict[str, Any]]:
    return [{"modalities": list(pair), "stage": plan.name} for plan in plans for pair in plan.stage.pairs()]


def assemble_space(chain: Chain, run: RunFolder, plans: Sequence[StagePlan], unused: Sequence[str]) -> None:
    """Puts `space/` together from what these stages provide, with its lineage."""
    from geobind_core.space.lineage import ModalityRecord, SpaceRecord
    from geobind_core.space.space import CONFIG, assemble

    folders = _weight_folders(run, plans, unused)
    records = {n: ModalityRecord.model_validate(read_json(folder / CONFIG)) for n, folder in folders.items()}
    embed_dim = read_json(run.find_stage(plans[0].name) / STAGE_FILE)["embed_dim"]
    lineage = {"embed_dim": embed_dim, "binding": chain.config.binding, "pairs": _trained_pairs(plans)}
    assemble(run.space, SpaceRecord.model_validate({**lineage, "modalities": records}), folders)
