"""Letters and digits drawn from fonts in many poses and colours, 36 classes, with captions; any size and number."""

import dataclasses
import functools
import string
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxar.config import ConfigError
from jaxar.data import pictures
from jaxar.data.base import DataConfig, DataInfo, Example, Source
from jaxar.tokenizers.base import ImageSpec

CHARACTERS = string.digits + string.ascii_uppercase
# Captions name the family; every family comes with matplotlib, in a plain and a slanted cut.
FONTS = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Oblique.ttf", "cmss10.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf", "STIXGeneralItalic.ttf", "cmr10.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Oblique.ttf", "cmtt10.ttf"),
}
COLORS = {
    "black": (20, 20, 22),
    "white": (244, 243, 240),
    "grey": (128, 130, 134),
    "red": (205, 38, 42),
    "orange": (240, 134, 30),
    "yellow": (246, 212, 52),
    "green": (40, 142, 72),
    "teal": (24, 150, 156),
    "blue": (36, 84, 188),
    "purple": (116, 58, 162),
    "pink": (242, 146, 180),
    "brown": (118, 74, 44),
}
_MIN_CONTRAST = 70.0  # of luminance, out of 255: every glyph can be read
_COLOR_JITTER = 14.0
_MAX_TILT = 30.0  # degrees
_UPRIGHT = 7.0  # degrees, below which a caption calls a glyph upright
_HEIGHT = (0.55, 0.85)  # of the character, as a share of the image
_WIDEST = 0.95  # largest extent of the tilted character
_EM = 128  # pixels per em of the drawn masters
_STROKES = (0, 1, 2, 3, 6, 7, 8)  # pixels added around the master's outline
_BOLD = 6
_OVERSAMPLING = 2
_SPLITS = {"train": 0, "test": 1}
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Glyphs.

    Attributes:
      seed: another seed, other pictures.
      train_size, test_size: number of examples; pictures are drawn as they are read.
    """

    name: str = "glyphs"
    image_size: int = 32
    seed: int = 0
    train_size: int = 50_000
    test_size: int = 5_000

    def __post_init__(self):
        super().__post_init__()
        if self.seed < 0:
            raise ConfigError(f"data.seed={self.seed} must be at least 0")
        for field in ("train_size", "test_size"):
            if getattr(self, field) < 1:
                raise ConfigError(f"data.{field}={getattr(self, field)} must be at least 1")


def info(config: Config) -> DataInfo:
    return DataInfo(
        name="glyphs",
        image=ImageSpec(config.image_size, 3),
        num_classes=len(CHARACTERS),
        class_names=tuple(CHARACTERS),
        splits={"train": config.train_size, "test": config.test_size},
    )


def open(config: Config, split: str) -> Source:
    return _Glyphs(config, split)


@dataclasses.dataclass(frozen=True)
class _Glyphs:
    config: Config
    split: str

    def __len__(self) -> int:
        return self.config.train_size if self.split == "train" else self.config.test_size

    def __getitem__(self, index: int) -> Example:
        label = int(index) % len(CHARACTERS)
        # The split is part of the seed: no test picture is a training picture.
        glyph = random_glyph(np.random.default_rng([self.config.seed, _SPLITS[self.split], int(index)]), label)
        return {"image": render(glyph, self.config.image_size), "label": label, "caption": caption(glyph)}


@dataclasses.dataclass(frozen=True)
class Glyph:
    """One picture, without its resolution.

    Attributes:
      stroke: pixels added around the outline of a master of `_EM` pixels.
      tilt: degrees, positive to the left (counter-clockwise).
      height: of the upright character, as a share of the image.
      offset: of its centre from the image's, right and down, as a share of the room that is left.
      foreground, background: names in `COLORS`; the exact RGB values follow.
    """

    character: str
    family: str
    font: str
    stroke: int
    tilt: float
    height: float
    offset: tuple[float, float]
    foreground: str
    background: str
    foreground_rgb: tuple[float, float, float]
    background_rgb: tuple[float, float, float]


def random_glyph(rng: np.random.Generator, label: int) -> Glyph:
    """A random picture of class `label`, a pure function of the generator's state."""
    family = _choose(rng, tuple(FONTS))
    foreground, background = _contrasting_colors(rng)
    jitter = rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, (2, 3))
    return Glyph(
        character=CHARACTERS[label],
        family=family,
        font=_choose(rng, FONTS[family]),
        stroke=_choose(rng, _STROKES),
        tilt=float(rng.uniform(-_MAX_TILT, _MAX_TILT)),
        height=float(rng.uniform(*_HEIGHT)),
        offset=tuple(rng.uniform(-1, 1, 2).tolist()),
        foreground=foreground,
        background=background,
        foreground_rgb=tuple(np.clip(COLORS[foreground] + jitter[0], 0, 255).tolist()),
        background_rgb=tuple(np.clip(COLORS[background] + jitter[1], 0, 255).tolist()),
    )


