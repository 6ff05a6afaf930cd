"""GeoTIFF and the like: many bands, other numbers than bytes, scenes of any size."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from geobind_plugin_imagery.config import ImageConfig
from geobind_plugin_imagery.images import Satellite
from PIL import Image as Pillow
from rasterio.enums import ColorInterp, Resampling

from geobind_core import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

ZURICH = {"crs": "EPSG:32632", "transform": rasterio.transform.from_origin(465_000, 5_247_000, 10, 10)}


@pytest.fixture
def architecture(clip_architecture: dict[str, Any]) -> dict[str, Any]:
    return clip_architecture


def satellite(architecture: dict[str, Any], **settings: Any) -> Satellite:
    return Satellite(ImageConfig.model_validate({"model": architecture, **settings}))


def write(path: Path, bands: Any, **options: Any) -> Path:
    """Writes `[C, H, W]` as a georeferenced TIFF, or as what the options say."""
    values = np.asarray(bands)
    count, height, width = values.shape
    options = {"driver": "GTiff", **ZURICH, **options}
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **options) as file:
        file.write(values)
    return path


def flat(*values: float, dtype: Any = np.uint16, side: int = 8) -> Any:
    """Returns bands of one value each."""
    return np.stack([np.full((side, side), value, dtype) for value in values])


def colour_of(modality: Satellite, cell: Any) -> list[int]:
    found = modality.read(cell)
    assert found.dtype == torch.uint8
    assert (found == found[:, :1, :1]).all()
    return found[:, 0, 0].tolist()


# ---------------------------------------------------------------------- bands and values


def test_a_scale_for_16_bits_does_not_make_8_bits_black(architecture: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", flat(200, 100, 50, dtype=np.uint8))
    assert colour_of(satellite(architecture, scale=[0, 200]), path) == [255, 128, 64]
    with pytest.raises(DataError, match="8 bits a band, and `scale` says that 3000 is white"):
        satellite(architecture, scale=[0, 3000]).read(path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [26, 51, 76]),  # the first three, as 0 to 10,000
        ({"bands": [4, 3, 2], "scale": [0, 4000]}, [255, 191, 128]),
        ({"bands": [5], "scale": [1000, 9000]}, [128] * 3),
        ({"bands": [4, 4, 1], "scale": [[3000, 5000], [0, 4000], [0, 2000]]}, [128, 255, 128]),
        ({"scale": [2000, 2500]}, [0, 0, 255]),  # clipped
    ],
)
@pytest.mark.parametrize("driver", ["GTiff", "JP2OpenJPEG"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_bands_and_scale(
    architecture: dict[str, Any], tmp_path: Path, settings: Any, expected: list[int], driver: str, as_bytes: bool
) -> None:
    options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver != "GTiff" else {}
    suffix = "jp2" if driver != "GTiff" else "tif"
    path = write(tmp_path / f"scene.{suffix}", flat(1000, 2000, 3000, 4000, 5000, side=64), driver=driver, **options)
    modality = satellite(architecture, **settings)
    assert colour_of(modality, path.read_bytes() if as_bytes else path) == expected


@pytest.mark.parametrize(
    ("bands", "options", "expected"),
    [
        (flat(200, 100, 40, dtype=np.uint8), {}, [200, 100, 40]),
        (flat(200, dtype=np.uint8), {}, [200] * 3),
        (flat(200, 100, dtype=np.uint8), {}, [200] * 3),
        (flat(5000, -3, 20_000, dtype=np.int16), {}, [128, 0, 255]),
        (flat(0.2, 0.5, 1.3, dtype=np.float32), {}, [51, 128, 255]),
        (flat(0.2, 0.4, 0.6, dtype=np.float64), {}, [51, 102, 153]),
        (flat(4095, 2048, 0), {"NBITS": 12}, [255, 128, 0]),
        (flat(10_000, 30_000, 0), {"NBITS": 15}, [255, 255, 0]),
        (flat(32_768, 65_535, 0), {"crs": None, "transform": None}, [128, 255, 0]),
        (flat(16_384, 32_767, -5, dtype=np.int16), {"crs": None, "transform": None}, [128, 255, 0]),
    ],
)
def test_without_a_scale(
    architecture: dict[str, Any], tmp_path: Path, bands: Any, options: Any, expected: list[int]
) -> None:
    options = {key: value for key, value in {**ZURICH, **options}.items() if value is not None}
    path = tmp_path / "scene.tif"
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **options
    ) as file:
        file.write(bands)
    assert colour_of(satellite(architecture), path) == expected


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (flat(-12.5, 250, dtype=np.float32), "found float32 values from -12.5 to -12.5, and no `scale`"),
        (flat(70_000, dtype=np.int32), "found int32 values from 70000 to 70000, and no `scale`"),
        (flat(3, dtype=np.complex64), "complex64 values|complex ones"),
    ],
)
def test_what_cannot_be_guessed_is_refused(
    architecture: dict[str, Any], tmp_path: Path, bands: Any, message: str
) -> None:
    path = write(tmp_path / "scene.tif", bands)
    with pytest.raises(DataError, match=message):
        satellite(architecture).read(path)
    if bands.dtype.kind != "c":
        assert colour_of(satellite(architecture, scale=[-100, 100_000]), path)[0] in (0, 179)


def test_bands_that_are_not_there(architecture: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", flat(1, 2, 3))
    with pytest.raises(DataError, match="`bands` asks for band 8 of an image that has 3"):
        satellite(architecture, bands=[8, 4, 3]).read(path)
    grey = write(tmp_path / "grey.tif", flat(1))
    with pytest.raises(DataError, match="`scale` has 3 pairs, and the number of bands that are read is 1"):
        satellite(architecture, scale=[[0, 1], [0, 1], [0, 1]]).read(grey)


@pytest.mark.parametrize("side", [32, 4096])
def test_what_is_missing_is_black_and_darkens_nothing(architecture: dict[str, Any], tmp_path: Path, side: int) -> None:
    """Of a pixel that stands for many, only those with a value count."""
    half = side // 2
    values = flat(8000, side=side)
    values[0, :, half:] = 65_535
    values[0, ::3, :half] = 65_535  # and stripes, one row in three
    found = satellite(architecture).read(write(tmp_path / "int.tif", values, nodata=65_535, compress="deflate"))
    floats = np.where(values == 65_535, np.nan, values / 10_000).astype(np.float32)
    with_nan = satellite(architecture).read(write(tmp_path / "float.tif", floats, compress="deflate"))
    assert torch.equal(found, with_nan)
    assert found[:, :, -12:].max() == 0
    if side > 32:
        assert found[:, :, :12].unique().tolist() == [204]
    else:
        assert found[0, :3, 0].tolist() == [0, 204, 204]


def test_masks_and_alpha(architecture: dict[str, Any], tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    with_alpha = write(tmp_path / "alpha.tif", np.concatenate([flat(9, 99, 199, dtype=np.uint8, side=32), mask[None]]))
    with rasterio.open(with_alpha, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    with_mask = write(tmp_path / "mask.tif", flat(9, 99, 199, dtype=np.uint8, side=32))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(with_mask, "r+") as file:
        file.write_mask(mask)
    for path in (with_alpha, with_mask):
        found = satellite(architecture).read(path)
        assert found[:, 0, 0].tolist() == [9, 99, 199]
        assert found[:, 0, 31].tolist() == [0, 0, 0]
    grey = write(tmp_path / "grey.tif", np.stack([np.full((32, 32), 70, np.uint8), mask]))
    with rasterio.open(grey, "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    assert satellite(architecture).read(grey)[:, 0, 0].tolist() == [70] * 3


@pytest.mark.parametrize("side", [40, 1000])
def test_colours_of_a_palette_are_not_mixed(architecture: dict[str, Any], tmp_path: Path, side: int) -> None:
    classes = np.repeat(np.array([[3, 7]], np.uint8), side, axis=0).repeat(side // 2, axis=1)
    path = write(tmp_path / "classes.tif", classes[None])
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {3: (200, 0, 0, 255), 7: (0, 0, 90, 255)})
    found = satellite(architecture).read(path)
    assert found[:, 0, 2].tolist() == [200, 0, 0]
    assert found[:, 0, -3].tolist() == [0, 0, 90]
    assert (
        colour_of(satellite(architecture, bands=[1]), write(tmp_path / "one.tif", flat(3, dtype=np.uint8))) == [3] * 3
    )


def test_16_bit_colour_png(architecture: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "deep.png", flat(32_768, 65_535, 257), driver="PNG", crs=None, transform=None)
    assert colour_of(satellite(architecture), path) == [128, 255, 1]
    assert satellite(architecture).inspect(path)["bits"] == 16
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".png"] == ["deep.png"]


# ---------------------------------------------------------------------- large scenes


def scene(height: int, width: int) -> Any:
    """Returns three smooth bands of uint16."""
    coarse = np.random.default_rng(2).integers(0, 10_000, (3, 6, 6)).astype(np.float32)
    bands = [Pillow.fromarray(band).resize((width, height), Pillow.Resampling.BICUBIC) for band in coarse]
    return np.stack([np.asarray(band).clip(0, 10_000) for band in bands]).astype(np.uint16)


def overwrite_tiles(path: Path, keep: Any) -> None:
    """Puts nonsense in place of tiles of full size, save those whose column and row are to be kept."""
    with rasterio.open(path) as file:
        places = []
        for row, column in {index for index, _ in file.block_windows(1)}:
            offset = file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1)
            size = file.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
            if not keep(row, column):
                places.append((int(offset), int(size)))
    with path.open("r+b") as file:
        for offset, size in places:
            file.seek(offset)
            file.write(b"\xff" * size)


TILES = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


@pytest.mark.parametrize("external", [False, True])
def test_of_a_scene_with_overviews_full_size_is_not_touched(
    architecture: dict[str, Any], tmp_path: Path, external: bool
) -> None:
    path = write(tmp_path / "scene.tif", scene(1500, 1500), **TILES)
    modality = satellite(architecture)
    expected = modality.read(path)
    with rasterio.Env(TIFF_USE_OVR=external), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16], Resampling.average)
    assert (tmp_path / "scene.tif.ovr").exists() is external
    overwrite_tiles(path, keep=lambda row, column: False)
    assert (modality.read(path).int() - expected.int()).abs().max() <= 1
    preview = modality.preview(path, 64)
    assert preview is not None
    assert Pillow.open(io.BytesIO(preview.data)).size == (64, 64)
    with pytest.raises(DataError, match="damaged or not complete"):
        satellite(architecture, image_size=1000).read(path)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_of_a_file_that_was_cut_off_gdals_own_reason_is_given(
    architecture: dict[str, Any], tmp_path: Path, as_bytes: bool
) -> None:
    path = write(tmp_path / "whole.tif", scene(300, 300), compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"damaged or not complete: .*Read error.*; got \d+ bytes, expected \d+$"):
        satellite(architecture).read(path.read_bytes() if as_bytes else path)


def test_of_a_long_scene_only_the_middle_is_decoded(architecture: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "strip.tif", scene(256, 256 * 9), **TILES)
    modality = satellite(architecture)
    expected = modality.read(path)
    overwrite_tiles(path, keep=lambda row, column: column == 4)
    assert torch.equal(modality.read(path), expected)
    with pytest.raises(DataError, match="damaged or not complete"):
        modality.preview(path)


@pytest.mark.parametrize("shape", [(300, 300), (511, 1022), (1000, 400)])
def test_reading_less_is_like_reading_all(architecture: dict[str, Any], tmp_path: Path, shape: tuple[int, int]) -> None:
    bands = scene(*shape)
    path = write(tmp_path / "scene.tif", bands)
    in_bytes = np.rint(bands / 10_000 * 255).astype(np.uint8).transpose(1, 2, 0)
    modality = satellite(architecture)
    assert (modality.read(path).float() - modality.read(in_bytes).float()).abs().mean() < 0.5


def test_pixels_that_nobody_could_wait_for_are_refused(architecture: dict[str, Any], tmp_path: Path) -> None:
    options = {"driver": "GTiff", "count": 1, "dtype": "uint8", "SPARSE_OK": True, **ZURICH}
    for name, tiles, message in (
        ("tiles.tif", TILES, r"50000 x 50000 pixels have to be read, .*give the file overviews"),
        ("tile.tif", {**TILES, "blockxsize": 16_000, "blockysize": 16_000}, "256000000 pixels have to be in memory"),
    ):
        with rasterio.open(tmp_path / name, "w", width=50_000, height=50_000, **options, **tiles):
            pass
        with pytest.raises(DataError, match=message):
            satellite(architecture).read(tmp_path / name)
        assert satellite(architecture).inspect(tmp_path / name)["width"] == 50_000


# ---------------------------------------------------------------------- what else


def test_inspect_says_where_it_is(architecture: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", flat(1, 2, 3, 4, side=100))
    for cell in (path, path.read_bytes()):
        found = dict(satellite(architecture).inspect(cell))
        assert found.pop("longitude") == pytest.approx(8.544, abs=0.005)
        assert found.pop("latitude") == pytest.approx(47.37, abs=0.005)
        assert found == {
            "format": "TIFF",
            "width": 100,
            "height": 100,
            "channels": 4,
            "bits": 16,
            "crs": "EPSG:32632",
        }


def test_threads_read_side_by_side(architecture: dict[str, Any], tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.tif", scene(300, 300) // (i + 1), **TILES) for i in range(8)]
    modality = satellite(architecture)
    alone = [modality.read(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(modality.read, paths * 4), alone * 4, strict=True):
            assert torch.equal(found, expected)


def test_it_is_quiet_and_writes_nothing(tmp_path: Path) -> None:
    plain, placed = tmp_path / "plain.tif", tmp_path / "placed.tif"
    Pillow.new("RGB", (90, 90)).save(plain, tiffinfo={65_000: "a tag of nobody's"})
    write(placed, scene(400, 400), **TILES)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(placed.read_bytes()[:50_000])
    code = (
        "import sys\n"
        "from geobind_core import DataError\n"
        "from geobind_plugin_imagery.images import Satellite\n"
        "modality = Satellite(Satellite.Config(model='geobind-tiny'))\n"
        "modality._size = 64  # which it would ask open_clip for, and that takes long to load\n"
        "for path in sys.argv[1:]:\n"
        "    for cell in (path, open(path, 'rb').read()):\n"
        "        try:\n"
        "            modality.inspect(cell), modality.preview(cell), modality.read(cell)\n"
        "        except DataError as error:\n"
        "            print(error)\n"
    )
    before = {file.name for file in tmp_path.iterdir()}
    command = [sys.executable, "-c", code, str(plain), str(placed), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("damaged or not complete") == 2, "of three files, one is broken"
    assert {file.name for file in tmp_path.iterdir()} == before
