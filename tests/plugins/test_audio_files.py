"""Recordings as they come: odd, broken, huge or no recordings at all. Each is read right or refused in a sentence."""

import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_audio.config import AudioConfig

from geobind_core import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000


@pytest.fixture
def modality() -> Audio:
    """A second at 16 kHz."""
    return Audio(AudioConfig(model="geobind-tiny", sample_rate=RATE, seconds=1))


def sample_of(modality: Audio, cell: Any, *, train: bool = False) -> torch.Tensor:
    sample = modality.transform(modality.read(cell), train=train, rng=np.random.default_rng(0))
    assert sample.shape == (RATE,)
    assert sample.dtype == torch.float32
    assert sample.isfinite().all()
    return sample


def tone(rate: int, seconds: float = 3.0, channels: int = 1, frequency: float = 440.0) -> np.ndarray[Any, Any]:
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def encoded(samples: np.ndarray[Any, Any], rate: int, kind: str, **settings: Any) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, **settings)
    return content.getvalue()


def loudest(waveform: torch.Tensor, rate: int = RATE) -> float:
    """Returns the loudest frequency of a waveform, in Hz."""
    return float(torch.fft.rfft(waveform).abs().argmax()) * rate / len(waveform)


# ---------------------------------------------------------------------- read right


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "CAF", "W64", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("seconds", [0.4, 3.0])
def test_formats_and_rates(modality: Audio, kind: str, rate: int, seconds: float) -> None:
    if kind == "MP3" and rate > 48_000:
        pytest.skip("MP3 has no such rate")
    found = sample_of(modality, encoded(tone(rate, seconds), rate, kind))
    assert loudest(found) == pytest.approx(440, abs=4)
    assert found.abs().max() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
@pytest.mark.parametrize("channels", [1, 2, 6, 200])
def test_depths_and_channels(modality: Audio, subtype: str, channels: int) -> None:
    """5.1 has six channels, a microphone array any number; the sum of all is what is heard."""
    if subtype == "IMA_ADPCM" and channels > 2:
        pytest.skip("it has no such form")
    samples = tone(RATE, 1.5, channels)
    samples[:, -1] = 0
    found = sample_of(modality, encoded(samples, RATE, "WAV", subtype=subtype))
    if channels == 1:
        assert found.abs().max() < 0.01, "the only channel is silent"
    else:
        assert loudest(found) == pytest.approx(440, abs=2)
        assert found.abs().max() == pytest.approx(0.5 * (channels - 1) / channels, abs=0.03)


def test_a_wav_of_24_bits_to_the_last(modality: Audio) -> None:
    samples = np.array([2**-23, -(2**-23), 0.5, -1.0], np.float32)
    found = modality.read(encoded(np.tile(samples, 100), RATE, "WAV", subtype="PCM_24"))
    torch.testing.assert_close(found, torch.from_numpy(np.tile(samples, 100)), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG"])
def test_silence_is_a_recording(modality: Audio, kind: str) -> None:
    found = sample_of(modality, encoded(np.zeros((RATE * 3, 2), np.float32), RATE, kind))
    assert found.abs().max() < 1e-4
    assert modality.build_encoder().eval()(found[None]).isfinite().all()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "OGG"])
def test_one_sample_is_a_recording(modality: Audio, kind: str) -> None:
    found = sample_of(modality, encoded(np.full((1, 1), 0.25, np.float32), RATE, kind))
    if kind in ("WAV", "FLAC"):
        assert torch.equal(found, torch.full((RATE,), 0.25)), "repeated"


@pytest.mark.parametrize(
    ("content", "name"), [("MP3", "sound.wav"), ("WAV", "sound.mp3"), ("FLAC", "sound.raw"), ("MP3", "sound.raw")]
)
def test_a_wrong_name_does_not_matter(modality: Audio, tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(tone(RATE), RATE, content))
    assert loudest(sample_of(modality, path)) == pytest.approx(440, abs=2)


def cells(content: bytes, path: Path) -> dict[str, Any]:
    samples, rate = soundfile.read(io.BytesIO(content))
    path.write_bytes(content)
    return {
        "path": path,
        "name": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "hugging face, bytes": {"bytes": content, "path": "not-there.flac"},
        "hugging face, path": {"bytes": None, "path": str(path)},
        "hugging face, decoded": {"path": None, "array": samples, "sampling_rate": rate},
        "hugging face, list": {"path": None, "array": samples.tolist(), "sampling_rate": rate},
        "samples": (samples, rate),
        "whole numbers": (np.round(samples * 2**15).astype(np.int16), rate),
    }


@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_cells_of_all_kinds_are_the_same(modality: Audio, tmp_path: Path, seconds: float) -> None:
    content = encoded(tone(22_050, seconds), 22_050, "FLAC")
    found = cells(content, tmp_path / "a.flac")
    expected = sample_of(modality, found["path"], train=True)
    for name, cell in found.items():
        torch.testing.assert_close(sample_of(modality, cell, train=True), expected, atol=1e-6, rtol=0, msg=name)
        said = modality.inspect(cell)
        assert (said["sample_rate"], said["channels"], said["seconds"]) == (22_050, 1, seconds), name
        assert modality.preview(cell).media_type == "audio/mpeg"


