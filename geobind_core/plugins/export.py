"""What lets a modality be taken elsewhere: a class that writes its network in the format of another library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core.config.problems import suggest
from geobind_core.errors import ExportError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from geobind_core.plugins.modality import Modality


@dataclass(frozen=True)
class ExportPart:
    """One modality of a space, as an exporter is given it.

    Attributes:
        name: Its name in the space.
        modality: How its items are read.
        encoder: The plugin's own network, in evaluation mode, on the CPU.
        projection: `[D, raw]`, the linear map from the network's output into the space; None where there is none.
        embed_dim: D of the space.
        content_hash: Hash of network and projection.
    """

    name: str
    modality: Modality[Any]
    encoder: nn.Module
    projection: torch.Tensor | None
    embed_dim: int
    content_hash: str


@dataclass(frozen=True)
class Stored:
    """Where a written folder holds a tensor of the network, to the bit.

    Attributes:
        file: Name of a safetensors file in the folder.
        tensors: Its names there. Several are put together along the first dimension.
        transposed: Whether the two dimensions of the one tensor are exchanged there.
    """

    file: str
    tensors: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Written:
    """What `Exporter.write` returns.

    Attributes:
        tensors: Modality -> name of a tensor in `part.encoder.state_dict()` -> where it is. What is not named, and
            what was changed on the way, is kept by the engine in a file beside: a re-import is exact in any case.
        load: The line of Python that loads the folder, with `{folder}` for its path.
        notes: What a person should know, a sentence each.
    """

    tensors: Mapping[str, Mapping[str, Stored]]
    load: str
    notes: Sequence[str] = field(default_factory=tuple)


class Exporter(ABC):
    """Writes one or more modalities in a format that another library reads.

    `Modality.exports` names them. The engine asks `choose` what goes together, has it written, embeds the
    examples of each modality with `embed`, and compares: a folder whose embeddings differ from the space's by
    more than 1e-4 is not kept.
    """

    library: ClassVar[str]
    """Who reads it, for people: `open_clip`."""

    def choose(self, wanted: Sequence[str], modalities: Mapping[str, Modality[Any]]) -> Sequence[str]:
        """Returns the modalities that go into one folder: those that are wanted, and what they need.

        The default is one modality a folder.

        Args:
            wanted: Names that the user gave, or the engine chose.
            modalities: All of the space that can be had.

        Raises:
            ExportError: They do not go together.
        """
        if len(wanted) != 1:
            raise ExportError(
                f"a folder for {self.library} holds one modality here; found {', '.join(wanted)}.",
                hint="Export them one by one, each into a folder of its own.",
            )
        return wanted

    @abstractmethod
    def write(self, parts: Sequence[ExportPart], folder: Path, *, logit_scale: float | None) -> Written:
        """Writes the files of the format.

        Args:
            parts: What `choose` returned, in that order.
            folder: There, and empty.
            logit_scale: Factor of the cosines with which the stage ended that drew the parts together, or else the
                one that trained the first part; None where that is not known.

        Raises:
            ExportError: The format cannot express a network.
        """

    @abstractmethod
    def embed(self, folder: Path, part: ExportPart, samples: Sequence[Any]) -> torch.Tensor:
        """Embeds samples with the other library alone: its own loading and its own preprocessing.

        Args:
            folder: What `write` has written.
            part: Which of the modalities; its network is not to be used.
            samples: As `Modality.transform` returns them.

        Returns:
            `[B, D]`; need not be of unit norm.
        """


def find_exporter(modality: Modality[Any], name: str, to: str, others: Sequence[str] = ()) -> Exporter:
    """Returns a modality's exporter for a format.

    Args:
        modality: The modality.
        name: Its name in the space.
        to: The format.
        others: Formats that need no exporter.

    Raises:
        ExportError: It has none.
    """
    exporters = modality.exports()
    if to not in exporters:
        raise ExportError(f"'{name}' has no format '{to}'. {suggest(to, [*exporters, *others])}")
    return exporters[to]
