"""The tiled InfoNCE against masks, loops and logits written out in full."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from geobind_core.training import tiles
from geobind_core.training.infonce import info_nce, symmetric_info_nce

TREATMENTS = ["negative", "ignore", "positive"]
TOLERANCE = {torch.float32: {"atol": 1e-6, "rtol": 1e-5}, torch.float64: {"atol": 1e-12, "rtol": 1e-10}}


def unit(count: int, seed: int, dtype: torch.dtype = torch.float64, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def labels_of(count: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 5, (count, columns), generator=generator)


def one_way_in_full(
    query: torch.Tensor,
    gallery: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    offset: int = 0,
    total: int | None = None,
    query_labels: torch.Tensor | None = None,
    gallery_labels: torch.Tensor | None = None,
    query_rows: torch.Tensor | None = None,
    gallery_rows: torch.Tensor | None = None,
    treat_as: str = "negative",
) -> torch.Tensor:
    """One-way InfoNCE with masks of the size of the logits, filled item by item."""
    logits = logit_scale * query @ gallery.T
    left_out, right = torch.zeros(logits.shape, dtype=torch.bool), torch.zeros(logits.shape, dtype=torch.bool)
    for i in range(len(query)):
        for j in range(len(gallery)):
            if j == offset + i:
                right[i, j] = True
            elif query_rows is not None and gallery_rows is not None and query_rows[i] == gallery_rows[j] != -1:
                left_out[i, j] = True
            elif query_labels is not None and gallery_labels is not None:
                pairs = zip(query_labels[i].tolist(), gallery_labels[j].tolist(), strict=True)
                same = any(a == b != -1 for a, b in pairs)
                left_out[i, j] = same and treat_as == "ignore"
                right[i, j] = same and treat_as == "positive"
    shares = torch.log_softmax(logits.masked_fill(left_out, -torch.inf), dim=1)
    aims = shares.masked_fill(~right, 0).sum(1) / right.sum(1)
    return -aims.sum() / (total or len(query))


def symmetric_in_full(first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor, **relations: Any) -> torch.Tensor:
    labels, treat_as = relations.get("labels"), relations.get("treat_as", "negative")
    return sum(
        one_way_in_full(q, g, scale, query_labels=labels, gallery_labels=labels, treat_as=treat_as) / 2
        for q, g in ((first, second), (second, first))
    )  # type: ignore[return-value]


def with_gradients(
    loss: Callable[..., torch.Tensor], *inputs: torch.Tensor, frozen: tuple[int, ...] = (), **settings: Any
) -> list[torch.Tensor | None]:
    """Returns a loss, and its gradients with respect to all inputs but the frozen ones."""
    leaves = [value.clone().requires_grad_(i not in frozen) for i, value in enumerate(inputs)]
    # Not the plain loss: what comes back must be multiplied by what was given.
    value = loss(*leaves, **settings)
    (3 * value).backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(found: list[torch.Tensor | None], expected: list[torch.Tensor | None], dtype: torch.dtype) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


@pytest.fixture(params=[None, 1, 3, 8], ids=lambda edge: f"edge {edge or 'as it is'}")
def any_edge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that the examples have many, with borders inside and at the end."""
    if request.param is not None:
        monkeypatch.setattr(tiles, "edge_of", lambda device: request.param)


@pytest.mark.usefixtures("any_edge")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_symmetric(treat_as: str, columns: int, dtype: torch.dtype) -> None:
    count = 20
    labels = labels_of(count, columns, 3) if columns else None
    inputs = (unit(count, 0, dtype), unit(count, 1, dtype), torch.tensor(9.0, dtype=dtype))
    found = with_gradients(symmetric_info_nce, *inputs, labels=labels, treat_as=treat_as)
    assert_same(found, with_gradients(symmetric_in_full, *inputs, labels=labels, treat_as=treat_as), dtype)
    if columns and treat_as != "negative":
        plain = symmetric_in_full(*inputs)
        assert abs(plain - found[0]) > 1e-2, "the example must tell the treatments apart"


@pytest.mark.usefixtures("any_edge")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_one_way_with_everything(treat_as: str, columns: int, dtype: torch.dtype) -> None:
    """A gallery wider than the queries, own items in the middle of it, and some of them once more at its end."""
    size, count, offset = 11, 29, 7
    rows = torch.arange(count) + 100
    rows[offset + size :] = torch.tensor([-1, 107, 108, 200, 107, -1, 112, 300, 110, 400, 111])
    settings: dict[str, Any] = {"offset": offset, "total": 40, "treat_as": treat_as, "gallery_rows": rows}
    settings["query_rows"] = torch.cat([rows[offset : offset + size - 1], torch.tensor([-1])])
    if columns:
        labels = labels_of(count, columns, 4)
        settings |= {"gallery_labels": labels, "query_labels": labels[offset : offset + size]}
    inputs = (unit(size, 0, dtype), unit(count, 1, dtype), torch.tensor(9.0, dtype=dtype))
    found = with_gradients(info_nce, *inputs, **settings)
    assert_same(found, with_gradients(one_way_in_full, *inputs, **settings), dtype)
    without_rows = one_way_in_full(*inputs, **{**settings, "query_rows": None})
    assert abs(without_rows - found[0]) > 1e-4, "the example must have items that come back"


def test_row_numbers_of_minus_one_are_nobodys() -> None:
    query, gallery, nobody = unit(5, 0), unit(9, 1), torch.full((9,), -1)
    plain = info_nce(query, gallery, 9.0)
    assert torch.equal(info_nce(query, gallery, 9.0, query_rows=nobody[:5], gallery_rows=nobody), plain)


