"""Whether what was written embeds as the space does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from geobind_core.errors import ExportError
from geobind_core.plugins.modality import Modality
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.space.exported import Measured

TOLERANCE = 1e-4
"""Largest difference of any number of two embeddings of unit norm."""

_DRAWN = 4


def example_samples(modality: Modality[Any], name: str) -> list[Any]:
    """Returns the plugin's own examples as `transform` returns them.

    Raises:
        ExportError: It has none.
    """
    rng = np.random.default_rng(0)
    cells = list(modality.example_cells(rng))
    draws = type(modality).draw is not Modality.draw
    samples = [modality.read(cell) for cell in cells] if cells else [modality.draw(rng) for _ in range(_DRAWN * draws)]
    if not samples:
        raise ExportError(
            f"the plugin of '{name}' gives no examples, so that an export could not be checked.",
            hint="Its class needs `example_cells`. `--to hub` needs none.",
        )
    return [modality.transform(sample, train=False, rng=rng) for sample in samples]


def compare(
    modality: Modality[Any],
    name: str,
    encoder: SpaceEncoder,
    embed: Callable[[Sequence[Any]], torch.Tensor],
    library: str,
) -> Measured:
    """Embeds the examples in both ways.

    Args:
        modality: How they are read.
        name: Its name in the space.
        encoder: The space's network.
        embed: Samples to `[B, D]`, by the other library.
        library: What that is, for messages.

    Raises:
        ExportError: The other library fails, or its embeddings are others.
    """
    samples = example_samples(modality, name)
    with torch.inference_mode():
        expected = encoder(modality.collate(samples)).embedding
    try:
        with torch.inference_mode():
            found = torch.nn.functional.normalize(torch.as_tensor(embed(samples)).float(), dim=-1)
    except ExportError:
        raise
    except Exception as error:  # whatever another library raises at what it was given
        raise ExportError(
            f"{library} cannot use what was written of '{name}': {type(error).__name__}: {error}"
        ) from error
    if found.shape != expected.shape:
        raise ExportError(
            f"'{name}' has embeddings of shape {tuple(expected.shape)}; with {library} {tuple(found.shape)}."
        )
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:  # nor is what is not a number
        raise ExportError(
            f"the embeddings of '{name}' differ by up to {difference:.2g} with {library}; at most {TOLERANCE:g} is "
            "allowed. Nothing was written."
        )
    return Measured(largest_difference=difference, examples=len(samples))
