"""Any-subset autoregression: the joint law of any set of tokens given all others, evaluated in one pass.

    p(x_hidden | x_known, c) = prod over hidden i, in raster order, of p(x_i | x_known, x_hidden before i, c)

There is one order for every set of known tokens: these first, then the hidden ones, both in raster order. Sampling
drafts several tokens independently, checks them against the joint law with a second call, and is exact: it follows the
same law as one token after another.

Reference: Guo, Ermon, Reviving Any-Subset Autoregressive Models with Principled Parallel Sampling and Speculative
Decoding, 2025; Shih et al., Training and Inference on Any-Order Autoregressive Models the Right Way, 2022.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import any_subset as decoding
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods._masked_tokens import Completer, mean_over, random_positions
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Task, mean_of_valid
from jaxar.models import any_subset
from jaxar.nn.layers import cast_weights
from jaxar.nn.transformer import TransformerSizes
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables

Model = TransformerSizes


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      min_masked: training hides a share of the tokens that is drawn uniformly from [min_masked, 1].
      whole: share of the samples of which training hides everything, as sampling from the class alone does.
      label_drop: share of labels that training replaces by the null one.
    """

    min_masked: float = 0.5
    whole: float = 0.5
    label_drop: float = 0.1

    def __post_init__(self):
        for name in ("min_masked", "whole", "label_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling(lg.Sampling):
    """The `sample` section. `draft`: tokens drafted per round of two calls; 1 decodes one token per call."""

    draft: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.draft < 1:
            raise ConfigError(f"sample.draft={self.draft} must be at least 1")


@dataclasses.dataclass(frozen=True)
class AnySubset(Completer):
    """One network, one loss."""

    network: any_subset.AnySubsetTransformer
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec(no_decay=("position_embedding",))}

    def init(self, key: Key) -> dict[str, Variables]:
        ranks = jnp.arange(self.network.num_tokens)[None]
        none = jnp.zeros(1, jnp.int32)
        return {"model": self.network.init(key, ranks * 0, ranks, none, ranks, ranks, none)}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("nll", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Cross-entropy in nats per hidden token; samples whose "valid" entry is False do not count."""
        hide_key, drop_key, dropout_key = jax.random.split(key, 3)
        hidden = self.hide(hide_key, len(batch["ids"]))
        cond = conditions.drop({"label": batch["label"]}, drop_key, self.config.label_drop, self.network.num_classes)
        nll = self.token_nll(variables["model"], batch["ids"], ~hidden, cond, dropout_key)
        return mean_of_valid(mean_over(nll, hidden), batch), LossAux({})

    def hide(self, key: Key, batch: int) -> Bool[Array, "b n"]:
        """Which tokens training hides: at least one."""
        share_key, whole_key, position_key = jax.random.split(key, 3)
        n = self.network.num_tokens
        share = jax.random.uniform(share_key, (batch,), minval=self.config.min_masked)
        share = jnp.where(jax.random.bernoulli(whole_key, self.config.whole, (batch,)), 1.0, share)
        return random_positions(position_key, jnp.maximum(jnp.ceil(n * share), 1).astype(jnp.int32), n)

    def token_nll(
        self,
        model: Variables,
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        cond: Cond,
        dropout_key: Key | None = None,
    ) -> Float[Array, "b n"]:
        """-log of every conditional at its place, from one pass; 0 where `known`.

        The sum over a sample is the negative logarithm of the joint probability of its hidden tokens, in nats.
        """
        order, prompt = rank_order(known)
        ranked = jnp.take_along_axis(ids, order, axis=1)
        ranks = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        logits = self.network.apply(
            model, ranked, order, prompt, ranks, ranks, cond["label"], dropout_key is None, rngs=rngs
        )
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ranked)
        return jnp.where(known, 0, jnp.take_along_axis(nll, jnp.argsort(order, axis=1), axis=1))

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: `bits_per_token` of whole images, exact, and of a random half given the other half."""
        ids, cond = batch["ids"], conditions.of_batch(batch)
        half = jnp.full(len(ids), max(ids.shape[1] // 2, 1))
        subsets = {
            "bits_per_token": jnp.ones(ids.shape, bool),
            "half_bits_per_token": random_positions(key, half, ids.shape[1]),
        }
        return {
            name: mean_over(self.token_nll(variables["model"], ids, ~hidden, cond), hidden) / np.log(2)
            for name, hidden in subsets.items()
        }

    @property
    def num_tokens(self) -> int:
        return self.network.num_tokens

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        return Tokens(ids=self.speculate(variables["model"], tokens.ids, known, cond, keys, options)[0])

    def speculate(
        self,
        model: Variables,
        ids: Int[Array, "b n"],
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
        """Completed ids, and the calls of the network that each sample needed by itself."""
        order, prompt = rank_order(known)
        conditionals = self.conditionals(model, order, prompt, cond, options)
        ranked = jnp.take_along_axis(ids, order, axis=1)
        ranked, calls = decoding.speculate(conditionals, ranked, prompt, keys, options.draft, options)
        return jnp.take_along_axis(ranked, jnp.argsort(order, axis=1), axis=1), calls

    def conditionals(
        self,
        model: Variables,
        order: Int[Array, "b n"],
        prompt: Int[Array, "b"],
        cond: Cond,
        options: Sampling,
    ) -> decoding.Conditionals:
        """Guided logits for `decoding.any_subset`; the guidance of a token is that of its rank."""
        net = self.network
        model = cast_weights(model, net.sizes.dtype)
        scales = lg.guidance_scales(options, net.num_tokens)
        label = cond["label"]
        if not lg.is_guided(scales):
            return lambda ids, ranks, seen: net.apply(model, ids, order, prompt, ranks, seen, label)
        label = conditions.doubled(cond, net.num_classes)["label"]
        table = jnp.asarray(scales)

        def guided(ids: Array, ranks: Array, seen: Array) -> Float[Array, "b k v"]:
            doubled = (jnp.concatenate([x, x]) for x in (ids, order, prompt, ranks, seen))
            given, null = jnp.split(net.apply(model, *doubled, label), 2)
            return jax.vmap(jax.vmap(lg.guide))(given, null, table[ranks])

        return guided

    def network_calls(self, options: Sampling) -> int:
        """Calls without a single draft accepted that might not be; `speculate` counts those of each sample."""
        return self.network.num_tokens


def rank_order(known: Bool[Array, "b n"]) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
    """Places in the order of ranks, known ones first and each kind in raster order; and how many are known."""
    return jnp.argsort(~known, axis=1, stable=True), jnp.sum(known, axis=1)


def build(config: Config, model: Model, task: Task) -> AnySubset:
    """The method for discrete raster tokens, conditional on the class."""
    tokens = task.discrete_tokens("any_subset", multiscale=False)
    network = any_subset.AnySubsetTransformer(model, tokens.vocab_size, tokens.grid, task.num_classes)
    return AnySubset(network, config)
