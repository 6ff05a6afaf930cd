"""Negatives beyond the batch: a queue of past items, and items drawn at random."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from geobind_plugin_imagery.images import GroundImage, Satellite
from torch import nn

from geobind_core.config.models import AlignConfig, PairConfig, RunConfig
from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import ExtraItems, LocalPair, Loss, LossOutput
from geobind_core.plugins.modality import EncoderOutput, Modality, ModalityConfig
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.progress import Reporter, Task
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.training import loop
from geobind_core.training.align import Align
from geobind_core.training.edges import BatchRows, Edge, EdgeLosses
from geobind_core.training.losses import InfoNCE, InfoNCEConfig
from geobind_core.training.queue import NegativeQueue

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "every_step")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs every step, so that curves can be compared point by point."""
    monkeypatch.setattr(loop, "_LOG_EVERY", 1)


# ---------------------------------------------------------------------- written out


def by_hand(
    query: torch.Tensor,
    gallery: torch.Tensor,
    scale: float,
    *,
    rows: Sequence[int],
    extra: torch.Tensor | None = None,
    extra_rows: Sequence[int] = (),
    labels: Sequence[int] | None = None,
    extra_labels: Sequence[int] = (),
    treat_as: str = "negative",
) -> torch.Tensor:
    """Cross-entropy of each query over [its own item | other items of the batch | further items], one by one.

    A further item of the query's own row is left out, and items with its label are what they are treated as.
    """
    everything = gallery if extra is None else torch.cat([gallery, extra])
    all_rows, all_labels = [*rows, *extra_rows], [*(labels or []), *extra_labels]
    losses = []
    for i in range(len(query)):
        logits, right = [], []
        for j in range(len(everything)):
            is_own, is_further = j == i, j >= len(gallery)
            if is_further and all_rows[j] == rows[i]:
                continue
            alike = labels is not None and all_labels[j] == labels[i] != -1 and not is_own
            if alike and treat_as == "ignore":
                continue
            logits.append(scale * (query[i] * everything[j]).sum())
            right.append(is_own or (alike and treat_as == "positive"))
        log_shares = torch.log_softmax(torch.stack(logits), 0)
        losses.append(-log_shares[torch.tensor(right)].mean())
    return torch.stack(losses).mean()


def unit(count: int, seed: int, dim: int = 8) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def table_of(count: int, labels: Sequence[str | None] | None = None) -> PairedData:
    table = {"key": [str(i) for i in range(count)], "a": [0.0] * count, "b": [0.0] * count}
    table |= {"c": table["b"], "kind": list(labels or [None] * count)}  # type: ignore[dict-item]
    named = {"b": "kind"} if labels else {}
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    fields = {name: name for name in ("a", "b", "c")}
    return PairedData("rows", Observations(pa.table(table), Path(), fields, labels=named), config)


def losses_of_edges(
    data: PairedData, *edges: tuple[str, str], loss: type[Loss[Any]] = InfoNCE, **settings: Any
) -> EdgeLosses:
    config = InfoNCEConfig.model_validate({"direction": "first_to_second", **settings})
    return EdgeLosses([Edge(a, b, loss(config), 1.0) for a, b in edges], data, 8)


def batch_of(rows: Sequence[int], **random: Sequence[int]) -> BatchRows:
    return BatchRows(torch.tensor(rows), (len(rows),), {name: torch.tensor(r) for name, r in random.items()})


SCALE = 1 / 0.07

# ---------------------------------------------------------------------- the queue


