"""The anchors of a stage: frozen, seen to be so, and embedded once where they stay the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.errors import TrainingError
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.space.embed import embed_rows
from geobind_core.space.encoder import content_hash


@contextmanager
def frozen(context: StageContext, anchors: Iterable[str], device: torch.device) -> Iterator[None]:
    """Keeps the anchors frozen while the block runs, and makes sure that they were.

    Raises:
        TrainingError: The weights of one of them changed.
    """
    before = {}
    for name in anchors:
        context.encoders[name].freeze()
        before[name] = content_hash(context.encoders[name])
        context.encoders[name].to(device)
    yield
    for name, expected in before.items():
        if content_hash(context.encoders[name].cpu()) != expected:
            raise TrainingError(
                f"the frozen encoder of '{name}' changed during the stage; its result is not kept.",
                place=str(context.folder),
                hint="A plugin or a module shared between modalities writes to it.",
            )


@dataclass(frozen=True)
class FixedAnchor:
    """Embeddings of an anchor that is the same in every epoch: `[N, D]`, and where each row's is."""

    embeddings: torch.Tensor
    position: torch.Tensor

    def of(self, rows: torch.Tensor, device: torch.device) -> EncoderOutput:
        """Returns the embeddings `[B, D]` of rows `[B]`."""
        return EncoderOutput(self.embeddings[self.position[rows]].to(device))


def embed_anchor(
    context: StageContext, reader: SampleReader, rows: Rows, *, batch_size: int, device: torch.device
) -> tuple[FixedAnchor, Rows, list[BadSample]]:
    """Embeds an anchor that is not augmented, once for the whole stage.

    Args:
        context: The stage's; the anchor's network is on `device`.
        reader: Reads the anchor, without augmentation.
        rows: The training rows.
        batch_size: Rows in the network at a time.
        device: Where the network is.

    Returns:
        The embeddings, the rows that could be read, and what could not.
    """
    with context.reporter.task(f"  {reader.name} (frozen)", len(rows), "rows") as task:
        embedded = embed_rows(
            reader,
            context.encoders[reader.name],
            rows,
            batch_size=batch_size,
            loader=context.run.loader,
            device=device,
            advance=task.advance,
        )
    position = torch.full((len(reader.data),), -1, dtype=torch.long)
    position[embedded.rows] = torch.arange(len(embedded.rows))
    return FixedAnchor(embedded.embeddings, position), embedded.rows.numpy(), embedded.bad
