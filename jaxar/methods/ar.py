"""Raster autoregression over discrete tokens, conditional on a class or on text.

    p(x | c) = prod_i p(x_i | c, x_1 .. x_{i-1}),    loss = -mean_i log p(x_i | c, x_<i)

Training feeds the condition and all tokens but the last; sampling draws x_1, x_2, ... with a key-value cache and guides
each step by uncond + s (cond - uncond).

Reference: Sun et al., Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation, 2024, Sec. 2.

Golden: llamagen_c2i_d2, llamagen_t2i_d2
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import ar
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task, mean_of_valid
from jaxar.models import causal
from jaxar.nn.cache import KVCache
from jaxar.nn.layers import cast_weights
from jaxar.nn.transformer import split_layers
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Variables

Model = causal.Sizes


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section. `label_drop`: share of conditions that training replaces by the null one."""

    label_drop: float = 0.1

    def __post_init__(self):
        if not 0 <= self.label_drop <= 1:
            raise ConfigError(f"method.label_drop={self.label_drop} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling(lg.Sampling):
    """The `sample` section.

    Attributes:
      segments: pieces of the decode loop; attention in each reads the cache as far as that piece fills it.
      unroll: a straight line of layers in place of a loop: slower to compile, faster to run.
    """

    segments: int = 4
    unroll: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.segments < 1:
            raise ConfigError(f"sample.segments={self.segments} must be at least 1")


@dataclasses.dataclass(frozen=True)
class AR(Method):
    """One network, one loss."""

    network: causal.CausalTransformer
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        net = self.network
        cond = {"label": jnp.zeros(1, jnp.int32)} if net.text is None else {"text": jnp.zeros((1, *net.text))}
        return {"model": net.init(key, jnp.zeros((1, net.num_tokens), jnp.int32), cond)}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("nll", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean cross-entropy in nats per token; samples whose "valid" entry is False do not count."""
        drop_key, dropout_key = jax.random.split(key)
        net = self.network
        cond = conditions.drop(conditions.of_batch(batch), drop_key, self.config.label_drop, net.num_classes)
        logits = net.apply(variables["model"], batch["ids"], cond, deterministic=False, rngs={"dropout": dropout_key})
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["ids"]).mean(axis=1)
        return mean_of_valid(nll, batch), LossAux({})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: `bits_per_token`, and `accuracy`, the share of tokens whose largest logit is right."""
        ids = batch["ids"]
        logits = self.network.apply(variables["model"], ids, conditions.of_batch(batch))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return {
            "bits_per_token": nll.mean(axis=1) / np.log(2),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == ids, axis=1),
        }

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Key, options: Sampling) -> Tokens:
        return Tokens(ids=self.roll_out(variables, cond, keys, options, functools.partial(lg.draw, options=options)))

    def roll_out(
        self,
        variables: dict[str, Variables],
        cond: Cond,
        keys: Keys | None,
        options: Sampling,
        draw: ar.Draw,
        given: Int[Array, "b t"] | None = None,
        stop: int | None = None,
    ) -> Int[Array, "b n"]:
        """The tokens that `draw` takes from the model's guided logits, one after another; `keys` are for it alone.

        Args:
          given: the first tokens, which are not drawn; None for none.
          stop: n, given tokens included; None for all.
        """
        net = self.network
        scales = lg.guidance_scales(options, net.num_tokens)
        prefix = given
        if lg.is_guided(scales):
            cond = conditions.doubled(cond, net.num_classes)
            prefix = None if given is None else jnp.concatenate([given, given])
        extend, cache = self.decoder(variables["model"], cond, options.unroll, prefix)
        extend = ar.guided(extend, scales)
        first = 0 if given is None else given.shape[1]
        drawn = ar.next_token(extend, None, cache, keys, stop or net.num_tokens, draw, options.segments, first)
        return drawn if given is None else jnp.concatenate([given, drawn], axis=1)

    def roll_out_calls(self, given: int, stop: int) -> int:
        """Sequential calls of the network in `roll_out`, for numbers of tokens."""
        return stop - given

    def log_laws(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], cond: Cond, options: lg.Sampling
    ) -> Float[Array, "b n v"]:
        """Logarithms of the laws, unnormalised, from which sampling draws each token if those before it are `ids`."""

        def logits(cond: Cond) -> Float[Array, "b n v"]:
            return self.network.apply(variables["model"], ids, cond)

        null = conditions.nullify(cond, jnp.ones(len(ids), bool), self.network.num_classes)
        scales = lg.guidance_scales(options, self.network.num_tokens)
        return lg.filtered(lg.guided_at(logits(cond), lambda: logits(null), scales), options)

    def decoder(
        self, variables: Variables, cond: Cond, unroll: bool, given: Int[Array, "b t"] | None = None
    ) -> tuple[ar.Extend, KVCache]:
        """An `extend` for `decoding.ar.next_token`, and its empty cache.

        None stands for the condition and the tokens that are `given`.
        """
        net = self.network.clone(unroll=unroll)
        variables = cast_weights(variables, net.sizes.dtype)
        variables = split_layers(variables) if unroll else variables
        pad = causal.padding(cond) if "text_mask" in cond else None

        def extend(
            ids: Int[Array, "b t"] | None, step: Int[Array, ""] | int, cache: KVCache, stop: int
        ) -> tuple[Float[Array, "b t v"], KVCache]:
            if ids is None:
                length = net.prefix_len + (0 if given is None else given.shape[1])
                return net.apply(variables, cond, cache, length, given, method="prefill")
            x = net.apply(variables, ids, method="embed_tokens")
            return net.apply(variables, x, cache, pad, net.prefix_len + stop - 1, method="extend")

        return extend, net.init_cache(jax.tree.leaves(cond)[0].shape[0])

    def network_calls(self, options: Sampling) -> int:
        return self.network.num_tokens


def build(config: Config, model: Model, task: Task) -> AR:
    """The method for discrete raster tokens; conditional on text where the task has text, else on the class."""
    tokens = task.discrete_tokens("ar", multiscale=False)
    if task.text is None:
        network = causal.CausalTransformer(model, tokens.vocab_size, tokens.grid, num_classes=task.num_classes)
    else:
        text = (task.text.length, task.text.width)
        network = causal.CausalTransformer(model, tokens.vocab_size, tokens.grid, text=text)
    return AR(network, config)
