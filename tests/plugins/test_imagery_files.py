"""Images as users have them: every format that people exchange, whole, damaged, or something else altogether."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geobind_plugin_imagery.config import ImageConfig
from geobind_plugin_imagery.images import Satellite
from PIL import Image as Pillow

from geobind_core import Augmentation, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

COLOUR = (200, 100, 40)
TURNS: dict[int, Pillow.Transpose] = {  # the orientation of EXIF, and what a camera did to the picture
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_90,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_270,
}


@pytest.fixture
def modality(clip_architecture: dict[str, Any]) -> Satellite:
    return Satellite(ImageConfig(model=clip_architecture))


def encoded(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Pillow.Image:
    """Draws something smooth, with a bright upper left corner."""
    coarse = np.random.default_rng([1, width]).integers(0, 200, (5, 5, 3), dtype=np.uint8)
    coarse[0, 0] = 255
    return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)


def sample_of(modality: Satellite, cell: Any) -> torch.Tensor:
    return modality.transform(modality.read(cell), train=False, rng=np.random.default_rng(0))


def expected_of(image: Pillow.Image, size: int = 32) -> torch.Tensor:
    """Returns what open_clip's own transform makes of an image, in grey values."""
    from open_clip.transform import image_transform

    transform = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    return torch.as_tensor(transform(image)) * 255


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.float() - expected.float()).abs().mean())


# ---------------------------------------------------------------------- formats and modes


def test_colours_survive_every_format_and_mode(modality: Satellite) -> None:
    plain = Pillow.new("RGB", (20, 10), COLOUR)
    forms = {
        "PNG": encoded(plain, "PNG"),
        "RGBA": encoded(plain.convert("RGBA"), "PNG"),
        "palette": encoded(plain.convert("P", palette=Pillow.Palette.ADAPTIVE), "PNG"),
        "palette TIFF": encoded(plain.convert("P", palette=Pillow.Palette.ADAPTIVE), "TIFF"),
        "TIFF": encoded(plain, "TIFF"),
        "TIFF of JPEG": encoded(plain, "TIFF", compression="jpeg"),
        "TIFF CMYK": encoded(plain.convert("CMYK"), "TIFF"),
        "WebP": encoded(plain, "WEBP", lossless=True),
        "GIF": encoded(plain, "GIF"),
        "BMP": encoded(plain, "BMP"),
        "PPM": encoded(plain, "PPM"),
        "AVIF": encoded(plain, "AVIF"),
        "JPEG 2000": encoded(plain, "JPEG2000"),
        "JPEG": encoded(plain, "JPEG", quality=95),
        "progressive": encoded(plain, "JPEG", quality=95, progressive=True),
        "RGB JPEG": encoded(plain, "JPEG", quality=95, keep_rgb=True),
        "CMYK JPEG": encoded(plain.convert("CMYK"), "JPEG", quality=95),  # inverted, as Adobe writes it
    }
    for name, content in forms.items():
        found = modality.read(content)
        assert found.dtype == torch.uint8
        assert found.shape == (3, 10, 20), name
        assert (found.float().mean((1, 2)) - torch.tensor(COLOUR)).abs().max() < 4, name
    # Where a pixel is transparent, its colour is what counts.
    clear = Pillow.new("RGBA", (4, 4), (*COLOUR, 0))
    assert modality.read(encoded(clear, "PNG"))[:, 0, 0].tolist() == list(COLOUR)


