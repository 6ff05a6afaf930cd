"""What goes wrong in the middle of a stage: said in words, with the last checkpoint intact, and mended by going on."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geobind_core.training import checkpoint

kill = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "chain" / "test_kill.py")))

pytestmark = kill.pytestmark

STAGE = "run/stages/02-two"
UNTIL = ("--until", "two")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    nursery = kill.Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nursery: Any) -> tuple[Path, Path]:
    """A folder with a chain whose first stage is done, and one whose second is done too."""
    folder = tmp_path_factory.mktemp("undisturbed")
    kill.write_numbers(folder, kill.numbers_chain())
    assert nursery.run(folder, "--until", "one")[0] == 0
    shutil.copytree(folder, folder.with_name(f"{folder.name}-begun"))
    code, errors = nursery.run(folder, *UNTIL)
    assert code == 0, errors
    return folder.with_name(f"{folder.name}-begun"), folder


@pytest.fixture
def folder(undisturbed: tuple[Path, Path], tmp_path: Path) -> Path:
    """The first stage is done; the second trains `c` towards what the cache has of `a`: 20 steps of 8 rows."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "begun"))


def refused(result: tuple[int, str], code: int, *words: str) -> None:
    """The exit code, and on standard error no more than progress and a message with these words."""
    found, errors = result
    assert found == code, errors
    assert "Traceback" not in errors
    assert errors.count("error: ") == 1, errors
    for word in words:
        assert word in errors


def saved_step(folder: Path) -> int | None:
    """Returns the step of the stage's checkpoint."""
    record = json.loads((folder / STAGE / "stage.json").read_text())
    state = checkpoint.read_state(folder / STAGE, record["fingerprint"])
    return None if state is None else state.step


def goes_on(nursery: Any, folder: Path, undisturbed: tuple[Path, Path], *arguments: str) -> None:
    """Without the trouble, the same command ends with the weights of a run that had none."""
    code, errors = nursery.run(folder, *UNTIL, *arguments)
    assert code == 0, errors
    assert kill.leftovers(folder / "run") == []
    assert kill.weights(folder / "run") == kill.weights(undisturbed[1] / "run")
    assert kill.logs(folder / "run") == kill.logs(undisturbed[1] / "run")


# A forward that sees how often a network in training was called before: in these stages, once in a step.
CALLS = """
calls = 0
_forward = Network.forward
def forward(self, batch):
    global calls
    calls += self.training
    return trouble(self, batch)
Network.forward = forward
"""

# ---------------------------------------------------------------------- what is not a number

NAN_LOSS = """
def trouble(self, batch):
    return _forward(self, batch) * (float("nan") if calls >= 9 else 1.0)
"""
NAN_GRADIENT = """
def trouble(self, batch):
    out = _forward(self, batch)
    if calls == 10:
        out.register_hook(lambda gradient: gradient * float("nan"))
    return out
"""


@pytest.mark.parametrize(
    ("trouble", "words"),
    [(NAN_LOSS, "the loss is nan at step 10."), (NAN_GRADIENT, "are not finite after step 10.")],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path], trouble: str, words: str
) -> None:
    result = nursery.run(folder, TROUBLE=CALLS + trouble)
    refused(result, 1, "stage two: ", words, "The checkpoint of step 8 is intact", "optimizer.lr", "same command")
    assert saved_step(folder) == 8
    assert "NaN" not in (folder / STAGE / "log.jsonl").read_text()
    goes_on(nursery, folder, undisturbed)


# ---------------------------------------------------------------------- memory

TOO_MANY_ROWS = """
def trouble(self, batch):
    if self.training and calls > 4 and len(batch) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nand much more")
    return _forward(self, batch)
import torch
"""


