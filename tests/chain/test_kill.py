"""`kill -9` anywhere in a chain: the same command again gives the same weights to the bit and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from geobind_core.training.losses import InfoNCEConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork and no SIGKILL")

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds; longer than anything here takes

# ---------------------------------------------------------------------- a small chain of a plugin's own

# What a test wants to go wrong is Python in the environment, so that neither the chain nor the plugin changes.
PLUGIN = """\
import os
from geobind_core import Modality, hookimpl
from torch import nn


class Network(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.embed_dim = 8


class Numbers(Modality):
    name = "numbers"
    augmentations = {"jitter": "noise on every number"}

    def build_encoder(self):
        return Network()

    def read(self, cell):
        return [float(number) for number in cell.split()]

    def transform(self, sample, *, train, rng):
        noise = rng.normal(0, 0.1, len(sample)) if train and self.augment else [0.0] * len(sample)
        return [a + float(b) for a, b in zip(sample, noise)]


@hookimpl
def geobind_register_modalities():
    return [Numbers]


exec(os.environ.get("TROUBLE", ""), globals())
"""


def numbers_chain(epochs: int = 4) -> dict[str, Any]:
    """Three stages: a queue, slices and dropout; augmentation and a cached anchor; a cached trunk."""
    common = {"data": "rows", "batch_size": 8, "epochs": epochs, "checkpoint": {"steps": 2}, "optimizer": {"lr": 5e-3}}
    queue = {"queue": 64} if "queue" in InfoNCEConfig.model_fields else {}
    warm = {"name": "cosine_warm_restarts", "t0": 5, "t_mult": 2}
    return {
        "binding": "a",
        "modalities": {
            **{name: {"plugin": "numbers"} for name in "abc"},
            "d": {"plugin": "numbers", "projection": "linear"},
        },
        "data": {"rows": {"source": "table", "path": "table.csv", "split": {"by": "hash", "test": 0.2}}},
        "stages": [
            {
                "name": "one",
                "train": ["a", "b"],
                "anchor": [],
                "loss": {"name": "infonce", **queue},
                "micro_batch_size": 3,
                **common,
            },
            {"name": "two", "train": "c", "augment": {"c": "jitter"}, "scheduler": warm, **common},
            {"name": "three", "train": "d", "anchor": "c", "freeze_trunk": "d", **common},
        ],
        "evaluate": {"recall_at": [1, 5]},
    }


def write_numbers(folder: Path, chain: dict[str, Any], rows: int = 50) -> None:
    """Writes `chain.yaml`, its table, and the plugin as an installed distribution."""
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain))
    base = np.random.default_rng(0).normal(size=(rows, 4))
    turns = [np.linalg.qr(np.random.default_rng(i).normal(size=(4, 4)))[0] for i in range(4)]
    cells = [[" ".join(f"{v:.6f}" for v in row @ turn) for turn in turns] for row in base]
    (folder / "table.csv").write_text("key,a,b,c,d\n" + "".join(f"k{i},{','.join(c)}\n" for i, c in enumerate(cells)))
    info = folder / "installed" / "geobind_plugin_numbers-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geobind-plugin-numbers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[geobind]\nnumbers = geobind_plugin_numbers\n")
    (info.parent / "geobind_plugin_numbers.py").write_text(PLUGIN)


# ---------------------------------------------------------------------- processes

# Imports take seconds of a process that trains for one. They are made once; nothing is computed before the fork.
NURSERY = """\
import json, os, runpy, signal, sys
import accelerate, matplotlib.pyplot, pandas, torch, torch._decomp, torch._dynamo, torch._meta_registrations
import torch.utils.tensorboard
import geobind_core.chain.encoders, geobind_core.chain.execute, geobind_core.evaluation.matrix
import geobind_core.report.page, geobind_core.training.loop

print("ready", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)  # a group of its own, as a job in a terminal has
        signal.alarm(call["patience"])
        os.chdir(call["folder"])
        os.environ.update(call["environment"])
        sys.path.insert(0, call["installed"])
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(call[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["geobind", *call["arguments"]]
        runpy.run_module("geobind_core", run_name="__main__", alter_sys=True)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Process:
    """`geobind` under way in a process group of its own.

    Attributes:
        pid: Its number, and that of its group.
        errors: What it writes on standard error.
    """

    pid: int
    errors: Path
    _nursery: subprocess.Popen[str]

    def wait(self) -> tuple[int, str]:
        """Returns its exit code, negative for a signal, and what it wrote on standard error."""
        assert self._nursery.stdout is not None
        code = int(self._nursery.stdout.readline())
        return code, self.errors.read_text()


class Nursery:
    """Starts `python -m geobind_core` out of a process that has imported the libraries, one at a time."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, folder: Path, *arguments: str, **environment: str) -> Process:
        """Starts `geobind run chain.yaml --out run ...` in a folder that `write_numbers` has filled."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {
            "folder": str(folder),
            "installed": str(folder / "installed"),
            "arguments": ["run", "chain.yaml", "--out", "run", *arguments],
            "environment": {"GEOBIND_CACHE": str(folder / "cache"), "TROUBLE": "", **environment},
            "patience": PATIENCE,
            "stdout": str(self.scratch / "stdout"),
            "stderr": str(self.scratch / "stderr"),
        }
        (self.scratch / "stderr").write_text("")  # what the last one said is not this one's
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return Process(int(self._process.stdout.readline()), self.scratch / "stderr", self._process)

    def run(self, folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        """The same, and waits for its end."""
        return self.start(folder, *arguments, **environment).wait()

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.002)


# ---------------------------------------------------------------------- what must be the same


def weights(run: Path) -> dict[str, bytes]:
    """Returns the content of the weights of every modality in the space."""
    return {path.parent.name: path.read_bytes() for path in sorted((run / "space").glob("*/model.safetensors"))}


def logs(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns what each stage has logged, but for how fast it was."""
    found = {}
    for path in sorted((run / "stages").glob("*/log.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{k: v for k, v in line.items() if k != "samples_per_second"} for line in lines]
    return found


def leftovers(run: Path) -> list[str]:
    """Returns what should not be in a finished run folder."""
    names = re.compile(r"\.tmp|\.old|\.partial|^checkpoint$|^\.checkpoint")
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if names.search(path.name))


def assert_same(run: Path, undisturbed: Path) -> None:
    """The same weights to the bit, the same logs, the same figures, and nothing left behind."""
    assert leftovers(run) == []
    wanted = weights(undisturbed)
    assert wanted
    assert {name: content == wanted.get(name) for name, content in weights(run).items()} == dict.fromkeys(wanted, True)
    assert logs(run) == logs(undisturbed)
    pairs = [json.loads((path / "metrics.json").read_text())["pairs"] for path in (run, undisturbed)]
    assert pairs[0] == pairs[1]


# ---------------------------------------------------------------------- before a change on the disk

# Counts what is about to be changed in the folder, and ends the process before one of these changes.
STRIKE = """
import os, re, signal, sys

def _install():
    wanted, nth = re.compile(os.environ["STRIKE_AT"]), int(os.environ["STRIKE_NTH"])
    note = os.open(os.environ["STRIKE_NOTE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    here, seen = os.getcwd() + os.sep, 0

    def strike(event, arguments):
        nonlocal seen
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str) or not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
            paths = [path]
        elif event in ("os.rename", "os.link"):
            paths = list(arguments[:2])
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            paths = [arguments[0]]
        else:
            return
        paths = [os.path.abspath(os.fsdecode(path)) for path in paths]
        if not all(path.startswith(here) for path in paths):
            return
        line = " ".join([event, *(path[len(here):] for path in paths)])
        os.write(note, (line + "\\n").encode())
        if wanted.search(line):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(strike)

_install()
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> tuple[Path, list[str]]:
    """A finished run of the chain in its folder, and all the changes it made on the disk, in their order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_numbers(folder, numbers_chain())
    note = nursery.scratch / "undisturbed"
    code, errors = nursery.run(folder, TROUBLE=STRIKE, STRIKE_AT="$^", STRIKE_NTH="1", STRIKE_NOTE=str(note))
    assert code == 0, errors
    assert [line["step"] for line in logs(folder / "run")["02-two"]] == [10, 20]
    return folder / "run", note.read_text().splitlines()


def killed_before(nursery: Nursery, folder: Path, change: str, nth: int) -> None:
    """Starts the chain and has it killed right before the nth change on the disk that the pattern fits."""
    note = str(nursery.scratch / "killed")
    code, errors = nursery.run(folder, TROUBLE=STRIKE, STRIKE_AT=change, STRIKE_NTH=str(nth), STRIKE_NOTE=note)
    assert code == -signal.SIGKILL, f"not killed before {change}: {errors}"


def test_killed_at_every_turn(tmp_path: Path, nursery: Nursery, undisturbed: tuple[Path, list[str]]) -> None:
    """One run is killed again and again, each time later, where a kill does most harm."""
    write_numbers(tmp_path, numbers_chain())
    for change, nth in (
        (r"open run/stages/01-one/\.checkpoint\.tmp/stage_state\.json|stage_state\.json\.", 3),  # half a checkpoint
        (r"os.rename run/stages/01-one/\.checkpoint\.tmp run/stages/01-one/checkpoint", 2),  # neither old nor new
        (r"os.rename cache/\S+seg-", 1),  # all anchors embedded, none stored
        (r"os.rename \S+ run/stages/02-two/stage\.json", 2),  # weights stored, the stage not done
        (r"os.rename run/\.space\.tmp run/space", 1),  # no space
        (r"os.rename \S+ run/metrics\.json", 1),  # measured, not written
    ):
        killed_before(nursery, tmp_path, change, nth)
    code, errors = nursery.run(tmp_path)
    assert code == 0, errors
    assert_same(tmp_path / "run", undisturbed[0])


# Of each file in the run folder that is given its name: was it on the disk before?
ON_DISK = """
import os, sys
synced, _fsync = set(), os.fsync
def fsync(handle):
    synced.add(os.fstat(handle).st_ino)
    _fsync(handle)
os.fsync = fsync
def look(event, arguments):
    if event == "os.rename" and str(arguments[0]).startswith("run"):
        source = str(arguments[0])
        inside = [os.path.join(parent, name) for parent, _, names in os.walk(source) for name in names]
        for path in inside if os.path.isdir(source) else [source]:
            with open("looked", "a") as file:
                file.write(f"{path} {os.stat(path).st_ino in synced}\\n")
sys.addaudithook(look)
"""


def test_what_has_a_name_has_its_content(tmp_path: Path, nursery: Nursery) -> None:
    """After a power cut too: what is renamed into its place is on the disk by then."""
    write_numbers(tmp_path, numbers_chain(epochs=1))
    code, errors = nursery.run(tmp_path, TROUBLE=ON_DISK)
    assert code == 0, errors
    looked = (tmp_path / "looked").read_text().splitlines()
    for name in ("optimizer.bin", "stage_state.json", "model.safetensors", "stage.json", "log.jsonl", "space.json"):
        assert any(f"{name} True" in line or f"{name}.tmp True" in line for line in looked)
    assert [line for line in looked if line.endswith("False")] == []


# Of changes that differ in these only, one is enough.
VARYING = re.compile(r"seg-[0-9a-f]+-[0-9a-f]+|[0-9a-f]{32}|\d\d-\w+|(?<=[/. ])[abcd](?=[/.]|$)")


@pytest.mark.slow
def test_killed_before_every_kind_of_change(
    tmp_path: Path, nursery: Nursery, undisturbed: tuple[Path, list[str]]
) -> None:
    """Each in a run of its own: whatever the next change would have been, the next run makes up for it."""
    kinds = Counter(r"[\w-]+".join(map(re.escape, VARYING.split(line))) + "$" for line in undisturbed[1])
    assert len(kinds) > 40
    chosen, found = random.Random(0), {}
    for number, (kind, count) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_numbers(folder, numbers_chain())
        nth = chosen.randint(1, count)
        killed_before(nursery, folder, kind, nth)
        code, errors = nursery.run(folder)
        try:
            assert code == 0, errors
            assert_same(folder / "run", undisturbed[0])
        except AssertionError as error:
            found[f"{kind} ({nth} of {count})"] = str(error)
    assert not found, f"{len(found)} of {len(kinds)}"


# ---------------------------------------------------------------------- at any moment


def earth_chain() -> dict[str, Any]:
    """The default chain, small: real networks, a planet that is drawn first."""
    chain: dict[str, Any] = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))
    chain["data"]["earth"] |= {"places": 300, "held_out": 40, "root": "earth", "satellite_pixels": 32}
    chain["data"]["earth"] |= {"ground_pixels": 32, "seconds": 1.0, "workers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    for name in ("ground_image", "text", "satellite"):
        chain["modalities"][name]["model"] = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    chain["modalities"]["audio"]["seconds"] = 1
    for stage in chain["stages"]:
        stage |= {"batch_size": 40, "epochs": 6, "checkpoint": {"steps": 2}}
    chain["stages"][0]["micro_batch_size"] = 16
    if "queue" in InfoNCEConfig.model_fields:
        chain["stages"][2]["loss"]["queue"] = 64
    chain["evaluate"] = {"recall_at": [1, 10]}
    return chain


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the command as a user does, in a folder with a chain."""
    return subprocess.Popen(
        [sys.executable, "-m", "geobind_core", "run", "chain.yaml", "--out", "run"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("wb"),
        env={**os.environ, "GEOBIND_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def seconds_until(process: subprocess.Popen[bytes], folder: Path, words: str) -> float:
    """Waits until standard error has words that a pattern fits, or the process has ended; returns how long it took."""
    started = time.monotonic()
    wait_for(lambda: bool(re.search(words, (folder / "errors").read_text())) or process.poll() is not None)
    return time.monotonic() - started


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """Drawing the planet, embedding anchors, training, checkpoints, storing, measuring: all of it is struck."""
    whole, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "chain.yaml").write_text(yaml.safe_dump(earth_chain()))
    process, work = start(whole), r"(?m)^(stage \d/3 \w+: (?!done)|measuring)"
    seconds_until(process, whole, "preparing")
    drawing = seconds_until(process, whole, work)
    begun = time.monotonic()
    wait_for((whole / "run/stages/01-clip/checkpoint").exists)
    setting_up = time.monotonic() - begun  # what each stretch of work starts with, imports mostly
    seconds_until(process, whole, "nothing says so")
    working = time.monotonic() - begun - setting_up
    assert process.wait() == 0, (whole / "errors").read_text()

    chosen, hits = random.Random(0), []
    while len(hits) < 20:
        if len(hits) < 4:
            words, seconds = "preparing", chosen.uniform(0, drawing)
        else:
            words, seconds = work, chosen.uniform(0, 2 * (setting_up + working / 16))
        process = start(killed)
        seconds_until(process, killed, words)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        said = (killed / "errors").read_text()
        assert process.wait() in (0, -signal.SIGKILL), said
        if process.returncode:
            hits.append(said.splitlines()[-1])
            continue
        assert_same(killed / "run", whole / "run")
        for name in ("run", "cache"):
            shutil.rmtree(killed / name)
    sys.stdout.write("killed after:\n" + "".join(f"  {hit}\n" for hit in hits))
    process = start(killed)
    assert process.wait() == 0, (killed / "errors").read_text()
    assert_same(killed / "run", whole / "run")
    assert leftovers(killed / "earth") == []
    struck = {stage for hit in hits for stage in re.findall(r"earth|clip|satellite|audio|measuring", hit)}
    assert len(struck) >= 3
