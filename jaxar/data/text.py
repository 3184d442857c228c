"""Caption features: hashed ones that need no pretrained network, and stored ones that the user computed."""

import functools
import hashlib
import math
import pathlib

import numpy as np

from jaxar.config import ConfigError
from jaxar.methods.base import TextSpec


def features(caption: str, spec: TextSpec) -> tuple[np.ndarray, np.ndarray]:
    """Features of the words of a caption, a pure function of its text.

    A word's feature is (word direction + place direction) / sqrt(2). Directions are vectors of +-1 drawn by hashing, so
    any two are nearly orthogonal: words and order can be read back by inner products. Case counts ("A" is not "a").

    Args:
      caption: words separated by spaces; words after the first `spec.length` are dropped.
      spec: shape of the result.
    Returns:
      features [t e], float32 with mean square 1, padded on the left with zeros, and the mask [t], True where a word is.
    """
    words = caption.split()[: spec.length]
    result = np.zeros((spec.length, spec.width), np.float32)
    mask = np.zeros(spec.length, bool)
    start = spec.length - len(words)
    for place, word in enumerate(words):
        total = direction(f"word {word}", spec.width) + direction(f"place {place}", spec.width)
        result[start + place] = total / math.sqrt(2)
    mask[start:] = True
    return result, mask


@functools.lru_cache(maxsize=65536)
def direction(name: str, width: int) -> np.ndarray:
    """A vector of +-1 [width] that depends on `name` alone."""
    digest = hashlib.shake_256(name.encode()).digest(math.ceil(width / 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:width]
    vector = bits.astype(np.float32) * 2 - 1
    vector.setflags(write=False)
    return vector


class StoredFeatures:
    """Precomputed features of a split's captions, for the features of a pretrained text encoder.

    Args:
      folder: holds `features.npy` [examples t e], any float type, and `mask.npy` [examples t], bool, True at words;
        examples in the order of the data source, padded on the left.
    Raises:
      ConfigError: missing files, or arrays that do not fit together.
    """

    def __init__(self, folder: pathlib.Path):
        for name in ("features.npy", "mask.npy"):
            if not (folder / name).is_file():
                raise ConfigError(f"text features {folder / name} are missing; see jaxar.data.text.StoredFeatures")
        self._features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        self._mask = np.load(folder / "mask.npy", allow_pickle=False)
        shape, dtype = self._features.shape, self._mask.dtype
        if len(shape) != 3 or self._mask.shape != shape[:2] or dtype != np.bool_:
            raise ConfigError(
                f"text features in {folder} have shapes {shape} and {self._mask.shape} ({dtype}); they must be "
                "[examples t e] and [examples t] (bool)"
            )
        if (self._mask[:, :-1] & ~self._mask[:, 1:]).any():
            raise ConfigError(f"text features in {folder} are not padded on the left; move each row's words to its end")
        self.spec = TextSpec(*shape[1:])

    def __len__(self) -> int:
        return len(self._mask)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`text` [t e], float32, and "text_mask" [t] of an example."""
        return {"text": np.asarray(self._features[index], np.float32), "text_mask": self._mask[index]}
