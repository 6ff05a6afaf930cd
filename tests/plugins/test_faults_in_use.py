"""A plugin that loads well and then does wrong while a chain runs: whose fault it is, and what was expected."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geobind_core import Space
from geobind_core.errors import PluginError

Done = subprocess.CompletedProcess[str]
Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def refused(add: Any, moor: Path, geobind: Callable[..., Done]) -> Refused:
    """Runs the chain with lines of its plugin replaced, and returns why it was refused: in words, no traceback."""

    def run(changes: dict[str, str], *arguments: str, code: int = 2) -> str:
        path = add.folder / "geobind_plugin_heath.py"
        source = path.read_text()
        for old, new in changes.items():
            assert old in source
            source = source.replace(old, new)
        path.write_text(source)
        done = geobind("run", "chain.yaml", *arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.partition("error: ")[2].split())

    return run


class TestReading:
    def test_a_sample_that_cannot_be_transformed_is_named_where_it_was_to_be_measured(self, refused: Refused) -> None:
        said = refused({"np.float32(sample)": "np.float32(sample).reshape(3)"})
        assert "modalities.heather: the dimension of 'heather' cannot be measured: none of the rows" in said
        assert ": ValueError: cannot reshape array of size 2 into shape (3,)" in said

    def test_nothing_is_trained_when_a_modality_cannot_be_read(self, refused: Refused, moor: Path) -> None:
        (moor / "moor.csv").write_text((moor / "moor.csv").read_text().replace("key,x", "key,z"))
        said = refused(
            {"return nn.Linear(2, 8)": "return nn.Linear(2, 8)\n\n    def read(self, cell):\n        return cell[2]"},
            "--set=data.moor.fields={heather: [z, y], gorse: [y, z, z]}",
            "--out=out",
        )
        assert "data.moor.fields.heather: 'heather' can be read in none of 8 rows that were tried; the first" in said
        assert "IndexError: tuple index out of range" in said
        assert "Compare what is in z, y with the settings under modalities.heather." in said
        assert "gorse" not in said
        assert not (moor / "out/stages").exists()


NETWORK = """
        class Network(nn.Linear):
            embed_dim = 8
            def forward(self, batch):
                return self.spoil(super().forward(batch))
            def spoil(self, output):
                return {}
        return Network(2, 8)
"""


def network(result: str) -> dict[str, str]:
    """Lets both encoders return something else than their `output`."""
    return {"return nn.Linear(2, 8)": NETWORK.strip().replace("{}", result)}


class TestEncoders:
    @pytest.mark.parametrize("result", ["output[::2]", "output.repeat(2, 1)", "output.mean(0, keepdim=True)"])
    def test_other_rows_than_samples_are_never_taken_for_pairs(self, refused: Refused, result: str) -> None:
        said = refused(network(result))
        rows = {"output[::2]": 4, "output.repeat(2, 1)": 16}.get(result, 1)
        assert said.startswith(
            f"stage moor: the encoder of 'heather' returned {rows} rows for 8 samples. Mend the plugin;"
        )

    def test_not_in_slices_either(self, refused: Refused) -> None:
        said = refused(network("output[::2]"), "--set=stages.moor.micro_batch_size=4")
        assert said.startswith("stage moor: the encoder of 'heather' returned 4 rows for 8 samples.")

    def test_nor_of_what_is_measured_and_used(self, refused: Refused, moor: Path) -> None:
        said = refused(network("output if self.training else output[1:]"), "--out=out")
        assert re.match(r"the encoder of 'heather' returned (\d+) rows for (?!\1)\d+ samples\.", said)
        with pytest.raises(PluginError, match="the encoder of 'heather' returned 1 rows for 2 samples"):
            Space.load(moor / "out").embed("heather", [[1, 2], [3, 4]])

    @pytest.mark.parametrize(
        ("result", "found"),
        [
            ("output.long()", "torch.int64 [8, 8]"),
            ("output[:, :5]", "torch.float32 [8, 5]"),
            ("(output, output)", "tuple"),
        ],
    )
    def test_what_is_no_embedding(self, refused: Refused, result: str, found: str) -> None:
        said = refused(network(result))
        assert said.startswith(
            f"stage moor: the encoder of 'heather' returned {found}; expected floating-point numbers [B, 8], or"
        )


class TestBatches:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_samples_that_only_differ_in_size_in_training(self, refused: Refused, workers: int) -> None:
        ragged = {"return np.float32(sample)": "return np.repeat(np.float32(sample), 1 + train * rng.integers(2))"}
        said = refused(ragged, f"--set=loader.workers={workers}")
        assert said.startswith("stage moor: 8 samples of 'heather' cannot be made into a batch; transform(train=True)")
        assert " made them: RuntimeError: " in said  # in words that differ with the number of workers
        assert "`geobind plugins check heather` tries it." in said


LOSS = """
from geobind_core import Loss, LossOutput

