"""LPIPS, a distance between images that was fitted to human judgement; its weights come from a file of the user.

Reference: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018, Eq. 1 (VGG16).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxar.config import ConfigError
from jaxar.typing import Array, Float, Params, typechecked

# Convolutions of VGG16 by their index in torchvision's `features`; features are read after the last of each slice.
_SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Means and deviations of ImageNet's channels, carried over to images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
MIN_SIZE = 16  # four poolings must leave a pixel


def load(path: str, field: str) -> Params:
    """The weights in a .safetensors file with the tensor names of `lpips.LPIPS(net="vgg").state_dict()`.

    Args:
      path: of the file; `net.slice1.0.weight` and so on, `lin0.model.1.weight` and so on. Other tensors are ignored.
      field: of the configuration, for messages.
    Returns:
      {"convs": one list per slice of {"kernel": [3 3 c o], "bias": [o]}, "heads": [c] per slice}, in numpy.
    Raises:
      ConfigError: no such file, not a safetensors file, tensors missing.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{field}={path!r} is no file; give the LPIPS weights (VGG16) as .safetensors, or weight 0")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{field}={path!r} is not a .safetensors file ({error}); convert it first") from error

    def take(name: str) -> np.ndarray:
        if name not in tensors:
            raise ConfigError(
                f"{field}={path!r} lacks {name!r}; it must hold the tensors of lpips.LPIPS(net='vgg').state_dict()"
            )
        return tensors[name].astype(np.float32)

    convs = [
        [
            {
                "kernel": take(f"net.slice{s}.{i}.weight").transpose(2, 3, 1, 0),
                "bias": take(f"net.slice{s}.{i}.bias"),
            }
            for i in indices
        ]
        for s, indices in enumerate(_SLICES, start=1)
    ]
    heads = [take(f"lin{s}.model.1.weight")[0, :, 0, 0] for s in range(len(_SLICES))]
    return {"convs": convs, "heads": heads}


@typechecked
def distance(params: Params, images: Float[Array, "b h w c"], others: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """LPIPS of pairs of images in [-1, 1]; grey images count as three equal channels."""
    total = jnp.zeros(images.shape[0])
    for head, a, b in zip(params["heads"], _features(params, images), _features(params, others)):
        total += jnp.einsum("bhwc,c->b", (_unit(a) - _unit(b)) ** 2, head) / (a.shape[1] * a.shape[2])
    return total


def _features(params: Params, images: Array) -> list[Array]:
    """Activations after each slice of VGG16; every slice but the first halves the resolution."""
    x = (jnp.broadcast_to(images, (*images.shape[:3], 3)) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
    features = []
    for s, convs in enumerate(params["convs"]):
        if s:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in convs:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer["bias"])
        features.append(x)
    return features


def _unit(x: Array) -> Array:
    """x / (|x| + 1e-10) over channels, with a finite gradient where all of them are 0."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / (norm + 1e-10)
