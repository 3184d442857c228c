"""The networks that the benchmarks measure, from dataclasses and with random weights."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxar.methods import ar, hmar, mar, maskgit, next_scale
from jaxar.methods.base import Method, Task
from jaxar.models.diffusion_head import Sizes as HeadSizes
from jaxar.models.mar import Tower
from jaxar.nn.convnet import ConvStack
from jaxar.tokenizers import multiscale_vq
from jaxar.tokenizers._quantizers import VQ
from jaxar.tokenizers.base import ImageSpec, TokenSpec
from jaxar.typing import Variables

VAR_SCALES = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    24: (1, 2, 3, 4, 6, 9, 13, 18, 24),
    8: (1, 2, 3, 4, 6, 8),
    4: (1, 2, 3, 4),
}
NUM_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Network:
    """The network to measure: `side` is the token grid's (the last scale's); heads have 64 channels.

    MAR's encoder and decoder share the layers, and its head is half as deep as one of them; half of HMAR's layers are
    the refiner's too.
    """

    method: Literal["ar", "next_scale", "hmar", "maskgit", "mar"] = "ar"
    layers: int = 4
    width: int = 256
    side: int = 16
    vocab: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots"] = "none"

    def build(self) -> Method:
        common = dict(num_layers=self.layers, width=self.width, num_heads=self.width // 64, dropout=0.0)
        common |= dict(dtype=self.dtype, remat=self.remat)
        image, grid = ImageSpec(16 * self.side, 3), ((self.side, self.side),)
        if self.method in ("ar", "maskgit"):
            own = ar if self.method == "ar" else maskgit
            spec = TokenSpec("discrete", grid, channels=8, vocab_size=self.vocab)
            return own.build(own.Config(), own.Model(**common), Task(image, NUM_CLASSES, spec))
        if self.method == "mar":
            tower = Tower(max(1, self.layers // 2), self.width, self.width // 64)
            head, types = HeadSizes(max(1, self.layers // 4), self.width), dict(dtype=self.dtype, remat=self.remat)
            task = Task(image, NUM_CLASSES, TokenSpec("continuous", grid, channels=16))
            return mar.build(mar.Config(), mar.Model(tower, tower, head, dropout=0.0, **types), task)
        # Only the quantizer takes part in sampling; the convolutions are as small as they can be.
        stack = ConvStack(1, (1,) * 5, num_res_blocks=1, groups=1)
        config = multiscale_vq.Config(VQ(vocab_size=self.vocab, channels=32), stack, VAR_SCALES[self.side])
        tokenizer = multiscale_vq.build(config, image)
        task = Task(image, NUM_CLASSES, tokenizer.spec, tokenizer)
        if self.method == "hmar":
            return hmar.build(hmar.Config(refiner_layers=max(1, self.layers // 2)), hmar.Model(**common), task)
        return next_scale.build(next_scale.Config(), next_scale.Model(**common), task)

    @property
    def num_tokens(self) -> int:
        if self.method in ("next_scale", "hmar"):
            return sum(side**2 for side in VAR_SCALES[self.side])
        return self.side**2


def random_variables(method: Method) -> dict[str, Variables]:
    """Gaussian weights for the method and, if it has one, for its tokenizer's quantizer."""
    shapes = dict(jax.eval_shape(method.init, jax.random.key(0)))
    if isinstance(method, next_scale.NextScale):
        params = jax.eval_shape(method.tokenizer.init, jax.random.key(0))["params"]
        shapes["tokenizer"] = {"params": {name: params[name] for name in ("codebook", "phi")}}
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, nn.meta.unbox(shapes))


def num_parameters(variables: dict[str, Variables]) -> int:
    return sum(x.size for x in jax.tree.leaves(variables["model"]))
