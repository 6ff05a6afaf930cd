"""The audio modality."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import DataError, Modality
from geobind_plugin_audio.config import AudioConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

_MOST_CHANNELS = 64  # more are the samples of an array [channels, N]


class Audio(Modality[AudioConfig]):
    """Recordings through CLAP. A sample is a mono waveform; a batch `[B, samples]` float32.

    Longer recordings are cut, at a random place when training and in the middle otherwise; shorter
    ones are repeated as often as they fit and then padded with silence, as CLAP was trained.
    """

    name: ClassVar[str] = "audio"
    Config = AudioConfig
    reads_files: ClassVar[bool] = True

    def build_encoder(self) -> nn.Module:
        """Builds CLAP's audio tower `[B, samples]` -> `[B, D]`, with its spectrogram in front."""
        from geobind_plugin_audio.clap import build

        return build(self.config)

    def rebuild_config(self, encoder: nn.Module) -> AudioConfig:
        """Returns settings in which the network and its features are written out."""
        from geobind_plugin_audio.clap import rebuilt

        return rebuilt(self.config, encoder)

    def read(self, cell: Any) -> torch.Tensor:
        """Decodes a path or bytes (MP3, FLAC, Ogg, WAV), or takes `(samples, sample_rate)`.

        Samples may be `[N]` or `[N, channels]`, in [-1, 1] or whole numbers as in a WAV file. Channels
        are averaged.
        """
        import numpy as np
        import soundfile
        import torch
        from torchaudio.functional import resample

        if isinstance(cell, dict) and "array" in cell:  # an audio column as Hugging Face decodes it
            cell = (cell["array"], cell["sampling_rate"])
        elif isinstance(cell, dict) and "bytes" in cell:
            cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        if isinstance(cell, tuple):
            samples, rate = _as_floats(np.asarray(cell[0])), int(cell[1])
        elif isinstance(cell, str | Path):
            samples, rate = soundfile.read(cell, dtype="float32")
        elif isinstance(cell, bytes | bytearray | memoryview):
            samples, rate = soundfile.read(BytesIO(cell), dtype="float32")
        else:
            raise DataError(f"expected a path, bytes or (samples, sample_rate), found {type(cell).__name__}.")
        if samples.ndim not in (1, 2) or samples.size == 0 or (samples.ndim == 2 and samples.shape[1] > _MOST_CHANNELS):
            raise DataError(f"expected samples [N] or [N, channels], found shape {samples.shape}.")
        if samples.ndim == 2:
            samples = samples.mean(axis=1)
        if not np.isfinite(samples).all():
            raise DataError("the recording has samples that are not finite.")
        waveform = torch.from_numpy(np.ascontiguousarray(samples))
        return waveform if rate == self.config.sample_rate else resample(waveform, rate, self.config.sample_rate)

    def transform(self, sample: torch.Tensor, *, train: bool, rng: np.random.Generator) -> torch.Tensor:
        """Cuts or repeats to the length that the network hears."""
        import torch

        wanted, length = round(self.config.seconds * self.config.sample_rate), len(sample)
        if length >= wanted:
            spare = length - wanted
            start = int(rng.integers(spare + 1)) if train else spare // 2
            return sample[start : start + wanted]
        repeated = sample.repeat(wanted // length)
        return torch.nn.functional.pad(repeated, (0, wanted - len(repeated)))


def _as_floats(samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns samples in [-1, 1]; whole numbers are scaled as in a WAV file."""
    import numpy as np

    if samples.dtype == np.uint8:  # WAV has 8 bits without a sign, and silence at 128
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32)
