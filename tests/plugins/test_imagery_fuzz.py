"""Damaged files, some two hundred of them: each gives a sample or an error, and none takes the process along."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

_READ = """
import json, pickle, sys, time
from pathlib import Path
from geobind_core import DataError
from geobind_plugin_imagery.images import Satellite

modality = Satellite(Satellite.Config(model="geobind-tiny"))
modality._size = 64  # which it would ask open_clip for, and that takes long to load
outcomes = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.monotonic()
    for work in (modality.inspect, modality.preview, modality.read):
        for cell in (path, path.read_bytes()):
            try:
                work(cell)
                outcome = "sample"
            except Exception as error:
                pickle.loads(pickle.dumps(error))  # it has to leave a loader process
                outcome = type(error).__name__
            outcomes.setdefault(outcome, []).append(path.name)
    assert time.monotonic() - started < 20, path.name
print(json.dumps(outcomes))
"""


def _good() -> dict[str, bytes]:
    """Returns a file of each kind that is decoded by code of its own."""
    rng = np.random.default_rng(7)
    smooth = Pillow.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((150, 130))
    deep = Pillow.fromarray(rng.integers(0, 65_536, (40, 40), dtype=np.uint16))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    files = {
        "photo.jpg": (smooth, "JPEG", {"exif": exif}),
        "progressive.jpg": (smooth, "JPEG", {"progressive": True}),
        "cmyk.jpg": (smooth.convert("CMYK"), "JPEG", {}),
        "image.png": (smooth.quantize(16), "PNG", {}),
        "deep.png": (deep, "PNG", {}),
        "photo.webp": (smooth, "WEBP", {}),
        "strips.tif": (smooth, "TIFF", {"compression": "tiff_lzw"}),
        "deep.tif": (deep, "TIFF", {"compression": "tiff_deflate"}),
        "scene.jp2": (smooth, "JPEG2000", {}),
    }
    encoded = {}
    for name, (image, kind, options) in files.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[name] = buffer.getvalue()
    return encoded


def _damaged(content: bytes, seed: int) -> bytes:
    """Flips bits, half of the times near the beginning, or cuts the end off, or both."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(content)
    if seed % 3 != 0:
        reach = 200 if rng.random() < 0.5 else len(damaged)
        for place in rng.integers(0, min(reach, len(damaged)), rng.integers(1, 12)):
            damaged[place] ^= 1 << int(rng.integers(8))
    if seed % 3 != 1:
        damaged = damaged[: int(rng.integers(0, len(damaged)))]
    return bytes(damaged)


def test_damaged_files_crash_nothing(tmp_path: Path) -> None:
    files = _good()
    for seed in range(24):
        for name, content in files.items():
            (tmp_path / f"{seed:02d}-{name}").write_bytes(_damaged(content, seed))
    command = [sys.executable, "-c", _READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    assert done.stderr == ""
    outcomes = json.loads(done.stdout)
    assert set(outcomes) == {"sample", "DataError"}
    assert sum(len(names) for names in outcomes.values()) == 24 * len(files) * 6
    assert min(len(names) for names in outcomes.values()) > 100, "some are damaged where it matters, and some are not"