# ---------------------------------------------------------------------- headers that lie, files that end early


def flac_that_says(content: bytes, frames: int) -> bytes:
    """Returns a FLAC with another total of samples in its header; 0 is unknown, as when it was piped."""
    low = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return content[:21] + bytes((content[21] & 0xF0 | frames >> 32,)) + low + content[26:]


def wav_that_says(content: bytes, size: int) -> bytes:
    return content[:40] + struct.pack("<I", size) + content[44:]


def mp3_that_says(content: bytes, frames: int) -> bytes:
    at = max(content.find(b"Xing"), content.find(b"Info"))
    assert at > 0
    return content[: at + 8] + frames.to_bytes(4, "big") + content[at + 12 :]


@pytest.mark.parametrize("frames", [0, 22_050 * 60, 2**36 - 1])
def test_a_flac_that_does_not_say_how_long_it_is(modality: Audio, frames: int) -> None:
    good = encoded(tone(22_050, 20), 22_050, "FLAC")
    content = flac_that_says(good, frames)
    for train in (False, True):
        assert loudest(sample_of(modality, content, train=train)) == pytest.approx(440, abs=2)
    if frames == 0:
        assert modality.inspect(content)["seconds"] == pytest.approx(20, abs=0.1)


def test_a_flac_of_unknown_length_is_heard_everywhere(modality: Audio) -> None:
    rng = np.random.default_rng(0)
    good = encoded(rng.uniform(-0.5, 0.5, RATE * 4).astype(np.float32), RATE, "FLAC")
    unknown = modality.read(flac_that_says(good, 0))
    known = modality.read(good)
    for start in (0, 1, 4_096, 3 * 4_096, 40_000):
        found, expected = (recording.heard(RATE, RATE, lambda last, at=start: at) for recording in (unknown, known))  # type: ignore[union-attr, misc]
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "change", "seconds"),
    [
        ("WAV", lambda content: wav_that_says(content, 0xFFFFFFFF), 20),
        ("WAV", lambda content: wav_that_says(content, 2 * RATE * 2), 2),
        ("WAV", lambda content: content[: len(content) // 2], 10),
        ("FLAC", lambda content: content[: len(content) // 2], None),
        ("FLAC", lambda content: flac_that_says(content, 2 * RATE), 2),
        ("OGG", lambda content: content[: len(content) // 2], None),
        ("MP3", lambda content: content[: len(content) // 2], 10),
        ("MP3", lambda content: mp3_that_says(content, 2**31 - 1), 20),
        ("MP3", lambda content: mp3_that_says(content, 3), 20),
    ],
)
def test_files_that_are_cut_off_or_lie_are_read_as_far_as_they_go(
    modality: Audio, kind: str, change: Callable[[bytes], bytes], seconds: float | None, capfd: Any
) -> None:
    content = change(encoded(tone(RATE, 20), RATE, kind))
    for train in (False, True):
        assert loudest(sample_of(modality, content, train=train)) == pytest.approx(440, abs=2)
    if seconds is not None:
        assert modality.inspect(content)["seconds"] == pytest.approx(seconds, abs=0.6)
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------- refused


def float_wav(*values: float) -> bytes:
    samples = np.concatenate([tone(RATE)[:, 0], np.array(values * 4_000, np.float32), tone(RATE)[:, 0]])
    return encoded(samples, RATE, "WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"^the file is empty\.$"),
        (b"no sound " * 500, r"^this is no recording that can be decoded: Format not recognised\.$"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), r"^this is no recording that can be decoded: .*\.$"),
        (b"\xff\xfb", r"^this is no recording that can be decoded: .*\.$"),
        (b"ID3\3\0\0\x7f\x7f\x7f\x7f", r"^this is no recording that can be decoded: .*\.$"),
        (encoded(np.zeros((0, 1), np.float32), RATE, "WAV"), r"^the recording has no samples\.$"),
        (encoded(np.zeros((0, 2), np.float32), RATE, "AIFF"), r"^the recording has no samples\.$"),
        (encoded(tone(RATE, 3), RATE, "MP3")[:500], r"^the recording has no samples\.$"),
        (float_wav(float("nan")), r"^the recording has samples that are not finite\.$"),
        (float_wav(float("inf"), 0.5), r"^the recording has samples that are not finite\.$"),
        (float_wav(1e30), r"^the recording has samples that are not finite\.$"),
        (encoded(tone(RATE, 3), RATE, "FLAC")[:60], r"^this is no recording .*|^the recording .*\.$"),
        (encoded(tone(RATE, 3), 200_000_000, "WAV"), r"^the recording has a sample rate of 200000000 Hz, .*\.$"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp3", "a.wav", None])
def test_what_is_refused_is_refused_in_a_sentence(
    modality: Audio, tmp_path: Path, content: bytes, said: str, name: str | None
) -> None:
    cell: Any = content
    if name is not None:
        cell = tmp_path / name
        cell.write_bytes(content)
    with pytest.raises(DataError) as raised:
        sample_of(modality, cell)
    assert re.search(said, raised.value.message)


def test_files_that_are_not_there(modality: Audio, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp3"):
        modality.read(tmp_path / "nowhere.mp3")
    with pytest.raises(IsADirectoryError):
        modality.read(tmp_path)
    with pytest.raises(DataError, match="expected a path, bytes or"):
        modality.read({"bytes": None, "path": None})


# ---------------------------------------------------------------------- an hour, quickly and in little memory


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "silent FLAC"])
def test_an_hour_takes_no_longer_than_a_minute(modality: Audio, tmp_path: Path, kind: str) -> None:
    """Silence makes FLAC small: 200 kB that would be 115 MB decoded."""
    path, rate = tmp_path / "hour", 8_000
    block = np.zeros((rate * 60, 1), np.float32) if kind == "silent FLAC" else tone(rate, 60)
    with soundfile.SoundFile(path, "w", rate, 1, format=kind.split()[-1]) as file:
        for _ in range(60):
            file.write(block)
    sample_of(modality, encoded(tone(rate), rate, "WAV"))  # imports, filters
    tracemalloc.start()
    started = time.perf_counter()
    assert modality.inspect(path)["seconds"] == 3_600
    found = [sample_of(modality, path, train=train) for train in (False, True)]
    taken, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kind == "silent FLAC" or all(loudest(sample) == pytest.approx(440, abs=2) for sample in found)
    assert peak < 4 * 2**20
    assert taken < 2, "a hundredth of that, alone on a machine"


# ---------------------------------------------------------------------- broken at random


DAMAGES = 150


def damaged(content: bytes, seed: int) -> bytes:
    """Flips bits anywhere, or in the headers, or cuts the end off."""
    rng, found = random.Random(seed), bytearray(content)
    if seed % 3 == 2:
        return content[: rng.randrange(len(content))]
    within = len(found) if seed % 3 == 0 else 200
    for _ in range(rng.choice((1, 3, 20, 200) if seed % 3 == 0 else (1, 2, 5))):
        found[rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(found)


def read_damaged(kind: str) -> dict[str, int]:
    """Returns how many damaged recordings became samples, how many errors, and what memory they took at their peak."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(5).normal(0, 0.05, (RATE * 4, 2)).astype(np.float32)
    good = encoded(tone(RATE, 4, 2) + noise, RATE, kind)
    modality = Audio(AudioConfig(model="geobind-tiny", sample_rate=RATE, seconds=1))
    outcomes: dict[str, int] = {}
    sample_of(modality, good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(DAMAGES):
        try:
            sample_of(modality, damaged(good, seed), train=True)
            outcome = "sample"
        except DataError:
            outcome = "DataError"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    outcomes["KiB more"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcomes


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "OGG", "WAV"])
def test_damage_gives_a_sample_or_an_error(kind: str) -> None:
    """In a process of its own, which a decoder could take down or hang."""
    done = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("KiB more") < 32 * 1024
    assert set(outcomes) <= {"sample", "DataError"}
    assert sum(outcomes.values()) == DAMAGES
    assert outcomes["sample"] > DAMAGES / 3, "damage is survived where it can be"
    # What mpg123 says of a frame whose inside is damaged, it says to nobody in particular.
    lines = [line for line in done.stderr.splitlines() if "libmpg123/layer3.c" not in line]
    assert lines == []
    assert len(done.stderr.splitlines()) < 20


# ---------------------------------------------------------------------- for people


@pytest.mark.parametrize(
    ("kind", "said"),
    [("WAV", "WAV PCM_16"), ("FLAC", "FLAC PCM_16"), ("OGG", "OGG VORBIS"), ("MP3", "MP3 MPEG_LAYER_III")],
)
def test_what_is_said_of_a_recording(modality: Audio, kind: str, said: str) -> None:
    found = modality.inspect(encoded(tone(44_100, 2.5, 2), 44_100, kind))
    assert found == {"format": said, "sample_rate": 44_100, "channels": 2, "seconds": 2.5}


@pytest.mark.parametrize("sample_rate", [16_000, 48_000, 10_000, 96_000])
def test_a_preview_is_what_the_network_hears(sample_rate: int) -> None:
    modality = Audio(AudioConfig(sample_rate=sample_rate, seconds=4))
    samples = np.concatenate([tone(44_100, 3, frequency=500), tone(44_100, 4, frequency=900), tone(44_100, 3)])
    preview = modality.preview(encoded(samples, 44_100, "FLAC"))
    assert preview.media_type == "audio/mpeg"
    assert len(preview.data) < 100_000
    found, rate = soundfile.read(io.BytesIO(preview.data), dtype="float32")
    assert found.ndim == 1
    assert len(found) / rate == pytest.approx(4, abs=0.01)
    assert loudest(torch.from_numpy(found), rate) == pytest.approx(900, abs=2), "the middle"


def test_what_is_no_recording_has_no_preview(modality: Audio) -> None:
    for look in (modality.inspect, modality.preview):
        with pytest.raises(DataError, match="no recording"):
            look(b"no sound")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(read_damaged(sys.argv[1])))
