"""InfoNCE against open_clip's loss, and against the paper's formulas written out."""

import math
from typing import Any

import pyarrow as pa
import pytest
import torch
from open_clip.loss import ClipLoss
from torch import nn

from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import ExtraItems, LocalPair, LogitScaleConfig, LossOutput
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.source import Observations
from geobind_core.training.edges import BatchRows, Edge, EdgeLosses
from geobind_core.training.infonce import InfoNCEModule, LogitScale
from geobind_core.training.losses import InfoNCE, InfoNCEConfig


def unit(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=-1)


def built(**settings: object) -> InfoNCEModule:
    return InfoNCE(InfoNCEConfig.model_validate(settings)).build()


def whole(first: torch.Tensor, second: torch.Tensor, **further: Any) -> LocalPair:
    """A batch of one process."""
    a, b = EncoderOutput(first), EncoderOutput(second)
    return LocalPair(a, b, a, b, offset=0, rows=torch.arange(len(first)), **further)


def with_gradients(module: InfoNCEModule, first: torch.Tensor, second: torch.Tensor, **further: Any) -> list[Any]:
    """Returns a module's loss, and its gradients with respect to both sides and the log of the scale."""
    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    loss = module.forward_local(whole(a, b, **further)).value
    return [loss.detach(), *torch.autograd.grad(loss, [a, b, module.logit_scale.log_logit_scale])]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1100])
def test_symmetric_is_open_clips_loss(count: int) -> None:
    first, second = unit(count, 16, 0), unit(count, 16, 1)
    found = with_gradients(built(direction="both"), first, second)

    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    log_scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    loss = ClipLoss()(a, b, log_scale.exp())
    expected = [loss.detach(), *torch.autograd.grad(loss, [a, b, log_scale])]

    assert_same(found, expected)


def one_way_by_hand(query: torch.Tensor, gallery: torch.Tensor, scale: float) -> float:
    """The paper's eq. 1: -1/B sum_i log(exp(q_i . g_i / tau) / sum_j exp(q_i . g_j / tau))."""
    q, g = query.double().tolist(), gallery.double().tolist()
    total = 0.0
    for i in range(len(q)):
        similarity = [sum(x * y for x, y in zip(q[i], g[j], strict=True)) for j in range(len(g))]
        total -= math.log(math.exp(scale * similarity[i]) / sum(math.exp(scale * s) for s in similarity))
    return total / len(q)


@pytest.mark.parametrize("direction", ["first_to_second", "second_to_first"])
def test_one_way_is_the_papers_first_equation(direction: str) -> None:
    first, second = unit(9, 5, 2), unit(9, 5, 3)
    found = with_gradients(built(direction=direction), first, second)[0]
    query, gallery = (first, second) if direction == "first_to_second" else (second, first)
    assert float(found) == pytest.approx(one_way_by_hand(query, gallery, 1 / 0.07), abs=1e-5)
    other = one_way_by_hand(gallery, query, 1 / 0.07)
    assert abs(float(found) - other) > 1e-3, "the example must tell the directions apart"


def test_both_directions_are_averaged() -> None:
    first, second = unit(9, 5, 2), unit(9, 5, 3)
    both, there, back = (
        with_gradients(built(direction=d), first, second)[0] for d in ("both", "first_to_second", "second_to_first")
    )
    torch.testing.assert_close(both, (there + back) / 2)


def masked_by_hand(query: torch.Tensor, gallery: torch.Tensor, labels: list[int], treat_as: str, scale: float) -> float:
    """InfoNCE with labels, -1 for none, term by term."""
    logits = (scale * query.double() @ gallery.double().T).tolist()
    total = 0.0
    for i, row in enumerate(logits):
        same = [j for j in range(len(row)) if j != i and labels[i] >= 0 and labels[i] == labels[j]]
        if treat_as == "negative":
            terms, right = list(range(len(row))), [i]
        elif treat_as == "ignore":
            terms, right = [j for j in range(len(row)) if j not in same], [i]
        else:
            terms, right = list(range(len(row))), [i, *same]
        denominator = math.log(sum(math.exp(row[j]) for j in terms))
        total -= sum(row[j] - denominator for j in right) / len(right)
    return total / len(logits)