@pytest.mark.parametrize(("size", "pushes"), [(5, [3, 3, 3]), (5, [5, 5]), (4, [7, 2, 6]), (100, [3, 4])])
def test_a_queue_has_the_last_that_were_pushed(size: int, pushes: Sequence[int]) -> None:
    queue, pushed = NegativeQueue(size, 8, 1), 0
    assert queue.items() is None
    for count in pushes:
        rows = torch.arange(pushed, pushed + count)
        queue.push(unit(count, pushed), rows, rows[:, None] % 3)
        pushed += count
    items = queue.items()
    assert items is not None
    expected = list(range(max(0, pushed - size), pushed))
    assert sorted(items.rows.tolist()) == expected
    everything = torch.cat([unit(count, sum(pushes[:i])) for i, count in enumerate(pushes)])
    for row, embedding in zip(items.rows.tolist(), items.embedding, strict=True):
        assert torch.equal(embedding, everything[row])
    assert items.labels is not None
    assert torch.equal(items.labels[:, 0], items.rows % 3)
    copied = NegativeQueue(size, 8, 1)
    copied.load_state_dict(queue.state_dict())
    for one in (queue, copied):  # goes on at the same place
        one.push(unit(2, 99), torch.tensor([900, 901]), torch.zeros(2, 1, dtype=torch.long))
    assert torch.equal(queue.rows, copied.rows)


@pytest.mark.parametrize("kind", ["negative", "ignore", "positive"])
def test_sat2caps_loss_by_hand(kind: str) -> None:
    """One-sided, over the batch and a queue of past anchors, through several steps in which rows come back."""
    labels = [("ant", "bee", None)[row % 3] for row in range(12)]
    data = table_of(12, labels)
    codes = [(0, 1, -1)[row % 3] for row in range(12)]
    losses = losses_of_edges(data, ("a", "b"), queue=7, same_label=kind)
    past: list[tuple[int, torch.Tensor]] = []
    for step, rows in enumerate([[0, 1, 2, 3], [4, 5, 6, 7], [0, 8, 5, 11], [8, 0, 1, 4]]):
        first, second = unit(4, step).requires_grad_(), unit(4, 50 + step)
        value, logs = losses({"a": EncoderOutput(first), "b": EncoderOutput(second)}, batch_of(rows))
        value.backward()
        theirs = first.detach().clone().requires_grad_()
        expected = by_hand(
            theirs,
            second,
            SCALE,
            rows=rows,
            extra=torch.stack([item for _, item in past]) if past else None,
            extra_rows=[row for row, _ in past],
            labels=[codes[row] for row in rows],
            extra_labels=[codes[row] for row, _ in past],
            treat_as=kind,
        )
        expected.backward()
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(first.grad, theirs.grad, atol=1e-6, rtol=1e-5)
        assert float(logs["logit_scale"]) == pytest.approx(SCALE, rel=1e-6)
        past = [*past, *zip(rows, second, strict=True)][-7:]


def test_both_directions_have_a_queue_each() -> None:
    losses = losses_of_edges(table_of(12), ("a", "b"), queue=4, direction="both")
    before = unit(4, 1), unit(4, 2)
    losses({"a": EncoderOutput(before[0]), "b": EncoderOutput(before[1])}, batch_of([0, 1, 2, 3]))
    first, second, rows = unit(3, 3), unit(3, 4), [4, 1, 5]
    value, _ = losses({"a": EncoderOutput(first), "b": EncoderOutput(second)}, batch_of(rows))
    there = by_hand(first, second, SCALE, rows=rows, extra=before[1], extra_rows=range(4))
    back = by_hand(second, first, SCALE, rows=rows, extra=before[0], extra_rows=range(4))
    torch.testing.assert_close(value, (there + back) / 2, atol=1e-6, rtol=1e-5)


def test_the_row_itself_is_no_negative() -> None:
    """Without it, an item that is exactly the right answer would count against it."""
    losses = losses_of_edges(table_of(4), ("a", "b"), queue=4)
    second = unit(2, 1)
    outputs = {"a": EncoderOutput(second.clone()), "b": EncoderOutput(second)}
    once, _ = losses(outputs, batch_of([0, 1]))
    again, _ = losses(outputs, batch_of([0, 1]))
    # Own row left out, the other one there once more.
    other = float(SCALE * (second[0] @ second[1]))
    assert float(once.detach()) == pytest.approx(math.log1p(math.exp(other - SCALE)), abs=1e-6)
    assert float(again.detach()) == pytest.approx(math.log1p(2 * math.exp(other - SCALE)), abs=1e-6)


