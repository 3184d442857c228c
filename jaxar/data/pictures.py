"""Grids of images with titles, for logs, samples and notebooks."""

import functools
import importlib.util
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _INK = (255, 255, 255), (40, 40, 44)
_GAP = 6
_SMALLEST_TILE = 96  # pixels that small images are enlarged to


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as bytes, clipped and rounded; bytes pass unchanged."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.round((np.clip(images.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    row_titles: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Images side by side, row after row, on white.

    Args:
      images: [n h w c] with 1 or 3 channels, uint8 or floats in [-1, 1].
      titles: one per image, written below it; what does not fit is cut.
      columns: images in a row; default: as many as make the grid square.
      row_titles: one per row, written at its left.
      scale: whole factor by which pixels are enlarged; default: small images grow to about a hundred pixels.
    """
    pixels = to_uint8(images)
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not len(pixels):
        raise ValueError(f"images have shape {pixels.shape}; a grid needs [n h w c] with n >= 1 and 1 or 3 channels")
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    for name, given, expected in (("titles", titles, count), ("row_titles", row_titles, rows)):
        if given is not None and len(given) != expected:
            raise ValueError(f"{len(given)} {name} for {expected} {'images' if name == 'titles' else 'rows'}")
    scale = scale or max(1, round(_SMALLEST_TILE / max(height, width)))
    tile_width, tile_height = width * scale, height * scale
    font = _font(max(12, min(18, tile_width // 8)))
    line = sum(font.getmetrics()) if titles is not None else 0
    margin = max((math.ceil(font.getlength(t)) for t in row_titles), default=0) + _GAP if row_titles else 0
    page = Image.new(
        "RGB",
        (margin + columns * (tile_width + _GAP) + _GAP, rows * (tile_height + line + _GAP) + _GAP),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(page)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        left = margin + _GAP + column * (tile_width + _GAP)
        top = _GAP + row * (tile_height + line + _GAP)
        tile = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        page.paste(tile.resize((tile_width, tile_height), Image.Resampling.NEAREST), (left, top))
        if titles is not None:
            text = _shorten(str(titles[index]), font, tile_width)
            draw.text((left + tile_width / 2, top + tile_height), text, _INK, font, anchor="ma")
        if row_titles is not None and column == 0:
            draw.text((_GAP, top + tile_height / 2), str(row_titles[row]), _INK, font, anchor="lm")
    return page


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / "DejaVuSans.ttf"), size)


@functools.cache
def font_folder() -> pathlib.Path:
    """Where matplotlib keeps its fonts; matplotlib itself is slow to import and not needed."""
    spec = importlib.util.find_spec("matplotlib")
    return pathlib.Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
