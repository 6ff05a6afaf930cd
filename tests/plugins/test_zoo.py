"""Eight kinds of broken plugin installed at once: everything that needs none of them works as if they were absent."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

from geobind_core.plugins import hooks

Done = subprocess.CompletedProcess[str]
COMMAND = (sys.executable, "-m", "geobind_core.cli")

NAMED = """\
    from geobind_core import Modality, hookimpl
    class Named(Modality):
        name = "{name}"
    @hookimpl
    def geobind_register_modalities():
        return [Named]
    """
ZOO: dict[str, tuple[str | None, str, str]] = {
    "absent": ("import a_library_that_is_not_there\n", "broken", "No module named 'a_library_that_is_not_there'"),
    "leaver": ("import sys\nsys.exit(0)\n", "broken", "SystemExit: 0"),
    "dyslexic": (
        NAMED.format(name="dyslexic").replace("register_modalities", "regsiter_modalities"),
        "broken",
        "no hook 'geobind_regsiter_modalities'; did you mean 'geobind_register_modalities'?",
    ),
    "raiser": (
        NAMED.format(name="raiser").replace("return [Named]", "raise OSError('[/no licence]')"),
        "broken",
        "OSError: [/no licence]",
    ),
    "twin_a": (NAMED.format(name="twin"), "conflict", "modality 'twin' is also provided by geobind-plugin-twin_b 0.7"),
    "twin_b": (NAMED.format(name="twin"), "conflict", "modality 'twin' is also provided by geobind-plugin-twin_a 0.7"),
    "future": (
        f"geobind_api = {hooks.API_VERSION + 1}\n" + dedent(NAMED.format(name="future")),
        "broken",
        f"it is written for version {hooks.API_VERSION + 1} of the plugin API; this GeoBind works with version",
    ),
    "ghost": (None, "broken", "only its metadata is: what is left of an installation"),
    "heavy": ("import torch\n" + dedent(NAMED.format(name="heavy")), "loaded", "slow: importing it imports torch"),
}


def fill(add: Any) -> None:
    """Installs the zoo."""
    for name, (source, _, _) in ZOO.items():
        add(name, source, version="0.7")


def process(add: Any, folder: Path, *arguments: str) -> Done:
    """Calls the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(add.folder)}
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


class TestZoo:
    def test_each_is_reported_with_its_distribution_and_cause(self, add: Any, moor: Path) -> None:
        fill(add)
        done = process(add, moor, "plugins", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        rows = {row["distribution"]: row for row in json.loads(done.stdout)}
        for name, (_, status, cause) in ZOO.items():
            row = rows[f"geobind-plugin-{name}"]
            assert (row["version"], row["status"], row["entry_points"]) == ("0.7", status, [name])
            assert cause in "; ".join([row["error"], *row["warnings"]])
        healthy = rows["geobind-plugin-heath"]
        assert (healthy["status"], healthy["error"], healthy["warnings"]) == ("loaded", "", [])
        assert healthy["provides"] == {"modality": ["gorse", "heather"]}

    def test_so_it_is_in_the_table(self, add: Any, geobind: Callable[..., Done]) -> None:
        fill(add)
        done = geobind("plugins")
        assert (done.returncode, done.stderr) == (0, "")
        text = " ".join(done.stdout.split())
        for name, (_, status, _) in ZOO.items():
            assert f"geobind-plugin-{name} 0.7 {status}" in text
        assert "OSError: [/no licence]" in text

    def test_help_and_validate_say_the_same_with_and_without(
        self, add: Any, moor: Path, geobind: Callable[..., Done]
    ) -> None:
        calls = (("--help",), ("validate", "chain.yaml"), ("run", "chain.yaml", "--dry-run"))
        without = [geobind(*call) for call in calls]
        fill(add)
        for call, before in zip(calls, without, strict=True):
            after = geobind(*call)
            assert (after.returncode, after.stdout, after.stderr) == (0, before.stdout, before.stderr), call
        assert "geobind_plugin_heath" in sys.modules
        assert not [name for name in ZOO if f"geobind_plugin_{name}" in sys.modules]

    def test_a_chain_gives_the_same_with_and_without(self, add: Any, moor: Path, geobind: Callable[..., Done]) -> None:
        def results(out: str) -> tuple[dict[str, str], dict[str, Any]]:
            done = geobind("run", "chain.yaml", "--out", out)
            assert done.returncode == 0, done.stderr
            assert "warning" not in done.stderr
            space = json.loads((moor / out / "space/space.json").read_text())
            metrics = json.loads((moor / out / "metrics.json").read_text())
            return {name: m["content_hash"] for name, m in space["modalities"].items()}, metrics["pairs"]

        without = results("without")
        fill(add)
        assert results("with") == without
        assert without[1]["heather_to_gorse"]["median_km"] > 0

    def test_a_chain_that_needs_one_says_whose_it_is(self, add: Any, geobind: Callable[..., Done]) -> None:
        fill(add)
        for plugin, words in {
            "twin_a": "no modality 'twin_a'",
            "twin": "conflict: modality 'twin' is provided by geobind-plugin-twin_a 0.7 and geobind-plugin-twin_b 0.7",
            "leaver": "modality 'leaver' is provided by geobind-plugin-leaver 0.7, which cannot be loaded: SystemExit",
            "ghost": "modality 'ghost' is provided by geobind-plugin-ghost 0.7, which cannot be loaded: its module",
        }.items():
            done = geobind("validate", "chain.yaml", "--set", f"modalities.gorse.plugin={plugin}")
            assert (done.returncode, done.stdout) == (2, "")
            assert words in done.stderr


def test_a_raising_life_cycle_hook_stops_no_run_and_is_reported(
    add: Any, moor: Path, geobind: Callable[..., Done]
) -> None:
    onlooker = """\
        from geobind_core import hookimpl
        @hookimpl
        def geobind_stage_started(stage):
            raise ValueError("a thorn")
        @hookimpl
        def geobind_stage_finished(summary):
            raise SystemExit
        """
    add("thorn", onlooker)
    done = geobind("run", "chain.yaml", "--set", "plugins=[thorn]")
    assert done.returncode == 0, done.stderr
    for words in (
        "warning: geobind-plugin-thorn:geobind_plugin_thorn: geobind_stage_started: ValueError: a thorn",
        "geobind_stage_finished: SystemExit",
    ):
        assert words in " ".join(done.stderr.split())
    assert (moor / "runs/chain/metrics.json").is_file()


def test_help_imports_none_of_twenty_plugins_and_is_there_at_once(add: Any, tmp_path: Path) -> None:
    """Beside what any command of typer takes on this machine at this moment, as in tests/test_cli.py."""
    for i in range(20):
        marked = f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        add(f"p{i}", marked + dedent(NAMED.format(name=f"p{i}")))
    environment = {**os.environ, "PYTHONPATH": str(add.folder)}

    def seconds(command: list[str]) -> float:
        started = time.perf_counter()
        subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - started

    floor = [sys.executable, "-c", "import typer, typer.core"]
    taken = [(seconds([*COMMAND, "--help"]), seconds(floor)) for _ in range(5)]
    assert min(ours for ours, _ in taken) < 2.5 * min(least for _, least in taken)
    assert not (tmp_path / "imported").exists()
    process(add, tmp_path, "plugins")
    assert (tmp_path / "imported").exists()