class Plain(InfoNCE):
    """A plugin's loss in plain torch operations, which keep what they are given for the gradient."""

    def build(self) -> nn.Module:
        class Module(nn.Module):
            def forward_local(self, pair: LocalPair) -> LossOutput:
                gallery = pair.all_second.embedding
                logits = pair.first.embedding @ gallery.T
                further = pair.extra_second
                if further is not None:
                    logits = torch.cat([logits, pair.first.embedding @ further.embedding.T], 1)
                return LossOutput(nn.functional.cross_entropy(logits, torch.arange(len(logits))))

        return Module()


def test_any_loss_may_use_them() -> None:
    losses = losses_of_edges(table_of(12), ("a", "b"), queue=6, loss=Plain)
    for step in range(4):
        first = unit(4, step).requires_grad_()
        outputs = {"a": EncoderOutput(first), "b": EncoderOutput(unit(4, 9 + step))}
        value, _ = losses(outputs, batch_of(list(range(4))))
        value.backward()  # what is in the queue by now is not what was in it
        assert first.grad is not None


# ---------------------------------------------------------------------- random items


@pytest.mark.parametrize("kind", ["negative", "ignore", "positive"])
@pytest.mark.parametrize("queue", [0, 3])
def test_random_items_by_hand(kind: str, queue: int) -> None:
    """Their gradients too; with labels, which what a modality draws itself does not have."""
    codes = [(0, 1, -1)[row % 3] for row in range(12)]
    data = table_of(12, [("ant", "bee", None)[row % 3] for row in range(12)])
    losses = losses_of_edges(data, ("a", "b"), queue=queue, random_negatives=20, same_label=kind)
    past = unit(3, 7)
    if queue:
        losses(
            {"a": EncoderOutput(unit(3, 6)), "b": EncoderOutput(torch.cat([past, unit(20, 5)]))},
            batch_of([9, 10, 0], b=[1] * 20),
        )
    rows, random = [0, 4, 5], [3, 0, 4, 4, *(-1 - i for i in range(16))]
    first, second = unit(3, 1).requires_grad_(), unit(3 + 20, 2).requires_grad_()
    value, _ = losses({"a": EncoderOutput(first), "b": EncoderOutput(second)}, batch_of(rows, b=random))
    value.backward()
    a, b = first.detach().clone().requires_grad_(), second.detach().clone().requires_grad_()
    extra_rows = [9, 10, 0, *random] if queue else random
    expected = by_hand(
        a,
        b[:3],
        SCALE,
        rows=rows,
        extra=torch.cat([past, b[3:]]) if queue else b[3:],
        extra_rows=extra_rows,
        labels=[codes[row] for row in rows],
        extra_labels=[codes[row] if row >= 0 else -1 for row in extra_rows],
        treat_as=kind,
    )
    expected.backward()
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.grad, a.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(second.grad, b.grad, atol=1e-6, rtol=1e-5)
    assert second.grad[3:].abs().max() > 1e-4, "random items are trained as well"


def test_pairs_that_share_a_gallery_have_as_many_as_each_asks_for() -> None:
    configs = [InfoNCEConfig(direction="first_to_second", random_negatives=count) for count in (5, 2, 0)]
    pairs = [("a", "b"), ("c", "b"), ("b", "a")]
    edges = [Edge(*pair, InfoNCE(config), 1.0) for pair, config in zip(pairs, configs, strict=True)]
    losses = EdgeLosses(edges, table_of(12), 8)
    outputs = {"a": unit(3, 1), "b": unit(8, 2), "c": unit(3, 3)}
    rows, random = [0, 1, 2], [7, 1, 8, 9, 3]
    value, logs = losses({name: EncoderOutput(o) for name, o in outputs.items()}, batch_of(rows, b=random))
    own, extra = outputs["b"][:3], outputs["b"][3:]
    expected = [
        by_hand(outputs["a"], own, SCALE, rows=rows, extra=extra, extra_rows=random),
        by_hand(outputs["c"], own, SCALE, rows=rows, extra=extra[:2], extra_rows=random[:2]),
        by_hand(own, outputs["a"], SCALE, rows=rows),
    ]
    torch.testing.assert_close(value, torch.stack(expected).mean(), atol=1e-6, rtol=1e-5)
    assert {"logit_scale/a_b", "logit_scale/c_b", "logit_scale/b_a"} <= set(logs)


