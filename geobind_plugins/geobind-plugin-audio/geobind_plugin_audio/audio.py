"""The audio modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import Modality, Preview
from geobind_plugin_audio.config import AudioConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from geobind_core import Exporter
    from geobind_plugin_audio.recordings import Recording


class Audio(Modality[AudioConfig]):
    """Recordings through CLAP. A sample is a mono waveform, or a recording to cut one from.

    A batch is `[B, samples]` float32. Longer recordings are cut, at a random place when training and
    in the middle otherwise; shorter ones are repeated as often as they fit and then padded with
    silence, as CLAP was trained.
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

    def exports(self) -> Mapping[str, Exporter]:
        """Returns clap."""
        from geobind_plugin_audio.clap_export import ClapExporter

        return {"clap": ClapExporter()}

    def read(self, cell: Any) -> Recording | torch.Tensor:
        """Opens a path or bytes (MP3, FLAC, Ogg, WAV), or takes `(samples, sample_rate)`.

        Samples may be `[N]` or `[N, channels]`, in [-1, 1] or whole numbers as in a WAV file. Channels
        are averaged. A recording that the network hears as a whole is returned decoded, `[samples]`;
        of a longer one `transform` decodes what it chooses.
        """
        from geobind_plugin_audio.recordings import opened
        from geobind_plugin_audio.resampling import Rates

        recording, rate = opened(cell), self.config.sample_rate
        if Rates(recording.rate, rate).length(recording.frames) > self._samples:
            return recording
        return recording.heard(rate, self._samples, lambda last: 0)

    def transform(self, sample: Recording | torch.Tensor, *, train: bool, rng: np.random.Generator) -> torch.Tensor:
        """Cuts or repeats to the length that the network hears."""
        import torch

        def place(last: int) -> int:
            return int(rng.integers(last + 1)) if train else last // 2

        wanted = self._samples
        if not isinstance(sample, torch.Tensor):
            sample = sample.heard(self.config.sample_rate, wanted, place)
        elif len(sample) > wanted:
            start = place(len(sample) - wanted)
            sample = sample[start : start + wanted]
        repeated = sample.repeat(wanted // len(sample))
        return torch.nn.functional.pad(repeated, (0, wanted - len(repeated)))

    def inspect(self, cell: Any) -> Mapping[str, str | int | float]:
        """Returns the format, the sample rate in Hz, the number of channels and the seconds, without decoding."""
        from geobind_plugin_audio.recordings import opened

        found = opened(cell)
        return {
            "format": found.format,
            "sample_rate": found.rate,
            "channels": found.channels,
            "seconds": round(found.frames / found.rate, 3),
        }

    def preview(self, cell: Any, size: int = 256) -> Preview:
        """Returns what the network hears outside training, as an MP3; `size` is for pictures."""
        import numpy as np

        from geobind_plugin_audio.recordings import as_mp3

        heard = self.transform(self.read(cell), train=False, rng=np.random.default_rng(0))
        return Preview("audio/mpeg", as_mp3(heard, self.config.sample_rate))

    def example_cells(self, rng: np.random.Generator) -> list[bytes]:
        """Returns recordings of noise, shorter and longer than what the network hears, with one channel and two."""
        from io import BytesIO

        import soundfile

        cells = []
        for share, channels in ((0.3, 1), (1.0, 2), (1.6, 1)):
            file = BytesIO()
            noise = rng.normal(0, 0.1, (round(self._samples * share), channels)).clip(-1, 1)
            soundfile.write(file, noise, self.config.sample_rate, format="WAV")
            cells.append(file.getvalue())
        return cells

    @property
    def _samples(self) -> int:
        return round(self.config.seconds * self.config.sample_rate)
