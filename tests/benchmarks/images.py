"""From the bytes of a file to what the image tower takes: against open_clip's own transform, and a scene read whole."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from geobind_plugin_imagery.config import ImageConfig
from geobind_plugin_imagery.images import Satellite
from PIL import Image
from rasterio.enums import Resampling
from rasterio.windows import Window

from geobind_core import Augmentation

from .data import write_photos
from .measure import Settings, interleaved, median, peak_memory, timed
from .results import Goal, Row

NAME = "images"
_PEER = "image_transform"
_WHOLE = "rasterio, all of it"
_TOWER = 224
_BANDS, _SCALE = (3, 2, 1), (0, 4000)
_TILE = 512
_ONES = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and standard deviation that leave pixels as they are


def run(settings: Settings) -> list[Row]:
    """Both sides on one thread, one image after the other, with the files in memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_photos(settings, "fine", 6), *_photos(settings, "soft", 2), *_scene(settings)]
    finally:
        torch.set_num_threads(threads)


def _photos(settings: Settings, kind: str, grain: float) -> list[Row]:
    from open_clip.transform import image_transform

    count, side = (2, 300) if settings.quick else (32, 800)
    files = [path.read_bytes() for path in write_photos(settings.folder / kind, "photo", count, side, grain)]
    modality = _modality()
    cropping = modality.with_augment([Augmentation("random_resized_crop")])
    rng = np.random.default_rng(0)

    def ours(data: bytes) -> torch.Tensor:
        return modality.transform(modality.read(data), train=False, rng=rng)

    def ours_cropped(data: bytes) -> torch.Tensor:
        return cropping.transform(cropping.read(data), train=True, rng=rng)

    def theirs(transform: Any) -> Callable[[bytes], torch.Tensor]:
        return lambda data: transform(Image.open(BytesIO(data)))

    note = f"{side} x {side}, {len(files[0]) / 1000:.0f} kB, one thread; theirs is normalised, ours are bytes"
    rows = []
    for what, mine, other, goal in (
        (f"a {kind} JPEG for evaluation", ours, theirs(image_transform(_TOWER, is_train=False)), Goal(">=", 3.5)),
        (
            f"a {kind} JPEG, random_resized_crop",
            ours_cropped,
            theirs(image_transform(_TOWER, is_train=True)),
            Goal(">=", 3.5),
        ),
    ):
        sides = {
            name: lambda work=work: timed(lambda: [work(data) for data in files]) / len(files)  # type: ignore[misc]
            for name, work in (("ours", mine), (_PEER, other))
        }
        for side_run in sides.values():
            side_run()  # warms up
        raw = interleaved(sides, settings.repeats)
        figures = [1000 * median(raw[name]) for name in sides]
        rows.append(Row(NAME, what, "ms", *figures, _PEER, figures[1] / figures[0], goal, note, raw))

    grey_values = theirs(image_transform(_TOWER, False, *_ONES))
    off = [float((ours(data).float() - 255 * grey_values(data)).abs().mean()) for data in files[:8]]
    rows.append(
        Row(
            NAME,
            f"{kind}: difference of the pixels",
            "of 255",
            max(off),
            peer_name=_PEER,
            goal=Goal("<=", 0.5),
            note="mean of an image, of the worst of 8",
        )
    )
    return rows


def _scene(settings: Settings) -> list[Row]:
    side = 1024 if settings.quick else 10_240
    path = _write_scene(settings.folder / "scene.tif", side)
    work = {"ours": _ours(path), _WHOLE: _whole(path)}
    work["ours"]()
    raw = interleaved({name: lambda work=work: timed(work) for name, work in work.items()}, settings.repeats)  # type: ignore[misc]
    ours, whole = (1000 * median(raw[name]) for name in work)
    note = f"{side:,} x {side:,}, 3 bands of 16 bits, in tiles, with overviews; to {_TOWER} x {_TOWER}"
    peaks = {
        name: peak_memory(f"{__name__}:{prepare.__name__}", {"side": name, "path": str(path)}) / 2**20 for name in work
    }
    return [
        Row(NAME, "a large GeoTIFF", "ms", ours, whole, _WHOLE, whole / ours, None, note, raw),
        Row(
            NAME,
            "memory for it",
            "MiB",
            peaks["ours"],
            peaks[_WHOLE],
            _WHOLE,
            peaks["ours"] / max(peaks[_WHOLE], 1e-9),
            note="peak over what was there before",
            raw={name: [peak] for name, peak in peaks.items()},
        ),
    ]


def prepare(side: str, path: str) -> Callable[[], Any]:
    """Returns one reading of a scene, for `peak_memory`; libraries are loaded already."""
    small = _write_scene(Path(path).with_name(f"small-{side[:4]}.tif"), _TILE)
    sides = {"ours": _ours, _WHOLE: _whole}
    sides[side](small)()
    return sides[side](Path(path))


def _modality(**settings: Any) -> Satellite:
    return Satellite(ImageConfig(model="ViT-B-32", **settings))


def _ours(path: Path) -> Callable[[], Any]:
    modality = _modality(bands=_BANDS, scale=(_SCALE,))
    return lambda: modality.read(path)


def _whole(path: Path) -> Callable[[], Any]:
    def read() -> Any:
        with rasterio.open(path) as scene:
            values = scene.read(_BANDS)
        for band in values:  # in place, as anyone would who has to
            np.clip(band, *_SCALE, out=band)
        in_bytes = (values * np.float32(255 / _SCALE[1])).astype(np.uint8)
        return Image.fromarray(in_bytes.transpose(1, 2, 0)).resize((_TOWER, _TOWER), Image.Resampling.BICUBIC)

    return read


def _write_scene(path: Path, side: int) -> Path:
    """Writes a GeoTIFF in tiles, with overviews: one tile with noise, over and over, brighter towards the south."""
    tile = np.random.default_rng(5).integers(0, 200, (3, _TILE, _TILE)).astype(np.uint16)
    transform = rasterio.transform.from_origin(400_000, 5_300_000, 10, 10)
    options = {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "compress": "lzw"}
    place = {"crs": "EPSG:32632", "transform": transform, **options}
    with rasterio.open(path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint16", **place) as scene:
        for top in range(0, side, _TILE):
            row = np.tile(tile + np.uint16(3000 * top // side), (1, 1, side // _TILE))
            scene.write(row, window=Window(0, top, side, _TILE))
    with rasterio.open(path, "r+") as scene:
        scene.build_overviews([2, 4, 8, 16], Resampling.average)
    return path
