"""The edges of a stage: each pair of modalities with its own loss, scale and weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import ExtraItems, LocalPair, Loss
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.space.encoder import require_rows
from geobind_core.training.loss_output import checked
from geobind_core.training.processes import Processes
from geobind_core.training.queue import NegativeQueue


@dataclass(frozen=True)
class Edge:
    """Two modalities drawn together."""

    first: str
    second: str
    loss: Loss[Any]
    weight: float

    def galleries(self) -> tuple[str, ...]:
        """Returns the modalities that the other one picks its own item out of."""
        direction = self.loss.config.direction
        first = (self.first,) if direction != "first_to_second" else ()
        return first if direction == "second_to_first" else (*first, self.second)

    def queue(self) -> int:
        """Returns how many past items each gallery of this pair has."""
        return int(getattr(self.loss.config, "queue", 0))

    def random_negatives(self) -> int:
        """Returns how many random items a gallery of this pair has in each step."""
        return int(getattr(self.loss.config, "random_negatives", 0))


def needed_fields(edges: Sequence[Edge], name: str) -> tuple[str, ...]:
    """Returns what losses use of a modality's output beside the embedding."""
    fields = {field for edge in edges if name in (edge.first, edge.second) for field in edge.loss.needs}
    return tuple(sorted(fields | {"mask"} if "tokens" in fields else fields))


@dataclass(frozen=True)
class BatchRows:
    """Which rows a batch has, over all processes.

    Attributes:
        rows: `[N]` row numbers of the whole batch, on the CPU, process after process.
        sizes: How many of them each process has; their sum is N.
        random: Modality -> `[R]` row numbers of this process's random negatives, whose embeddings
            follow those of the batch in the encoder's output.
        random_room: The most random negatives that any process can have of a trained modality.
    """

    rows: torch.Tensor
    sizes: tuple[int, ...]
    random: Mapping[str, torch.Tensor]
    random_room: int = 0