# ---------------------------------------------------------------------- whole stages


class Place(Modality[ModalityConfig]):
    """Four numbers through a small network; it can draw some from nowhere."""

    name: ClassVar[str] = "place"
    augmentations: ClassVar[Mapping[str, str]] = {"jitter": "noise on every number"}

    def build_encoder(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 12))

    def read(self, cell: Any) -> list[float]:
        if cell[0] > 1e6:
            raise ValueError("out of range")
        return list(cell)

    def transform(self, sample: list[float], *, train: bool, rng: np.random.Generator) -> list[float]:
        noise = rng.normal(0, 0.1, len(sample)) if train and self.augment else np.zeros(len(sample))
        return [float(a + b) for a, b in zip(sample, noise, strict=True)]


class Location(Place):
    def draw(self, rng: np.random.Generator) -> list[float]:
        drawn: list[float] = rng.normal(size=4).tolist()
        return drawn


def places(count: int = 40, *, broken: Sequence[int] = (), labels: bool = False) -> PairedData:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(count, 4)) for name in ("location", "satellite")}
    for row in broken:
        values["location"][row] = 1e9
    table = {"key": [str(i) for i in range(count)], "kind": [f"kind {i % 5}" for i in range(count)]}
    config = SourceConfig(source="memory", split=SplitConfig(by="none"))
    named = {"location": "kind"} if labels else {}
    observations = Observations(
        pa.table({**table, **{name: v.tolist() for name, v in values.items()}}),
        Path(),
        {"location": "location", "satellite": "satellite"},
        labels=named,
    )
    return PairedData("rows", observations, config)


def encoders_of() -> dict[str, SpaceEncoder]:
    encoders = {}
    for seed, name in enumerate(("location", "satellite")):
        torch.manual_seed(seed)
        encoders[name] = SpaceEncoder(Place(ModalityConfig()).build_encoder(), 12, 8, projected=True)
    return encoders


def align(train: str = "location", anchor: str = "satellite", **settings: Any) -> AlignConfig:
    """By default the trained side is the gallery, so that its random items are trained."""
    loss = {"name": "infonce", "direction": "second_to_first", **settings.pop("loss", {})}
    chosen = {"batch_size": 8, "epochs": 4, "optimizer": {"lr": 5e-3}, "name": "stage", **settings}
    pairs = [PairConfig(modalities=(train, anchor), loss=loss)]
    return AlignConfig.model_validate({"train": train, "anchor": anchor, "data": "rows", "pairs": pairs, **chosen})


def run_stage(
    folder: Path,
    config: AlignConfig,
    data: PairedData,
    encoders: Mapping[str, SpaceEncoder],
    modalities: Mapping[str, Modality[Any]],
    *,
    reporter: Reporter | None = None,
    **run: Any,
) -> StageResult:
    stage_folder = folder / "stages" / "01-stage"
    stage_folder.mkdir(parents=True, exist_ok=True)
    return Align(config).run(
        StageContext(
            run=RunConfig.model_validate({"log_with": [], "loader": {"workers": 0}, **run}),
            folder=stage_folder,
            fingerprint="one",
            modalities=modalities,
            encoders=encoders,
            data=data,
            make_loss=lambda settings: InfoNCE(InfoNCEConfig.model_validate(settings)),
            reporter=reporter or Reporter(quiet=True),
        )
    )


