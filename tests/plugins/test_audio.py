"""The audio tower against transformers' own CLAP, and recordings as users have them."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from geobind_plugin_audio.audio import Audio
from geobind_plugin_audio.clap import ClapEncoder
from geobind_plugin_audio.config import AudioConfig, FeatureConfig
from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

from geobind_core import DataError, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000


def config(folder: Path, **settings: Any) -> AudioConfig:
    return AudioConfig.model_validate({"pretrained": str(folder), "sample_rate": RATE, "seconds": 1, **settings})


def recordings() -> list[np.ndarray[Any, Any]]:
    """Recordings of at most a second: noise, a chord with noise, something short, something shorter."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    chord = sum(0.2 * np.sin(2 * np.pi * f * time) for f in (220, 553, 1_660)) + rng.normal(0, 0.01, RATE)
    found = [rng.normal(0, 0.1, RATE), chord, rng.normal(0, 0.2, 7_000), chord[:1_999]]
    return [samples.astype(np.float32) for samples in found]


def batch_of(modality: Audio, samples: list[np.ndarray[Any, Any]], rate: int = RATE) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return modality.collate([modality.transform(modality.read((s, rate)), train=False, rng=rng) for s in samples])


# ---------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("fused", [False, True])
def test_features_and_embeddings_are_those_of_transformers(
    clap_folder: Path, fused_clap_folder: Path, fused: bool
) -> None:
    folder = fused_clap_folder if fused else clap_folder
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    features = extractor(recordings(), sampling_rate=RATE, return_tensors="pt")["input_features"].float()
    model = ClapAudioModelWithProjection.from_pretrained(folder).eval()
    # The extractor calls one short recording of each batch long, at random; none of these is.
    longer = torch.zeros(len(features), 1, dtype=torch.bool)

    modality = Audio(config(folder))
    encoder = modality.build_encoder().eval()
    assert isinstance(encoder, ClapEncoder)
    assert encoder.fused is fused
    batch = batch_of(modality, recordings())
    assert batch.shape == (4, RATE)
    assert batch.dtype == torch.float32
    with torch.no_grad():
        mel = encoder.spectrogram(batch).transpose(1, 2)
        found, expected = encoder(batch), model(features, is_longer=longer).audio_embeds
    assert features.shape[1] == (4 if fused else 1)
    for view in range(features.shape[1]):
        assert (mel - features[:, view]).abs().max() < 0.001, "decibels"
    assert found.shape == (4, 20)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3, "the example must tell recordings apart"


def published(kind: str) -> np.ndarray[Any, Any]:
    """Ten seconds at 48 kHz."""
    rng, count = np.random.default_rng(1), 480_000
    time = np.arange(count) / 48_000
    if kind == "tone":
        return (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    if kind == "silence":
        return np.zeros(count, np.float32)
    if kind == "rumble":  # 100 dB between the lowest band and the highest
        spectrum = np.fft.rfft(rng.normal(size=count)) / np.maximum(np.fft.rfftfreq(count, 1 / 48_000), 30) ** 2
        rumble = np.fft.irfft(spectrum)
        return (0.5 * rumble / np.abs(rumble).max()).astype(np.float32)
    return rng.normal(0, 0.1, 170_000 if kind == "short" else count).astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "tone", "silence", "rumble", "short"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_published_features_are_those_of_clap(kind: str, fused: bool) -> None:
    """48 kHz, 10 s, the numbers of laion/clap-htsat-unfused and -fused, which are the defaults."""
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="fusion" if fused else "rand_trunc")
    samples = published(kind)
    expected = extractor(samples, sampling_rate=48_000, return_tensors="pt")["input_features"][0]
    small = {"depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32, "patch_embeds_hidden_size": 16}
    modality = Audio(
        AudioConfig(model={**small, "enable_fusion": fused, **({"fusion_type": "aff_2d"} if fused else {})})
    )
    encoder = modality.build_encoder()
    batch = batch_of(modality, [samples, samples[::-1].copy()], 48_000)
    found = encoder.spectrogram(batch)
    assert found[0].T.shape == expected[0].shape == (1001, 64)
    assert len(expected) == (4 if fused else 1)
    for view in expected:
        assert (found[0].T - view).abs().max() < 0.001, "decibels"
    assert torch.equal(found[0], encoder.spectrogram(batch[0])), "whatever else is in the batch"


def test_features_are_float32_under_autocast(clap_folder: Path) -> None:
    modality = Audio(config(clap_folder))
    encoder = modality.build_encoder().eval()
    batch = batch_of(modality, recordings())
    seen: list[torch.Tensor] = []
    encoder.clap.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_features"]), with_kwargs=True
    )
    with torch.no_grad():
        encoder(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(batch)
    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[0], seen[1])