LABELS = [0, 1, 0, -1, 2, -1, 1, 0]


@pytest.mark.parametrize("direction", ["first_to_second", "second_to_first", "both"])
@pytest.mark.parametrize("treat_as", ["negative", "ignore", "positive"])
def test_labels(treat_as: str, direction: str) -> None:
    first, second = unit(8, 6, 4), unit(8, 6, 5)
    module = built(same_label=treat_as, direction=direction, logit_scale={"init_temperature": 0.1})
    found = module.forward_local(whole(first, second, labels=torch.tensor(LABELS)[:, None])).value
    sides = {"first_to_second": [(first, second)], "second_to_first": [(second, first)]}
    both = sides.get(direction, [(first, second), (second, first)])
    expected = sum(masked_by_hand(q, g, LABELS, treat_as, 10.0) for q, g in both) / len(both)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-5)
    if treat_as != "negative":
        plain = sum(masked_by_hand(q, g, LABELS, "negative", 10.0) for q, g in both) / len(both)
        assert abs(expected - plain) > 1e-2, "the example must tell the treatments apart"


# ---------------------------------------------------------------------- several processes


def extra_items(count: int, seed: int, labels: torch.Tensor | None = None) -> ExtraItems:
    """Further items: no row of the data set, rows of the batch, and other rows."""
    rows = torch.arange(count) * 3 - 1
    return ExtraItems(unit(count, 12, seed), rows, labels)


def in_processes(
    module: InfoNCEModule, sizes: list[int], first: torch.Tensor, second: torch.Tensor, **further: Any
) -> list[Any]:
    """Returns the sum of the shares of processes that hold so many rows, and its gradients as above."""
    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    shares, start = [], 0
    for size in sizes:
        own = slice(start, start + size)
        everything = EncoderOutput(a), EncoderOutput(b)
        parts = EncoderOutput(a[own]), EncoderOutput(b[own])
        pair = LocalPair(*parts, *everything, offset=start, rows=torch.arange(len(a)), **further)
        shares.append(module.forward_local(pair).value)
        start += size
    loss = torch.stack(shares).sum()
    return [loss.detach(), *torch.autograd.grad(loss, [a, b, module.logit_scale.log_logit_scale])]


