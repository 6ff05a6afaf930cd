"""The modalities, losses and sources of this repository keep what they promise."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geobind_core.chain.builtin import plugin_manager
from geobind_core.plugins.source import Source
from geobind_core.testing import Check, loss_checks, modality_checks, source_checks

pytestmark = pytest.mark.usefixtures("one_thread")

PLUGINS = plugin_manager()
PLUGINS.load_all()
SMALL: dict[str, dict[str, Any]] = {
    "satellite": {"model": "geobind-tiny"},
    "ground_image": {"model": "geobind-tiny"},
    "text": {"model": "geobind-tiny"},
    "audio": {"model": "geobind-tiny", "sample_rate": 8000, "seconds": 0.5},
    "environment": {"variables": ["elevation", "temperature", "rain"], "width": 16, "depth": 1},
}
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("infonce", {}),
    ("infonce", {"direction": "first_to_second", "same_label": "ignore"}),
    ("infonce", {"direction": "second_to_first", "same_label": "positive"}),
    ("sigmoid", {}),
    ("sigmoid", {"same_label": "positive"}),
    ("sigmoid", {"same_label": "ignore"}),
]


def of_modalities() -> list[Any]:
    found = []
    for name in PLUGINS.registry.names("modality"):
        cls = PLUGINS.find("modality", name).cls
        checks = modality_checks(cls(cls.Config(**SMALL.get(name, {}))))
        found += [pytest.param(check, id=f"{name}-{check}") for check in checks]
    return found


def of_losses() -> list[Any]:
    found = []
    for name, settings in LOSSES:
        cls = PLUGINS.find("loss", name).cls
        checks = loss_checks(cls(cls.Config(**settings)))
        found += [pytest.param(check, id=f"{name}-{','.join(settings.values())}-{check}") for check in checks]
    return found


@pytest.mark.parametrize("check", of_modalities())
def test_modality(check: Check) -> None:
    check.run()


def test_every_loss_is_checked() -> None:
    assert {name for name, _ in LOSSES} == set(PLUGINS.registry.names("loss"))


@pytest.mark.parametrize("check", of_losses())
def test_loss(check: Check) -> None:
    check.run()


# ---------------------------------------------------------------------- sources


def table(world: Any, folder: Path) -> dict[str, Any]:
    return {"path": str(world.table), "fields": {"satellite": "satellite", "text": "text"}}


def soundingearth(world: Any, folder: Path) -> dict[str, Any]:
    root = folder / "SoundingEarth"
    for name in ("images", "audio"):
        (root / name).mkdir(parents=True)
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["key", "long_key", "longitude", "latitude", "description", "mp3name"])
        writer.writeheader()
        for key in range(4):
            (root / "images" / f"{key}.jpg").write_bytes((world.folder / world.rows[key]["satellite"]).read_bytes())
            (root / "audio" / f"{key}.mp3").write_bytes(b"ID3")
            place = {"longitude": 8.5 + key, "latitude": 47}
            writer.writerow({"key": key, "long_key": f"k{key}", "mp3name": f"{key}.mp3", **place})
    return {"root": "SoundingEarth"}


def webdataset(world: Any, folder: Path) -> dict[str, Any]:
    from webdataset import ShardWriter

    with ShardWriter(str(folder / "%d.tar"), maxcount=9, verbose=0) as writer:
        for row in world.rows:
            image = (world.folder / row["satellite"]).read_bytes()
            writer.write({"__key__": row["key"], "satellite.jpg": image, "txt": row["text"]})
    return {"shards": "{0..2}.tar", "fields": {"satellite": "satellite.jpg", "text": "txt"}}


def huggingface(world: Any, folder: Path) -> dict[str, Any]:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list([{"key": row["key"], "text": row["text"]} for row in world.rows]).save_to_disk(folder / "saved")
    return {"path": "saved"}


def synthetic_earth(world: Any, folder: Path) -> dict[str, Any]:
    return {"places": 6, "held_out": 2, "seconds": 0.2, "workers": 1, "root": "earth"}


SOURCES: list[Callable[[Any, Path], dict[str, Any]]] = [table, soundingearth, webdataset, huggingface, synthetic_earth]


def test_every_source_is_checked() -> None:
    assert {make.__name__ for make in SOURCES} == set(PLUGINS.registry.names("source"))


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_source(make: Callable[[Any, Path], dict[str, Any]], world: Any, tmp_path: Path) -> None:
    name = make.__name__
    cls: type[Source[Any]] = PLUGINS.find("source", name).cls
    settings = {"source": name, **make(world, tmp_path)}
    source = cls(cls.Config.model_validate(settings), tmp_path)
    results = {str(check): check.result() for check in source_checks(source)}
    assert {n: r.message for n, r in results.items() if r.status not in ("ok", "skipped")} == {}
    # A table is at an absolute path here, and found from any folder.
    assert results["missing_data"].status == ("skipped" if name == "table" else "ok")
    assert results["references"].status == ("ok" if name == "webdataset" else "skipped")
    assert {results[n].status for n in ("observations", "prepare_again", "fingerprint", "import_without_torch")} == {
        "ok"
    }
