"""Running a chain: stage after stage; what is done is skipped; then the space is measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from geobind_core.chain.datasets import DataSets
from geobind_core.chain.environment import environment
from geobind_core.chain.launch import Launch, launched
from geobind_core.chain.leaks import check_leaks
from geobind_core.chain.measure import measure, require_measurable
from geobind_core.chain.model import Chain
from geobind_core.chain.plan import StagePlan, make_plan
from geobind_core.chain.run_folder import STAGE_FILE, RunFolder
from geobind_core.chain.weights import (
    assemble_space,
    is_stored_initially,
    space_is_whole,
    store_initially,
    store_outputs,
    unused_with_weights,
)
from geobind_core.errors import RunFolderError
from geobind_core.files import read_json, write_json
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.progress import Reporter, counted, duration
from geobind_core.training import checkpoint

if TYPE_CHECKING:
    from geobind_core.chain.encoders import Encoders


def run_chain(chain: Chain, run: RunFolder, reporter: Reporter, until: str | None = None) -> dict[str, Any] | None:
    """Runs what is not done of a chain, and measures the space.

    Args:
        chain: The chain.
        run: Its run folder.
        reporter: Where progress goes.
        until: The last stage to run; None for all, and then the space is measured.

    Returns:
        The metrics, or None when the run ends before the last stage.

    Raises:
        GeoBindError: Something is at fault. What was finished before stays.
    """
    launch = launched()
    if not launch.is_main:
        reporter = Reporter(quiet=True)
    with run.locked() if launch.is_main else nullcontext():
        plans = launch.main_first(lambda: make_plan(chain, run, until))
        launch.main_only(lambda: run.write_chain(resolved_document(chain), chain.path))
        try:
            leaks = _run_stages(chain, run, reporter, plans, launch)
        except OSError as error:
            if error.filename is not None and str(error.filename).startswith(str(run.path)):
                raise RunFolderError(f"cannot be written: {error.strerror}.", place=str(error.filename)) from error
            raise
        if any(plan.action == "later" for plan in plans):
            reporter.say(f"stopped after stage '{until}', as asked; run again without --until to go on")
            return None
        # One process measures; there is nothing left for the others.
        return measure(chain, run, DataSets(chain, reporter), reporter, leaks=leaks) if launch.is_main else None


def resolved_document(chain: Chain) -> dict[str, Any]:
    """Returns the configuration with every default filled in, as it is written to `chain.yaml`."""
    config = chain.config.model_dump(mode="json", exclude={"modalities", "data", "stages"})
    evaluate = config.pop("evaluate")
    return {
        **config,
        "name": chain.name,
        "modalities": {n: m.modality.config.model_dump(mode="json") for n, m in chain.modalities.items()},
        "data": {n: s.config.model_dump(mode="json") for n, s in chain.sources.items()},
        "stages": [stage.config.model_dump(mode="json") for stage in chain.stages],
        "evaluate": evaluate,
    }


def _run_stages(
    chain: Chain, run: RunFolder, reporter: Reporter, plans: Sequence[StagePlan], launch: Launch
) -> list[str] | None:
    """Runs what is pending. Returns what was warned of held-out rows; None where nothing had to be looked at."""
    plans = [plan for plan in plans if plan.action != "later"]
    pending = [plan for plan in plans if plan.action != "done"]
    for plan in plans:
        if plan.action == "done":  # and may have been killed before it had tidied up
            launch.main_only(partial(checkpoint.remove, run.find_stage(plan.name)))
    unused = unused_with_weights(chain)
    if launch.main_first(lambda: not pending and space_is_whole(chain, run, plans, unused)):
        for plan in plans:
            reporter.say(f"stage {plan.number}/{len(chain.stages)} {plan.name}: done ({plan.why})")
        return None

    reporter.say("preparing: data, networks, weights")
    datasets = DataSets(chain, reporter)
    bound = [*unused, *(name for plan in plans for name in plan.provides)]
    measured = launch.main_first(lambda: _check_data(chain, datasets, pending, bound))
    leaks: list[str] = []
    launch.main_only(lambda: leaks.extend(check_leaks(chain, datasets, measured, reporter)))
    # Only now, for it imports torch: what is wrong with the data is said at once.
    from geobind_core.chain.encoders import Encoders

    _try_reading(datasets, pending)  # by all processes: each imports what decodes, and at the same time
    done = [plan for plan in plans if plan.action == "done"]
    embed_dim = None
    if done:
        embed_dim = int(read_json(run.find_stage(done[0].name) / STAGE_FILE)["embed_dim"])
    encoders = Encoders(chain, datasets, embed_dim)
    fresh = [name for plan in pending for name in plan.starts]
    fresh += [name for name in unused if not is_stored_initially(chain, run, name)]
    encoders.preflight(fresh, trained={name for plan in plans for name in plan.stage.trains()})
    launch.main_only(lambda: store_initially(chain, run, encoders, unused))

    for plan in plans:
        folder = launch.main_first(partial(run.claim_stage_folder, plan.number, plan.name))
        if plan.action == "done":
            reporter.say(f"stage {plan.number}/{len(chain.stages)} {plan.name}: done ({plan.why})")
            for name in plan.provides:
                encoders.adopt(name, run.weights(folder, name))
        else:
            _run_stage(chain, run, reporter, plan, encoders, datasets, launch)
        if plan.action != "done" or plan is plans[-1]:
            so_far = [p for p in plans if p.number <= plan.number]
            launch.main_only(partial(assemble_space, chain, run, so_far, unused))
    return leaks


def _check_data(chain: Chain, datasets: DataSets, pending: Sequence[StagePlan], bound: Sequence[str]) -> list[str]:
    """Makes sure that there is data for every stage and for the evaluation: now, and not after hours of training.

    Returns:
        The data sets that are measured on.
    """
    for plan in pending:
        for name in plan.stage.config.data_sets:
            datasets.require_rows(name, "train", [*plan.stage.trains(), *plan.stage.uses()])
    return require_measurable(chain, datasets, bound)


def _try_reading(datasets: DataSets, pending: Sequence[StagePlan]) -> None:
    """Makes sure that what the stages need can be read at all."""
    for plan in pending:
        # Where most rows may be bad, a few bad ones say nothing.
        if getattr(plan.stage.config, "max_bad_samples", 0.0) < 0.5:
            for name in plan.stage.config.data_sets:
                datasets.require_readable(name, "train", [*plan.stage.trains(), *plan.stage.uses()])


def _run_stage(
    chain: Chain,
    run: RunFolder,
    reporter: Reporter,
    plan: StagePlan,
    encoders: Encoders,
    datasets: DataSets,
    launch: Launch,
) -> None:
    stage = plan.stage
    reporter.say(f"stage {plan.number}/{len(chain.stages)} {plan.name}: {plan.why}", style="bold")
    folder = run.stage_folder(plan.number, plan.name)
    record: dict[str, Any] = {
        "format": 1,
        "name": plan.name,
        "kind": stage.name,
        "status": "running",
        "fingerprint": plan.fingerprint,
        "trains": stage.trains(),
        "anchors": stage.uses(),
        "inputs": plan.inputs,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def begin() -> None:
        if plan.action == "run":
            checkpoint.remove(folder)
        write_json(folder / STAGE_FILE, record)
        _notify(chain, reporter, "geobind_stage_started", stage=plan.info(run))

    launch.main_only(begin)
    started = time.monotonic()
    names = (*stage.trains(), *stage.uses())
    result = stage.run(
        StageContext(
            run=chain.config,
            folder=folder,
            fingerprint=plan.fingerprint,
            modalities={name: chain.modalities[name].modality for name in names},
            encoders={name: encoders.get(name) for name in names},
            data=datasets.of_stage(stage.config),
            make_loss=chain.make_loss,
            reporter=reporter,
        )
    )

    def end() -> None:
        hashes = store_outputs(run, plan, encoders)
        seconds = time.monotonic() - started
        ending = {
            "status": "done",
            "embed_dim": encoders.embed_dim,
            "outputs": hashes,
            "environment": environment(chain.config),
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "summary": result.summary,
        }
        write_json(folder / STAGE_FILE, record | ending)
        checkpoint.remove(folder)
        reporter.say(f"  done in {duration(seconds)}{_bad(result.summary)}")
        _notify(chain, reporter, "geobind_stage_finished", stage=plan.info(run), summary=result.summary)

    launch.main_only(end)


def _bad(summary: dict[str, Any]) -> str:
    bad = summary.get("bad_samples") or []
    if not bad:
        return ""
    return (
        f"; {counted(len(bad), 'unreadable sample')} skipped, named in log.jsonl: "
        + ", ".join(bad[:3])
        + (", …" if len(bad) > 3 else "")
    )


def _notify(chain: Chain, reporter: Reporter, hook: str, **arguments: Any) -> None:
    known = len(chain.plugins.warnings)
    chain.plugins.notify(hook, **arguments)
    for warning in chain.plugins.warnings[known:]:
        reporter.warn(warning)
