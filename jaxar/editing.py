"""Zero-shot editing: parts of a given picture stay, a masked model draws the rest (inpainting, outpainting, classes).

The picture becomes tokens; those whose cells are to stay are known from the start, and the sampler fills in the others.
Pixels that are to stay are put back at the end.
"""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.data import augment
from jaxar.data import images as image_files
from jaxar.methods.base import Cond, Method, Task
from jaxar.nn import resize
from jaxar.tokenizers.base import ImageSpec, Tokenizer, TokenSpec
from jaxar.typing import Array, Bool, Float, Keys, Variables, typechecked

ENTRIES = ("image", "keep")  # what an editing request adds to the conditions


@typechecked
def known_tokens(keep: Bool[Array, "b h w"], spec: TokenSpec) -> Bool[Array, "b n"]:
    """Marks the tokens all of whose pixels stay; at each scale a token's cell is the area that it covers."""
    maps = [resize.area(keep[..., None].astype(jnp.float32), scale) for scale in spec.scales]
    return jnp.concatenate([x.reshape(keep.shape[0], -1) > 1 - 1e-6 for x in maps], axis=1)


def complete(
    method: Method, tokenizer: Tokenizer, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Any
) -> Float[Array, "b h w c"]:
    """Pictures in [-1, 1] that agree with `cond["image"]` wherever `cond["keep"]` is True.

    Args:
      cond: conditions of the method, "image" [b h w c] in [-1, 1] and "keep" [b h w].
      keys: one per sample.
    """
    image, keep = (cond[name] for name in ENTRIES)
    rest = {name: value for name, value in cond.items() if name not in ENTRIES}
    tokens = tokenizer.encode(variables["tokenizer"], image, None)
    tokens = method.complete(variables, tokens, known_tokens(keep, tokenizer.spec), rest, keys, options)
    return jnp.where(keep[..., None], image, tokenizer.decode(variables["tokenizer"], tokens))


def request(image: str, mask: str, method: Method, task: Task, count: int) -> dict[str, np.ndarray]:
    """The entries that `complete` wants, the same for `count` samples, from what a user gave.

    Args:
      image: a file; the centre crop of the model's size is taken.
      mask: see `read_mask`.
    Raises:
      ConfigError: a method that completes nothing, unreadable files, a malformed box, or a mask without a pixel.
    """
    if task.tokenizer is None or type(method).complete is Method.complete:
        raise ConfigError(
            f"--image={image}: {type(method).__name__} cannot keep parts of a picture; use a masked method"
        )
    pixels = augment.center_crop(_read(image, "--image", task.image.channels), task.image.size)
    drawn = read_mask(mask, task.image)
    if not drawn.any():
        raise ConfigError(f"--mask={mask} marks no pixel; white pixels, or those in the box, are drawn anew")
    entries = (pixels.astype(np.float32) / 127.5 - 1, ~drawn)
    return {name: np.repeat(value[None], count, axis=0) for name, value in zip(ENTRIES, entries)}


def read_mask(text: str, image: ImageSpec) -> np.ndarray:
    """The pixels that are drawn anew, bool [h w].

    Args:
      text: a file (.png, .jpg, ...) whose light pixels are drawn anew; "top,left,bottom,right" in shares of the side,
        which draws the box anew; or "outside:" before such a box, which keeps the box and draws what surrounds it.
    """
    if pathlib.Path(text).suffix.lower() in image_files.SUFFIXES:
        light = augment.center_crop(_read(text, "--mask", 1), image.size)
        return light[..., 0] > 127
    outside, box = text.startswith("outside:"), text.removeprefix("outside:")
    try:
        top, left, bottom, right = (float(part) for part in box.split(","))
    except ValueError:
        top = left = bottom = right = -1.0
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ConfigError(
            f"--mask={text} must be an image file, or top,left,bottom,right with 0 <= top < bottom <= 1 and "
            "0 <= left < right <= 1, or outside: and such a box"
        )
    inside = np.zeros((image.size, image.size), bool)
    edges = [round(share * image.size) for share in (top, bottom, left, right)]
    inside[edges[0] : edges[1], edges[2] : edges[3]] = True
    return ~inside if outside else inside


def _read(path: str, option: str, channels: int) -> np.ndarray:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}={path} cannot be read ({error.strerror}); give an image file") from error
    return image_files.decode(data, channels, f"{option}={path}")
