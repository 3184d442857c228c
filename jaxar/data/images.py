"""Reading image files into uint8 arrays."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxar.config import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MODES = {1: "L", 3: "RGB"}


def decode(data: bytes, channels: int, origin: str) -> np.ndarray:
    """The picture in an encoded file, converted to grey (1 channel) or RGB (3).

    Args:
      data: contents of a JPEG, PNG, WebP or BMP file.
      channels: 1 or 3.
      origin: what the message calls the file if it cannot be read.
    Returns:
      uint8 [h w c].
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.asarray(picture.convert(_MODES[channels]))
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{origin} is not a readable image ({error}); replace or remove it") from error
    return pixels.reshape(*pixels.shape[:2], channels)
