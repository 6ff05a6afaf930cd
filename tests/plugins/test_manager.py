"""Plugins are found, loaded when they are needed, and kept from harming each other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from geobind_core.chain.builtin import plugin_manager
from geobind_core.display import plugin_rows
from geobind_core.errors import PluginError
from geobind_core.plugins.discovery import PluginRecord
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.registry import REGISTER_HOOKS
from geobind_core.plugins.stage_kind import StageInfo

Add = Callable[..., None]


def modality(*names: str) -> str:
    """Returns the source of a plugin that provides modalities."""
    classes = "".join(f"class M{i}(Modality):\n    name = {name!r}\n" for i, name in enumerate(names))
    listed = ", ".join(f"M{i}" for i in range(len(names)))
    return (
        f"from geobind_core import Modality, hookimpl\n{classes}"
        f"@hookimpl\ndef geobind_register_modalities():\n    return [{listed}]\n"
    )


def record(plugins: PluginManager, name: str) -> PluginRecord:
    (found,) = [r for r in plugins.records if r.distribution == f"geobind-plugin-{name}"]
    return found


def imported(name: str) -> bool:
    return f"geobind_plugin_{name}" in sys.modules


class TestLoading:
    def test_finding_imports_nothing(self, add: Add) -> None:
        add("moss", modality("moss"), version="2.1")
        found = record(PluginManager(), "moss")
        assert (found.status, found.version, found.names) == ("available", "2.1", ["moss"])
        assert not imported("moss")

    def test_only_the_one_that_is_asked_for_is_imported(self, add: Add) -> None:
        add("moss", modality("moss"))
        add("fern", modality("fern"))
        plugins = PluginManager()
        found = plugins.find("modality", "moss")
        assert (found.name, found.distribution, found.version) == ("moss", "geobind-plugin-moss", "1.0")
        assert found.cls.name == "moss"
        assert (imported("moss"), imported("fern")) == (True, False)
        assert (record(plugins, "moss").status, record(plugins, "fern").status) == ("loaded", "available")

    def test_an_entry_point_may_be_named_otherwise_than_its_modality(self, add: Add) -> None:
        add("greens", modality("moss"), entry_points={"vegetables": "geobind_plugin_greens"})
        assert PluginManager().find("modality", "moss").distribution == "geobind-plugin-greens"

    def test_an_entry_point_may_be_spelled_otherwise_than_its_modality(self, add: Add) -> None:
        add("moss", modality("street_view"), entry_points={"Street-View": "geobind_plugin_moss"})
        add("fern", modality("fern"))
        assert PluginManager().find("modality", "street_view").distribution == "geobind-plugin-moss"
        assert not imported("fern")

    def test_several_names_of_one_module_are_one_plugin(self, add: Add) -> None:
        module = "geobind_plugin_greens"
        add("greens", modality("moss", "fern"), entry_points={"moss": module, "fern": module})
        plugins = PluginManager()
        assert plugins.find("modality", "moss").cls is not plugins.find("modality", "fern").cls
        assert sorted(record(plugins, "greens").names) == ["fern", "moss"]
        assert len(plugins.registry.of("geobind-plugin-greens")) == 2

    def test_an_entry_point_may_name_an_object(self, add: Add) -> None:
        source = (
            "from geobind_core import Modality, hookimpl\n"
            "class Moss(Modality):\n    name = 'moss'\n"
            "class Plugin:\n    @hookimpl\n    def geobind_register_modalities(self):\n        return [Moss]\n"
            "plugin = Plugin()\n"
        )
        add("moss", source, entry_points={"moss": "geobind_plugin_moss:plugin"})
        assert PluginManager().find("modality", "moss").cls.name == "moss"

    def test_every_kind_can_be_provided(self, add: Add) -> None:
        source = """\
            from geobind_core import Loss, Metric, Modality, Source, StageKind, hookimpl

            class MossModality(Modality):
                name = "moss"
            class MossLoss(Loss):
                name = "moss"
            class MossSource(Source):
                name = "moss"
            class MossStage(StageKind):
                name = "moss"
            class MossMetric(Metric):
                name = "moss"

            @hookimpl
            def geobind_register_modalities():
                return [MossModality]
            @hookimpl
            def geobind_register_losses():
                return (MossLoss,)
            @hookimpl
            def geobind_register_sources():
                yield MossSource
            @hookimpl
            def geobind_register_stage_kinds():
                return {MossStage}
            @hookimpl
            def geobind_register_metrics():
                return [MossMetric]
            @hookimpl
            def geobind_register_commands():
                return [("moss", MossModality)]
            """
        add("moss", source)
        plugins = PluginManager()
        found = {kind: plugins.find(kind, "moss").cls.__name__ for kind in REGISTER_HOOKS}
        assert found == {
            "modality": "MossModality",
            "loss": "MossLoss",
            "source": "MossSource",
            "stage_kind": "MossStage",
            "metric": "MossMetric",
            "command": "MossModality",
        }

    def test_a_distribution_without_a_name_harms_nobody(self, add: Add, tmp_path: Path) -> None:
        add("moss", modality("moss"))
        (tmp_path / "installed" / "geobind_plugin_moss-1.0.dist-info" / "METADATA").unlink()
        add("fern", modality("fern"))
        assert PluginManager().find("modality", "fern").cls.name == "fern"


BROKEN = {
    "import": ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that"),
    "syntax": ("def (:\n", "SyntaxError: "),
    "exit": ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence"),
    "raises": ("raise ValueError('[/not markup]')\n", "ValueError: [/not markup]"),
    "misspelled hook": (
        modality("moss").replace("register_modalities", "register_modality"),
        "no hook 'geobind_register_modality'; did you mean 'geobind_register_modalities'?",
    ),
    "misspelled prefix": (
        modality("moss").replace("geobind_register", "gebind_register"),
        "no hook 'gebind_register_modalities'; did you mean 'geobind_register_modalities'?",
    ),
    "unmarked hook": (
        modality("moss").replace("@hookimpl\n", ""),
        "'geobind_register_modalities' is not decorated with @hookimpl",
    ),
    "argument that no hook has": (
        modality("moss").replace("modalities()", "modalities(config)"), "TypeError: ",
    ),
    "argument that the life-cycle hook has not": (
        modality("moss") + "@hookimpl\ndef geobind_stage_started(stages):\n    pass\n", "PluginValidationError: ",
    ),
    "raising hook": (
        modality("moss").replace("return [M0]", "return [M0, 1 / 0]"), "ZeroDivisionError: division by zero",
    ),
    "later hook raises": (
        modality("moss") + "@hookimpl\ndef geobind_register_losses():\n    raise RuntimeError('no GPU')\n",
        "RuntimeError: no GPU",
    ),
    "hook that exits": (
        modality("moss").replace("return [M0]", "raise SystemExit(3)"), "SystemExit: 3",
    ),
    "hook without a result": (
        modality("moss").replace("return [M0]", "pass"), "TypeError: ",
    ),
    "an instance": (
        modality("moss").replace("return [M0]", "return ['moss']"),
        "geobind_register_modalities returned 'moss'; expected subclasses of Modality",
    ),
    "a class of another kind": (
        modality("moss").replace("register_modalities", "register_losses"), "expected subclasses of Loss",
    ),
    "a wrapper": (
        modality("moss") + "@hookimpl(wrapper=True)\ndef geobind_stage_started(stage):\n    yield\n",
        "'geobind_stage_started' is a wrapper; hooks are called one at a time, with nothing to wrap",
    ),
    "a command without a name": (
        modality("moss") + "@hookimpl\ndef geobind_register_commands():\n    return [print]\n",
        "geobind_register_commands returned <built-in function print>; expected pairs of a name and a function",
    ),
    "a command with a name that cannot be typed": (
        modality("moss") + "@hookimpl\ndef geobind_register_commands():\n    return [('My Command', print)]\n",
        "'My Command' is no name of a command; expected lower-case letters, digits and hyphens",
    ),
    "a class without a name": (
        modality("moss").replace("name = 'moss'", "pass"), "M0 has no `name`",
    ),
}  # fmt: skip


class TestBroken:
    @pytest.mark.parametrize("case", BROKEN)
    def test_it_is_named_with_its_error_and_harms_nobody(self, add: Add, case: str) -> None:
        source, error = BROKEN[case]
        add("moss", source, version="0.3")
        add("fern", modality("fern"))
        plugins = PluginManager()
        with pytest.raises(PluginError) as caught:
            plugins.find("modality", "moss")
        assert "'moss' is provided by geobind-plugin-moss 0.3, which cannot be loaded: " in caught.value.message
        assert error in caught.value.message
        assert record(plugins, "moss").status == "broken"
        assert plugins.registry.of("geobind-plugin-moss") == []
        assert plugins.find("modality", "fern").cls.name == "fern"

    def test_nothing_of_it_is_called_later(self, add: Add, tmp_path: Path) -> None:
        called = tmp_path / "called"
        source = (
            modality("moss").replace("return [M0]", "return [1 / 0]")
            + f"@hookimpl\ndef geobind_stage_started(stage):\n    open({str(called)!r}, 'w').close()\n"
        )
        add("moss", source)
        plugins = PluginManager()
        plugins.load_all()
        plugins.notify("geobind_stage_started", stage=StageInfo("a", 1, tmp_path, (), ()))
        assert not called.exists()

    def test_an_attribute_that_is_not_there(self, add: Add) -> None:
        add("moss", modality("moss"), entry_points={"moss": "geobind_plugin_moss:plugin"})
        with pytest.raises(PluginError, match=r"AttributeError: .*plugin"):
            PluginManager().find("modality", "moss")

    def test_it_is_tried_once(self, add: Add, tmp_path: Path) -> None:
        counter = tmp_path / "counter"
        add("moss", f"open({str(counter)!r}, 'a').write('x')\nraise RuntimeError\n")
        plugins = PluginManager()
        for _ in range(3):
            with pytest.raises(PluginError):
                plugins.find("modality", "moss")
        assert counter.read_text() == "x"

    def test_strict_stops_at_once(self, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEOBIND_STRICT_PLUGINS", "1")
        add("moss", "raise ValueError('wilted')", version="0.3")
        plugins = PluginManager()
        with pytest.raises(PluginError) as caught:
            plugins.load_all()
        assert caught.value.message == "plugin geobind-plugin-moss 0.3 is broken: ValueError: wilted"
        assert "GEOBIND_STRICT_PLUGINS" in caught.value.hint

    @pytest.mark.parametrize("value", ["", "0"])
    def test_not_strict(self, add: Add, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("GEOBIND_STRICT_PLUGINS", value)
        add("moss", "raise ValueError('wilted')")
        plugins = PluginManager()
        plugins.load_all()
        assert record(plugins, "moss").status == "broken"

    def test_an_unknown_name_mentions_what_is_broken(self, add: Add) -> None:
        add("greens", "raise ValueError('wilted')")
        add("fern", modality("fern"))
        with pytest.raises(PluginError) as caught:
            PluginManager().find("modality", "moss")
        assert caught.value.message.startswith("no modality 'moss'. Available: ")
        assert "geobind-plugin-greens 1.0 (ValueError: wilted)" in caught.value.hint
        # With pip or with uv, but always into this very interpreter.
        assert sys.executable in caught.value.hint
        assert caught.value.hint.endswith(" geobind-plugin-moss")

    def test_a_near_name_is_suggested(self, add: Add) -> None:
        add("fern", modality("lichen"))
        with pytest.raises(PluginError, match=r"Did you mean 'lichen'\?"):
            PluginManager().find("modality", "lichens")


class TestConflict:
    def test_both_are_named_and_neither_wins(self, add: Add) -> None:
        add("moss", modality("moss"), version="1.0")
        add("peat", modality("moss", "peat"), version="2.0", entry_points={"moss": "geobind_plugin_peat"})
        plugins = PluginManager()
        with pytest.raises(PluginError) as caught:
            plugins.find("modality", "moss")
        assert caught.value.message == (
            "conflict: modality 'moss' is provided by geobind-plugin-moss 1.0 and geobind-plugin-peat 2.0; "
            "neither is used."
        )
        assert plugins.find("modality", "peat").distribution == "geobind-plugin-peat"
        assert "moss" not in plugins.registry.names("modality")
        rows = {row["distribution"]: row for row in plugin_rows(plugins)}
        for name in ("moss", "peat"):
            row = rows[f"geobind-plugin-{name}"]
            assert (row["status"], row["conflicts"]) == ("conflict", ["moss"])
        assert rows["geobind-plugin-moss"]["error"] == "modality 'moss' is also provided by geobind-plugin-peat 2.0"

    def test_disabling_one_settles_it(self, add: Add) -> None:
        add("moss", modality("moss"))
        add("peat", modality("moss"), entry_points={"moss": "geobind_plugin_peat"})
        plugins = PluginManager(disabled=["geobind-plugin-peat"])
        assert plugins.find("modality", "moss").distribution == "geobind-plugin-moss"

    def test_with_the_core_itself(self, add: Add) -> None:
        source = (
            "from geobind_core import Loss, hookimpl\nclass Mine(Loss):\n    name = 'infonce'\n"
            "@hookimpl\ndef geobind_register_losses():\n    return [Mine]\n"
        )
        add("mine", source, entry_points={"infonce": "geobind_plugin_mine"})
        with pytest.raises(PluginError, match=r"provided by geobind \S+ and geobind-plugin-mine 1.0; neither is used"):
            plugin_manager().find("loss", "infonce")

    def test_equal_names_of_different_kinds_are_none(self, add: Add) -> None:
        source = (
            "from geobind_core import Source, hookimpl\nclass Mine(Source):\n    name = 'moss'\n"
            "@hookimpl\ndef geobind_register_sources():\n    return [Mine]\n"
        )
        add("moss", modality("moss"))
        add("peat", source, entry_points={"moss": "geobind_plugin_peat"})
        plugins = PluginManager()
        assert plugins.find("modality", "moss").distribution == "geobind-plugin-moss"
        assert plugins.find("source", "moss").distribution == "geobind-plugin-peat"


class TestDisabled:
    @pytest.mark.parametrize(
        ("argument", "environment"),
        [
            ("moss", ""),
            ("geobind-plugin-greens", ""),
            ("Geobind_Plugin.Greens", ""),
            ("", "moss"),
            ("", "geobind-plugin-greens"),
            ("", "other, geobind_plugin_greens ,"),
        ],
    )
    def test_it_is_not_even_imported(
        self, add: Add, monkeypatch: pytest.MonkeyPatch, argument: str, environment: str
    ) -> None:
        monkeypatch.setenv("GEOBIND_DISABLE_PLUGINS", environment)
        add("greens", modality("moss"), version="4", entry_points={"moss": "geobind_plugin_greens"})
        add("fern", modality("fern"))
        plugins = PluginManager(disabled=[argument])
        plugins.load_all()
        assert record(plugins, "greens").status == "disabled"
        assert not imported("greens")
        with pytest.raises(PluginError) as caught:
            plugins.find("modality", "moss")
        assert caught.value.message == ("modality 'moss' is provided by geobind-plugin-greens 4, which is disabled.")
        assert plugins.find("modality", "fern").cls.name == "fern"

    def test_others_are_not(self, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEOBIND_DISABLE_PLUGINS", "")
        add("moss", modality("moss"))
        assert record(PluginManager(disabled=["mos", "plugin-moss", ""]), "moss").status == "available"


class TestLifeCycle:
    INFO = StageInfo("audio", 2, Path("stages/02-audio"), ("audio",), ("satellite",))

    def load(self, add: Add, **sources: str) -> PluginManager:
        for name, source in sources.items():
            add(name, "from geobind_core import hookimpl\nseen = []\n" + source)
        plugins = PluginManager()
        plugins.load_all()
        for name in sources:
            assert record(plugins, name).status == "loaded", record(plugins, name).error
        return plugins

    def seen(self, name: str) -> list[object]:
        found: list[object] = sys.modules[f"geobind_plugin_{name}"].seen
        return found

    @pytest.mark.parametrize("raised", ["ValueError('wilted')", "SystemExit(3)"])
    def test_one_that_raises_is_a_warning_and_stops_nobody(self, add: Add, raised: str) -> None:
        hook = "@hookimpl\ndef geobind_stage_started(stage):\n    seen.append(stage.name)\n"
        plugins = self.load(add, fern=hook, moss=f"{hook}    raise {raised}\n", peat=hook)
        plugins.notify("geobind_stage_started", stage=self.INFO)
        assert [self.seen(name) for name in ("fern", "moss", "peat")] == [["audio"]] * 3
        (warning,) = plugins.warnings
        kind = raised.split("(")[0]
        assert warning.startswith("geobind-plugin-moss:geobind_plugin_moss: geobind_stage_started: " + kind)

    def test_hooks_take_what_they_need(self, add: Add) -> None:
        plugins = self.load(
            add,
            fern="@hookimpl\ndef geobind_stage_finished(summary):\n    seen.append(summary)\n",
            moss="@hookimpl\ndef geobind_stage_finished(stage, summary):\n    seen.append(stage)\n",
            peat="@hookimpl\ndef geobind_stage_finished():\n    seen.append(0)\n",
        )
        plugins.notify("geobind_stage_finished", stage=self.INFO, summary={"loss": 1.0})
        assert self.seen("fern") == [{"loss": 1.0}]
        assert self.seen("moss") == [self.INFO]
        assert self.seen("peat") == [0]
        assert plugins.warnings == []

    def test_plugins_that_are_not_loaded_are_not_told(self, add: Add) -> None:
        add("moss", "from geobind_core import hookimpl\n@hookimpl\ndef geobind_stage_started():\n    raise KeyError\n")
        plugins = PluginManager()
        plugins.notify("geobind_stage_started", stage=self.INFO)
        assert plugins.warnings == []


class TestProcesses:
    """What a user sees, in processes of their own."""

    CHAIN = """\
        binding: moss
        modalities: {moss: , fern: }
        data: {earth: {source: table, path: earth.csv}}
        stages: [{name: one, train: [moss, fern], anchor: [], data: earth}]
        """

    def run(self, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "chain.yaml").write_text(dedent(self.CHAIN))
        path = [str(tmp_path / "installed"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_a_chain_imports_the_plugins_that_it_names_and_no_others(self, add: Add, tmp_path: Path) -> None:
        for name in ("moss", "fern", "peat"):
            add(name, modality(name))
        script = (
            "import sys\nfrom pathlib import Path\n"
            "from geobind_core.chain.builtin import plugin_manager\n"
            "from geobind_core.chain.resolve import load_chain\n"
            "load_chain(Path('chain.yaml'), plugin_manager())\n"
            "print(*sorted(m for m in sys.modules if m.startswith('geobind_plugin_')))\n"
            "assert 'torch' not in sys.modules\n"
        )
        done = self.run(tmp_path, "-c", script)
        assert (done.stdout.split(), done.stderr) == (["geobind_plugin_fern", "geobind_plugin_moss"], "")

    def test_a_broken_plugin_is_listed_and_stops_only_the_chain_that_needs_it(self, add: Add, tmp_path: Path) -> None:
        for name in ("moss", "fern"):
            add(name, modality(name))
        add("peat", "raise OSError('[/usr/lib/peat.so] cannot be opened')", version="0.3")
        geobind = ("-m", "geobind_core.cli")
        listed = self.run(tmp_path, *geobind, "plugins")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert "OSError: [/usr/lib/peat.so] cannot be opened" in listed.stdout
        rows = json.loads(self.run(tmp_path, *geobind, "plugins", "--json").stdout)
        status = {row["distribution"]: row["status"] for row in rows}
        assert (status["geobind-plugin-peat"], status["geobind-plugin-moss"]) == ("broken", "loaded")
        valid = self.run(tmp_path, *geobind, "validate", "chain.yaml")
        assert (valid.returncode, valid.stderr) == (0, "")
        needed = self.run(tmp_path, *geobind, "validate", "chain.yaml", "--set", "modalities.fern.plugin=peat")
        assert (needed.returncode, needed.stdout) == (2, "")
        assert needed.stderr.startswith(
            "error: --set modalities.fern.plugin=peat: modality 'peat' is provided by geobind-plugin-peat 0.3, "
            "which cannot be loaded: OSError: [/usr/lib/peat.so] cannot be opened\n"
        )
        strict = self.run(tmp_path, *geobind, "plugins", GEOBIND_STRICT_PLUGINS="1")
        assert (strict.returncode, strict.stdout) == (2, "")
        assert strict.stderr.startswith("error: plugin geobind-plugin-peat 0.3 is broken: OSError")

    def test_disabling_on_the_command_line(self, add: Add, tmp_path: Path) -> None:
        for name in ("moss", "fern"):
            add(name, modality(name))
        done = self.run(tmp_path, "-m", "geobind_core.cli", "validate", "chain.yaml", "--disable-plugin", "moss")
        assert (done.returncode, done.stdout) == (2, "")
        assert "modality 'moss' is provided by geobind-plugin-moss 1.0, which is disabled." in done.stderr