def train_location(
    folder: Path,
    data: PairedData | None = None,
    *,
    draws: bool = True,
    reporter: Reporter | None = None,
    loader: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SpaceEncoder:
    modality = (Location if draws else Place)(ModalityConfig())
    encoders = encoders_of()
    modalities = dict.fromkeys(encoders, modality)
    run_stage(
        folder,
        align(**settings),
        data or places(),
        encoders,
        modalities,
        reporter=reporter,
        loader=loader or {"workers": 0},
    )
    return encoders["location"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "stages" / "01-stage" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def curve_of(folder: Path) -> list[float]:
    return [record["loss"] for record in log_of(folder) if "loss" in record]


class Interrupted(Exception):
    """Raised out of a reporter, as an interruption is out of anywhere."""


class Interrupting(Reporter):
    """Stops the stage when so many steps are done."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.after = after

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        with super().task(title, total, unit, done) as task:
            update = task.update

            def stop(done: int, *args: Any, **kwargs: Any) -> None:
                update(done, *args, **kwargs)
                if unit == "steps" and done >= self.after:
                    raise Interrupted

            task.update = stop  # type: ignore[method-assign]
            yield task


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BatchRows, dict[str, torch.Tensor], float]]:
    """What the losses of each step are given, and what they return."""
    steps: list[tuple[BatchRows, dict[str, torch.Tensor], float]] = []
    forward = EdgeLosses.forward

    def note(self: EdgeLosses, outputs: Mapping[str, EncoderOutput], batch: BatchRows) -> Any:
        given = {name: output.embedding.detach().clone() for name, output in outputs.items()}
        value, logs = forward(self, outputs, batch)
        steps.append((batch, given, float(value.detach())))
        return value, logs

    monkeypatch.setattr(EdgeLosses, "forward", note)
    return steps


Seen = list[tuple[BatchRows, dict[str, torch.Tensor], float]]

FURTHER: dict[str, dict[str, Any]] = {
    "queue": {"loss": {"queue": 11, "direction": "both"}},
    "random": {"loss": {"random_negatives": 6}},
    "both": {"loss": {"queue": 11, "random_negatives": 6, "direction": "both", "same_label": "ignore"}},
}


@pytest.mark.parametrize("kind", FURTHER)
@pytest.mark.parametrize("draws", [True, False])
def test_the_loss_of_every_step_of_a_stage(tmp_path: Path, kind: str, draws: bool, seen: Seen) -> None:
    """By hand, from the embeddings, through more than one epoch: rows come back from the queue."""
    data = places(labels=True)
    train_location(tmp_path, data, draws=draws, **FURTHER[kind])
    assert len(seen) == 20
    loss = FURTHER[kind]["loss"]
    directions = [("satellite", "location")] + ([("location", "satellite")] if loss.get("direction") == "both" else [])
    scales = [record["logit_scale"] for record in log_of(tmp_path)]
    past: dict[str, list[tuple[int, torch.Tensor]]] = {"location": [], "satellite": []}
    for (batch, given, value), scale in zip(seen, scales, strict=True):
        rows, parts = batch.rows.tolist(), []
        own = {name: embedding[: len(rows)] for name, embedding in given.items()}
        for query, gallery in directions:
            further = list(past[gallery])
            if gallery in batch.random:
                further += zip(batch.random[gallery].tolist(), given[gallery][len(rows) :], strict=True)
                assert len(given[gallery]) == 8 + 6
            assert (query in batch.random) == (kind == "both")
            parts.append(
                by_hand(
                    own[query],
                    own[gallery],
                    scale,
                    rows=rows,
                    extra=torch.stack([e for _, e in further]) if further else None,
                    extra_rows=[r for r, _ in further],
                    labels=[row % 5 for row in rows],
                    extra_labels=[row % 5 if row >= 0 else -1 for row, _ in further],
                    treat_as=loss.get("same_label", "negative"),
                )
            )
        assert value == pytest.approx(float(torch.stack(parts).mean()), abs=1e-4)
        if "queue" in loss:
            past = {n: [*past[n], *zip(rows, own[n], strict=True)][-11:] for n in past}
    numbers = [batch.random["location"].tolist() for batch, _, _ in seen if "location" in batch.random]
    if kind != "queue" and draws:
        assert numbers == [[-1, -2, -3, -4, -5, -6]] * 20
    elif kind != "queue":
        assert len({tuple(rows) for rows in numbers}) == 20, "other rows in every step"
        assert all(0 <= row < 40 for rows in numbers for row in rows)
    if kind == "both":  # the anchor cannot but take rows: it comes from the cache
        anchors = {
            row: e for batch, given, _ in seen for row, e in zip(batch.rows.tolist(), given["satellite"], strict=False)
        }
        for batch, given, _ in seen:
            for row, embedding in zip(batch.random["satellite"].tolist(), given["satellite"][8:], strict=True):
                assert torch.equal(embedding, anchors[row])


@pytest.mark.parametrize("kind", FURTHER)
@pytest.mark.parametrize("workers", [0, 1])
def test_going_on_gives_the_same_weights_to_the_bit(tmp_path: Path, kind: str, workers: int, seen: Seen) -> None:
    settings = {**FURTHER[kind], "checkpoint": {"steps": 4}, "augment": {"location": "jitter"}}
    undisturbed = train_location(tmp_path / "undisturbed", **settings)
    steps = {i: (b.random, given) for i, (b, given, _) in enumerate(seen)}
    seen.clear()
    loader = {"workers": workers}
    with pytest.raises(Interrupted):
        train_location(tmp_path / "killed", reporter=Interrupting(10), loader=loader, **settings)
    saved = torch.load(tmp_path / "killed/stages/01-stage/checkpoint/custom_checkpoint_0.pkl", weights_only=True)
    queues = [name for name in saved if name.startswith("queues.")]
    assert bool(queues) == (kind != "random")
    seen.clear()
    going_on = train_location(tmp_path / "killed", loader=loader, **settings)
    assert len(seen) == 12, "from step 8 on"
    for i, (batch, given, _) in enumerate(seen, start=8):
        random, expected = steps[i]
        assert all(torch.equal(batch.random[name], rows) for name, rows in random.items())
        assert all(torch.equal(given[name], embedding) for name, embedding in expected.items()), "what is drawn, too"
    assert content_hash(going_on) == content_hash(undisturbed)
    assert curve_of(tmp_path / "killed") == curve_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("trunk", [[], ["location"]])
@pytest.mark.parametrize("draws", [True, False])
def test_slices_do_not_change_what_is_learned(tmp_path: Path, draws: bool, trunk: list[str]) -> None:
    found = []
    for i, micro in enumerate((None, 3)):
        settings = {**FURTHER["both"], "micro_batch_size": micro, "freeze_trunk": trunk}
        found.append(train_location(tmp_path / str(i), places(labels=True), draws=draws, **settings))
    assert curve_of(tmp_path / "0") == pytest.approx(curve_of(tmp_path / "1"), abs=1e-4)
    for name, tensor in found[0].state_dict().items():
        torch.testing.assert_close(found[1].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("draws", [True, False])
@pytest.mark.parametrize("trunk", [[], ["location"]])
def test_what_is_frozen_gives_other_rows_from_the_cache_or_not(tmp_path: Path, draws: bool, trunk: list[str]) -> None:
    """An anchor that is the gallery, and a trunk; with one view or with several; whether it could draw or not."""
    loss = {"direction": "both" if trunk else "first_to_second", "random_negatives": 6, "queue": 5}
    settings: dict[str, Any] = {"draws": draws, "loss": loss, "freeze_trunk": trunk}
    found = {kind: train_location(tmp_path / kind, anchor_cache=kind, **settings) for kind in ("float32", "off")}
    assert curve_of(tmp_path / "float32") == pytest.approx(curve_of(tmp_path / "off"), abs=1e-4)
    for name, tensor in found["off"].state_dict().items():
        torch.testing.assert_close(found["float32"].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    settings |= {"augment": {"satellite": "jitter", "location": "jitter"}, "epochs": 2}
    for kind, views in (("live", None), ("views", 2)):
        train_location(tmp_path / kind, anchor_views=views, **settings)
    assert curve_of(tmp_path / "live") == pytest.approx(curve_of(tmp_path / "views"), abs=1e-4)


def test_a_random_item_that_cannot_be_read_is_left_out(tmp_path: Path, seen: Seen) -> None:
    train_location(tmp_path, places(broken=[3]), draws=False, max_bad_samples=0.1, **FURTHER["random"])
    bad = [(r["key"], r["modality"]) for r in log_of(tmp_path) if r.get("event") == "bad_sample"]
    assert bad == [("3", "location")]
    sizes = {len(batch.random["location"]) for batch, _, _ in seen}
    assert 6 in sizes
    assert min(sizes) < 6, "twenty times six of forty rows"
    assert not any(3 in batch.random["location"].tolist() for batch, _, _ in seen)


@pytest.mark.parametrize("draws", [True, False])
def test_fewer_rows_than_anything_asked_for(tmp_path: Path, draws: bool) -> None:
    loss = {"queue": 50, "random_negatives": 30, "direction": "both"}
    train_location(tmp_path, places(3), draws=draws, loss=loss, batch_size=64, epochs=6)
    assert all(math.isfinite(value) for value in curve_of(tmp_path))


def test_real_images_and_a_queue(world: Any, clip_folder: Path, tmp_path: Path, seen: Seen) -> None:
    """Sat2Cap as published, small: one-sided, a queue of photos, random crops."""
    modalities: dict[str, Modality[Any]] = {
        "satellite": Satellite(Satellite.Config(pretrained=str(clip_folder))),
        "ground_image": GroundImage(GroundImage.Config(pretrained=str(clip_folder))),
    }
    encoders = {name: SpaceEncoder(m.build_encoder(), 24, 24, projected=False) for name, m in modalities.items()}
    fields = {name: name for name in modalities}
    data = PairedData("rows", Observations(pa.csv.read_csv(world.table), world.folder, fields, split="split"))
    config = align(
        "satellite",
        "ground_image",
        loss={"direction": "first_to_second", "queue": 15, "random_negatives": 4},
        augment={"satellite": ["random_resized_crop(0.5)", "randaugment(3)"]},
        batch_size=5,
        micro_batch_size=2,
        epochs=3,
        optimizer={"lr": 1e-3, "betas": [0.9, 0.98]},
    )
    run_stage(tmp_path, config, data, encoders, modalities)
    scales = [record["logit_scale"] for record in log_of(tmp_path)]
    assert len(scales) == 12
    past: list[tuple[int, torch.Tensor]] = []
    for (batch, given, value), scale in zip(seen, scales, strict=True):
        rows = batch.rows.tolist()
        further = [*past, *zip(batch.random["ground_image"].tolist(), given["ground_image"][5:], strict=True)]
        expected = by_hand(
            given["satellite"],
            given["ground_image"][:5],
            scale,
            rows=rows,
            extra=torch.stack([e for _, e in further]),
            extra_rows=[r for r, _ in further],
        )
        assert value == pytest.approx(float(expected), abs=1e-4)
        past = [*past, *zip(rows, given["ground_image"], strict=False)][-15:]


def test_extra_items_name_rows_or_minus_one() -> None:
    """As plugins are promised."""
    found: list[ExtraItems] = []

    class Noting(Plain):
        def build(self) -> nn.Module:
            module = super().build()
            forward = module.forward_local

            def note(pair: LocalPair) -> LossOutput:
                assert pair.extra_second is not None
                found.append(pair.extra_second)
                result: LossOutput = forward(pair)
                return result

            module.forward_local = note  # type: ignore[assignment]
            return module

    losses = losses_of_edges(table_of(5), ("a", "b"), random_negatives=3, loss=Noting)
    outputs = {"a": EncoderOutput(unit(2, 0)), "b": EncoderOutput(unit(5, 1))}
    losses(outputs, batch_of([0, 1], b=[-1, -2, -3]))
    assert found[0].rows.tolist() == [-1, -1, -1]
