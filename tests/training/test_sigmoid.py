"""The pairwise sigmoid loss against open_clip's, and against the paper's formula written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.loss import SigLipLoss
from pydantic import ValidationError
from torch import nn

from geobind_core.chain.builtin import plugin_manager
from geobind_core.plugins.loss import LocalPair
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.training import tiles
from geobind_core.training.losses import Sigmoid, SigmoidConfig
from geobind_core.training.sigmoid import SigmoidModule, sigmoid_loss

TOLERANCE = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.float64: {"atol": 1e-12, "rtol": 1e-10}}
TREATMENTS = ["negative", "ignore", "positive"]


def unit(count: int, seed: int, dtype: torch.dtype = torch.float32, dim: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def scalars(dtype: torch.dtype = torch.float32, scale: float = 10.0, bias: float = -3.0) -> tuple[torch.Tensor, ...]:
    return torch.tensor(scale, dtype=dtype), torch.tensor(bias, dtype=dtype)


def in_full(
    first: torch.Tensor,
    second: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    labels: torch.Tensor | None = None,
    treat_as: str = "negative",
) -> torch.Tensor:
    """-1/N sum_ij logsigmoid(z_ij (scale q_i . g_j + bias)), pair by pair."""
    own = torch.eye(len(first), dtype=torch.bool)
    same = torch.zeros_like(own)
    for column in (labels if labels is not None else torch.empty(len(first), 0)).T:
        same |= (column[:, None] == column) & (column >= 0)
    together = own | same if treat_as == "positive" else own
    z = torch.where(together, 1.0, -1.0).to(first.dtype)
    terms = nn.functional.logsigmoid(z * (scale * first @ second.T + bias))
    if treat_as == "ignore":
        terms = terms.masked_fill(same & ~own, 0)
    return -terms.sum() / len(first)


def with_gradients(loss: Callable[..., torch.Tensor], *inputs: torch.Tensor, **settings: Any) -> list[torch.Tensor]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    value = loss(*leaves, **settings)
    return [value.detach(), *torch.autograd.grad(3 * value, leaves)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


@pytest.fixture(params=[None, 1, 3, 8], ids=lambda edge: f"edge {edge or 'as it is'}")
def any_edge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that the examples have many, with borders inside and at the end."""
    if request.param is not None:
        monkeypatch.setattr(tiles, "edge_of", lambda device: request.param)


@pytest.mark.usefixtures("any_edge")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (10.0, -3.0), (100.0, 5.0)])
def test_it_is_open_clips_loss(scale: float, bias: float, dtype: torch.dtype) -> None:
    inputs = (unit(20, 0, dtype), unit(20, 1, dtype), *scalars(dtype, scale, bias))
    assert_same(with_gradients(sigmoid_loss, *inputs), with_gradients(SigLipLoss(), *inputs), dtype)


@pytest.mark.usefixtures("any_edge")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_labels(treat_as: str, columns: int, dtype: torch.dtype) -> None:
    labels = torch.randint(-1, 5, (20, columns), generator=torch.Generator().manual_seed(2))
    inputs = (unit(20, 0, dtype), unit(20, 1, dtype), *scalars(dtype))
    settings: dict[str, Any] = {"query_labels": labels, "gallery_labels": labels, "treat_as": treat_as}
    expected = with_gradients(in_full, *inputs, labels=labels, treat_as=treat_as)
    assert_same(with_gradients(sigmoid_loss, *inputs, **settings), expected, dtype)
    if treat_as != "negative":
        assert abs(in_full(*inputs) - expected[0]) > 1e-2, "the example must tell the treatments apart"


@pytest.mark.parametrize("frozen", range(4))
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen: int) -> None:
    inputs = (unit(20, 0), unit(20, 1), *scalars())
    leaves = [value.clone().requires_grad_(i != frozen) for i, value in enumerate(inputs)]
    (3 * sigmoid_loss(*leaves)).backward()
    value, *gradients = with_gradients(sigmoid_loss, *inputs)
    for i, (leaf, expected) in enumerate(zip(leaves, gradients, strict=True)):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, expected)
    with torch.no_grad():
        assert torch.equal(sigmoid_loss(*leaves), value)


