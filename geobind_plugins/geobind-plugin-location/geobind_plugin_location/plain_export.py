"""A folder of plain tensors: `model.safetensors`, `config.json`, and the file of Python that reads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from geobind_core import Exporter, ExportPart, Stored, Written
from geobind_plugin_location import standalone
from geobind_plugin_location.encoders import DEFAULT_SIGMAS, FIRST_FREQUENCY, HarmonicsEncoder

WEIGHTS, CODE = "model.safetensors", "location_encoder.py"
_PLACES = "degrees [N, 2]: longitude, latitude, WGS 84"


class PlainExporter(Exporter):
    """Tensors with names that say where they belong, and what is needed to compute with them."""

    library = "PyTorch"

    def write(self, parts: Sequence[ExportPart], folder: Path, *, logit_scale: float | None) -> Written:
        from safetensors.torch import save

        (part,) = parts
        names = {name: _plain_name(name, part.encoder) for name in part.encoder.state_dict()}
        state = {names[name]: tensor.detach().contiguous() for name, tensor in part.encoder.state_dict().items()}
        if part.projection is not None:
            state["projection.weight"] = part.projection
        (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
        (folder / "config.json").write_text(json.dumps(_config(part), indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(standalone.__file__, folder / CODE)
        stored = {name: Stored(WEIGHTS, (plain,)) for name, plain in names.items()}
        return Written(
            {part.name: stored},
            'location_encoder.load("{folder}")',
            [f"{CODE} in the folder reads it with torch and safetensors alone"],
        )

    def embed(self, folder: Path, part: ExportPart, samples: Sequence[Any]) -> torch.Tensor:
        return standalone.load(folder)(torch.stack([torch.as_tensor(sample) for sample in samples]))


def _plain_name(name: str, encoder: torch.nn.Module) -> str:
    """Returns the name of a tensor that counts layers, where the network counts what stands between them, too."""
    if isinstance(encoder, HarmonicsEncoder):
        found = re.fullmatch(r"network\.(\d+)\.(?:linear\.)?(weight|bias)", name)
        assert found is not None, name
        number, last = int(found[1]), len(encoder.network) - 1
        return f"last.{found[2]}" if number == last else f"layers.{number // 2}.{found[2]}"
    found = re.fullmatch(r"scales\.(\d+)\.(\d+)\.(waves|weight|bias)", name)
    assert found is not None, name
    scale, number = encoder.scales[int(found[1])], int(found[2])  # type: ignore[index]
    if found[3] == "waves":
        return f"scales.{found[1]}.waves"
    layer = "last" if number == len(scale) - 1 else f"layers.{(number - 1) // 3}"
    return f"scales.{found[1]}.{layer}.{found[3]}"


def _config(part: ExportPart) -> dict[str, Any]:
    settings, encoder = part.modality.config, part.encoder
    described: dict[str, Any] = {"encoder": settings.encoder, "input": _PLACES}
    if isinstance(encoder, HarmonicsEncoder):
        described |= {
            "legendre_polys": encoder.harmonics.degrees,
            "first_frequency": FIRST_FREQUENCY,
            "depth": (len(encoder.network) - 1) // 2,
        }
    else:
        state = encoder.state_dict()
        scales = [name for name in state if name.endswith(".waves")]
        described |= {
            "sigmas": list(settings.sigmas or DEFAULT_SIGMAS),
            "frequencies": len(state[scales[0]]),
            "depth": (len(encoder.scales[0]) - 2) // 3,  # type: ignore[index]
        }
    return {**described, "projected": part.projection is not None, "embed_dim": part.embed_dim}
