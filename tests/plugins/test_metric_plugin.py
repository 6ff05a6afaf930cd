"""A metric of a plugin in a run: its figures, and when they are measured again."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

METRIC = """\
    from geobind_core import Metric, MetricConfig, hookimpl

    class WithinConfig(MetricConfig):
        km: float = 100.0

    class Within(Metric[WithinConfig]):
        name = "within"
        Config = WithinConfig

        def compute(self, retrieval):
            assert retrieval.query_places.shape == retrieval.gallery_places.shape == (retrieval.gallery_size, 2)
            first = retrieval.gallery_places[retrieval.nearest]
            near = abs(first - retrieval.query_places).max(axis=1) * 111 <= self.config.km
            return {f"within_{self.config.km:g}_km": near.mean()}

    class Broken(Metric):
        name = "wilted"

        def compute(self, retrieval):
            raise ValueError("wilted")

    class Sorts(Metric):
        name = "sorts"

        def compute(self, retrieval):
            retrieval.ranks.sort()

    class Leaves(Metric):
        name = "leaves"

        def compute(self, retrieval):
            raise SystemExit(3)

    @hookimpl
    def geobind_register_metrics():
        return [Within, Broken, Sorts, Leaves]
    """


def test_in_a_run(add: Any, moor: Path, geobind: Callable[..., CompletedProcess[str]]) -> None:
    add("within", METRIC)

    def run(metrics: str) -> tuple[dict[str, Any], CompletedProcess[str]]:
        done = geobind("run", "chain.yaml", "--set", f"evaluate.metrics={metrics}")
        assert done.returncode == 0, done.stderr
        pairs = json.loads((moor / "runs/chain/metrics.json").read_text())["pairs"]
        return pairs["heather_to_gorse"], done

    without, _ = run("[]")
    found, done = run("[median_km, wilted, {name: within, km: 20000}]")
    assert "measuring: " in done.stderr
    warning = (
        "metric wilted of geobind-plugin-within 1.0, heather_to_gorse: ValueError: wilted; its figures are left out"
    )
    assert f"warning: {warning}" in done.stderr
    assert found == {**without, "within_20000_km": 1.0, **{k: found[k] for k in ("median_km", "chance_median_km")}}
    header, *_ = done.stdout.splitlines()
    assert header.split()[-5:] == ["median_km", "within_20000_km", "gallery", "trained", "in"]

    assert "measured already" in run("[median_km, wilted, {name: within, km: 20000}]")[1].stderr
    assert run("[{name: within, km: 0.001}]")[0]["within_0.001_km"] < 1
    # From the chain.yaml of the run folder, with the settings.
    done = geobind("eval", "runs/chain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"]["heather_to_gorse"]["within_0.001_km"] < 1
    # What another version says of the same may be something else.
    add.info("within").rename(add.info("within", "1.1"))
    metadata = add.info("within", "1.1") / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert "measuring: " in run("[{name: within, km: 0.001}]")[1].stderr


def test_one_that_changes_the_ranks_or_leaves_costs_its_own_figures(
    add: Any, moor: Path, geobind: Callable[..., CompletedProcess[str]]
) -> None:
    add("within", METRIC)
    done = geobind("run", "chain.yaml", "--set", "evaluate.metrics=[sorts, leaves, median_km]")
    assert done.returncode == 0, done.stderr
    assert "metric sorts of geobind-plugin-within 1.0, heather_to_gorse: ValueError: " in done.stderr
    assert "read-only; its figures are left out" in done.stderr
    assert "metric leaves of geobind-plugin-within 1.0, heather_to_gorse: SystemExit: 3; its figures" in done.stderr
    assert "median_km" in json.loads((moor / "runs/chain/metrics.json").read_text())["pairs"]["heather_to_gorse"]
