"""Crops, flips and shifts of uint8 images, and the random map that the loader applies to training examples."""

import dataclasses
import math

import grain
import numpy as np
from PIL import Image

from jaxar.config import ConfigError
from jaxar.data.base import DataConfig, Example, Variants

_TEN_CROP_ENLARGE = 1.1  # the crops are cut from a centre crop this much larger than they are
_ASPECT = (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Augment(grain.transforms.RandomMap):
    """Training: a random crop, shift, flip of an image, or a random variant of a cached one.

    A pure function of the example and the generator's state, which the loader derives from seed and position.
    """

    config: DataConfig

    def random_map(self, example: Example, rng: np.random.Generator) -> Example:
        config = self.config
        if "image" not in example:
            return _draw_tokens(example, rng)
        image = example["image"]
        if config.crop == "random":
            image = random_crop(image, config.image_size, rng, config.crop_scale)
        elif config.crop == "resized":
            image = resized_crop(image, config.image_size, rng, config.crop_scale)
        else:
            image = center_crop(image, config.image_size)
        if config.shift:
            down, right = rng.integers(-config.shift, config.shift, size=2, endpoint=True)
            image = shift(image, down, right)
        if config.flip and rng.random() < 0.5:
            image = flip(image)
        return {**example, "image": image}


@dataclasses.dataclass(frozen=True)
class Center(grain.transforms.Map):
    """Evaluation: the centre crop, or the first variant (the unflipped centre) of a cached image."""

    config: DataConfig

    def map(self, example: Example) -> Example:
        if "image" not in example:
            return _draw_tokens(example, None)
        return {**example, "image": center_crop(example["image"], self.config.image_size)}


def _draw_tokens(example: Example, rng: np.random.Generator | None) -> Example:
    """One variant of a cached example; for a stochastic tokenizer a draw from its posterior, the mean without `rng`."""
    name = "ids" if "ids" in example else "mean"
    variant = rng.integers(len(example[name])) if rng else 0
    rest = {key: value for key, value in example.items() if key not in ("ids", "mean", "std")}
    if name == "ids":
        return {**rest, "ids": example["ids"][variant].astype(np.int32)}
    latents = example["mean"][variant].astype(np.float32)
    if rng and "std" in example:
        latents = latents + example["std"][variant] * rng.standard_normal(latents.shape, np.float32)
    return {**rest, "latents": latents}


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square, resized to `size` x `size`.

    Large images are first halved by box averaging, which the bicubic filter would alias.

    Reference: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, the preprocessing of the
    released code; tokenizers and statistics for ImageNet are published for it.
    """
    resized = _resize_shorter(image, size)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


def random_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.0)
) -> np.ndarray:
    """A square anywhere in the image, its side a share in `scale` of the shorter side, at `size` x `size`.

    Reference: as `center_crop`.
    """
    shorter = int(rng.integers(math.ceil(size / scale[1]), math.ceil(size / scale[0]), endpoint=True))
    resized = _resize_shorter(image, shorter)
    top = rng.integers(resized.shape[0] - size, endpoint=True)
    left = rng.integers(resized.shape[1] - size, endpoint=True)
    return resized[top : top + size, left : left + size]


def resized_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.08, 1.0)
) -> np.ndarray:
    """A rectangle anywhere in the image, its area a share in `scale`, squeezed to `size` x `size`.

    Reference: Szegedy et al., Going Deeper with Convolutions, 2014, Section 6.
    """
    height, width = image.shape[:2]
    share = rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
    # A rectangle that sticks out is cut off at the border instead of being drawn again.
    crop_width = min(math.sqrt(height * width * share * aspect), width)
    crop_height = min(math.sqrt(height * width * share / aspect), height)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    return _from_pil(_to_pil(image).resize((size, size), Image.Resampling.BICUBIC, box=box), image.shape[2])


def flip(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1]


def shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved by whole pixels; what moves in is black."""
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def variants(image: np.ndarray, size: int, kind: Variants) -> np.ndarray:
    """What a token cache stores of one image.

    Args:
      image: uint8 [h w c], any size.
      size: side of the results.
      kind: "image": the centre crop; "flip": the centre crop and its mirror image; "ten_crop": centre and corners of
        a slightly larger centre crop, and their mirror images.
    Returns:
      uint8 [variants size size c]; the first is unflipped and centred.
    """
    if kind == "ten_crop":
        large = center_crop(image, int(size * _TEN_CROP_ENLARGE))
        end = large.shape[0] - size
        corners = [(end // 2, end // 2), (0, 0), (0, end), (end, 0), (end, end)]
        crops = [large[top : top + size, left : left + size] for top, left in corners]
    else:
        crops = [center_crop(image, size)]
    if kind != "image":
        crops += [flip(crop) for crop in crops]
    return np.stack(crops)


def _resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """The whole image with its shorter side at `size`."""
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    picture = _to_pil(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = size / min(picture.size)
    shape = (round(picture.width * factor), round(picture.height * factor))
    return _from_pil(picture.resize(shape, Image.Resampling.BICUBIC), image.shape[2])


def _to_pil(image: np.ndarray) -> Image.Image:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8:
        raise ConfigError(f"an image has shape {image.shape} and type {image.dtype}; it must be uint8 [h w 1 or 3]")
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _from_pil(picture: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(picture).reshape(picture.height, picture.width, channels)