@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_gradients_are_those_of_the_value(treat_as: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "edge_of", lambda device: 2)
    labels = torch.tensor([0, 1, 0, -1, 1])[:, None]
    settings: dict[str, Any] = {"query_labels": labels, "gallery_labels": labels, "treat_as": treat_as}
    values = (unit(5, 0, torch.float64), unit(5, 1, torch.float64), *scalars(torch.float64, 4.0, -1.0))
    leaves = [value.requires_grad_() for value in values]
    assert torch.autograd.gradcheck(lambda *inputs: sigmoid_loss(*inputs, **settings), leaves)


def test_logits_are_float32_under_autocast() -> None:
    inputs = (unit(64, 0), unit(64, 1), *scalars(scale=100.0))
    expected = with_gradients(sigmoid_loss, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(sigmoid_loss, *inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    half = with_gradients(sigmoid_loss, *(value.bfloat16() for value in inputs[:2]), *inputs[2:])
    assert [value.dtype for value in half] == [torch.float32, torch.bfloat16, torch.bfloat16, *[torch.float32] * 2]


# ---------------------------------------------------------------------- the module


def built(**settings: object) -> SigmoidModule:
    return Sigmoid(SigmoidConfig.model_validate(settings)).build()


@pytest.mark.parametrize("sizes", [[23], [9, 14], [4, 12, 7], [23, 0]])
@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_shares_of_processes_add_up(treat_as: str, sizes: list[int]) -> None:
    module, labels = built(same_label=treat_as), torch.arange(23)[:, None] % 9 - 1
    a, b = unit(23, 0).requires_grad_(), unit(23, 1).requires_grad_()
    shares, start = [], 0
    for size in sizes:
        own = slice(start, start + size)
        parts = EncoderOutput(a[own]), EncoderOutput(b[own])
        pair = LocalPair(*parts, EncoderOutput(a), EncoderOutput(b), start, torch.arange(23), labels)
        shares.append(module.forward_local(pair).value)
        start += size
    parameters = [a, b, module.logit_scale.log_logit_scale, module.logit_bias]
    found = torch.autograd.grad(torch.stack(shares).sum(), parameters)

    loss = in_full(a, b, module.logit_scale(), module.logit_bias, labels, treat_as)
    assert_same([torch.stack(shares).sum().detach(), *found], [loss.detach(), *torch.autograd.grad(loss, parameters)])


def test_it_starts_where_siglip_starts_and_says_where_it_is() -> None:
    # Another setting of the scale leaves SigLIP's start as it is.
    module = built(logit_scale={"max": 200.0})
    one = EncoderOutput(unit(4, 0))
    logs = module.forward_local(LocalPair(one, one, one, one, 0, torch.arange(4))).logs
    assert {name: float(value) for name, value in logs.items()} == pytest.approx({"logit_scale": 10, "logit_bias": -10})
    assert not any(value.requires_grad for value in logs.values())


def test_settings_of_the_bias() -> None:
    module = built(init_bias=-4, learnable_bias=False)
    assert float(module.logit_bias) == -4
    assert not module.logit_bias.requires_grad
    assert built().logit_bias.requires_grad


@pytest.mark.parametrize("direction", ["train_to_anchor", "anchor_to_train", "first_to_second", "second_to_first"])
def test_it_has_no_direction(direction: str) -> None:
    with pytest.raises(ValidationError, match="Input should be 'both'"):
        SigmoidConfig.model_validate({"direction": direction})
    assert SigmoidConfig().direction == "both"


@pytest.mark.parametrize("setting", ["queue", "random_negatives"])
def test_it_has_no_further_negatives(setting: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SigmoidConfig.model_validate({setting: 5})


def test_it_is_registered() -> None:
    assert plugin_manager().find("loss", "sigmoid").cls is Sigmoid
