"""Students of autoregressive teachers with continuous tokens: the teacher's layers, and a small head that denoises.

One network has two uses, with the layers and, under the same names, the weights of its teacher. They differ in what the
layers read before a token; the head sees one noised token and the vector of its position, and may be asked at many
times for one run of the layers.

* `after_tokens`: the layers read what the teacher reads, and a noised token is denoised given all clean ones before it.
* `after_noise`: the layers read noise in the place of tokens, so that all tokens can be made of noise in one call, each
  given the noise of earlier ones.

Reference: Liu et al., Distilled Decoding 2: One-step Sampling of Image Auto-regressive Models with Conditional Score
Distillation, 2025. How noise enters a next-scale model is not published: here the noise of a scale is enlarged to the
next one, as the tokenizer enlarges codes, and takes the place of the tokenizer's features. A raster model looks clean
tokens up in its table and has a linear map for noise, where the published one fits a network to the table. The
teacher's own head, which `mixture` keeps, is not in the publication.
"""

import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.kernels.mask import MaskSpec
from jaxar.models import causal, diffusion_head, next_scale
from jaxar.nn import resize
from jaxar.nn.layers import normal
from jaxar.partition import logical
from jaxar.typing import Array, Float, Int

_STDDEV = 0.02
_TIME = 1000  # what the head sees at t = 1


class Outputs(NamedTuple):
    """About each noised token, float32: a velocity [m b n e], and logits over the codes [b n v] or None.

    The logits are those of the token's position, before its noised value is seen.
    """

    velocity: Array
    logits: Array | None


class RasterDenoiser(causal.CausalTransformer):
    """The student of a class-conditional `CausalTransformer`.

    Attributes:
      channels: of a code.
      head_sizes: of the head.
      mixture: keeps the teacher's head beside it, for `Outputs.logits`.
    """

    channels: int = 0
    head_sizes: diffusion_head.Sizes = diffusion_head.Sizes()
    mixture: bool = False

    def setup(self):
        super().setup()
        self.noise_projection = nn.Dense(
            self.sizes.width,
            kernel_init=logical(normal(_STDDEV), None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            dtype=self.sizes.dtype,
            param_dtype=self.sizes.param_dtype,
        )
        self.velocity_head = _head(self.head_sizes, self.channels, self.sizes)

    def after_noise(
        self,
        noise: Float[Array, "b n e"],
        labels: Int[Array, "b"],
        x: Float[Array, "m b n e"],
        t: Float[Array, "m b n"],
    ) -> Outputs:
        """About noised tokens, given the noise before them.

        Args:
          noise: standard normal.
          labels: below num_classes.
          x: noised tokens, m of each.
          t: in [0, 1].
        """
        return _outputs(self, self._features(self.noise_projection(noise[:, :-1]), labels), x, t)

    def after_tokens(
        self, ids: Int[Array, "b n"], labels: Int[Array, "b"], x: Float[Array, "m b n e"], t: Float[Array, "m b n"]
    ) -> Outputs:
        """About noised tokens, given the clean ones before them, whose ids are `ids`."""
        return _outputs(self, self._features(self.token_embedding(ids[:, :-1]), labels), x, t)

    def _features(self, x: Float[Array, "b k d"], labels: Int[Array, "b"]) -> Float[Array, "b n d"]:
        """The vectors of all positions; `x` stands for all tokens but the last."""
        x = jnp.concatenate([self.class_embedding(labels)[:, None], x], axis=1)
        rotary = jax.tree.map(lambda table: table[: x.shape[1]], self.rotary())
        x, _ = self.stack(x, rotary=rotary, mask=MaskSpec.causal(x.shape[1]))
        return self.norm(x)


class NextScaleDenoiser(next_scale.NextScaleTransformer):
    """The student of a `NextScaleTransformer`: the tokens of a scale are given all coarser ones.

    Attributes:
      scales: height and width of each token map, coarse to fine.
      head_sizes, mixture: as in `RasterDenoiser`.
    """

    scales: tuple[tuple[int, int], ...] = ()
    head_sizes: diffusion_head.Sizes = diffusion_head.Sizes()
    mixture: bool = False

    def setup(self):
        super().setup()
        self.velocity_head = _head(self.head_sizes, self.channels, self.sizes)

    def after_noise(
        self,
        noise: Float[Array, "b n e"],
        labels: Int[Array, "b"],
        x: Float[Array, "m b n e"],
        t: Float[Array, "m b n"],
    ) -> Outputs:
        """As `RasterDenoiser.after_noise`."""
        return self.after_tokens(enlarged(noise, self.scales), labels, x, t)

    def after_tokens(
        self,
        inputs: Float[Array, "b k c"],
        labels: Int[Array, "b"],
        x: Float[Array, "m b n e"],
        t: Float[Array, "m b n"],
    ) -> Outputs:
        """As `RasterDenoiser.after_tokens`, with the inputs of scales 2..K from the tokenizer's `teacher_input`."""
        condition = self.condition(labels)
        activations, _ = self.activations(inputs, condition)
        return _outputs(self, next_scale.modulated(self.norm(activations), condition), x, t)


def enlarged(noise: Float[Array, "b n e"], scales: tuple[tuple[int, int], ...]) -> Float[Array, "b k e"]:
    """The noise of all scales but the last, each map at the size of the next scale."""
    maps, begin = [], 0
    for (h, w), size in itertools.pairwise(scales):
        grid = noise[:, begin : begin + h * w].reshape(len(noise), h, w, -1)
        maps.append(resize.bicubic(grid, size).reshape(len(noise), size[0] * size[1], -1))
        begin += h * w
    return jnp.concatenate(maps, axis=1)


def _outputs(
    network: RasterDenoiser | NextScaleDenoiser,
    features: Float[Array, "b n d"],
    x: Float[Array, "m b n e"],
    t: Float[Array, "m b n"],
) -> Outputs:
    """What both heads of a network say, given the vectors of all positions."""
    z = jnp.broadcast_to(features, (*t.shape, features.shape[-1]))
    velocity = network.velocity_head(x.reshape(-1, x.shape[-1]), _TIME * t.reshape(-1), z.reshape(-1, z.shape[-1]))
    return Outputs(velocity.reshape(x.shape), network.head(features) if network.mixture else None)


def _head(
    sizes: diffusion_head.Sizes, channels: int, backbone: causal.Sizes | next_scale.Sizes
) -> diffusion_head.DiffusionHead:
    return diffusion_head.DiffusionHead(sizes, channels, dtype=backbone.dtype, param_dtype=backbone.param_dtype)
