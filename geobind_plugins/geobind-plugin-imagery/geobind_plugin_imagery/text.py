"""Text through the text tower of a CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import DataError, Modality
from geobind_plugin_imagery.config import ClipConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from geobind_core import Exporter


class Text(Modality[ClipConfig]):
    """Captions and queries. A sample is a string; a batch `[B, T]` token numbers."""

    name: ClassVar[str] = "text"
    Config = ClipConfig

    def build_encoder(self) -> nn.Module:
        """Builds the text tower `[B, T]` -> `[B, D]`."""
        from geobind_plugin_imagery.towers import build_text_tower

        return build_text_tower(self.config, self.name)

    def rebuild_config(self, encoder: nn.Module) -> ClipConfig:
        """Returns settings in which the tower's architecture is written out."""
        from geobind_plugin_imagery.towers import rebuilt

        return rebuilt(self.config, encoder)

    def exports(self) -> Mapping[str, Exporter]:
        """Returns open_clip and transformers."""
        from geobind_plugin_imagery.open_clip_export import OpenClipExporter
        from geobind_plugin_imagery.transformers_export import TransformersExporter

        return {"open_clip": OpenClipExporter(), "transformers": TransformersExporter()}

    def read(self, cell: Any) -> str:
        """Takes a string that is not blank."""
        if not isinstance(cell, str):
            raise DataError(f"expected a string, found {type(cell).__name__}.")
        if not cell.strip():
            raise DataError("expected a text, found a blank one.")
        return cell

    def example_cells(self, rng: np.random.Generator) -> list[str]:
        """Returns texts of several lengths."""
        return ["waves on a beach", "a road", "a village between fields of wheat, with a forest behind it", "snow"]

    def collate(self, samples: Sequence[str]) -> torch.Tensor:
        """Tokenises; longer texts are cut at the model's context length."""
        from geobind_plugin_imagery.towers import tokenizer_of

        tokens: torch.Tensor = tokenizer_of(self.config)(list(samples))
        return tokens
