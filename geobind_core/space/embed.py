"""Many rows through a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from geobind_core.config.models import LoaderConfig
from geobind_core.data.loading import Batches, SequentialBatches, batches, plan_workers
from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.space.encoder import SpaceEncoder, require_rows


@dataclass(frozen=True)
class EmbeddedRows:
    """Embeddings of those rows that could be read.

    Attributes:
        rows: `[N]` row numbers, in the order asked for.
        embeddings: `[N, D]` float32, unit norm, on the CPU.
        bad: What could not be read.
        further: Further fields of `EncoderOutput` that were asked for, `[N, …]` on the CPU.
    """

    rows: torch.Tensor
    embeddings: torch.Tensor
    bad: list[BadSample]
    further: Mapping[str, torch.Tensor] = field(default_factory=dict)


def embed_rows(
    reader: SampleReader,
    encoder: SpaceEncoder,
    rows: Rows,
    *,
    batch_size: int,
    loader: LoaderConfig,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
    further: Sequence[str] = (),
) -> EmbeddedRows:
    """Embeds rows in their order, always in the same batches, so that results repeat to the bit.

    Args:
        reader: Reads the modality.
        encoder: Its network, frozen, on `device`.
        rows: Rows of the reader's data set.
        batch_size: Rows at a time.
        loader: How to read.
        device: Where the network is.
        advance: Told how many rows have been done since the last call.
        further: Fields of `EncoderOutput` to keep beside the embedding, where the encoder has them.
    """
    kept: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    bad: list[BadSample] = []
    fields: dict[str, list[torch.Tensor]] = {}
    requests = SequentialBatches(rows, batch_size)

    def embed(batch: Any) -> EncoderOutput:
        output: EncoderOutput = encoder(batch)
        for name in further:
            if (value := getattr(output, name)) is not None:
                fields.setdefault(name, []).append(value.cpu().clone())
        return output

    for part in embed_batches(reader, embed, requests, rows, loader=loader, device=device):
        bad += part.bad
        if len(part.rows):
            parts.append(part.embeddings)
            kept.append(part.rows)
        advance(len(part.rows) + len(part.bad))
    if not parts:
        return EmbeddedRows(torch.empty(0, dtype=torch.long), torch.empty(0, encoder.embed_dim), bad)
    return EmbeddedRows(torch.cat(kept), torch.cat(parts), bad, {name: _joined(fields[name]) for name in fields})


def _joined(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns batches as one, `[B, T, …]` of different T made as long as the longest."""
    longest = max((batch.shape[1] for batch in batches if batch.dim() > 1), default=0)
    whole = []
    for batch in batches:
        if batch.dim() > 1 and batch.shape[1] < longest:
            missing = batch.new_zeros(len(batch), longest - batch.shape[1], *batch.shape[2:])
            batch = torch.cat([batch, missing], dim=1)
        whole.append(batch)
    return torch.cat(whole)


def embed_batches(
    reader: SampleReader,
    embed: Callable[[Any], EncoderOutput],
    requests: Batches,
    rows: Rows,
    *,
    loader: LoaderConfig,
    device: torch.device,
) -> Iterator[EmbeddedRows]:
    """Yields the embeddings of one batch after the other.

    Args:
        reader: Reads the modality.
        embed: A batch on `device` to embeddings `[B, D]`.
        requests: The batches.
        rows: All rows that they have, to plan the reading by.
        loader: How to read.
        device: Where the network is.

    Raises:
        PluginError: The encoder returns another number of rows than it was given.
    """
    workers, _ = plan_workers({reader.name: reader}, rows, loader, device)
    loaded = batches({reader.name: reader}, requests, workers=workers, pin_memory=device.type == "cuda")
    for batch in loaded:
        rows_of_batch, embeddings = batch["rows"], torch.empty(0, 0)
        if len(rows_of_batch):
            with torch.inference_mode():
                output = embed(to_device(batch["inputs"][reader.name], device))
                embeddings = require_rows(output, len(rows_of_batch), reader.name).embedding.float().cpu()
            embeddings = embeddings.clone()  # an inference tensor cannot take part in training
        yield EmbeddedRows(rows_of_batch, embeddings, batch["bad"])


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch; without waiting where they are pinned."""
    from accelerate.utils import send_to_device

    return send_to_device(batch, device, non_blocking=device.type == "cuda")
