"""Two passes over slices carry the same gradients as one pass over all."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import LossOutput
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.source import Observations
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.training.edges import BatchRows, Edge, EdgeLosses
from geobind_core.training.losses import InfoNCE, InfoNCEConfig
from geobind_core.training.step import StageModel, Step, gradients, slices_of_step

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = 11
SLICES = [1, 3, 4, 5, 10]


def net(inputs: int, outputs: int, dropout: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, outputs))


class TokenEncoder(nn.Module):
    """Takes a dictionary; returns tokens, a mask and a variance beside the embedding."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.tokens = nn.Linear(4, 6)
        self.variance = nn.Linear(6, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> EncoderOutput:
        tokens = self.dropout(self.tokens(batch["values"]))
        weights = batch["mask"].float().unsqueeze(-1)
        pooled = (tokens * weights).sum(1) / weights.sum(1)
        return EncoderOutput(pooled, tokens, batch["mask"], self.variance(pooled).tanh())


class TokenLoss(nn.Module):
    """A loss that draws on everything that an encoder may return, and weighs the whole batch together."""

    def forward(self, first: EncoderOutput, second: EncoderOutput, same_label: torch.Tensor | None) -> LossOutput:
        assert second.tokens is not None
        assert second.mask is not None
        assert second.log_variance is not None
        local = torch.einsum("bd,ntd->bnt", first.embedding, second.tokens).masked_fill(~second.mask, -torch.inf)
        logits = local.amax(-1) - second.log_variance.exp().mean(-1)
        return LossOutput(nn.functional.cross_entropy(logits, torch.arange(len(logits))))


class Tokens(InfoNCE):
    def build(self) -> nn.Module:  # type: ignore[override]
        return TokenLoss()


class Batch:
    """A model of three trained encoders and one frozen, a batch for it, and its losses."""

    def __init__(self, dropout: float) -> None:
        encoders = {
            "one": SpaceEncoder(net(3, 6, dropout, 1), 6, 6, projected=False),
            "two": SpaceEncoder(net(5, 9, dropout, 2), 9, 6, projected=True),
            "three": SpaceEncoder(TokenEncoder(dropout), 6, 6, projected=False),
        }
        generator = torch.Generator().manual_seed(3)
        mask = torch.rand(ROWS, 7, generator=generator) > 0.4
        mask[:, 0] = True
        self.inputs = {
            "one": torch.randn(ROWS, 3, generator=generator),
            "two": torch.randn(ROWS, 5, generator=generator),
            "three": {"values": torch.randn(ROWS, 7, 4, generator=generator), "mask": mask},
        }
        anchor = nn.functional.normalize(torch.randn(ROWS, 6, generator=generator), dim=-1)
        self.anchors = {"anchor": EncoderOutput(anchor)}
        self.batch_rows = BatchRows(torch.arange(ROWS), (ROWS,), {})
        self.model = StageModel(encoders).train()
        config = InfoNCEConfig()
        edges = [
            Edge("one", "anchor", InfoNCE(config), 1.0),
            Edge("two", "one", InfoNCE(config), 2.0),
            Edge("one", "three", Tokens(config), 3.0),
        ]
        table = pa.table({"key": [str(i) for i in range(ROWS)], "x": [0.0] * ROWS})
        data = PairedData("d", Observations(table, None, dict.fromkeys(("one", "two", "three", "anchor"), "x")))  # type: ignore[arg-type]
        self.losses = EdgeLosses(edges, data, 6)

    def gradients(self, accelerator: Accelerator, micro_batch_size: int | None) -> torch.Tensor:
        step = Step(self.inputs, self.anchors, self.batch_rows)
        return gradients(accelerator, self.model, self.losses, step, micro_batch_size)[0]

    def found(self) -> dict[str, torch.Tensor]:
        parameters = {**dict(self.model.named_parameters()), **dict(self.losses.named_parameters())}
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def sliced(batch: Any, start: int, stop: int) -> Any:
    return {k: v[start:stop] for k, v in batch.items()} if isinstance(batch, dict) else batch[start:stop]


def one_graph_over_slices(batch: Batch, size: int) -> torch.Tensor:
    """The reference: the same slices with the same masks, all held in one graph, one backward pass."""
    parts = [
        batch.model({name: sliced(value, start, stop) for name, value in batch.inputs.items()})
        for start, stop in itertools.pairwise(np.linspace(0, ROWS, -(-ROWS // size) + 1).astype(int).tolist())
    ]
    outputs = {}
    for name in parts[0]:
        fields = [vars(part[name]) for part in parts]
        joined = {k: None if v is None else torch.cat([f[k] for f in fields]) for k, v in fields[0].items()}
        outputs[name] = EncoderOutput(**joined)
    loss, _ = batch.losses({**outputs, **batch.anchors}, batch.batch_rows)
    loss.backward()
    return loss.detach()


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", SLICES)
def test_slices_without_dropout_equal_one_pass(size: int) -> None:
    whole, parts = Batch(dropout=0.0), Batch(dropout=0.0)
    expected, found = whole.gradients(Accelerator(), None), parts.gradients(Accelerator(), size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(parts.found(), whole.found())
    assert all(g.abs().sum() > 0 for name, g in whole.found().items()), "every parameter must matter to the loss"


@pytest.mark.parametrize("size", SLICES)
def test_slices_drop_the_same_units_in_both_passes(size: int) -> None:
    reference, parts = Batch(dropout=0.5), Batch(dropout=0.5)
    torch.manual_seed(17)
    expected = one_graph_over_slices(reference, size)
    after = torch.get_rng_state()
    torch.manual_seed(17)
    found = parts.gradients(Accelerator(), size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(parts.found(), reference.found())
    assert torch.equal(torch.get_rng_state(), after), "replaying must not put the stream back"


@pytest.mark.parametrize("size", [11, 12, 1000, None])
def test_slices_as_large_as_the_batch_are_one_pass(size: int | None) -> None:
    reference, batch = Batch(dropout=0.5), Batch(dropout=0.5)
    torch.manual_seed(17)
    expected = one_graph_over_slices(reference, ROWS)
    torch.manual_seed(17)
    assert torch.equal(batch.gradients(Accelerator(), size), expected)
    assert_same(batch.found(), reference.found())


def test_gradients_are_added_to_those_there_are() -> None:
    once, twice = Batch(dropout=0.0), Batch(dropout=0.0)
    once.gradients(Accelerator(), 4)
    for _ in range(2):
        twice.gradients(Accelerator(), 4)
    assert_same(twice.found(), {name: 2 * g for name, g in once.found().items()})


class Normalised(nn.Module):
    """An encoder with batch normalisation, whose running statistics are state as well."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.linear = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.linear(batch))
        return out


def test_running_statistics_move_once_for_each_slice() -> None:
    batch = Batch(dropout=0.0)
    batch.model = StageModel({**batch.model.encoders, "one": SpaceEncoder(Normalised(), 6, 6, projected=False)}).train()
    reference, in_order = copy.deepcopy(batch), copy.deepcopy(batch)
    expected = one_graph_over_slices(reference, 4)
    found = batch.gradients(Accelerator(), 4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(batch.found(), reference.found())
    # The last slice, which is run once, counts first.
    for start, stop in ((7, 11), (0, 3), (3, 7)):
        in_order.model({name: sliced(value, start, stop) for name, value in batch.inputs.items()})
    buffers = dict(in_order.model.named_buffers())
    assert any("running_mean" in name for name in buffers)
    for name, buffer in batch.model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], msg=name)


class FixedTokens(TokenEncoder):
    """Trains its head only; its tokens come without gradients."""

    def forward(self, batch: Mapping[str, torch.Tensor]) -> EncoderOutput:
        with torch.no_grad():
            tokens = self.tokens(batch["values"])
        pooled = tokens.mean(1)
        return EncoderOutput(self.variance(pooled), tokens, batch["mask"], self.variance(pooled).tanh())


def test_outputs_without_gradients_are_left_alone() -> None:
    whole, parts = Batch(dropout=0.0), Batch(dropout=0.0)
    for batch in (whole, parts):
        encoder = SpaceEncoder(FixedTokens(0.0), 6, 6, projected=False)
        batch.model = StageModel({**batch.model.encoders, "three": encoder}).train()
    expected, found = whole.gradients(Accelerator(), None), parts.gradients(Accelerator(), 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert_same(parts.found(), whole.found())
    assert not any("encoder.tokens" in name for name in parts.found())


def test_a_batch_that_cannot_be_cut_says_so() -> None:
    batch = Batch(dropout=0.0)
    batch.inputs["one"] = ["not", "a", "tensor"]  # type: ignore[assignment]
    with pytest.raises(TypeError, match="collate must return tensors"):
        batch.gradients(Accelerator(), 4)


@pytest.mark.parametrize(
    ("sizes", "random_room", "micro_batch_size", "expected"),
    [
        ((8,), 0, None, 1),
        ((8,), 60, None, 1),
        ((8,), 0, 3, 3),
        ((8,), 6, 3, 5),
        ((8,), 60, 3, 8),  # a row of the batch in each slice, though more random ones go with it
        ((8, 7), 0, 4, 2),
        ((8, 2), 0, 4, 2),
        ((8, 2), 60, 4, 2),
    ],
)
def test_slices_of_a_step(
    sizes: tuple[int, ...], random_room: int, micro_batch_size: int | None, expected: int
) -> None:
    assert slices_of_step(sizes, random_room, micro_batch_size) == expected