@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_labels_that_are_all_different_change_nothing(treat_as: Any) -> None:
    query, gallery, labels = unit(8, 4), unit(8, 5), torch.tensor([0, 1, 2, -1, -1, 3, -1, 4])[:, None]
    ours = info_nce(query, gallery, 10.0, query_labels=labels, gallery_labels=labels, treat_as=treat_as)
    torch.testing.assert_close(ours, info_nce(query, gallery, 10.0))
    both = symmetric_info_nce(query, gallery, 10.0, labels=labels, treat_as=treat_as)
    torch.testing.assert_close(both, symmetric_info_nce(query, gallery, 10.0))


@pytest.mark.parametrize("edge", [3, 64])
def test_everything_has_the_same_label(edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles are left out, and every query has but its own item."""
    monkeypatch.setattr(tiles, "edge_of", lambda device: edge)
    inputs, labels = (unit(10, 0), unit(10, 1), torch.tensor(9.0)), torch.ones(10, 1, dtype=torch.long)
    one_way = with_gradients(info_nce, *inputs, query_labels=labels, gallery_labels=labels, treat_as="ignore")
    for value in (*one_way, *with_gradients(symmetric_info_nce, *inputs, labels=labels, treat_as="ignore")):
        assert value is not None
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


LOSSES = [info_nce, symmetric_info_nce]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_frozen_inputs_get_no_gradient_and_change_no_other(loss: Any, frozen: tuple[int, ...], any_edge: None) -> None:
    inputs = (unit(20, 0), unit(20, 1), torch.tensor(9.0, dtype=torch.float64))
    everything = with_gradients(loss, *inputs)
    some = with_gradients(loss, *inputs, frozen=frozen)
    for i, (gradient, expected) in enumerate(zip(some[1:], everything[1:], strict=True)):
        if i in frozen:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected, **TOLERANCE[torch.float64])
    assert torch.equal(some[0], everything[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
def test_without_gradients(loss: Any) -> None:
    inputs = [value.requires_grad_() for value in (unit(20, 0), unit(20, 1), torch.tensor(9.0))]
    with torch.no_grad():
        value = loss(*inputs)
    assert not value.requires_grad
    assert torch.equal(value, loss(*inputs).detach())
    assert not loss(*(value.detach() for value in inputs)).requires_grad


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("treat_as", TREATMENTS)
def test_gradients_are_those_of_the_value(loss: Any, treat_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "edge_of", lambda device: 2)
    labels = labels_of(5, 2, 1)
    names = ("labels",) if loss is symmetric_info_nce else ("query_labels", "gallery_labels")
    settings: dict[str, Any] = {"treat_as": treat_as, **dict.fromkeys(names, labels)}
    inputs = [value.requires_grad_() for value in (unit(5, 0), unit(5, 1), torch.tensor(4.0, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *values: loss(*values, **settings), inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_may_be_called_twice(loss: Any) -> None:
    first, second = unit(20, 0).requires_grad_(), unit(20, 1)
    value = loss(first, second, 9.0)
    once, again = (torch.autograd.grad(value, first, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_scale_of_100_is_safe(loss: Any, any_edge: None) -> None:
    """Near-duplicates, opposites, and items that are nobody's favourite: no sum is zero or infinite."""
    first = torch.cat([unit(1, 0).expand(12, -1), -unit(1, 0).expand(12, -1)]).float() + 1e-4 * unit(24, 1).float()
    second = torch.cat([first[:6], -first[6:12], first[12:]])
    first, second = nn.functional.normalize(first, dim=-1), nn.functional.normalize(second, dim=-1)
    scale = torch.tensor(100.0)
    found = with_gradients(loss, first, second, scale)
    reference = one_way_in_full if loss is info_nce else symmetric_in_full
    expected = with_gradients(reference, first.double(), second.double(), scale.double())
    assert found[0] is not None
    assert float(found[0]) > 40
    for ours, exact in zip(found, expected, strict=True):
        assert ours is not None
        assert exact is not None
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours.double(), exact, atol=2e-5 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_less_than_float32_is_computed_in_float32(loss: Any, dtype: torch.dtype) -> None:
    first, second, scale = unit(20, 0, dtype), unit(20, 1, dtype), torch.tensor(50.0)
    found = with_gradients(loss, first, second, scale)
    expected = with_gradients(loss, first.float(), second.float(), scale)
    assert found[0] is not None
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])  # type: ignore[arg-type]
    assert torch.equal(found[1], expected[1].to(dtype))  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_to_the_bit(loss: Any) -> None:
    inputs = (unit(1500, 0, torch.float32, 32), unit(1500, 1, torch.float32, 32), torch.tensor(20.0))
    first, second = (with_gradients(loss, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]


MEASURE = """
import resource, sys, torch
from geobind_core.training.infonce import info_nce, symmetric_info_nce
from geobind_core.training.sigmoid import sigmoid_loss
torch.set_num_threads(1)
def run(count):
    first, second = (torch.nn.functional.normalize(torch.randn(count, 16), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0, requires_grad=True)
    labels = torch.arange(count)[:, None] // 2
    info_nce(first, second, scale).backward()
    symmetric_info_nce(first, second, scale).backward()
    symmetric_info_nce(first, second, scale, labels=labels, treat_as="positive").backward()
    sigmoid_loss(first, second, scale, -10.0).backward()
run(64)  # what is allocated once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8192)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_no_matrix_of_all_pairs_is_held() -> None:
    """A single [8192, 8192] matrix of float32 takes 256 MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100