class EdgeLosses(nn.Module):
    """The weighted mean of the losses of all edges.

    Args:
        edges: The edges; weights are normalised to sum 1.
        data: Where labels come from.
        embed_dim: D of the embeddings.
        processes: Who holds the rows of a batch.
    """

    def __init__(
        self, edges: Sequence[Edge], data: PairedData, embed_dim: int, processes: Processes | None = None
    ) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.processes = processes or Processes()
        self.losses = nn.ModuleList(edge.loss.build() for edge in edges)
        total = sum(edge.weight for edge in edges)
        self.weights = [edge.weight / total for edge in edges]
        columns = [data.pair_labels(edge.first, edge.second) for edge in edges]
        self._labels = [torch.stack([torch.from_numpy(c) for c in codes], 1) if codes else None for codes in columns]
        self.queues = nn.ModuleList(
            nn.ModuleDict({name: NegativeQueue(edge.queue(), embed_dim, len(codes)) for name in edge.galleries()})
            if edge.queue()
            else nn.ModuleDict()
            for edge, codes in zip(edges, columns, strict=True)
        )

    def forward(
        self, outputs: Mapping[str, EncoderOutput], batch: BatchRows
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns this process's share of the loss of a batch, and what is to be logged.

        The shares of all processes add up to the loss.

        Args:
            outputs: Modality -> embeddings `[B, D]` of this process's rows, and after them those of
                its random negatives.
            batch: The rows of all processes.

        Raises:
            PluginError: An encoder returned another number of rows, or a loss something else than a loss.
        """
        own, extra = self._split(outputs, batch)
        everything = {name: self.processes.gather(output, batch.sizes) for name, output in own.items()}
        device = next(iter(own.values())).embedding.device
        rows = _to(batch.rows, device)
        total: torch.Tensor | None = None
        logs: dict[str, torch.Tensor] = {}
        shared: dict[str, list[torch.Tensor]] = {}
        for i, (edge, weight) in enumerate(zip(self.edges, self.weights, strict=True)):
            codes = self._labels[i]
            pair = LocalPair(
                own[edge.first],
                own[edge.second],
                everything[edge.first],
                everything[edge.second],
                offset=sum(batch.sizes[: self.processes.index]),
                rows=rows,
                labels=None if codes is None else _to(codes[batch.rows], device),
                extra_first=self._extra(i, edge.first, extra),
                extra_second=self._extra(i, edge.second, extra),
            )
            value, logged = self._share(self.losses[i], pair, edge.loss.name)
            for name, queue in self._queues(i):
                queue.push(everything[name].embedding, rows, pair.labels)
            total = value * weight if total is None else total + value * weight
            for name, log in logged.items():
                shared.setdefault(name, []).append(log)
                if len(self.edges) > 1:
                    logs[f"{name}/{edge.first}_{edge.second}"] = log
        assert total is not None  # a stage has at least one edge
        return total, {name: torch.stack(values).mean() for name, values in shared.items()} | logs

    def _share(self, loss: nn.Module, pair: LocalPair, name: str) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        trains = pair.first.embedding.requires_grad or pair.second.embedding.requires_grad
        forward_local = getattr(loss, "forward_local", None)
        if callable(forward_local):
            return checked(forward_local(pair), name, trains=trains)
        # A loss that knows of one process only is computed whole by each, and each has an equal share in it.
        found = loss(pair.all_first, pair.all_second, same_label(pair.labels))
        value, logs = checked(found, name, trains=trains)
        return value / self.processes.count, logs

    def _split(
        self, outputs: Mapping[str, EncoderOutput], batch: BatchRows
    ) -> tuple[dict[str, EncoderOutput], dict[str, ExtraItems]]:
        """Parts the rows of the batch from the random negatives, and puts those of all processes together."""
        size = batch.sizes[self.processes.index]
        own = {name: require_rows(o, size + len(batch.random.get(name, ())), name) for name, o in outputs.items()}
        extra = {}
        for name, rows in batch.random.items():
            output = outputs[name]
            own[name] = replace(output, **{k: v[:size] for k, v in vars(output).items() if v is not None})
            agreed = self.processes.agree(rows, max(self.processes.all_objects(len(rows))))
            gathered = self.processes.gather(EncoderOutput(output.embedding[size:]), agreed.sizes)
            # What a modality has drawn itself is no row of the data set, whatever its number.
            extra[name] = ExtraItems(gathered.embedding, agreed.rows.clamp(min=-1))
        return own, extra

    def _extra(self, edge: int, name: str, random: Mapping[str, ExtraItems]) -> ExtraItems | None:
        """Returns the further items of an edge's gallery: random ones and past ones."""
        found = [queue.items() for owner, queue in self._queues(edge) if owner == name]
        if self.edges[edge].random_negatives() and name in random and name in self.edges[edge].galleries():
            found.append(self._labelled(edge, random[name], self.edges[edge].random_negatives()))
        items = [item for item in found if item is not None]
        if len(items) < 2:
            return items[0] if items else None
        labels = [item.labels for item in items if item.labels is not None]
        return ExtraItems(
            torch.cat([item.embedding for item in items]),
            torch.cat([item.rows for item in items]),
            torch.cat(labels) if labels else None,
        )

    def _labelled(self, edge: int, items: ExtraItems, count: int) -> ExtraItems:
        """Returns the first items, with the labels that they have for an edge."""
        codes, device = self._labels[edge], items.embedding.device
        rows, labels = items.rows[:count], None
        if codes is not None:
            # Row -1 is no row of the data set, and has no label.
            labels = _to(torch.where(rows[:, None] < 0, -1, codes[rows.clamp(min=0)]), device)
        return ExtraItems(items.embedding[:count], _to(rows, device), labels)

    def _queues(self, edge: int) -> Iterator[tuple[str, NegativeQueue]]:
        yield from self.queues[edge].items()  # type: ignore[operator]

    def clamp_(self) -> None:
        """Brings whatever has bounds back between them, after a step of the optimizer."""
        for module in self.modules():
            clamp = getattr(module, "clamp_", None)
            if module is not self and callable(clamp):
                clamp()


def same_label(labels: torch.Tensor | None) -> torch.Tensor | None:
    """Returns `[N, N]`, true where two rows of labels `[N, K]` agree in a column, or None without labels."""
    if labels is None:
        return None
    same = torch.zeros(len(labels), len(labels), dtype=torch.bool, device=labels.device)
    for own in labels.unbind(1):
        same |= (own[:, None] == own[None, :]) & (own >= 0)[:, None]
    return same


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Moves a small tensor; from pinned memory, since the accelerator would be waited for otherwise."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
