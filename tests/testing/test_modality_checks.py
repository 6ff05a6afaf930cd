"""The kit for modalities finds what is planted, by the check that is meant for it, and nothing else."""

import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from geobind_core import EncoderOutput, Modality, ModalityConfig
from geobind_core.testing import CheckError, modality_checks

pytestmark = pytest.mark.usefixtures("one_thread")

DIMENSION = 6


class SeriesConfig(ModalityConfig):
    width: int = 8
    shift: bool = False


class Mean(nn.Module):
    """The mean over what is no padding, through a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.Linear(1, width)
        self.after = nn.Linear(width, DIMENSION)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.before(batch["values"][..., None]).tanh() * batch["mask"][..., None]
        return self.after(hidden.sum(1) / batch["mask"].sum(1, keepdim=True))


class Series(Modality[Any]):
    """Rows of numbers of any length. Nothing is wrong with it; those below differ in one thing each."""

    name = "series"
    Config = SeriesConfig

    def build_encoder(self) -> nn.Module:
        return Mean(self.config.width)

    def read(self, cell: Any) -> Any:
        values = np.asarray(cell, dtype=np.float32)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"expected numbers, found {cell!r}")
        return values

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return sample + rng.normal(size=len(sample)).astype(np.float32) if train else sample

    def collate(self, samples: Any) -> Any:
        values = nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s in samples], batch_first=True)
        mask = torch.arange(values.shape[1]) < torch.tensor([len(s) for s in samples])[:, None]
        return {"values": values, "mask": mask}

    def example_cells(self, rng: np.random.Generator) -> list[Any]:
        return [rng.normal(size=length).tolist() for length in (3, 7, 2)]


class WithNetwork(Series):
    """Its network is given by a subclass."""

    network: type[Mean]

    def build_encoder(self) -> nn.Module:
        return self.network(self.config.width)


class OfTheBatch(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            found = super().forward(batch)
            return found - 0.01 * found.mean(0) if len(found) > 1 else found


class NotANumber(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            found = super().forward(batch)
            return torch.cat([found[:-1], found[-1:] * torch.nan])


class OtherDimension(WithNetwork):
    class network(Mean):
        embed_dim = DIMENSION + 1


class NotPooled(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(batch)[:, None]


class HalfPrecision(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(batch).bfloat16()


class Deaf(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward({**batch, "values": batch["values"] * 0})


class ListeningToNothing(Series):
    def example_cells(self, rng: np.random.Generator) -> list[Any]:
        return []


class Unpicklable(Series):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = lambda sample: sample * 2

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return self.scale(sample)


class Noisy(Series):
    def read(self, cell: Any) -> Any:
        return super().read(cell) + np.random.normal(0, 1e-3)


class OwnSeed(Series):
    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return sample + np.random.normal() if train else sample


class AlwaysRandom(Series):
    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return sample + np.float32(rng.normal())


class InPlace(Series):
    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        sample *= 2
        return sample.copy()


class LostState(WithNetwork):
    class network(Mean):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.offset = torch.randn(DIMENSION)

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(batch) + self.offset


class LostStatistics(WithNetwork):
    """What it lost was learned, and is the same in a network that is built anew."""

    class network(Mean):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.seen = torch.zeros(DIMENSION)

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            found = super().forward(batch)
            if self.training:
                self.seen = 0.9 * self.seen + 0.1 * found.detach().mean(0)
            return found - self.seen


class DeadGradients(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            hidden = self.before(batch["values"][..., None]).tanh().detach() * batch["mask"][..., None]
            return self.after(hidden.sum(1) / batch["mask"].sum(1, keepdim=True))


class NoGradients(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad():
                return super().forward(batch)


class Lenient(Series):
    class Config(SeriesConfig):
        model_config = ConfigDict(extra="ignore")


class PadsWrongly(Series):
    def collate(self, samples: Any) -> Any:
        batch = super().collate(samples)
        return {**batch, "mask": torch.ones_like(batch["mask"])}


class DropsRows(Series):
    def collate(self, samples: Any) -> Any:
        return super().collate(samples[: max(1, len(samples) - 1)])


class EqualInEvaluationOnly(Series):
    """Crops to one size, but for training, and cannot put the others together."""

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> Any:
        return super().transform(sample, train=train, rng=rng) if train else sample[:2]

    def collate(self, samples: Any) -> Any:
        return super().collate(torch.stack([torch.from_numpy(s) for s in samples]).numpy())


class TakesAnything(Series):
    def read(self, cell: Any) -> Any:
        return super().read(cell if isinstance(cell, list) else [0.0])


class RaisesAnything(Series):
    def read(self, cell: Any) -> Any:
        if not isinstance(cell, list):
            raise StopIteration
        return super().read(cell)


class ForgetsItsSize(Series):
    def rebuild_config(self, encoder: nn.Module) -> Any:
        return SeriesConfig(shift=True)


class KeepsPretrained(Series):
    def rebuild_config(self, encoder: nn.Module) -> Any:
        return self.config


class DrawsOnce(Series):
    def draw(self, rng: np.random.Generator) -> Any:
        return np.zeros(4, dtype=np.float32)


class ShowsTooMuch(Series):
    def inspect(self, cell: Any) -> Any:
        return {"values": self.read(cell)}


class Setting(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


class NotPlain(Series):
    class Config(SeriesConfig):
        hidden: float = 0.5

        def __init__(self, **values: Any) -> None:
            super().__init__(**{**values, "hidden": values.get("hidden", 0.25) * 2})


def failures(modality: Any, **options: Any) -> dict[str, str]:
    checks = [check for check in modality_checks(modality, **options) if check.name != "import_without_torch"]
    results = {str(check): check.result() for check in checks}  # this very module imports torch
    return {name: result.message for name, result in results.items() if result.status == "failed"}


def test_a_good_modality_passes_every_check() -> None:
    assert failures(Series) == {}


PLANTED = [
    (OfTheBatch, {"row_alone", "collate"}, "is embedded otherwise than in its batch"),
    (NotANumber, {"output"}, "NaN"),
    (OtherDimension, {"output"}, "`embed_dim` 7, and its output has D = 6"),
    (Unpicklable, {"picklable"}, "pickle"),
    (Noisy, {"read_again"}, "something else each time"),
    (LostState, {"state", "rebuild_config"}, "embeds otherwise"),
    (DeadGradients, {"gradients"}, "no gradient reaches before.weight, before.bias"),
    (Lenient, {"config_unknown_key"}, "without a word"),
    (PadsWrongly, {"collate"}, "collated with others is embedded otherwise than alone"),
]
FURTHER = [
    (NotPooled, {"output"}, "shape (3, 1, 6)"),
    (HalfPrecision, {"output"}, "bfloat16"),
    (Deaf, {"looks_at_its_input"}, "the same embedding"),
    (ListeningToNothing, {"example_cells"}, "define example_cells()"),
    (OwnSeed, {"transform_same_seed", "picklable"}, "differs with the same seed"),
    (AlwaysRandom, {"transform_evaluation"}, "depends on the seed"),
    (InPlace, {"transform_in_place"}, "changed sample 0 itself"),
    (LostStatistics, {"state", "rebuild_config"}, "embeds otherwise"),
    (NoGradients, {"gradients"}, "has no gradient"),
    (DropsRows, {"collate"}, "3 samples make tensors of 2 rows"),
    (EqualInEvaluationOnly, {"collate"}, "train=True: RuntimeError: stack expects each tensor to be equal size"),
    (TakesAnything, {"unreadable"}, "was taken for a sample"),
    (RaisesAnything, {"unreadable"}, "raises StopIteration"),
    (DrawsOnce, {"draw"}, "same with another seed"),
    (ShowsTooMuch, {"inspect_and_preview"}, "expected names with texts or numbers"),
    (NotPlain, {"config_round_trip"}, "became"),
]


@pytest.mark.parametrize(
    ("faulty", "checks", "message"), PLANTED + FURTHER, ids=lambda value: getattr(value, "__name__", "")
)
def test_finds_what_is_planted(faulty: type[Series], checks: set[str], message: str) -> None:
    found = failures(faulty)
    # What a fault also brings with it may differ; nothing else may fail.
    assert found
    assert set(found) <= checks
    assert any(message in text for text in found.values())


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (ForgetsItsSize(SeriesConfig(width=5)), "Error(s) in loading state_dict"),
        (KeepsPretrained(SeriesConfig(pretrained="some/model")), "keeps `pretrained`"),
    ],
)
def test_finds_a_space_that_would_not_load(modality: Series, message: str) -> None:
    found = failures(modality)
    assert set(found) == {"rebuild_config"}
    assert message in found["rebuild_config"]


TORCH_AT_TOP = """
import {imported}
from geobind_core import Modality
class Heavy(Modality):
    name = "heavy"
