"""SIGINT and SIGTERM, to one process and to a whole group: a checkpoint, words, exit code 130, and the same weights."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geobind_core.training import checkpoint

kill = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "chain" / "test_kill.py")))

pytestmark = kill.pytestmark

STAGE = "run/stages/02-two"
UNTIL = ("--until", "two")
AGAIN = "; run the same command again to go on\n"

# At one call of a network in training, and in this stage that is one step, a file appears and the step takes its time.
SLOW = """
import time
from pathlib import Path
calls = 0
_forward = Network.forward
def forward(self, batch):
    global calls
    calls += self.training
    if calls == int(os.environ["SLOW_AT"]) or (not self.training and os.environ["SLOW_AT"] == "0"):
        Path("slow").touch()
        time.sleep(float(os.environ["SLOW_SECONDS"]))
    return _forward(self, batch)
Network.forward = forward
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    nursery = kill.Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Any) -> tuple[Path, Path]:
    """A folder with a chain whose first stage is done, and one whose second is done too."""
    folder = tmp_path_factory.mktemp("undisturbed")
    chain = kill.numbers_chain()
    chain["stages"][1]["checkpoint"] = {"steps": 100}  # so that whatever there is comes from a signal
    kill.write_numbers(folder, chain)
    assert nursery.run(folder, "--until", "one")[0] == 0
    shutil.copytree(folder, folder.with_name(f"{folder.name}-begun"))
    code, errors = nursery.run(folder, *UNTIL)
    assert code == 0, errors
    return folder.with_name(f"{folder.name}-begun"), folder


@pytest.fixture
def folder(undisturbed: tuple[Path, Path], tmp_path: Path) -> Path:
    """The first stage is done; the second trains `c` towards what the cache has of `a`: 20 steps of 8 rows."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "begun"))


def slowly(nursery: Any, folder: Path, at: int, *arguments: str, seconds: float = 1.0) -> Any:
    """Starts the chain and returns in the middle of what is slow: a step, or with 0 a batch of anchors."""
    (folder / "slow").unlink(missing_ok=True)
    process = nursery.start(folder, *arguments, TROUBLE=SLOW, SLOW_AT=str(at), SLOW_SECONDS=str(seconds))
    kill.wait_for((folder / "slow").exists)
    return process


def saved_step(folder: Path) -> int | None:
    """Returns the step of the stage's checkpoint."""
    record = json.loads((folder / STAGE / "stage.json").read_text())
    state = checkpoint.read_state(folder / STAGE, record["fingerprint"])
    return None if state is None else state.step


def assert_stage_same(folder: Path, undisturbed: tuple[Path, Path]) -> None:
    assert kill.leftovers(folder / "run") == []
    assert kill.weights(folder / "run") == kill.weights(undisturbed[1] / "run")
    assert kill.logs(folder / "run") == kill.logs(undisturbed[1] / "run")


