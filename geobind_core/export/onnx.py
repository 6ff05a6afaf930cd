"""ONNX: one graph from a batch, as the modality makes it, to embeddings of unit norm."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geobind_core.errors import ExportError
from geobind_core.export.compare import compare, example_samples
from geobind_core.plugins.installing import installer
from geobind_core.plugins.modality import Modality
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.space.exported import Measured

OPSET = 18
INPUT, OUTPUT = "input", "embeddings"  # a network of words has an `embedding` within
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_LARGEST_FILE = 1 << 30  # of weights; a file of the format itself ends at 2 GiB


class _Embedding(nn.Module):
    def __init__(self, encoder: SpaceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.encoder(batch).embedding
        return embedding


def require_onnx() -> None:
    """Makes sure that the extra is there.

    Raises:
        ExportError: It is not.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"the format onnx needs {', '.join(missing)}.", hint=f"Install it: {installer()} 'geobind[onnx]'"
        )


def write_onnx(modality: Modality[Any], name: str, encoder: SpaceEncoder, folder: Path) -> tuple[Measured, str]:
    """Writes `<name>.onnx` and runs it with onnxruntime.

    Returns:
        How well it reproduces the embeddings, and what its input is, in words.

    Raises:
        ExportError: The batch is not one tensor, or the network has what ONNX has not.
    """
    batch = modality.collate(example_samples(modality, name))
    if not isinstance(batch, torch.Tensor):
        raise ExportError(
            f"a batch of '{name}' is of type {type(batch).__name__}; the format onnx takes encoders of one tensor."
        )
    path = folder / f"{name}.onnx"
    described = f"{str(batch.dtype).removeprefix('torch.')} [batch, {', '.join(map(str, batch.shape[1:]))}]"
    program = _program(modality, name, encoder, batch)
    program.model.metadata_props.update(
        {"geobind.modality": name, "geobind.input": described, "geobind.embed_dim": str(encoder.embed_dim)}
    )
    large = sum(t.nbytes for t in encoder.state_dict().values()) > _LARGEST_FILE
    program.save(str(path), external_data=large)
    session = _session(path, name)

    def whole(samples: Sequence[Any]) -> torch.Tensor:
        return _run(session, modality.collate(samples))

    def one_by_one(samples: Sequence[Any]) -> torch.Tensor:
        return torch.cat([_run(session, modality.collate([sample])) for sample in samples])

    # Both, for the first dimension is to be free.
    found = [compare(modality, name, encoder, embed, "onnxruntime") for embed in (whole, one_by_one)]
    return max(found, key=lambda measured: measured.largest_difference), described


def _run(session: Any, batch: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(session.run([OUTPUT], {INPUT: batch.contiguous().numpy()})[0])


def _program(modality: Modality[Any], name: str, encoder: SpaceEncoder, batch: torch.Tensor) -> Any:
    # Tracing takes a batch of one for a constant. What it says on the way is for its own developers.
    example = (batch if len(batch) > 1 else torch.cat([batch, batch])).contiguous()
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in quiet]
    try:
        for logger in quiet:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Embedding(encoder).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={"batch": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except Exception as error:  # the exporter has a hundred ways to say that there is no such operator
        raise ExportError(
            f"the network of '{name}' cannot be expressed in ONNX: {_short(error)}",
            hint=f"Its other formats: {', '.join([*modality.exports(), 'hub'])}.",
        ) from error
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)


def _session(path: Path, name: str) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own kinds, one a status
        raise ExportError(f"onnxruntime cannot open what was written of '{name}': {_short(error)}") from error


def _short(error: BaseException) -> str:
    """Returns the first line that says something, of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
