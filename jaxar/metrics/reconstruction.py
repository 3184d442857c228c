"""Per-image fidelity of reconstructions: PSNR and SSIM."""

import dm_pix
import jax
import jax.numpy as jnp

from jaxar.typing import Array, Float, typechecked

MAX_PSNR = 100.0


@jax.jit
@typechecked
def psnr(images: Float[Array, "b h w c"], reconstructions: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of images in [-1, 1].

    Capped at `MAX_PSNR`, so that one exact reconstruction does not make the mean over a set infinite.
    """
    return jnp.minimum(dm_pix.psnr(_to_unit(images), _to_unit(reconstructions)), MAX_PSNR)


@jax.jit
@typechecked
def ssim(images: Float[Array, "b h w c"], reconstructions: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Structural similarity of images in [-1, 1], averaged over windows and channels; 1 where the two are equal.

    The Gaussian window has 11 x 11 pixels and sigma 1.5; images narrower than that get the largest odd window that
    fits (7 for 8 x 8 digits), because a window beyond the image averages over pixels that do not exist.

    Reference: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, Eq. 13.
    """
    side = min(images.shape[1:3])
    window = min(11, side - 1 + side % 2)
    return dm_pix.ssim(_to_unit(images), _to_unit(reconstructions), filter_size=window)


def _to_unit(images: Array) -> Array:
    return images * 0.5 + 0.5
