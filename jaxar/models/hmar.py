"""HMAR's masked branch: tokens of a scale given some of the same scale, in place of the last layers of the network.

The lower layers are the next-scale network's own. They read the sum of two streams: the usual input of the scale, and
the features of its own tokens, of which masked ones are replaced by a learned vector.

Reference: Kumbong et al., HMAR: Efficient Hierarchical Masked Auto-Regressive Image Generation, 2025, Sec. 4.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.kernels.mask import MaskSpec
from jaxar.models.next_scale import NORM_EPS, Condition, NextScaleTransformer, Sizes, modulated
from jaxar.nn.layers import LayerNorm, normal
from jaxar.nn.transformer import Stack
from jaxar.partition import logical
from jaxar.typing import Array, Bool, Float, Params, Variables

_LAYERED = ("stack", "modulation")  # parameters with a leading axis of layers
_OUTER = ("head", "head_modulation")


class MaskedBranch(nn.Module):
    """The last layers and the head of the masked prediction, and the vector that stands for masked tokens.

    Attributes:
      sizes: of the branch; `num_layers` counts its own layers.
      unroll: as in `NextScaleTransformer`.
    """

    sizes: Sizes
    vocab_size: int
    unroll: bool = False

    def setup(self):
        sizes = self.sizes
        init = logical(normal(sizes.stddev), "embed")
        self.mask_embedding = self.param("mask_embedding", init, (sizes.width,), sizes.param_dtype)
        self.modulation = sizes.modulation()
        self.head_modulation = sizes.head_modulation()
        self.stack = Stack(sizes.block(), sizes.num_layers, sizes.drop_path, sizes.remat, self.unroll)
        self.norm = LayerNorm(eps=NORM_EPS, affine=False)
        self.head = sizes.head(self.vocab_size)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        start: Float[Array, "b d"],
        mask: MaskSpec | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b t v"]:
        """Logits, float32.

        Args:
          x: what leaves the shared layers.
          start: class embeddings.
          mask: None where all tokens are of one scale.
        """
        return self.logits(x, self.condition(start), mask, deterministic)

    def condition(self, start: Float[Array, "b d"]) -> Condition:
        """Everything that depends on the label alone."""
        return Condition(start, self.modulation(start[:, None]), self.head_modulation(start[:, None])[0])

    def logits(
        self,
        x: Float[Array, "b t d"],
        condition: Condition,
        mask: MaskSpec | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "b t v"]:
        """As a call, with the branch's own condition."""
        x, _ = self.stack(x, mask=mask, modulation=condition.layers, deterministic=deterministic)
        return self.head(modulated(self.norm(x), condition))

    def streams(
        self, features: Float[Array, "b m c"], own: Float[Array, "b m c"], hidden: Bool[Array, "b m"]
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b m d"]]:
        """What the shared layers read: `features` and `added` of `NextScaleTransformer.activations`.

        Args:
          features: the usual input of the scale.
          own: features of the scale's own tokens.
          hidden: which of these are masked.
        """
        hidden = hidden[..., None]
        return features + jnp.where(hidden, 0, own), jnp.where(hidden, self.mask_embedding, 0)


def shared_layers(network: NextScaleTransformer, branch: MaskedBranch) -> NextScaleTransformer:
    """The next-scale network without the layers that the branch replaces, which may be all of them."""
    count = network.sizes.num_layers - branch.sizes.num_layers
    return network.clone(sizes=dataclasses.replace(network.sizes, num_layers=count))


def shared_variables(variables: Variables, branch: MaskedBranch) -> Variables:
    """Variables of `shared_layers`, from those of the whole network."""
    params = variables["params"]
    cut = jax.tree.map(lambda x: x[: -branch.sizes.num_layers], {name: params[name] for name in _LAYERED})
    return {"params": {**params, **cut}}


def branch_of(params: Params, branch: MaskedBranch) -> Params:
    """The parameters with which a branch starts: the last layers and the head of a trained network."""
    last = jax.tree.map(lambda x: x[-branch.sizes.num_layers :], {name: params[name] for name in _LAYERED})
    return {**last, **{name: params[name] for name in _OUTER}}
