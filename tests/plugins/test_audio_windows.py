"""Long recordings: only what is heard is decoded, and it is what decoding everything would have given."""

import io
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_audio.config import AudioConfig
from geobind_plugin_audio.mp3 import find_frames
from geobind_plugin_audio.recordings import Recording
from geobind_plugin_audio.resampling import Rates
from torchaudio.functional import resample

from geobind_core.config.models import LoaderConfig
from geobind_core.data.loading import TrainingBatches, batches, plan_workers
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.plugins.source import Observations

pytestmark = pytest.mark.usefixtures("one_thread")

RATE, WANTED = 16_000, 8_000
MP3_RATES = (8_000, 11_025, 22_050, 44_100, 48_000)


def modality() -> Audio:
    """Half a second at 16 kHz."""
    return Audio(AudioConfig(model="geobind-tiny", sample_rate=RATE, seconds=0.5))


def sound(rate: int, seconds: float = 3.0, channels: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    """Noise and a rising tone: no two places of it are alike."""
    time = np.arange(int(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)
    noise = np.random.default_rng(seed).normal(0, 0.05, (len(time), channels))
    return (tone[:, None] + noise).astype(np.float32)


def encoded(samples: np.ndarray[Any, Any], rate: int, kind: str, **settings: Any) -> bytes:
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", rate, samples.shape[1], format=kind, **settings) as file:
        for start in range(0, len(samples), 8_192):  # libsndfile's Ogg encoder overflows its stack on long ones
            file.write(samples[start : start + 8_192])
    return content.getvalue()


def heard(cell: Any, seed: int, *, train: bool = True) -> torch.Tensor:
    own = modality()
    return own.transform(own.read(cell), train=train, rng=np.random.default_rng(seed))


def plain(samples: np.ndarray[Any, Any], rate: int, seed: int) -> torch.Tensor:
    """All of a recording resampled, and then cut."""
    whole = torch.from_numpy(samples.mean(axis=1) if samples.ndim == 2 else samples)
    whole = whole if rate == RATE else resample(whole, rate, RATE)
    start = int(np.random.default_rng(seed).integers(len(whole) - WANTED + 1))
    return whole[start : start + WANTED]


# ---------------------------------------------------------------------- the same as of the whole


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "samples"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_a_window_is_the_cut_of_the_whole(kind: str, rate: int) -> None:
    if kind == "MP3" and rate not in MP3_RATES:
        pytest.skip("MP3 has no such rate")
    samples: np.ndarray[Any, Any] = sound(rate)
    cell: Any = (samples, rate)
    if kind != "samples":
        cell = encoded(samples, rate, kind)
        samples, _ = soundfile.read(io.BytesIO(cell), dtype="float32")
    assert isinstance(modality().read(cell), Recording)
    for seed in range(6):
        torch.testing.assert_close(heard(cell, seed), plain(samples, rate, seed), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [0, 1, -1])
def test_windows_at_both_ends(start: int) -> None:
    samples = sound(44_100)
    recording = modality().read(encoded(samples, 44_100, "WAV", subtype="FLOAT"))
    assert isinstance(recording, Recording)
    whole = resample(torch.from_numpy(samples.mean(axis=1)), 44_100, RATE)
    start = start if start >= 0 else len(whole) - WANTED
    found = recording.heard(RATE, WANTED, lambda last: min(start, last))
    torch.testing.assert_close(found, whole[start : start + WANTED], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("found", "wanted"), [(44_101, 48_000), (24_414, 48_000), (999_983, 16_000), (7, 48_000)])
def test_rates_without_a_small_ratio_take_no_large_filters(found: int, wanted: int) -> None:
    """As rates of whole recordings and of broken headers: filters of 44,101 x 48,000 numbers would be 8 GB."""
    rates = Rates(found, wanted)
    assert rates.ratio.numerator * rates.ratio.denominator <= 1_000_000
    assert float(rates.ratio) == pytest.approx(found / wanted, rel=5e-4)
    seconds = 0.5 if found > 100 else 4
    time = np.arange(int(found * seconds)) / found
    tone = torch.from_numpy(np.sin(2 * np.pi * min(440, found / 7) * time).astype(np.float32))
    again = rates.resample(tone)
    assert len(again) == rates.length(len(tone)) == pytest.approx(seconds * wanted, rel=1e-3)
    middle = again[len(again) // 4 : -len(again) // 4]
    assert middle.abs().max() == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------------- MP3


def without_count(content: bytes) -> bytes:
    """Returns an MP3 without the frame in front that says how long it is."""
    frames = find_frames(io.BytesIO(content))
    assert frames is not None
    assert frames.skip == 1105
    return content[int(frames.starts[0]) :]


def id3(size: int) -> bytes:
    picture = b"APIC" + size.to_bytes(4, "big") + b"\0\0" + b"\xff\xfb\x90\x64" * (size // 4)
    length = len(picture)
    return b"ID3\3\0\0" + bytes(length >> shift & 127 for shift in (21, 14, 7, 0)) + picture


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("quality", [0.0, 0.99])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (24_000, 2), (22_050, 1), (8_000, 1)])
def test_mp3_of_all_kinds(
    mode: str, quality: float, rate: int, channels: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """At 8 kbit/s, a frame's sound begins a hundred frames before it."""
    content = encoded(sound(rate, channels=channels), rate, "MP3", bitrate_mode=mode, compression_level=quality)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    capfd.readouterr()
    found = find_frames(io.BytesIO(content))
    assert found is not None
    assert found.length == len(whole)
    for start in (0, 1, 3_000, len(whole) // 2, len(whole) - 2_000):
        part, before = found.cut(io.BytesIO(content), start, start + 2_000)
        cut, _ = soundfile.read(io.BytesIO(part), dtype="float32", always_2d=True)
        np.testing.assert_allclose(cut[before : before + 2_000], whole[start : start + 2_000], atol=1e-6)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_does_not_say_how_long_it_is(mode: str) -> None:
    """libsndfile guesses from the first frame, and plays a part of a recording with a variable bitrate."""
    content = encoded(sound(44_100), 44_100, "MP3", bitrate_mode=mode, compression_level=0.5)
    whole, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    stripped = without_count(content)
    frames = find_frames(io.BytesIO(stripped))
    assert frames is not None
    assert (frames.skip, frames.length) == (0, 1152 * len(frames.starts))
    part, before = frames.cut(io.BytesIO(stripped), 1105, 1105 + len(whole))
    found, _ = soundfile.read(io.BytesIO(part), dtype="float32")
    np.testing.assert_allclose(found[before : before + len(whole)], whole, atol=1e-6)


@pytest.mark.parametrize("where", ["tag", "two tags", "tail", "middle", "junk"])
def test_what_is_no_sound_in_an_mp3(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = encoded(sound(44_100), 44_100, "MP3")
    frames = find_frames(io.BytesIO(content))
    assert frames is not None
    middle, junk = int(frames.starts[50]), np.random.default_rng(0).bytes(3_000)
    changed = {
        "tag": id3(100_000) + content,
        "two tags": id3(400) + id3(8_000) + content + b"TAG" + bytes(125),
        "tail": content + b"APETAGEX" + junk,
        "middle": content[:middle] + junk + content[middle:],
        "junk": b"\0" * 700 + b"ICY 200 OK" + content,
    }[where]
    for seed in range(4):
        assert torch.equal(heard(changed, seed), heard(content, seed))
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------- in the engine


class Listening(Audio):
    """Says in which threads recordings are decoded."""

    threads: ClassVar[set[str]] = set()

    def transform(self, sample: Any, *, train: bool, rng: np.random.Generator) -> torch.Tensor:
        if isinstance(sample, Recording):
            self.threads.add(threading.current_thread().name)
        return super().transform(sample, train=train, rng=rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of three seconds, and two that are short."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(14):
        kind = ("mp3", "flac", "wav", "ogg")[number % 4]
        samples = sound(22_050, 3 if number < 12 else 0.2, seed=number)
        (folder / f"{number}.{kind}").write_bytes(encoded(samples, 22_050, kind.upper()))
    return folder


def reader(folder: Path, numbers: range, own: Audio | None = None) -> SampleReader:
    names = [next(folder.glob(f"{number}.*")).name for number in numbers]
    table = pa.table({"key": [str(n) for n in numbers], "audio": names, "split": ["train"] * len(names)})
    data = PairedData("d", Observations(table, folder, {"audio": "audio"}, split="split"))
    return SampleReader(data, "audio", own or modality(), train=True, seed=3)


def loaded(found: SampleReader, workers: int) -> Iterator[torch.Tensor]:
    rows = found.data.rows("train", ["audio"])
    sampler = TrainingBatches(rows, 7, 2, seed=2)
    for batch in batches({"audio": found}, sampler, workers=workers, pin_memory=False):
        assert not batch["bad"]
        yield batch["inputs"]["audio"]


def test_workers_change_nothing_and_epochs_do(folder: Path) -> None:
    expected = list(loaded(reader(folder, range(14)), 0))
    assert [batch.shape for batch in expected] == [(7, WANTED)] * 4
    for workers in (1, 2):
        for ours, theirs in zip(loaded(reader(folder, range(14)), workers), expected, strict=True):
            assert torch.equal(ours, theirs)
    found = reader(folder, range(1))
    first, again, other = (found.finish(found.read(0), 0, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_workers_threads_decode(folder: Path) -> None:
    Listening.threads.clear()
    found = reader(folder, range(14), Listening(modality().config))
    list(loaded(found, 0))
    assert Listening.threads
    assert (threading.main_thread().name in Listening.threads) == ((os.cpu_count() or 1) == 1)


def test_recordings_that_are_decoded_each_time_are_not_taken_for_small_ones(folder: Path) -> None:
    device, settings = torch.device("cpu"), LoaderConfig(decoded_cache_mib=1_000_000)

    def planned(numbers: range) -> int:
        found = reader(folder, numbers)
        return plan_workers({"audio": found}, found.data.rows("train", ["audio"]), settings, device)[0]

    assert planned(range(12, 14)) == 0, "decoded once and kept"
    assert planned(range(12)) >= 1, "decoded in every epoch, beside the training"


def test_what_is_kept_in_memory(folder: Path) -> None:
    found = reader(folder, range(14))
    found.keep_up_to(10**12)
    for row in (0, 12):
        found.keep(row, found.read(row))
    assert found.read(12) is found.read(12)
    assert found.read(0) is not found.read(0)
    samples = modality().read((sound(44_100), 44_100))
    assert isinstance(samples, Recording)
    assert samples.nbytes == 3 * 44_100 * 4, "these are in memory anyway"


def test_recordings_travel_to_other_processes(folder: Path) -> None:
    own = modality()
    for path in sorted(folder.glob("[0-3].*")):
        for cell in (path, path.read_bytes()):
            recording = own.read(cell)
            sent = pickle.loads(pickle.dumps(recording))
            found, expected = (own.transform(r, train=True, rng=np.random.default_rng(1)) for r in (sent, recording))
            assert torch.equal(found, expected)