def caption(glyph: Glyph) -> str:
    """What the picture shows: "a bold red italic serif letter G tilted left on a white background"."""
    weight = "bold " if glyph.stroke >= _BOLD else ""
    slant = "italic " if "Italic" in glyph.font or "Oblique" in glyph.font else ""
    kind = "digit" if glyph.character.isdigit() else "letter"
    pose = "" if abs(glyph.tilt) < _UPRIGHT else " tilted left" if glyph.tilt > 0 else " tilted right"
    article = "an" if f"{weight}{glyph.foreground}"[0] in "aeiou" else "a"
    return (
        f"{article} {weight}{glyph.foreground} {slant}{glyph.family} {kind} {glyph.character}{pose} "
        f"on {'an' if glyph.background[0] in 'aeiou' else 'a'} {glyph.background} background"
    )


def render(glyph: Glyph, size: int) -> np.ndarray:
    """The picture at `size` x `size` pixels: uint8 [size size 3]."""
    master = _master(glyph.font, glyph.character, glyph.stroke)
    shape = np.array([master.width, master.height])
    canvas = size * _OVERSAMPLING
    cos, sin = np.cos(np.deg2rad(glyph.tilt)), np.sin(np.deg2rad(glyph.tilt))
    extent = np.abs([[cos, sin], [sin, cos]]) @ shape  # of the rotated master
    scale = canvas * min(glyph.height / master.height, _WIDEST / extent.max())
    center = canvas / 2 + np.array(glyph.offset) * (canvas - scale * extent) / 2
    # Pillow wants the map from the picture back to the master.
    inverse = np.array([[cos, -sin], [sin, cos]]) / scale
    start = shape / 2 - inverse @ center
    mask = master.transform(
        (canvas, canvas),
        Image.Transform.AFFINE,
        (inverse[0, 0], inverse[0, 1], start[0], inverse[1, 0], inverse[1, 1], start[1]),
        Image.Resampling.BICUBIC,
    )
    mask = np.asarray(mask.reduce(_OVERSAMPLING), np.float32)[:, :, None] / 255
    foreground, background = np.float32(glyph.foreground_rgb), np.float32(glyph.background_rgb)
    return np.round(background + (foreground - background) * mask).astype(np.uint8)


def _contrasting_colors(rng: np.random.Generator) -> tuple[str, str]:
    background = _choose(rng, tuple(COLORS))
    return _choose(rng, _readable_on(background)), background


def _choose(rng: np.random.Generator, options: tuple) -> Any:
    return options[rng.integers(len(options))]


@functools.cache
def _readable_on(background: str) -> tuple[str, ...]:
    luminance = {name: float(_LUMA @ np.array(rgb)) for name, rgb in COLORS.items()}
    return tuple(name for name in COLORS if abs(luminance[name] - luminance[background]) >= _MIN_CONTRAST)


@functools.cache
def _master(font: str, character: str, stroke: int) -> Image.Image:
    """The upright glyph in white on black, cut to its outline plus a margin for the filter."""
    face = ImageFont.truetype(str(pictures.font_folder() / font), _EM)
    left, top, right, bottom = face.getbbox(character, stroke_width=stroke)
    picture = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(picture).text((2 - left, 2 - top), character, fill=255, font=face, stroke_width=stroke)
    return picture