# ---------------------------------------------------------------------- weights


def test_a_folder_of_audio_alone(clap_folder: Path, tmp_path: Path) -> None:
    """What ClapAudioModelWithProjection.save_pretrained writes, without the text half."""
    ClapAudioModelWithProjection.from_pretrained(clap_folder).save_pretrained(tmp_path)
    shutil.copy(clap_folder / "preprocessor_config.json", tmp_path)
    whole, half = Audio(config(clap_folder)).build_encoder(), Audio(config(tmp_path)).build_encoder()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor), name


def test_features_of_the_folder_are_taken(clap_folder: Path, tmp_path: Path) -> None:
    encoder = Audio(config(clap_folder)).build_encoder()
    expected = FeatureConfig(fft_window=512, hop_length=160, min_hz=40, max_hz=7_000)
    assert encoder.features == expected
    folder = tmp_path / "clap"
    shutil.copytree(clap_folder, folder)
    # ClapProcessor.save_pretrained puts them into a file of its own.
    published = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": published}))
    assert Audio(config(folder)).build_encoder().features == expected
    (folder / "processor_config.json").unlink()
    assert Audio(config(folder)).build_encoder().features == FeatureConfig()
    own = FeatureConfig(fft_window=256, hop_length=200)
    assert Audio(config(folder, features=own.model_dump())).build_encoder().features == own


def test_half_precision_on_the_disk_is_float32_in_memory(clap_folder: Path, tmp_path: Path) -> None:
    model = ClapAudioModelWithProjection.from_pretrained(clap_folder).half()
    model.save_pretrained(tmp_path)
    shutil.copy(clap_folder / "preprocessor_config.json", tmp_path)
    modality = Audio(config(tmp_path))
    encoder = modality.build_encoder().eval()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder(batch_of(modality, recordings())).dtype == torch.float32