def test_out_of_memory_names_a_size_that_works(folder: Path, nursery: Any) -> None:
    trouble = CALLS + TOO_MANY_ROWS
    result = nursery.run(folder, TROUBLE=trouble)
    refused(
        result, 1, "stage two: out of memory with 8 rows in the networks at a time (CUDA out of memory.",
        "The checkpoint of step 4 is intact", "micro_batch_size: 2 fits",
    )  # fmt: skip
    assert "and much more" not in result[1]
    code, errors = nursery.run(folder, *UNTIL, "--set", "stages.two.micro_batch_size=2", TROUBLE=trouble)
    assert code == 0, errors
    assert "going on from step 4 of 20" in errors
    assert [line["step"] for line in kill.logs(folder / "run")["02-two"]] == [10, 20]


ANCHORS_TOO_LARGE = """
def trouble(self, batch):
    if not self.training and len(batch) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return _forward(self, batch)
import torch
"""


@pytest.mark.slow
def test_out_of_memory_while_anchors_are_embedded(folder: Path, nursery: Any) -> None:
    trouble = CALLS + ANCHORS_TOO_LARGE
    result = nursery.run(folder, *UNTIL, TROUBLE=trouble)
    refused(result, 1, "stage two: out of memory", "There was no checkpoint of this stage yet", "micro_batch_size")
    code, errors = nursery.run(folder, *UNTIL, "--set", "stages.two.micro_batch_size=4", TROUBLE=trouble)
    assert code == 0, errors


# ---------------------------------------------------------------------- loader processes

IN_A_WORKER = """
import multiprocessing, signal
from pathlib import Path
samples = 0
_transform = Numbers.transform
def transform(self, sample, *, train, rng):
    global samples
    samples += 1
    if multiprocessing.parent_process() is not None and bool(self.augment) == %r and samples == %d:
        %s
    return _transform(self, sample, train=train, rng=rng)
Numbers.transform = transform
"""
KILL = "if not Path('killed').exists(): Path('killed').touch(); os.kill(os.getpid(), signal.SIGKILL)"


def test_a_loader_process_that_is_killed(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    # Each of the two reads at most four batches ahead: when the eighth of one is read, some steps are done.
    trouble, workers = IN_A_WORKER % (True, 61, KILL), ("--set", "loader.workers=2")
    result = nursery.run(folder, *workers, TROUBLE=trouble)
    step = saved_step(folder)
    assert step
    refused(
        result, 1, "stage two: a loader process died: DataLoader worker",
        f"The checkpoint of step {step} is intact", "Lower loader.workers", "run the same command again",
    )  # fmt: skip
    goes_on(nursery, folder, undisturbed, *workers)


@pytest.mark.slow
def test_a_loader_process_that_is_killed_among_the_anchors(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path]
) -> None:
    trouble, workers = IN_A_WORKER % (False, 9, KILL), ("--set", "loader.workers=2")
    result = nursery.run(folder, *workers, TROUBLE=trouble)
    refused(result, 1, "stage two: a loader process died: ", "There was no checkpoint of this stage yet")
    goes_on(nursery, folder, undisturbed, *workers)


NO_ROOM_FOR_A_BATCH = """
batches = 0
_collate = Numbers.collate
def collate(self, samples):
    global batches
    batches += bool(self.augment)
    if batches == 8:
        raise MemoryError("no room")
    return _collate(self, samples)
Numbers.collate = collate
"""