"""


@pytest.mark.parametrize(("imported", "status"), [("torch", "failed"), ("accelerate", "failed"), ("numpy", "ok")])
def test_finds_torch_at_import(imported: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"heavy_with_{imported}"
    (tmp_path / f"{module}.py").write_text(TORCH_AT_TOP.format(imported=imported))
    monkeypatch.syspath_prepend(str(tmp_path))
    heavy = __import__(module).Heavy
    (check,) = [c for c in modality_checks(heavy) if c.name == "import_without_torch"]
    assert check.result().status == status
    sys.modules.pop(module)


REGISTERED = """
from geobind_core import Modality, hookimpl
class Heavy(Modality):
    name = "{name}"
@hookimpl
def geobind_register_modalities():
    return [{returned}]
"""


@pytest.mark.parametrize(
    ("name", "returned", "message"),
    [
        ("heavy", "Heavy", ""),
        ("hevay", "Heavy", "`name` is 'hevay'; the entry points of registered_plugin are named heavy"),
        ("heavy", "", "does not return Heavy"),
    ],
)
def test_compares_the_registration(
    name: str, returned: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registered_plugin.py").write_text(REGISTERED.format(name=name, returned=returned))
    metadata = tmp_path / "registered-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: registered\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[geobind]\nheavy = registered_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    heavy = __import__("registered_plugin").Heavy
    (check,) = [c for c in modality_checks(heavy) if c.name == "registration"]
    result = check.result()
    assert result.status == ("failed" if message else "ok")
    assert message in result.message
    sys.modules.pop("registered_plugin")


class TestHowAChecksEnds:
    def named(self, name: str, **options: Any) -> Any:
        (check,) = [c for c in modality_checks(PadsWrongly, **options) if c.name == name]
        return check

    def test_a_failure_says_what_it_protects_and_where_to_look(self) -> None:
        check = self.named("collate")
        with pytest.raises(CheckError) as caught:
            check.run()
        assert str(caught.value).startswith("collate: sample ")
        assert f"protects: {check.protects}" in str(caught.value)
        assert f"hint: {check.hint}" in str(caught.value)

    def test_a_check_that_passes_says_nothing(self) -> None:
        assert self.named("output").run() is None

    def test_what_cannot_be_checked_is_skipped(self) -> None:
        with pytest.raises(SkipTest, match=r"draw\(\) is not defined"):
            self.named("draw").run()

    def test_an_expected_failure_is_no_failure(self) -> None:
        check = self.named("collate", expected_failures={"collate": "the paper pads like this"})
        assert check.result().status == "expected failure"
        with pytest.raises(SkipTest, match="the paper pads like this"):
            check.run()

    def test_an_expected_failure_may_be_declared_by_the_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PadsWrongly, "expected_failures", {"collate": "the paper pads like this"})
        assert self.named("collate").result().message == "the paper pads like this"

    def test_an_expected_failure_that_passes_is_one(self) -> None:
        check = self.named("output", expected_failures={"output": "it was broken once"})
        assert check.result().status == "failed"
        with pytest.raises(CheckError, match="passes, and is declared to fail: it was broken once"):
            check.run()

    @pytest.mark.parametrize(("name", "reason"), [("colate", "misspelled"), ("collate", " ")])
    def test_a_declaration_must_name_a_check_and_a_reason(self, name: str, reason: str) -> None:
        with pytest.raises(ValueError, match="collate"):
            modality_checks(PadsWrongly, expected_failures={name: reason})


def test_cells_may_be_given() -> None:
    assert failures(ListeningToNothing, cells=[[1.0, 2.0], [3.0]]) == {}
    assert set(failures(Series, cells=[[1.0], "no numbers"])) == {"example_cells"}


class Drawn(ListeningToNothing):
    def draw(self, rng: np.random.Generator) -> Any:
        return rng.normal(size=5).astype(np.float32)


def test_what_it_draws_stands_in_for_cells() -> None:
    checks = {str(check): check for check in modality_checks(Drawn)}
    assert checks["read_again"].result().status == "skipped"
    assert {checks[name].result().status for name in ("example_cells", "draw", "collate", "output")} == {"ok"}


class Files(Series):
    reads_files = True

    def read(self, cell: Any) -> Any:
        try:
            return super().read(cell)
        except (TypeError, ValueError):
            if isinstance(cell, Path):
                return np.zeros(3, dtype=np.float32)
            raise


def test_files_that_are_not_there_must_be_refused() -> None:
    assert "no-such-file" in failures(Files)["unreadable"]


class WithTokens(WithNetwork):
    class network(Mean):
        def forward(self, batch: dict[str, torch.Tensor]) -> Any:
            return EncoderOutput(super().forward(batch), tokens=batch["values"])


def test_further_outputs_have_shapes_too() -> None:
    assert "`tokens` has shape (3, 7)" in failures(WithTokens)["output"]


def test_making_the_list_does_no_work(tmp_path: Path) -> None:
    """Pytest makes it while it collects."""
    import subprocess

    program = (
        "import sys; from geobind_core.testing import *; from geobind_plugin_imagery import Satellite\n"
        "assert len(modality_checks(Satellite)) > 15\n"
        "assert 'torch' not in sys.modules and 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tempfile.gettempdir())