def test_loading_is_quiet(clap_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """transformers lists every weight of the text half, which is of no concern here."""
    Audio(config(clap_folder)).build_encoder()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("damage", ["truncated", "text", "gone"])
def test_damaged_weights(clap_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = copied(clap_folder, tmp_path / "clap")
    path = folder / "model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1000] if damage == "truncated" else b"version https://git-lfs")
    with pytest.raises(WeightsError, match="no CLAP weights can be loaded") as raised:
        Audio(config(folder)).build_encoder()
    assert str(folder) in str(raised.value)


def test_weights_that_are_not_all_there(clap_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(clap_folder, tmp_path / "clap")
    state = load_file(folder / "model.safetensors")
    del state["audio_projection.linear1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 of CLAP's weights, such as audio_projection\.linear1\.weight"):
        Audio(config(folder)).build_encoder()


def test_weights_of_another_network(clap_folder: Path, tmp_path: Path) -> None:
    folder = copied(clap_folder, tmp_path / "clap")
    described = json.loads((folder / "config.json").read_text())
    described["audio_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError):
        Audio(config(folder)).build_encoder()


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="CLAP"):
        Audio(config(tmp_path)).build_encoder()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="no CLAP configuration can be loaded"):
        Audio(config(tmp_path)).build_encoder()


def test_without_a_network_it_is_said_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="laion/clap-htsat-unfused are not in the local cache") as raised:
        Audio(AudioConfig(pretrained="laion/clap-htsat-unfused")).build_encoder()
    assert "hf download laion/clap-htsat-unfused" in raised.value.hint


def test_a_repository_in_the_cache_needs_no_network(
    clap_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--some-clap"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(clap_folder, repository / "snapshots" / ("0" * 40))
    settings = AudioConfig(pretrained="someone/some-clap", sample_rate=RATE, seconds=1)
    found, expected = Audio(settings).build_encoder(), Audio(config(clap_folder)).build_encoder()
    assert isinstance(found, ClapEncoder)
    assert found.features == expected.features
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("geobind-tyni", "no model 'geobind-tyni'. Available: geobind-tiny"),
        ({"hiden_size": 3}, "ClapAudioConfig has no field hiden_size"),
        ({"num_attention_heads": 2}, "refuses the model that is written out"),
    ],
)
def test_models_that_are_not_there(model: Any, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        Audio(AudioConfig(model=model)).build_encoder()


@pytest.mark.parametrize("seconds", [1.28, 5.0, 0.01])
def test_lengths_that_the_network_cannot_hear_are_refused_at_once(clap_folder: Path, seconds: float) -> None:
    """64 x 64 numbers hold 128 frames of 32 bands; a frame is 160 samples: 1.28 s."""
    with pytest.raises(WeightsError, match=rf"seconds: {seconds:g} does not fit.*hears 0.0161 to 1.28 s"):
        Audio(config(clap_folder, seconds=seconds)).build_encoder()


@pytest.mark.parametrize("seconds", [1.279, 0.0165])
def test_lengths_at_the_border_run(clap_folder: Path, seconds: float) -> None:
    modality = Audio(config(clap_folder, seconds=seconds))
    encoder = modality.build_encoder().eval()
    found = encoder(batch_of(modality, recordings()))
    assert found.shape == (4, 20)
    assert found.isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
def test_saved_settings_rebuild_the_network_without_the_weights(
    clap_folder: Path, fused_clap_folder: Path, tmp_path: Path, fused: bool
) -> None:
    folder = copied(fused_clap_folder if fused else clap_folder, tmp_path / "clap")
    modality = Audio(config(folder))
    encoder = modality.build_encoder().eval()
    written = json.loads(json.dumps(modality.rebuild_config(encoder).model_dump(mode="json")))
    shutil.rmtree(folder)
    rebuilt = Audio(AudioConfig.model_validate(written))
    assert rebuilt.config.pretrained is None
    again = rebuilt.build_encoder().eval()
    again.load_state_dict(encoder.state_dict())
    batch = batch_of(rebuilt, recordings())
    with torch.no_grad():
        assert torch.equal(again(batch), encoder(batch))


def test_the_own_model_rebuilds_too() -> None:
    modality = Audio(AudioConfig(model="geobind-tiny", sample_rate=RATE, seconds=3))
    encoder = modality.build_encoder().eval()
    again = Audio(modality.rebuild_config(encoder)).build_encoder().eval()
    again.load_state_dict(encoder.state_dict())
    batch = batch_of(modality, recordings())
    with torch.no_grad():
        assert torch.equal(again(batch), encoder(batch))


# ---------------------------------------------------------------------- recordings as users have them


@pytest.fixture
def modality() -> Audio:
    """A second at 16 kHz, heard by the small network."""
    return Audio(AudioConfig(model="geobind-tiny", sample_rate=RATE, seconds=1))


def tone(rate: int, seconds: float = 0.5, frequency: float = 440.0) -> np.ndarray[Any, Any]:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def loudest(waveform: torch.Tensor) -> float:
    """Returns the loudest frequency of a waveform at 16 kHz, in Hz."""
    spectrum = torch.fft.rfft(waveform).abs()
    return float(spectrum.argmax()) * RATE / len(waveform)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_rates(modality: Audio, rate: int) -> None:
    found = modality.read((tone(rate), rate))
    assert found.dtype == torch.float32
    assert len(found) == pytest.approx(RATE / 2, abs=2)
    assert loudest(found) == pytest.approx(440, abs=4)
    assert found[1_000:-1_000].abs().max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats(modality: Audio, tmp_path: Path, kind: str, channels: int) -> None:
    path = tmp_path / f"sound.{kind.lower()}"
    samples = tone(44_100)
    soundfile.write(path, np.stack([samples] * channels, axis=1), 44_100, format=kind)
    found = modality.read(path)
    assert found.ndim == 1
    assert loudest(found) == pytest.approx(440, abs=4)
    for other in (str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        assert torch.equal(modality.read(other), found)


def test_channels_are_averaged(modality: Audio) -> None:
    left, right = tone(RATE), tone(RATE, frequency=1_000)
    found = modality.read((np.stack([left, right], axis=1), RATE))
    torch.testing.assert_close(found, torch.from_numpy((left + right) / 2))
    with pytest.raises(DataError, match=r"\[N, channels\], found shape \(2, 8000\)"):
        modality.read((np.stack([left, right]), RATE))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float64])
