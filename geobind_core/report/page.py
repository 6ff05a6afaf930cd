"""`report.html`: one self-contained page about a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from geobind_core.files import write_text
from geobind_core.space.lineage import SpaceRecord


def write_report(run: Path, record: SpaceRecord, metrics: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
        run: The run folder; curves are read from its stages' logs.
        record: The space's lineage.
        metrics: The content of `metrics.json`.
    """
    environment = Environment(
        loader=PackageLoader("geobind_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = _shown_recall(metrics)
    page = environment.get_template("report.html.jinja").render(
        name=run.absolute().name,
        record=record,
        metrics=metrics,
        shown=shown,
        names=[name for name in record.modalities if any(f"{name}_to_" in p for p in metrics["pairs"])],
        stages=[{**stage, "curve": _curve(run, stage)} for stage in metrics["stages"]],
        shade=_shade,
        environment={"Python": platform.python_version(), **_versions(record)},
    )
    write_text(run / "report.html", page)


def _shown_recall(metrics: Mapping[str, Any]) -> str:
    recalls = [key for key in next(iter(metrics["pairs"].values())) if key.startswith("recall@")]
    return "recall@10" if "recall@10" in recalls else recalls[-1]


def _shade(value: float) -> str:
    """Returns the background of a cell of the matrix: white at 0, blue at 1, text still readable."""
    return f"background: rgb({round(255 - 155 * value)}, {round(255 - 95 * value)}, 255)"


def _versions(record: SpaceRecord) -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("geobind", "torch", "accelerate")}
    return found | {m.distribution: m.version for m in record.modalities.values()}


def _curve(run: Path, stage: Mapping[str, Any]) -> str:
    """Returns loss and logit scale over the steps as an SVG picture."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    folders = sorted((run / "stages").glob(f"*-{stage['name']}/log.jsonl")) if "name" in stage else []
    records = [json.loads(line) for line in folders[0].read_text(encoding="utf-8").splitlines()] if folders else []
    steps = [r for r in records if "loss" in r]
    if not steps:
        return ""
    figure, left = pyplot.subplots(figsize=(6.4, 2.4), layout="constrained")
    left.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="#1f4e9c")
    left.set_xlabel("step")
    left.set_ylabel("loss [nats]", color="#1f4e9c")
    if "logit_scale" in steps[0]:
        right = left.twinx()
        right.plot([r["step"] for r in steps], [r["logit_scale"] for r in steps], color="#b35c00")
        right.set_ylabel("logit scale", color="#b35c00")
    picture = StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    svg = picture.getvalue()
    return svg[svg.index("<svg") :]
