"""What can be wrong with a plugin beside its hooks, and the sentence that its user is told."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geobind_core.chain.builtin import plugin_manager
from geobind_core.display import plugin_rows
from geobind_core.errors import PluginError
from geobind_core.plugins import hooks, installing
from geobind_core.plugins.discovery import PluginRecord
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.registry import REGISTER_HOOKS
from geobind_core.plugins.stage_kind import StageInfo

Add = Callable[..., None]
ROOT = Path(__file__).parents[2]
MOSS = """\
from geobind_core import Modality, hookimpl
class Moss(Modality):
    name = "moss"
@hookimpl
def geobind_register_modalities():
    return [Moss]
"""


def loaded(name: str = "moss") -> tuple[PluginManager, PluginRecord]:
    plugins = PluginManager()
    plugins.load_all()
    (record,) = [r for r in plugins.records if r.distribution == f"geobind-plugin-{name}"]
    return plugins, record


class TestApiVersion:
    @pytest.mark.parametrize("declared", ["", f"geobind_api = {hooks.API_VERSION}\n"])
    def test_works(self, add: Add, declared: str) -> None:
        add("moss", declared + MOSS)
        assert loaded()[1].status == "loaded"

    @pytest.mark.parametrize(
        ("oldest", "declared", "error"),
        [
            (1, "99", "it is written for version 99 of the plugin API; this GeoBind works with version 3. "),
            (3, "99", "it is written for version 99 of the plugin API; this GeoBind works with versions 2 to 3. "),
            (3, "1", "it is written for version 1 of the plugin API, which was removed; this GeoBind works with "),
            (3, "1", "versions 2 to 3. Install a newer geobind-plugin-moss"),
            (3, "'2'", "geobind_api is '2'; expected a whole number: this GeoBind works with versions 2 to 3"),
            (3, "True", "geobind_api is True; expected a whole number"),
        ],
    )
    def test_others_are_broken_and_told_which_work(
        self, add: Add, monkeypatch: pytest.MonkeyPatch, oldest: int, declared: str, error: str
    ) -> None:
        monkeypatch.setattr(hooks, "API_VERSION", 3)
        monkeypatch.setattr(hooks, "OLDEST_API_VERSION", 3 if oldest == 1 else 2)
        add("moss", f"geobind_api = {declared}\n" + MOSS)
        record = loaded()[1]
        assert record.status == "broken"
        assert error in record.error

    def test_of_an_object_the_module_speaks(self, add: Add) -> None:
        source = "geobind_api = 99\nclass Plugin:\n    pass\nplugin = Plugin()\n"
        add("moss", source, entry_points={"moss": "geobind_plugin_moss:plugin"})
        assert loaded()[1].error.startswith("it is written for version 99 of the plugin API")


class TestWhatIsRegistered:
    @pytest.mark.parametrize(
        ("hook", "cls", "base"),
        [
            ("modalities", "Modality", "ModalityConfig"),
            ("losses", "Loss", "LossConfig"),
            ("sources", "Source", "SourceConfig"),
            ("stage_kinds", "StageKind", "StageConfig"),
            ("metrics", "Metric", "MetricConfig"),
        ],
    )
    @pytest.mark.parametrize("config", ["pydantic.BaseModel", "dict(width=3)"])
    def test_settings_are_those_of_the_kind(
        self, add: Add, geobind: Callable[..., Any], hook: str, cls: str, base: str, config: str
    ) -> None:
        source = MOSS.replace("_modalities", f"_{hook}").replace("Modality", cls)
        add("moss", "import pydantic\n" + source.replace('"moss"\n', f'"moss"\n    Config = {config}\n'))
        record = loaded()[1]
        assert record.status == "broken"
        assert record.error.startswith("Moss.Config is ")
        assert record.error.endswith(f"; expected a subclass of {base}")
        if hook == "modalities":
            assert geobind("schema").returncode == 0
            assert geobind("validate", "chain.yaml").returncode == 0

    @pytest.mark.parametrize(
        ("source", "target", "found"),
        [
            (
                MOSS.replace("@hookimpl\n", "").replace("def geobind", "def the"),
                "",
                "it has no function with @hookimpl",
            ),
            (MOSS, ":Moss", "it is the class Moss"),
        ],
    )
    def test_without_a_hook_there_is_nothing(self, add: Add, source: str, target: str, found: str) -> None:
        add("moss", source, entry_points={"moss": f"geobind_plugin_moss{target}"})
        plugins, record = loaded()
        assert record.error == f"what its entry point names registers nothing: {found}; expected a module with hooks"
        with pytest.raises(
            PluginError, match=r"geobind-plugin-moss 1\.0, which cannot be loaded: what its entry point"
        ):
            plugins.find("modality", "moss")


class TestDeprecation:
    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Deprecates a hook and an argument, and returns what the user is told."""

        def geobind_stage_ended(stage: StageInfo, seconds: float) -> None:
            """A hook that was."""

        old = hooks.hookspec(
            warn_on_impl=DeprecationWarning("geobind_stage_ended goes with version 3; use geobind_stage_finished")
        )
        monkeypatch.setattr(hooks, "geobind_stage_ended", old(geobind_stage_ended), raising=False)

        def geobind_stage_moved(stage: StageInfo, folder: Path) -> None:
            """A hook with an argument that was."""

        argument = hooks.hookspec(warn_on_impl_args={"folder": DeprecationWarning("folder is stage.folder now")})
        monkeypatch.setattr(hooks, "geobind_stage_moved", argument(geobind_stage_moved), raising=False)
        return []

    @pytest.mark.parametrize(
        ("hook", "message"),
        [
            (
                "geobind_stage_ended(stage)",
                "geobind_stage_ended goes with version 3; use geobind_stage_finished",
            ),
            ("geobind_stage_moved(folder)", "folder is stage.folder now"),
            ("geobind_stage_moved(stage)", None),
        ],
    )
    def test_it_works_and_the_user_is_told_whose_it_is(
        self, add: Add, told: list[str], hook: str, message: str | None
    ) -> None:
        add("moss", MOSS + f"@hookimpl\ndef {hook}:\n    raise RuntimeError('was called')\n", version="0.3")
        plugins = PluginManager(warn=told.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as Python does with those of modules
            assert plugins.find("modality", "moss").name == "moss"
        expected = [f"geobind-plugin-moss 0.3: {message}"] if message else []
        assert told == plugins.warnings == expected
        (row,) = [r for r in plugin_rows(plugins) if r["distribution"] == "geobind-plugin-moss"]
        assert (row["status"], row["warnings"]) == ("loaded", [message] if message else [])
        plugins.notify(hook.split("(")[0], stage=None, seconds=1.0, folder=Path())
        assert "was called" in plugins.warnings[-1]


class TestStaleMetadata:
    def test_says_so_and_what_to_delete(self, add: Any) -> None:
        add("moss", None)
        record = loaded()[1]
        assert record.status == "broken"
        assert record.error == (
            "its module 'geobind_plugin_moss' is not there, only its metadata is: what is left of an installation that "
            "was moved or removed by hand, or the entry point 'moss = geobind_plugin_moss' is misspelled. Mend it, or "
            f"remove it: delete {add.info('moss')}"
        )

    def test_what_an_installer_can_remove_is_left_to_it(self, add: Any) -> None:
        add("moss", None)
        (add.info("moss") / "RECORD").write_text("geobind_plugin_moss.py,,\n")
        line = loaded()[1].error.split("remove it: ")[1]
        assert sys.executable in line
        assert line.endswith(" geobind-plugin-moss")
        assert " uninstall " in line

    @pytest.mark.parametrize(
        ("source", "target", "error"),
        [
            (MOSS, "geobind_plugin_moss.sub", "ModuleNotFoundError: No module named 'geobind_plugin_moss.sub'"),
            ("import nothing_of_the_kind\n", "geobind_plugin_moss", "No module named 'nothing_of_the_kind'"),
        ],
    )
    def test_other_modules_that_are_missing(self, add: Add, source: str, target: str, error: str) -> None:
        add("moss", source, entry_points={"moss": target})
        assert error in loaded()[1].error
        assert "metadata" not in loaded()[1].error

    def test_metadata_that_cannot_be_read_hides_nobody_else(self, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        add("moss", MOSS)
        add("peat", MOSS, version="0.3")
        (add.info("peat", "0.3") / "entry_points.txt").write_text("[geobind]\npeat geobind_plugin_peat\n")
        add("fen", None)
        (add.info("fen") / "entry_points.txt").write_bytes(b"\xff\xfe[geobind]")
        add("reed", None)
        (add.info("reed") / "METADATA").write_text("Metadata-Version: 2.1\nName: reed\nVersion: 1\n")
        (add.info("reed") / "entry_points.txt").write_text("[console_scripts]\nreed reed\n")
        plugins, moss = loaded()
        assert moss.status == "loaded"
        found = {r.distribution: r for r in plugins.records if r.status == "broken"}
        assert set(found) == {"geobind-plugin-peat", "geobind-plugin-fen"}
        assert found["geobind-plugin-peat"].error.startswith("its entry_points.txt cannot be read: ")
        assert found["geobind-plugin-peat"].version == "0.3"
        assert "audio" in {name for record in plugins.records for name in record.names}
        monkeypatch.setenv("GEOBIND_STRICT_PLUGINS", "1")
        with pytest.raises(PluginError, match=r"plugin geobind-plugin-\w+ \S+ is broken: its entry_points.txt"):
            PluginManager().load_all()


class TestImport:
    @pytest.mark.parametrize("raised", ["KeyboardInterrupt", "GeneratorExit"])
    @pytest.mark.parametrize("where", ["import", "hook", "life cycle"])
    def test_what_is_no_fault_of_the_plugin_passes(self, add: Add, raised: str, where: str) -> None:
        source = {
            "import": f"raise {raised}\n",
            "hook": MOSS.replace("return [Moss]", f"raise {raised}"),
            "life cycle": MOSS + f"@hookimpl\ndef geobind_stage_started():\n    raise {raised}\n",
        }[where]
        add("moss", source)
        plugins = PluginManager()

        def use() -> None:
            plugins.find("modality", "moss")
            plugins.notify("geobind_stage_started", stage=None)

        with pytest.raises((KeyboardInterrupt, GeneratorExit)) as caught:
            use()
        assert type(caught.value).__name__ == raised

    def test_what_it_prints_is_no_result(self, add: Add, capsys: pytest.CaptureFixture[str]) -> None:
        hook = "@hookimpl\ndef geobind_stage_started():\n    print('started')\n"
        add("moss", "print('imported')\n" + MOSS.replace("return", "print('asked')\n    return") + hook)
        plugins, _ = loaded()
        plugins.notify("geobind_stage_started", stage=None)
        assert capsys.readouterr() == ("", "imported\nasked\nstarted\n")

    def test_one_that_imports_torch_is_reported_as_slow(self, add: Any, tmp_path: Path) -> None:
        add("moss", "from torch import nn\n" + MOSS)
        add("fern", MOSS.replace("moss", "fern"))
        done = subprocess.run(
            [sys.executable, "-m", "geobind_core.cli", "plugins", "--json"],
            env={**os.environ, "PYTHONPATH": str(add.folder)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        rows = {row["distribution"]: row for row in json.loads(done.stdout)}
        moss, fern = rows["geobind-plugin-moss"], rows["geobind-plugin-fern"]
        assert (moss["status"], fern["warnings"]) == ("loaded", [])
        (warning,) = moss["warnings"]
        assert warning.startswith(f"slow: importing it imports torch, which took {moss['seconds_to_import']:.1f} s; ")
        assert moss["seconds_to_import"] > 10 * fern["seconds_to_import"]


class TestUnknownNamesToDisable:
    def test_the_nearest_is_named(self, add: Add) -> None:
        add("moss", MOSS)
        told: list[str] = []
        plugins = PluginManager(disabled=["mosss", "geobind_plugin.moss", ""], warn=told.append)
        assert told == plugins.warnings
        (warning,) = told
        assert warning.startswith("--disable-plugin mosss: no plugin has this name. Available: ")
        assert warning.endswith(" Did you mean 'moss'?")

    def test_the_environment_may_be_meant_for_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEOBIND_DISABLE_PLUGINS", "not_installed_here")
        assert PluginManager().warnings == []


class TestInstallLine:
    def test_the_index_names_what_our_own_plugins_provide(self) -> None:
        """The index in the core says nothing that is not so of the folders in this repository."""
        plugins = plugin_manager()
        plugins.load_all()
        installed = {record.distribution for record in plugins.records}
        for distribution, kinds in installing._PUBLISHED.items():
            listed = {(kind, name) for kind, names in kinds.items() for name in names}
            if distribution in installed:
                provided = {(p.kind, p.name) for p in plugins.registry.of(distribution)}
                assert listed <= provided
                assert {(k, n) for k, n in provided if k in ("modality", "source")} <= listed
            else:
                assert (ROOT / "geobind_plugins" / distribution).is_dir()

    @pytest.mark.parametrize("kind", [kind for kind in REGISTER_HOOKS if kind != "command"])
    def test_the_line_is_for_this_interpreter(self, kind: str) -> None:
        with pytest.raises(PluginError) as caught:
            PluginManager(disabled=[]).find(kind, "street_view")
        assert caught.value.message.startswith(f"no {kind.replace('_', ' ')} 'street_view'. Available: ")
        line = caught.value.hint.split("install that: ")[1]
        assert line == f"{installing.installer()} geobind-plugin-street-view"
        assert sys.executable in line

    def test_our_own_plugins_are_known_by_what_they_provide(self) -> None:
        assert installing.install_hint("modality", "satellite").endswith(" geobind-plugin-imagery")
        assert installing.install_hint("modality", "ground-image", guess=False).endswith(" geobind-plugin-imagery")
        assert installing.install_hint("source", "satellite").endswith(" geobind-plugin-satellite")

    def test_who_provided_it_may_be_on_record(self, add: Add) -> None:
        with pytest.raises(PluginError, match=r"green-things provides it; install that: .* green-things$"):
            PluginManager().find("modality", "street_view", "green-things")

    def test_what_is_installed_is_not_to_be_installed(self, add: Add) -> None:
        add("moss", MOSS, entry_points={"green": "geobind_plugin_moss", "fern": "geobind_plugin_moss"})
        add("peat", MOSS.replace('"moss"', '"bog"'))
        said = " is installed and does not provide it; `geobind plugins` shows what it provides."
        for name, who in {"fern": "geobind-plugin-moss 1.0", "peat": "geobind-plugin-peat 1.0"}.items():
            with pytest.raises(PluginError) as caught:
                PluginManager().find("modality", name)
            assert caught.value.hint == who + said
        with pytest.raises(PluginError) as caught:
            PluginManager().find("loss", "peat", "geobind-plugin-peat")
        assert caught.value.hint == "geobind-plugin-peat 1.0" + said

    def test_a_name_that_is_a_distribution_already(self) -> None:
        assert installing.install_hint("modality", "geobind-plugin-lab").endswith(" geobind-plugin-lab")
        assert "geobind-plugin-geobind" not in installing.install_hint("modality", "geobind_plugin_lab")

    def test_after_a_slip_of_the_keyboard_nothing_is_to_be_installed(self, add: Add) -> None:
        add("moss", MOSS)
        with pytest.raises(PluginError) as caught:
            PluginManager().find("modality", "mos")
        assert (caught.value.message.endswith("Did you mean 'moss'?"), caught.value.hint) == (True, "")