def test_cmyk_as_adobe_writes_it_and_as_others_do(modality: Satellite) -> None:
    """Adobe's files hold what ink leaves of the light, and have a marker; without it, ink is ink."""
    ink = (0, 255, 255, 0)
    adobe = encoded(Pillow.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    inverted = encoded(Pillow.new("CMYK", (16, 16), tuple(255 - c for c in ink)), "JPEG", quality=95)
    marker = inverted.index(b"\xff\xee")
    length = struct.unpack(">H", inverted[marker + 2 : marker + 4])[0]
    others = inverted[:marker] + inverted[marker + 2 + length :]
    for content in (adobe, others):
        assert (modality.read(content).float().mean((1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 4


def test_grey_images(modality: Satellite) -> None:
    for mode, value, expected in (("L", 90, 90), ("1", 1, 255), ("LA", (90, 128), 90)):
        found = modality.read(encoded(Pillow.new(mode, (5, 5), value), "PNG"))
        assert found.shape == (3, 5, 5)
        assert found.unique().tolist() == [expected], mode
    assert modality.read(encoded(Pillow.new("L", (5, 5), 90), "JPEG", quality=95)).unique().tolist() == [90]
    assert modality.read(encoded(Pillow.new("1", (5, 5), 1), "TIFF")).unique().tolist() == [255]
    assert modality.read(np.full((5, 6), 70, np.uint8)).shape == (3, 5, 6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", None])
def test_16_bits_are_scaled_and_not_cut_off(modality: Satellite, kind: str | None) -> None:
    ramp = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    image = Pillow.fromarray(ramp)
    found = modality.read(encoded(image, kind) if kind else image)
    assert found.shape == (3, 16, 16)
    assert found[0].flatten().tolist() == list(range(256))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame(modality: Satellite, kind: str) -> None:
    frames = [Pillow.new("RGB", (20, 20), colour) for colour in (COLOUR, (0, 0, 0), (9, 200, 9))]
    found = modality.read(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
    assert (found.float().mean((1, 2)) - torch.tensor(COLOUR)).abs().max() < 6


@pytest.mark.parametrize("form", ["path", "text", "bytes", "memoryview", "hub bytes", "hub path"])
@pytest.mark.parametrize("name", ["photo.jpg", "tile.tif"])
def test_every_way_to_give_a_file(modality: Satellite, tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(photo(120, 120), "JPEG" if name.endswith("jpg") else "TIFF"))
    content = path.read_bytes()
    cell = {
        "path": path,
        "text": str(path),
        "bytes": content,
        "memoryview": memoryview(content),
        "hub bytes": {"bytes": content, "path": "elsewhere"},
        "hub path": {"bytes": None, "path": str(path)},
    }[form]
    assert torch.equal(modality.read(cell), modality.read(path))
    assert modality.inspect(cell)["width"] == 120
    assert modality.preview(cell) == modality.preview(path)
    assert [file.name for file in tmp_path.iterdir()] == [name], "nothing is written beside it"


@pytest.mark.parametrize("name", ["photo.png", "photo.tif", "photo"])
def test_a_file_is_what_it_holds_and_not_what_it_is_called(modality: Satellite, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(photo(40, 40), "JPEG"))
    assert modality.inspect(path)["format"] == "JPEG"
    assert torch.equal(modality.read(path), modality.read(path.read_bytes()))


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (32, 32), (31, 33), (200, 100), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", None])
def test_every_size_becomes_the_networks(modality: Satellite, shape: tuple[int, int], kind: str | None) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    cell = encoded(Pillow.fromarray(pixels), kind) if kind else pixels
    plain = sample_of(modality, cell)
    assert (plain.shape, plain.dtype) == ((3, 32, 32), torch.uint8)
    augmented = modality.with_augment([Augmentation("random_resized_crop", (0.3,)), Augmentation("randaugment")])
    found = augmented.transform(augmented.read(cell), train=True, rng=rng)
    assert (found.shape, found.dtype) == ((3, 32, 32), torch.uint8)
    assert modality.preview(cell, 50) is not None


@pytest.mark.parametrize("size", [(64, 40), (40, 300), (1000, 9), (33, 32), (31, 200)])
def test_resizing_is_open_clips(modality: Satellite, size: tuple[int, int]) -> None:
    image = photo(*size)
    for cell in (image, np.asarray(image), encoded(image, "PNG")):
        assert difference(sample_of(modality, cell), expected_of(image)) <= 0.05, "rounding, and no more"
    unread = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    transformed = modality.transform(unread, train=False, rng=np.random.default_rng(0))
    assert torch.equal(transformed, sample_of(modality, image)), "of full size, it is as well"


@pytest.mark.parametrize("side", [56, 101, 112, 113, 150, 224, 301, 500, 1000])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_reading_less_makes_next_to_no_difference(modality: Satellite, side: int, kind: str) -> None:
    rng = np.random.default_rng(side)
    pixels = np.asarray(photo(side, side)).astype(np.float32) + rng.normal(0, 6, (side, side, 1))
    content = encoded(Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)), kind)
    assert difference(sample_of(modality, content), expected_of(Pillow.open(io.BytesIO(content)))) <= 0.5


@pytest.mark.parametrize(
    ("side", "least", "expected"), [(60, 0.9, 60), (240, 0.9, 60), (240, 0.1, 120), (111, 0.9, 111)]
)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_random_crops_leave_no_part_too_small(
    modality: Satellite, side: int, least: float, expected: int, kind: str
) -> None:
    cropping = modality.with_augment([Augmentation("random_resized_crop", (least,))])
    content = encoded(photo(side, side), kind)
    sample = cropping.read(content)
    assert sample.shape == (3, expected, expected)
    assert (0.75 * least) ** 0.5 * expected >= 32 or expected == side
    assert difference(sample_of(cropping, content), sample_of(modality, content)) < 3, "off when it does not train"


def test_what_is_kept_is_no_more_than_the_network_sees(modality: Satellite) -> None:
    sample = modality.read(encoded(photo(400, 300), "JPEG"))
    assert sample.shape == (3, 32, 32)
    assert sample.untyped_storage().nbytes() == 3 * 32 * 32


# ---------------------------------------------------------------------- upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("side", [20, 400])
def test_photos_are_upright(modality: Satellite, orientation: int, kind: str, side: int) -> None:
    picture = photo(2 * side, side)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    held = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    content = encoded(held, kind, exif=exif, **options)
    assert difference(sample_of(modality, content), expected_of(picture)) < 8
    found = modality.inspect(content)
    assert (found["width"], found["height"]) == (2 * side, side)
    preview = modality.preview(content, 32)
    assert preview is not None
    assert Pillow.open(io.BytesIO(preview.data)).size == (32, 16)


def test_orientation_in_xmp_and_damaged_exif(modality: Satellite) -> None:
    picture = photo(40, 20)
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    turned = encoded(picture.transpose(Pillow.Transpose.ROTATE_90), "JPEG", quality=95, xmp=packet)
    assert difference(sample_of(modality, turned), expected_of(picture)) < 8
    broken = encoded(picture, "JPEG", quality=95, exif=b"Exif\0\0nothing that could be read")
    assert difference(sample_of(modality, broken), expected_of(picture)) < 8


# ---------------------------------------------------------------------- no image, or half of one


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 white pixels, in a few bytes: the rest is not even there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def large_jpeg() -> bytes:
    """A JPEG whose header says 60,000 x 60,000."""
    content = bytearray(encoded(photo(64, 64), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"^the file is empty\.$"),
    "web page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "found a web page; a download may have failed"),
    "text": (
        b"this is not the photo\nthat you are looking for",
        "expected an image, found text: 'this is not the photo",
    ),
    "unknown": (bytes(range(200, 256)), "found a file that begins with c8 c9 ca"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "expected an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected an image, found text"),
    "bomb": (bomb(), r"too large to be decoded: .*2500000000 pixels"),
    "large JPEG": (large_jpeg(), r"too large to be decoded: .*3600000000 pixels"),
    **{
        f"truncated {kind}": (
            encoded(photo(200, 200), kind)[: -len(encoded(photo(200, 200), kind)) // 2],
            "damaged or not complete",
        )
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "JPEG2000")
    },
    **{
        f"head of {kind}": (encoded(photo(200, 200), kind)[:40], "damaged or not complete|begins with")
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "JPEG2000")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(modality: Satellite, tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for cell in (path, content):
        with pytest.raises(DataError, match=message) as raised:
            modality.read(cell)
        assert "\n" not in raised.value.message
        with pytest.raises(DataError):
            modality.preview(cell)


def test_a_missing_file(modality: Satellite, tmp_path: Path) -> None:
    for work in (modality.read, modality.inspect, modality.preview):
        with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
            work(tmp_path / "gone.jpg")


@pytest.mark.parametrize("cell", [3, None, 2.5, [1, 2]])
def test_what_is_no_image(modality: Satellite, cell: Any) -> None:
    with pytest.raises(DataError, match="expected a path, bytes, a PIL image or an array"):
        modality.read(cell)
    with pytest.raises(DataError, match=r"expected an array \[H, W, 3\] of uint8"):
        modality.read(np.zeros((3, 3), np.float32))


def test_a_jpeg_with_something_in_between_is_read_as_pillow_does(modality: Satellite) -> None:
    """Libjpeg warns of bytes that belong nowhere; cameras write them."""
    content = encoded(photo(200, 200), "JPEG", quality=95)
    table = content.index(b"\xff\xdb")
    odd = content[:table] + b"\0\0\0" + content[table:]
    assert difference(sample_of(modality, odd), sample_of(modality, content)) < 0.5


# ---------------------------------------------------------------------- inspect, preview, bands


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("RGB", "JPEG", ("JPEG", 3, 8)),
        ("L", "JPEG", ("JPEG", 1, 8)),
        ("CMYK", "JPEG", ("JPEG", 4, 8)),
        ("RGBA", "PNG", ("PNG", 4, 8)),
        ("I;16", "PNG", ("PNG", 1, 16)),
        ("1", "PNG", ("PNG", 1, 1)),
        ("RGB", "WEBP", ("WEBP", 3, 8)),
        ("F", "TIFF", ("TIFF", 1, 32)),
        ("1", "TIFF", ("TIFF", 1, 1)),
        ("RGB", "JPEG2000", ("JPEG2000", 3, 8)),
    ],
)
def test_inspect(modality: Satellite, mode: str, kind: str, expected: tuple[str, int, int]) -> None:
    found = modality.inspect(encoded(Pillow.new(mode, (30, 20)), kind))
    assert found == dict(zip(("format", "channels", "bits"), expected, strict=True)) | {"width": 30, "height": 20}


def test_inspect_reads_nothing_but_the_header(modality: Satellite) -> None:
    content = encoded(photo(300, 200), "JPEG")
    assert modality.inspect(content[:1000]) == modality.inspect(content)
    assert modality.inspect(photo(30, 20))["format"] == "pixels"


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (30, 20), (1, 4000), (3000, 7)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_preview(modality: Satellite, size: tuple[int, int], kind: str) -> None:
    preview = modality.preview(encoded(photo(*size), kind), 64)
    assert preview is not None
    assert preview.media_type == "image/jpeg"
    shown = Pillow.open(io.BytesIO(preview.data))
    factor = min(1, 64 / max(size))
    assert shown.size == tuple(max(1, round(side * factor)) for side in size)
    shrunk = photo(*size).resize(shown.size, Pillow.Resampling.BICUBIC)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(shrunk)).mean() < 12


def test_bands_and_scale_count_for_every_format(clip_architecture: dict[str, Any]) -> None:
    modality = Satellite(ImageConfig(model=clip_architecture, bands=(3, 2, 1), scale=((0, 100), (0, 200), (100, 200))))
    for kind in ("PNG", "TIFF", "BMP"):
        found = modality.read(encoded(Pillow.new("RGB", (8, 8), COLOUR), kind))
        assert found[:, 0, 0].tolist() == [102, 128, 255], kind
    one = Satellite(ImageConfig(model=clip_architecture, bands=(2,)))
    assert one.read(np.full((8, 8, 3), COLOUR, np.uint8))[:, 0, 0].tolist() == [100] * 3
    infrared = Satellite(ImageConfig(model=clip_architecture, bands=(4, 3, 2)))
    with pytest.raises(DataError, match="`bands` asks for band 4 of an image that has 3"):
        infrared.read(encoded(photo(8, 8), "JPEG"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": [1, 2]}, "found 2 bands"),
        ({"bands": [0]}, "greater than or equal to 1"),
        ({"scale": [5, 5]}, r"found \[5, 5\]"),
        ({"scale": [[0, 1], [0, 1]]}, "found 2 pairs; expected one, or 3"),
        ({"scale": [[0, 1], [0, 1], [0, 1]], "bands": [4]}, "found 3 pairs; expected one, or 1"),
        ({"scale": 3}, "tuple"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageConfig.model_validate(settings)


def test_settings_survive_a_saved_space() -> None:
    for scale in ([0, 3000], [[0, 3000]], [[0, 1], [0, 2], [0, 3]]):
        config = ImageConfig.model_validate({"bands": [4, 3, 2], "scale": scale})
        assert ImageConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert ImageConfig.model_validate({"scale": [0, 3000]}).scale == ((0, 3000),)


def test_gdal_is_not_loaded_for_photos(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(photo(100, 80), "JPEG"))
    code = (
        "import sys\n"
        "from geobind_plugin_imagery.images import Satellite\n"
        "assert not {'torch', 'PIL', 'rasterio', 'simplejpeg'} & set(sys.modules)\n"
        "modality = Satellite(Satellite.Config(model='geobind-tiny'))\n"
        f"path = {str(tmp_path / 'photo.jpg')!r}\n"
        "assert modality.inspect(path)['width'] == 100\n"
        "assert modality.preview(path).media_type == 'image/jpeg'\n"
        "assert 'rasterio' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