def test_a_loader_process_that_has_no_memory(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    workers = ("--set", "loader.workers=2")
    result = nursery.run(folder, *workers, TROUBLE=NO_ROOM_FOR_A_BATCH)
    refused(result, 1, "stage two: out of main memory", f"step {saved_step(folder)} is intact", "Lower loader.workers")
    goes_on(nursery, folder, undisturbed, *workers)


# ---------------------------------------------------------------------- a full disk

# The kernel refuses to let any file grow beyond a size, as a full disk does; Python and libraries see EFBIG.
FULL = """
import resource
def full(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


SIZES = [pytest.param(1500, marks=pytest.mark.slow), 5000, pytest.param(12_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_is_full_during_a_checkpoint(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path], size: int
) -> None:
    """Too small for the weights, for the optimizer, for the random states."""
    trouble = f"def trouble(self, batch):\n    if calls == 6: full({size})\n    return _forward(self, batch)\n"
    result = nursery.run(folder, TROUBLE=CALLS + FULL + trouble)
    refused(
        result, 2, "the checkpoint of step 6 cannot be written: ", "The checkpoint of step 4 is intact",
        "Make room, then run the same command again.",
    )  # fmt: skip
    assert saved_step(folder) == 4
    assert not list((folder / STAGE).glob(".checkpoint*")), "what was half written takes no room"
    goes_on(nursery, folder, undisturbed)


@pytest.mark.slow
def test_a_disk_that_is_full_when_anchors_are_stored(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path]
) -> None:
    trouble = "def trouble(self, batch):\n    if not self.training: full(1400)\n    return _forward(self, batch)\n"
    result = nursery.run(folder, TROUBLE=CALLS + FULL + trouble)
    refused(result, 2, "the cache cannot be written: File too large", "GEOBIND_CACHE", "geobind cache prune")
    assert not list((folder / "cache").rglob(".tmp*"))
    goes_on(nursery, folder, undisturbed)


def test_a_disk_that_is_full_when_weights_are_stored(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path]
) -> None:
    trouble = "def trouble(self, batch):\n    if calls == 20: full(1000)\n    return _forward(self, batch)\n"
    result = nursery.run(folder, TROUBLE=CALLS + FULL + trouble)
    refused(result, 2, "02-two/encoders/c", "cannot be written: File too large")
    assert saved_step(folder) == 18
    assert kill.leftovers(folder / "run") == ["stages/02-two/checkpoint"]
    goes_on(nursery, folder, undisturbed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_when_the_log_is_written(
    folder: Path, nursery: Any, undisturbed: tuple[Path, Path]
) -> None:
    log = folder / STAGE / "log.jsonl"
    trouble = """
def trouble(self, batch):
    if calls == 15:
        os.rename("run/stages/02-two/log.jsonl", "kept")
        os.symlink("/dev/full", "run/stages/02-two/log.jsonl")
    return _forward(self, batch)
"""
    result = nursery.run(folder, TROUBLE=CALLS + trouble)
    refused(result, 2, "02-two/log.jsonl", "cannot be written: No space left on device")
    assert saved_step(folder) == 18
    log.unlink()
    (folder / "kept").rename(log)
    goes_on(nursery, folder, undisturbed)


# ---------------------------------------------------------------------- checkpoints that are not continued


def test_a_damaged_checkpoint(folder: Path, nursery: Any, undisturbed: tuple[Path, Path]) -> None:
    assert nursery.run(folder, TROUBLE=CALLS + NAN_LOSS)[0] == 1
    optimizer = folder / STAGE / "checkpoint" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:500])
    refused(nursery.run(folder), 2, f"{STAGE}/checkpoint: the checkpoint cannot be read: ", "Remove this folder")
    shutil.rmtree(folder / STAGE / "checkpoint")
    goes_on(nursery, folder, undisturbed)


def test_a_checkpoint_of_other_settings_or_data(folder: Path, nursery: Any) -> None:
    assert nursery.run(folder, TROUBLE=CALLS + NAN_LOSS)[0] == 1

    def planned(*arguments: str) -> tuple[str, str]:
        code, errors = nursery.run(folder, *UNTIL, "--dry-run", "--json", *arguments)
        assert code == 0, errors
        plan = json.loads((nursery.scratch / "stdout").read_text())[1]
        return plan["action"], plan["why"]

    lower = ("--set", "stages.two.optimizer.lr=0.001")
    assert planned() == ("continue", "was interrupted; goes on from step 8")
    assert planned("--set", "stages.two.micro_batch_size=4")[0] == "continue"
    assert planned(*lower) == ("run", "optimizer.lr: 0.005 -> 0.001")
    table = (folder / "table.csv").read_text()
    (folder / "table.csv").write_text(table.replace("k0,", "first,"))
    assert planned() == ("run", "the data changed; 'a' is retrained by stage 'one'")
    (folder / "table.csv").write_text(table)
    code, errors = nursery.run(folder, *UNTIL, *lower)
    assert code == 0, errors
    assert "going on" not in errors
    assert [line["step"] for line in kill.logs(folder / "run")["02-two"]] == [10, 20]