@pytest.mark.parametrize("sizes", [[23], [9, 14], [4, 12, 7], [23, 0]])
@pytest.mark.parametrize("treat_as", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("direction", ["first_to_second", "second_to_first", "both"])
def test_shares_of_processes_add_up(direction: str, treat_as: str, sizes: list[int]) -> None:
    first, second = unit(23, 12, 6), unit(23, 12, 7)
    labels = torch.stack([torch.arange(23) % 9 - 1, torch.arange(23) % 7 - 1], dim=1)
    module = built(direction=direction, same_label=treat_as)
    expected = with_gradients(module, first, second, labels=labels)
    assert_same(in_processes(module, sizes, first, second, labels=labels), expected)


@pytest.mark.parametrize("treat_as", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("direction", ["first_to_second", "second_to_first", "both"])
def test_further_items_are_negatives_and_an_own_row_among_them_is_none(direction: str, treat_as: str) -> None:
    first, second = unit(9, 12, 6), unit(9, 12, 7)
    labels = torch.arange(9)[:, None] % 4 - 1
    # The first modality's further items have labels of their own, the second's have none.
    further = {
        "extra_first": extra_items(8, 8, torch.arange(8)[:, None] % 3 - 1),
        "extra_second": extra_items(5, 9),
        "labels": labels,
    }
    module = built(direction=direction, same_label=treat_as)
    found = with_gradients(module, first, second, **further)

    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    losses = []
    for name, query, gallery in (("extra_second", a, b), ("extra_first", b, a)):
        if direction == {"extra_second": "second_to_first", "extra_first": "first_to_second"}[name]:
            continue
        extra = further[name]
        assert isinstance(extra, ExtraItems)
        extra_labels = torch.full((len(extra.rows), 1), -1) if extra.labels is None else extra.labels
        all_labels = torch.cat([labels, extra_labels])[:, 0]
        logits = module.logit_scale() * query @ torch.cat([gallery, extra.embedding]).T
        same = (labels == all_labels) & (labels >= 0) & ~torch.eye(*logits.shape, dtype=torch.bool)
        come_back = torch.zeros_like(same)
        come_back[:, 9:] = torch.arange(9)[:, None] == extra.rows
        assert come_back.any(), "the example must have items that come back"
        left_out = come_back | (same & (treat_as == "ignore"))
        right = torch.eye(*logits.shape) + (same & ~left_out & (treat_as == "positive")).float()
        shares = torch.log_softmax(logits.masked_fill(left_out, -1e9), 1)
        losses.append(-(shares * right).sum(1) / right.sum(1))
    loss = torch.stack(losses).mean()
    inputs = [a, b, module.logit_scale.log_logit_scale]
    assert_same(found, [loss.detach(), *torch.autograd.grad(loss, inputs)])
    assert_same(in_processes(module, [5, 4], first, second, **further), found)


def test_a_row_that_a_batch_has_twice_is_a_negative_with_and_without_further_items() -> None:
    """Samplers fill batches up with rows that they have had; the loss must not hang on a queue for it."""
    first, second, nothing = unit(6, 12, 6), unit(6, 12, 7), ExtraItems(torch.empty(0, 12), torch.empty(0).long())
    a, b = EncoderOutput(first), EncoderOutput(second)
    rows = torch.tensor([4, 5, 4, 6, 6, 7])
    plain = built().forward_local(LocalPair(a, b, a, b, 0, rows)).value
    queued = built().forward_local(LocalPair(a, b, a, b, 0, rows, extra_first=nothing, extra_second=nothing)).value
    torch.testing.assert_close(queued, plain)


def test_settings_of_further_negatives() -> None:
    assert InfoNCEConfig.model_validate({"queue": 9000, "random_negatives": 12}).queue == 9000
    assert (InfoNCEConfig().queue, InfoNCEConfig().random_negatives) == (0, 0)
    for wrong in ({"queue": -1}, {"random_negatives": -1}):
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            InfoNCEConfig.model_validate(wrong)


# ---------------------------------------------------------------------- the scale


def test_scale_starts_at_the_inverse_temperature_and_keeps_its_bounds() -> None:
    scale = LogitScale(LogitScaleConfig(init_temperature=0.07, min=1.0, max=100.0))
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    for pushed_to, kept in ((9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            scale.log_logit_scale.fill_(pushed_to)
        scale.clamp_()
        assert float(scale()) == pytest.approx(kept, rel=1e-6)


def test_a_fixed_scale_is_not_trained() -> None:
    module = built(logit_scale={"init_temperature": 0.2, "learnable": False})
    assert not module.logit_scale.log_logit_scale.requires_grad
    assert float(module.logit_scale()) == pytest.approx(5.0)


@pytest.mark.parametrize("direction", ["first_to_second", "both"])
@pytest.mark.parametrize("treat_as", ["negative", "ignore", "positive"])
def test_logits_are_float32_under_autocast(treat_as: str, direction: str) -> None:
    first, second = unit(64, 32, 6), unit(64, 32, 7)
    labels = torch.arange(64)[:, None] % 9
    module = built(direction=direction, same_label=treat_as, logit_scale={"init_temperature": 0.01})
    expected = with_gradients(module, first, second, labels=labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(module, first, second, labels=labels)
        rounded = (100.0 * first @ second.T).float()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    # Had they been bfloat16, they would have been off by far more than float32 is.
    assert (rounded - 100.0 * first @ second.T).abs().max() > 0.05


# ---------------------------------------------------------------------- several edges


def data_with_labels() -> PairedData:
    table = pa.table({"key": list("abcdef"), "x": [1.0] * 6, "species": ["owl", None, "owl", "crow", None, "crow"]})
    fields = dict.fromkeys(("one", "two", "three"), "x")
    return PairedData("small", Observations(table, root=None, fields=fields, labels={"two": "species"}))  # type: ignore[arg-type]


def batch(*rows: int) -> BatchRows:
    return BatchRows(torch.tensor(rows), (len(rows),), {})


def edge(first: str, second: str, weight: float, **settings: object) -> Edge:
    return Edge(first, second, InfoNCE(InfoNCEConfig.model_validate(settings)), weight)


def test_edges_are_weighted_and_keep_their_own_direction_and_scale() -> None:
    edges = [
        edge("one", "two", 3.0, direction="first_to_second", logit_scale={"init_temperature": 0.1}),
        edge("one", "three", 1.0, direction="second_to_first", logit_scale={"init_temperature": 0.5}),
    ]
    losses = EdgeLosses(edges, data_with_labels(), 5)
    one, two, three = (EncoderOutput(unit(4, 5, seed)) for seed in (8, 9, 10))
    total, logs = losses({"one": one, "two": two, "three": three}, batch(0, 1, 3, 4))

    expected = 0.75 * one_way_by_hand(one.embedding, two.embedding, 10.0)
    expected += 0.25 * one_way_by_hand(three.embedding, one.embedding, 2.0)
    assert float(total) == pytest.approx(expected, abs=1e-5)
    assert float(logs["logit_scale/one_two"]) == pytest.approx(10.0, rel=1e-5)
    assert float(logs["logit_scale/one_three"]) == pytest.approx(2.0, rel=1e-5)
    assert float(logs["logit_scale"]) == pytest.approx(6.0, rel=1e-5)


def test_edges_look_labels_up_by_row() -> None:
    losses = EdgeLosses(
        [edge("one", "two", 1.0, direction="first_to_second", same_label="positive")], data_with_labels(), 5
    )
    one, two = EncoderOutput(unit(4, 5, 8)), EncoderOutput(unit(4, 5, 9))
    rows = batch(5, 1, 3, 4)  # crow, none, crow, none: only the first and the third are the same
    total, logs = losses({"one": one, "two": two}, rows)
    expected = masked_by_hand(one.embedding, two.embedding, [7, -1, 7, -1], "positive", 1 / 0.07)
    assert float(total) == pytest.approx(expected, abs=1e-5)
    assert set(logs) == {"logit_scale"}


def test_edges_clamp_every_scale() -> None:
    losses = EdgeLosses([edge("one", "two", 1.0), edge("one", "three", 1.0)], data_with_labels(), 5)
    with torch.no_grad():
        for parameter in losses.parameters():
            parameter.fill_(20.0)
    losses.clamp_()
    assert [float(p.exp()) for p in losses.parameters()] == pytest.approx([100.0, 100.0], rel=1e-6)


class Constant(nn.Module):
    """A loss with a log that InfoNCE has not."""

    def forward(self, first: EncoderOutput, second: EncoderOutput, same_label: torch.Tensor | None) -> LossOutput:
        return LossOutput(first.embedding.sum() * 0 + 2.0, {"margin": torch.tensor(8.0)})


class ConstantLoss(InfoNCE):
    def build(self) -> nn.Module:  # type: ignore[override]
        return Constant()


def test_a_log_that_one_edge_has_is_not_thinned_by_the_others() -> None:
    edges = [edge("one", "two", 1.0), Edge("one", "three", ConstantLoss(InfoNCEConfig()), 1.0)]
    outputs = {name: EncoderOutput(unit(3, 4, seed)) for name, seed in (("one", 1), ("two", 2), ("three", 3))}
    total, logs = EdgeLosses(edges, data_with_labels(), 5)(outputs, batch(0, 1, 2))
    assert float(logs["margin"]) == 8.0
    assert float(logs["logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-5)
    alone = float(built().forward_local(whole(outputs["one"].embedding, outputs["two"].embedding)).value)
    assert float(total) == pytest.approx((alone + 2.0) / 2, abs=1e-5)
