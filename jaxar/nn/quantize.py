"""Vector quantization as pure functions: nearest codes, straight-through gradients, the residual loop, entropy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxar.nn import resize
from jaxar.typing import Array, Float, Int, typechecked

# What is rounded here decides between codes, so accelerators must not drop to bfloat16 passes.
PRECISION = jax.lax.Precision.HIGHEST


@typechecked
def l2_normalize(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """x / max(|x|, 1e-12) over the last axis, with a finite gradient at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


@typechecked
def nearest(x: Float[Array, "*n c"], codebook: Float[Array, "v c"]) -> Int[Array, "*n"]:
    """Index of the code with the smallest Euclidean distance, the first of equals.

    One matrix product: |x - e|^2 = |x|^2 - 2 (x e - |e|^2 / 2), whose first term is the same for every code.
    """
    scores = jnp.einsum("...c,vc->...v", x, codebook, precision=PRECISION) - 0.5 * jnp.sum(codebook**2, axis=-1)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


@typechecked
def lookup(codebook: Float[Array, "v c"], ids: Int[Array, "*n"]) -> Float[Array, "*n c"]:
    """The codes of `ids` in [0, v)."""
    return jnp.take(codebook, ids, axis=0)


@typechecked
def straight_through(x: Float[Array, "*s"], quantized: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The value of `quantized` with the gradient of `x`."""
    return x + jax.lax.stop_gradient(quantized - x)


@typechecked
def entropy_loss(x: Float[Array, "*n c"], codebook: Float[Array, "v c"], temperature: float = 0.01) -> Float[Array, ""]:
    """Mean entropy of each soft assignment minus the entropy of their mean; small when sure and evenly used.

    Args:
      x: features.
      codebook: codes.
      temperature: of softmax(-|x - e|^2 / temperature), in units of squared distance.
    Returns:
      Nats, between -ln v and ln v.
    Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, published code of its VQGAN.
    """
    x = x.reshape(-1, x.shape[-1])
    distances = (
        jnp.sum(x * x, axis=-1, keepdims=True)
        - 2 * jnp.einsum("nc,vc->nv", x, codebook, precision=PRECISION)
        + jnp.sum(codebook * codebook, axis=-1)
    )
    log_probs = jax.nn.log_softmax(-distances / temperature, axis=-1)
    probs = jnp.exp(log_probs)
    mean = probs.mean(axis=0)
    of_mean = -jnp.sum(mean * jnp.log(mean + 1e-5))  # the published code's guard against log 0
    return -jnp.sum(probs * log_probs, axis=-1).mean() - of_mean


class Residual(NamedTuple):
    """Outcome of residual quantization.

    Attributes:
      ids: Int[b n], the maps of all scales, coarse to fine, each row by row.
      targets: Float[b n c], the residual features that `ids` were chosen for; gradients reach the features.
      sums: Float[s b h w c], the feature map after each scale; gradients reach what `lift` reads.
    """

    ids: Int[Array, "b n"]
    targets: Float[Array, "b n c"]
    sums: Float[Array, "s b h w c"]


@typechecked
def quantize_residual(
    features: Float[Array, "b h w c"],
    scales: Sequence[tuple[int, int]],
    choose: Callable[[Array], Array],
    lift: Callable[[int, Array], Array],
) -> Residual:
    """Quantizes features scale by scale, each scale coding what the coarser ones left over.

    Args:
      features: float32.
      scales: (height, width) of each map, coarse to fine, the last one equal to (h, w).
      choose: residual map [b sh sw c] -> ids [b sh sw].
      lift: (scale, ids [b sh*sw]) -> what they add to the feature map [b h w c].
    Reference: Tian et al., Visual Autoregressive Modeling, 2024, Algorithm 1.
    """
    batch, width = features.shape[0], features.shape[-1]
    rest, total = features, jnp.zeros_like(features)
    ids, targets, sums = [], [], []
    for k, size in enumerate(scales):
        target = resize.area(rest, size)
        chosen = choose(target).reshape(batch, -1)
        lifted = lift(k, chosen)
        total, rest = total + lifted, rest - jax.lax.stop_gradient(lifted)
        ids.append(chosen)
        targets.append(target.reshape(batch, -1, width))
        sums.append(total)
    return Residual(jnp.concatenate(ids, axis=1), jnp.concatenate(targets, axis=1), jnp.stack(sums))