def test_signals_in_the_middle_of_a_step(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    """Both signals, to the process alone and, with loader processes, to all of the group as a terminal does it."""
    done = 0
    for number, group in (
        (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGTERM, True)
    ):  # fmt: skip
        workers = 2 if group else 0
        process = slowly(nursery, folder, 3, *UNTIL, "--set", f"loader.workers={workers}", seconds=0.3)
        (os.killpg if group else os.kill)(process.pid, number)
        code, errors = process.wait()
        done += 3  # the step that was under way is finished
        assert code == 130
        *progress, last = errors.splitlines(keepends=True)
        assert last == f"stopped by {number.name}; the checkpoint of step {done} of stage 'two' is written{AGAIN}"
        assert all(re.match(r"preparing|stage \d/3 |  going on from step \d+ of 20$", line) for line in progress)
        assert saved_step(folder) == done
        logged = [line["step"] for line in kill.logs(folder / "run")["02-two"]]
        assert logged == ([10] if done >= 10 else [])
    assert list(folder.glob("run/tensorboard/02-two/*")), "a tracker was at work"
    code, errors = nursery.run(folder, *UNTIL)
    assert code == 0, errors
    assert f"  going on from step {done} of 20\n" in errors
    assert_stage_same(folder, undisturbed)


def test_a_second_signal_leaves_at_once(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    process = slowly(nursery, folder, 3, *UNTIL, seconds=0.3)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait()[0] == 130

    process = slowly(nursery, folder, 4, *UNTIL, seconds=60)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)  # an echo, such as launchers make, is no second request
    time.sleep(1.2)
    os.kill(process.pid, 0)  # it is still there
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    code, errors = process.wait()
    assert time.monotonic() - started < 10
    assert code == 130
    assert errors.endswith("\nleaving at once; the last checkpoint is intact\n")
    assert saved_step(folder) == 3
    assert nursery.run(folder, *UNTIL)[0] == 0
    assert_stage_same(folder, undisturbed)


def test_a_signal_while_anchors_are_embedded(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    process = slowly(nursery, folder, 0, *UNTIL, "--set", "loader.workers=2", seconds=0.3)
    os.killpg(process.pid, signal.SIGTERM)
    code, errors = process.wait()
    assert code == 130
    assert errors.endswith(f"interrupted{AGAIN}")
    assert "Traceback" not in errors
    assert not list((folder / "cache").rglob("seg-*"))
    assert nursery.run(folder, *UNTIL)[0] == 0
    assert_stage_same(folder, undisturbed)


SLOW_TO_LOAD = """
import time
from pathlib import Path
_collate = Numbers.collate
def collate(self, samples):
    if self.augment:
        Path("slow").touch()
        time.sleep(0.3)
    return _collate(self, samples)
Numbers.collate = collate
"""


def test_a_signal_before_the_first_step(folder: Path, nursery: Any) -> None:
    process = nursery.start(folder, *UNTIL, TROUBLE=SLOW_TO_LOAD)
    kill.wait_for((folder / "slow").exists)
    os.kill(process.pid, signal.SIGTERM)
    code, errors = process.wait()
    assert code == 130
    assert errors.endswith(f"stopped by SIGTERM; stage 'two' is at its start{AGAIN}")
    assert saved_step(folder) is None


def test_a_signal_while_measuring(folder: Path, nursery: Any) -> None:
    assert nursery.run(folder)[0] == 0
    metrics = folder / "run/metrics.json"
    before = json.loads(metrics.read_text())
    metrics.unlink()
    process = slowly(nursery, folder, 0, seconds=0.3)
    os.killpg(process.pid, signal.SIGTERM)
    code, errors = process.wait()
    assert code == 130
    assert errors.endswith(f"interrupted{AGAIN}")
    assert "Traceback" not in errors
    assert not metrics.exists()
    assert nursery.run(folder)[0] == 0
    assert json.loads(metrics.read_text()) == before


@pytest.mark.slow
def test_signals_to_the_group_at_any_moment(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    """With loader processes, whatever is under way: 130, no traceback, and the same weights in the end."""
    workers = (*UNTIL, "--set", "loader.workers=2")
    started = time.monotonic()
    shutil.copytree(folder, folder.with_name("timed"))
    assert nursery.run(folder.with_name("timed"), *workers)[0] == 0
    seconds = time.monotonic() - started
    chosen, stopped = random.Random(0), 0
    for _ in range(40):
        process = nursery.start(folder, *workers)
        kill.wait_for(lambda process=process: "preparing" in process.errors.read_text())
        moment = chosen.uniform(0, seconds)
        time.sleep(moment)
        number = chosen.choice([signal.SIGINT, signal.SIGTERM])
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        code, errors = process.wait()
        finished = "stopped after stage 'two', as asked" in errors  # and then a signal is nobody's concern
        if not finished:
            assert "Traceback" not in errors, errors
            assert code == 130, errors
            stopped += 1
        else:
            seconds = min(seconds, moment)  # the machine has less to do than when it was timed
            assert_stage_same(folder, undisturbed)
            shutil.rmtree(folder)
            shutil.copytree(undisturbed[0], folder)
    assert stopped > 10
    assert nursery.run(folder, *workers)[0] == 0
    assert_stage_same(folder, undisturbed)
