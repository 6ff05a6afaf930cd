"""Drawings of observations for a contact sheet: images, recordings, texts, each in a box of the same size."""

from __future__ import annotations

import math
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from geobind_core.plugins.modality import Preview

Box = tuple[int, int]
"""Width and height in pixels."""

INK, QUIET, WRONG, PAPER = "#1b1f24", "#6e7781", "#b42318", "#ffffff"
_WAVE = "#3b5b92"
_LINE = 1.35  # height of a line of text, in sizes of its font
_WINDOW = 1024  # samples of a spectrum
_LOWEST_HZ, _DECIBELS = 60.0, 75.0
_MOST_SECONDS = 60  # of a longer recording, the start is drawn


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Returns matplotlib's own font, which has most alphabets and is there wherever GeoBind is."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def draw_preview(preview: Preview | None, box: Box) -> Image.Image:
    """Draws an observation.

    Raises:
        OSError, ValueError: The preview is not what it says.
    """
    if preview is None:
        return draw_text("no preview", box, colour=QUIET)
    kind = preview.media_type.partition("/")[0]
    if kind == "image":
        return _draw_image(preview.data, box)
    if kind == "text" or preview.media_type == "application/json":
        return draw_text(preview.data.decode("utf-8", "replace"), box)
    if kind == "audio":
        return _draw_recording(preview.data, box)
    return draw_text(f"{preview.media_type}, {len(preview.data):,} bytes", box, colour=QUIET)


def draw_text(text: str, box: Box, *, size: int = 14, colour: str = INK, bold: bool = False) -> Image.Image:
    """Draws a text in as many lines as it takes; what does not fit ends in dots."""
    drawn = Image.new("RGB", box, PAPER)
    margin, face = 10, font(size, bold=bold)
    lines = _wrapped(text, box[0] - 2 * margin, face)
    fitting = max(1, int((box[1] - 2 * margin) / (_LINE * size)))
    if len(lines) > fitting:
        lines = [*lines[: fitting - 1], f"{lines[fitting - 1][:-1].rstrip()}…"]
    pen = ImageDraw.Draw(drawn)
    for i, line in enumerate(lines):
        pen.text((margin, margin + i * _LINE * size), line, fill=colour, font=face)
    return drawn


def _wrapped(text: str, width: int, face: ImageFont.FreeTypeFont) -> list[str]:
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if face.getlength(f"{line} {word}".strip()) <= width:
                line = f"{line} {word}".strip()
                continue
            if line:
                lines.append(line)
            while face.getlength(word) > width:  # a path, or a language without spaces
                fits = max(1, next(i for i in range(1, len(word) + 1) if face.getlength(word[:i]) > width) - 1)
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def _draw_image(data: bytes, box: Box) -> Image.Image:
    drawn = Image.new("RGB", box, PAPER)
    with Image.open(BytesIO(data)) as opened:
        image = opened.convert("RGB")
    scale = min(box[0] / image.width, box[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # Enlarged pixels are shown as what they are.
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    drawn.paste(image, ((box[0] - size[0]) // 2, (box[1] - size[1]) // 2))
    return drawn


def _draw_recording(data: bytes, box: Box) -> Image.Image:
    """Draws the waveform, and below it the spectrogram with frequencies in octaves."""
    try:
        import soundfile
    except ImportError:  # whoever can read recordings has it
        return draw_text(f"a recording, {len(data):,} bytes", box, colour=QUIET)
    with soundfile.SoundFile(BytesIO(data)) as file:
        rate, seconds = file.samplerate, file.frames / file.samplerate
        samples = file.read(_MOST_SECONDS * rate, dtype="float32", always_2d=True).mean(axis=1)
    if not len(samples):
        raise ValueError("the recording has no samples")
    drawn = Image.new("RGB", box, PAPER)
    caption, wave = 20, box[1] // 4
    loudest = float(np.abs(samples).max())
    _draw_wave(ImageDraw.Draw(drawn), samples / max(loudest, 1e-6), (box[0], wave))
    drawn.paste(_spectrogram(samples, rate, (box[0], box[1] - wave - caption)), (0, wave))
    text = f"{seconds:.3g} s, {rate / 1000:g} kHz, peak {20 * math.log10(max(loudest, 1e-6)):.0f} dB"
    ImageDraw.Draw(drawn).text((4, box[1] - caption + 3), text, fill=QUIET, font=font(11))
    return drawn


def _draw_wave(pen: ImageDraw.ImageDraw, samples: npt.NDArray[np.float32], box: Box) -> None:
    width, height = box
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    middle, reach = height / 2, height / 2 - 3
    for x, (start, end) in enumerate(zip(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1), strict=True)):
        part = samples[min(start, len(samples) - 1) : end]
        pen.line((x, middle - reach * float(part.max()), x, middle - reach * float(part.min())), fill=_WAVE)


def _spectrogram(samples: npt.NDArray[np.float32], rate: int, box: Box) -> Image.Image:
    import matplotlib

    width, height = box
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW // 2))
    starts = np.linspace(0, len(padded) - _WINDOW, width).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[starts] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2  # [width, bins]
    bins = np.geomspace(_LOWEST_HZ, rate / 2, height + 1) / rate * _WINDOW
    low = np.clip(bins[:-1].astype(int), 0, power.shape[1] - 1)
    high = np.maximum(np.ceil(bins[1:]).astype(int), low + 1)
    summed = np.concatenate([np.zeros((width, 1)), np.cumsum(power, axis=1)], axis=1)
    rows = (summed[:, np.minimum(high, power.shape[1])] - summed[:, low]) / (high - low)
    decibels = 10 * np.log10(np.maximum(rows, 1e-12))
    shade = np.clip(1 + (decibels - decibels.max()) / _DECIBELS, 0, 1)
    coloured = matplotlib.colormaps["magma"](shade.T[::-1], bytes=True)[..., :3]  # the lowest at the bottom
    return Image.fromarray(np.ascontiguousarray(coloured))