class Slope(Loss):
    name = "slope"

    def build(self):
        from torch import nn

        class Module(nn.Module):
            def forward(self, first, second, same_label=None):
                rows = (first.embedding - second.embedding).square().sum(dim=1)
                return {}

        return Module()

@hookimpl
def geobind_register_losses():
    return [Slope]
"""


def loss(result: str) -> dict[str, str]:
    """Gives the plugin a loss that returns this of `rows`, its `[B]` values."""
    return {"return [Heather, Gorse]": "return [Heather, Gorse]\n" + LOSS.replace("{}", result)}


class TestLosses:
    SLOPE = "--set=stages.moor.loss.name=slope"

    @pytest.mark.parametrize(
        ("result", "wrong"),
        [
            ("rows.mean()", "torch.float32 []; expected a LossOutput."),
            ("LossOutput(rows)", "a `value` that is torch.float32 [8]; expected a scalar tensor of floating-point"),
            ("LossOutput(float(rows.detach().sum()))", "a `value` that is float; expected a scalar tensor"),
            ("LossOutput(rows.mean().detach())", "a `value` without a gradient; expected one that depends on the"),
            ("LossOutput(rows.mean(), rows)", "`logs` that are torch.float32 [8]; expected a dictionary"),
            ("LossOutput(rows.mean(), {'all': rows})", "logs['all'] that is torch.float32 [8]; expected a scalar"),
            ("LossOutput(rows.mean(), {'all': 'fine'})", "logs['all'] that is str; expected a scalar"),
            ("LossOutput(rows.mean(), {7: rows.sum()})", "logs with the name 7; expected a text"),
        ],
    )
    def test_what_is_no_loss(self, refused: Refused, result: str, wrong: str) -> None:
        said = refused(loss(result), self.SLOPE)
        assert said.startswith(f"stage moor: the loss 'slope' returned {wrong}")
        assert said.endswith("Mend the plugin; `geobind plugins check slope` tries it.")

    def test_what_it_logs_leaves_the_lines_of_the_stage_as_they_are(self, refused: Refused, moor: Path) -> None:
        logs = "{'loss': 7.0, 'step': rows.sum(), 'event': True, 'odd': float('inf'), 'rows': rows.new_tensor([8])}"
        assert refused(loss(f"LossOutput(rows.mean(), {logs})"), self.SLOPE, "--out=out", code=0) == ""
        lines = (moor / "out/stages/01-moor/log.jsonl").read_text().splitlines()
        last = json.loads(lines[-1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert (last["step"], last["odd"], last["rows"]) == (6, None, 8.0)
        assert (last["slope_loss"], last["slope_event"]) == (7.0, 1.0)
        assert 0 < last["loss"] < 4
        assert last["slope_step"] == pytest.approx(8 * last["loss"])


SOURCE = """
import pyarrow
from pathlib import Path
from geobind_core import Observations, Source

class Bog(Source):
    name = "bog"

    def observations(self):
        table = pyarrow.table({"key": ["a", "b"]})
        return {}

@hookimpl
def geobind_register_sources():
    return [Bog]
"""


@pytest.mark.parametrize(
    ("result", "wrong"),
    [
        ("None", "NoneType; expected Observations"),
        ("Observations(table, Path(), None)", "Observations with the `fields` None; expected a Mapping"),
        ("Observations([1, 2], Path(), {})", "Observations with the `table` [1, 2]; expected a Table"),
    ],
)
def test_a_source_that_returns_something_else(refused: Refused, result: str, wrong: str) -> None:
    source = {"return [Heather, Gorse]": "return [Heather, Gorse]\n" + SOURCE.replace("{}", result)}
    said = refused(source, "--set=data.moor={source: bog, fields: {heather: key, gorse: key}}")
    assert said.startswith(f"observations() of the source 'bog' returned {wrong}.")