def test_whole_numbers_are_scaled_as_in_a_wav_file(modality: Audio, dtype: Any, tmp_path: Path) -> None:
    samples = tone(RATE)
    if dtype == np.uint8:
        stored, tolerance = np.round(samples * 128 + 128).astype(np.uint8), 1 / 128
    elif dtype == np.float64:
        stored, tolerance = samples.astype(np.float64), 1e-6
    else:
        stored, tolerance = np.round(samples.astype(np.float64) * -float(np.iinfo(dtype).min)).astype(dtype), 1e-4
    found = modality.read((stored, RATE))
    torch.testing.assert_close(found, torch.from_numpy(samples), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "cell", [np.zeros((0,)), np.zeros((0, 2)), np.zeros((3, 2, 2)), np.float32(1), np.array([0.1, np.nan])]
)
def test_samples_that_are_none(modality: Audio, cell: Any) -> None:
    with pytest.raises(DataError):
        modality.read((cell, RATE))


@pytest.mark.parametrize("cell", [None, 3, ["x.flac"]])
def test_what_is_no_recording(modality: Audio, cell: Any) -> None:
    with pytest.raises(DataError, match="expected a path, bytes or"):
        modality.read(cell)


# ---------------------------------------------------------------------- cut and repeated


@pytest.mark.parametrize("length", [1, 2, 7_999, 8_000, 8_001, 15_999, 16_000, 16_001, 50_000])
@pytest.mark.parametrize("train", [False, True])
def test_every_length_becomes_the_networks(modality: Audio, length: int, train: bool) -> None:
    samples = torch.arange(1, length + 1, dtype=torch.float32)
    found = modality.transform(samples, train=train, rng=np.random.default_rng(3))
    assert found.shape == (RATE,)
    if length >= RATE:
        start = int(found[0]) - 1
        assert torch.equal(found, samples[start : start + RATE]), "a stretch of it"
        if not train:
            assert start == (length - RATE) // 2
    else:
        whole = RATE // length
        assert torch.equal(found[: whole * length], samples.repeat(whole)), "as often as it fits whole"
        assert not found[whole * length :].any(), "and silence"


def test_short_recordings_are_repeated_as_clap_does(clap_folder: Path) -> None:
    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    modality = Audio(config(clap_folder))
    samples = recordings()[3]
    padded = modality.transform(torch.from_numpy(samples), train=False, rng=np.random.default_rng(0))
    expected, found = (
        extractor(s, sampling_rate=RATE, return_tensors="pt")["input_features"] for s in (samples, padded.numpy())
    )
    torch.testing.assert_close(found, expected)


def test_the_same_generator_gives_the_same_cut(modality: Audio) -> None:
    samples = torch.arange(50_000.0)
    before = samples.clone()

    def start(seed: int, *, train: bool = True) -> int:
        return int(modality.transform(samples, train=train, rng=np.random.default_rng(seed))[0])

    drawn = [start(seed) for seed in range(200)]
    assert drawn == [start(seed) for seed in range(200)]
    assert min(drawn) < 3_000
    assert max(drawn) > 50_000 - RATE - 3_000
    assert len({start(seed, train=False) for seed in range(5)}) == 1
    assert torch.equal(samples, before)


def test_one_sample_embeds(modality: Audio) -> None:
    encoder = modality.build_encoder().eval()
    batch = batch_of(modality, [np.array([0.3], np.float32), np.zeros(1, np.float32)], rate=96_000)
    found = encoder(batch)
    assert found.shape == (2, encoder.embed_dim)
    assert found.isfinite().all()


def test_a_row_alone_embeds_as_in_a_batch(clap_folder: Path) -> None:
    modality = Audio(config(clap_folder))
    encoder = modality.build_encoder().eval()
    batch = batch_of(modality, recordings())
    with torch.no_grad():
        together = encoder(batch)
        alone = torch.cat([encoder(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_modalities_travel_to_workers(clap_folder: Path) -> None:
    modality = Audio(config(clap_folder))
    sent = pickle.loads(pickle.dumps(modality))
    samples = torch.arange(50_000.0)
    found, expected = (m.transform(samples, train=True, rng=np.random.default_rng(4)) for m in (sent, modality))
    assert torch.equal(found, expected)
    assert sent.config == modality.config
