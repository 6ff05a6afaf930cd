"""From a long recording to CLAP's features of ten seconds: against decoding and resampling all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_audio.config import AudioConfig, FeatureConfig
from geobind_plugin_audio.features import LogMel
from torchaudio.functional import resample
from transformers import ClapFeatureExtractor

from .measure import Settings, interleaved, median, timed
from .results import Goal, Row

NAME = "audio"
_PEER = "soundfile, torchaudio, transformers"
_FORMATS = ("MP3", "FLAC", "WAV")
_RATE, _HEARD_RATE, _BANDS = 44_100, 48_000, 64
_BATCH = 8


def run(settings: Settings) -> list[Row]:
    """Both sides on one thread, with the file in the page cache."""
    seconds, heard = (4, 1) if settings.quick else (60, 10)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _rows(settings, _recordings(settings.folder, seconds), seconds, heard)
    finally:
        torch.set_num_threads(threads)


def _rows(settings: Settings, files: dict[str, Path], seconds: int, heard: int) -> list[Row]:
    modality = Audio(AudioConfig(sample_rate=_HEARD_RATE, seconds=heard))
    spectrogram = LogMel(FeatureConfig(), "slaney", _HEARD_RATE, _BANDS)
    extractor = ClapFeatureExtractor(frequency_min=50, max_length_s=heard, truncation="rand_trunc")

    def ours(file: Path) -> None:
        generators = [np.random.default_rng(seed) for seed in range(_BATCH)]
        samples = [modality.transform(modality.read(file), train=True, rng=rng) for rng in generators]
        spectrogram(modality.collate(samples))

    def plain(file: Path) -> None:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        whole = resample(torch.from_numpy(samples).mean(dim=1), rate, _HEARD_RATE)
        extractor(whole.numpy(), sampling_rate=_HEARD_RATE, return_tensors="pt")

    rows = []
    for name, file in files.items():
        ours(file)
        plain(file)
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda file=file: timed(lambda: ours(file)) / _BATCH,  # type: ignore[misc]
            _PEER: lambda file=file: timed(lambda: plain(file)),  # type: ignore[misc]
        }
        raw = interleaved(sides, max(1, settings.repeats))
        mine, theirs = (median(raw[side]) * 1000 for side in sides)
        note = f"{heard} s of {seconds} s in stereo, {_RATE} Hz to {_HEARD_RATE} Hz; one thread, batches of {_BATCH}"
        rows.append(Row(NAME, name, "ms a recording", mine, theirs, _PEER, theirs / mine, Goal(">=", 4), note, raw))
    sample = modality.transform(modality.read(files["WAV"]), train=False, rng=np.random.default_rng(0))
    expected: Any = extractor(sample.numpy(), sampling_rate=_HEARD_RATE, return_tensors="pt")["input_features"][0, 0]
    difference = float((spectrogram(sample).T - expected).abs().max())
    rows.append(
        Row(NAME, "difference of the features", "dB", difference, peer_name="transformers", goal=Goal("<=", 1e-3))
    )
    return rows


def _recordings(folder: Path, seconds: int) -> dict[str, Path]:
    """Writes the same recording, a rumble with a melody, in all formats."""
    rng, count = np.random.default_rng(0), seconds * _RATE
    spectrum = np.fft.rfft(rng.normal(size=(2, count))) / np.maximum(np.fft.rfftfreq(count, 1 / _RATE), 20) ** 0.7
    rumble = np.fft.irfft(spectrum, count).T
    time = np.arange(count) / _RATE
    melody = 0.2 * np.sin(2 * np.pi * (300 + 200 * np.sin(time)) * time) * (0.5 + 0.5 * np.sin(np.pi * time))
    samples = (0.5 * rumble / np.abs(rumble).max() + melody[:, None]).astype(np.float32)
    files = {name: folder / f"recording.{name.lower()}" for name in _FORMATS}
    for name, file in files.items():
        soundfile.write(file, samples, _RATE, format=name)
    return files
