"""The contact sheet, as a picture."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from geobind_core.data_tools.drawing import draw_preview, draw_text
from geobind_core.plugins.modality import Preview

BOX = (240, 200)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB")).astype(int)


class TestSheet:
    def test_rows_and_columns(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        """A red tile is red where its cell is; a broken one is a text, an empty one is empty."""
        for i, row in enumerate(own_world.rows):
            Image.new("RGB", (64, 64), (200, 10 * i, 0)).save(own_world.folder / row["satellite"])
        (own_world.folder / own_world.rows[2]["satellite"]).write_bytes(b"no image")
        text = own_world.table.read_text().replace(own_world.rows[3]["satellite"], "")
        own_world.table.write_text("".join(text.splitlines(keepends=True)[:6]))  # 5 rows
        fields = ("--field", "satellite=satellite", "--field", "text=text")
        done = geobind("data", "inspect", "world/table.csv", *fields, "--sheet", "deep/sheet.png")
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "deep/sheet.png") as opened:
            sheet = pixels(opened)
        centres = [sheet[76 + 212 * i + 100, 202 + 120] for i in range(5)]
        for i in (0, 1, 4):
            assert np.abs(centres[i] - (200, 10 * i, 0)).max() < 8
        broken, empty = (sheet[76 + 212 * i : 76 + 212 * i + 200, 202 : 202 + 240] for i in (2, 3))
        assert (broken != 255).any(axis=(0, 1)).all()  # written on white, in red
        assert (broken[..., 0] > broken[..., 1] + 80).sum() > 50
        assert np.ptp(empty, axis=(0, 1)).max() == 0

    def test_is_a_function_of_the_seed(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        written = []
        for seed in ("4", "4", "5"):
            arguments = ("--sheet", "s.png", "--sheet-rows", "2", "--seed", seed, "--field", "satellite=satellite")
            assert geobind("data", "inspect", "world/table.csv", *arguments).returncode == 0
            written.append((tmp_path / "s.png").read_bytes())
        assert written[0] == written[1] != written[2]

    def test_that_cannot_be_written(self, geobind: Any, own_world: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = geobind("data", "inspect", "world/table.csv", "--sheet", "file/sheet.png", "--field", "text=text")
        assert done.returncode == 2
        assert "cannot be written" in done.stderr

    def test_does_not_mix_with_json(self, geobind: Any, own_world: Any) -> None:
        done = geobind("data", "inspect", "world/table.csv", "--field", "text=text", "--sheet", "s.png", "--json")
        assert json.loads(done.stdout)["rows"] == 24


class TestDrawing:
    def test_a_recording_shows_its_frequency_and_when_it_sounds(self) -> None:
        rate = 16_000
        samples = np.zeros(2 * rate)
        samples[rate:] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
        file = BytesIO()
        soundfile.write(file, samples, rate, format="FLAC")
        drawn = pixels(draw_preview(Preview("audio/flac", file.getvalue()), BOX)).sum(axis=2)
        spectrogram = drawn[52:178]
        assert spectrogram[:, 150:].mean() > 3 * spectrogram[:, :90].mean()
        # 60 Hz to 8 kHz are 7.06 octaves; 1 kHz is 4.06 above the lowest.
        brightest = spectrogram[:, 180].argmax()
        assert brightest == pytest.approx(len(spectrogram) * (1 - 4.06 / 7.06), abs=6)

    def test_an_image_keeps_its_shape(self) -> None:
        file = BytesIO()
        Image.new("RGB", (400, 100), (0, 0, 255)).save(file, "PNG")
        drawn = pixels(draw_preview(Preview("image/png", file.getvalue()), BOX))
        blue = (drawn == (0, 0, 255)).all(axis=2)
        assert (blue.any(axis=0).sum(), blue.any(axis=1).sum()) == (240, 60)

    @pytest.mark.parametrize("text", ["word " * 400, "x" * 5000, "日本" * 900, "", "line\n\nline", "Привет, мир"])
    def test_any_text_fits(self, text: str) -> None:
        drawn = pixels(draw_text(text, BOX))
        ink = np.argwhere((drawn < 128).all(axis=2))
        assert drawn.shape == (200, 240, 3)
        assert len(ink) > 0 or not text
        assert not len(ink) or (ink.min() >= 6 and ink[:, 1].max() < 236 and ink[:, 0].max() < 196)

    @pytest.mark.parametrize("preview", [None, Preview("video/mp4", b"12345"), Preview("application/json", b"{}")])
    def test_what_cannot_be_drawn_is_said(self, preview: Preview | None) -> None:
        assert (pixels(draw_preview(preview, BOX)) < 200).any()
