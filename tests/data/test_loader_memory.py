"""The memory of loaders, their processes included, does not grow from epoch to epoch."""

from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import soundfile
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import Satellite
from PIL import Image

from geobind_core.data.loading import TrainingBatches, batches
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import SampleReader
from geobind_core.plugins.modality import Augmentation, Modality
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig

pytestmark = pytest.mark.slow  # and not beside other tests, whose memory is this process's too
ROWS, BATCH, EPOCHS = 32, 8, 150
MIB = 2**20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairedData:
    """32 places with a JPEG of 200 x 200 and a FLAC of one second."""
    folder, rng = tmp_path_factory.mktemp("memory"), np.random.default_rng(0)
    for i in range(ROWS):
        pixels = rng.integers(0, 256, (25, 25, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 200)).save(folder / f"{i}.jpg")
        soundfile.write(folder / f"{i}.flac", rng.normal(0, 0.1, 16_000).astype(np.float32), 16_000)
    keys = [str(i) for i in range(ROWS)]
    table = pa.table({"key": keys, "tile": [f"{k}.jpg" for k in keys], "sound": [f"{k}.flac" for k in keys]})
    observations = Observations(table=table, root=folder, fields={"satellite": "tile", "audio": "sound"})
    return PairedData("memory", observations, SourceConfig(source="table", split=SplitConfig(by="none")))


def growth(data: PairedData, satellite: Modality[Any], workers: int) -> float:
    """Returns by how many MiB this process and those it has started grew in 50 epochs.

    For some 60 epochs before, forked processes come to have pages of their own of what they share at first.
    """
    audio = Audio(Audio.Config(sample_rate=8_000, seconds=0.5))  # resampled and cut
    modalities = {"satellite": satellite, "audio": audio}
    readers = {name: SampleReader(data, name, m, train=True, seed=0) for name, m in modalities.items()}
    sampler = TrainingBatches(data.rows("train", modalities), BATCH, EPOCHS, seed=0)
    process, sizes = psutil.Process(), []
    for batch in batches(readers, sampler, workers=workers, pin_memory=False):
        assert not batch["bad"]
        if batch["step"] % sampler.steps_per_epoch == 0:
            everyone = [process, *process.children(recursive=True)]
            sizes.append(sum(one.memory_info().rss for one in everyone) / MIB)
    # The last epochs are left out: a worker that has nothing more to read may have gone by then.
    return float(np.median(sizes[EPOCHS - 12 : EPOCHS - 2]) - np.median(sizes[EPOCHS - 62 : EPOCHS - 52]))


def satellite() -> Satellite:
    augmented = Satellite(Satellite.Config(model="geobind-tiny", image_size=64)).with_augment(
        [Augmentation("random_resized_crop", (0.5,)), Augmentation("dihedral")]
    )
    assert isinstance(augmented, Satellite)
    return augmented


class Leaking(Satellite):
    """Keeps some bytes of each sample."""

    def read(self, cell: Any) -> Any:
        sample = super().read(cell)
        self.__dict__.setdefault("kept", []).append(bytearray(20_000))
        return sample


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_stays_flat(data: PairedData, workers: int) -> None:
    assert growth(data, satellite(), workers) < 6


def test_a_leak_of_20_kb_a_sample_would_be_seen(data: PairedData) -> None:
    assert growth(data, Leaking(satellite().config), 2) > 10
