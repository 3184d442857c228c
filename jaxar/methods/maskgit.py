"""Masked generation of discrete tokens: all of them are predicted at once, and the most confident ones stay.

    loss = mean over masked i of -log p(x_i | x_known, c),    share of masked tokens gamma(r), r ~ U(0, 1)

Sampling starts from masks. Each of a few steps draws every masked token, and masks again the least confident ones, as
many as gamma asks for; the confidence is the logarithm of the drawn id's probability plus Gumbel noise that fades.
Guidance is not part of the paper; `label_drop` and `guidance_scale` switch it on.

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3.

Golden: maskgit_d2
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.methods import _conditions as conditions
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.models import bidirectional
from jaxar.nn.layers import cast_weights
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables

Model = bidirectional.Sizes


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      schedule: gamma, from which training draws the share of masked tokens.
      smoothing: share of the target that is spread over all codes.
      label_drop: share of labels that training replaces by the null one; 0 for a model that is never guided.
    """

    schedule: str = "cosine"
    smoothing: float = 0.1
    label_drop: float = 0.1

    def __post_init__(self):
        mask_schedules.check(self.schedule, "method.schedule")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"method.smoothing={self.smoothing} must lie in [0, 1)")
        if not 0 <= self.label_drop <= 1:
            raise ConfigError(f"method.label_drop={self.label_drop} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling(lg.Sampling):
    """The `sample` section.

    Attributes:
      num_steps: network calls.
      schedule: gamma, the share of tokens that are still masked after each step.
      choice_temperature: weight of the Gumbel noise on the confidence, fading linearly to 0 at the last step.
    """

    num_steps: int = 8
    schedule: str = "cosine"
    choice_temperature: float = 4.5

    def __post_init__(self):
        super().__post_init__()
        mask_schedules.check(self.schedule, "sample.schedule")
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")
        if self.choice_temperature < 0:
            raise ConfigError(f"sample.choice_temperature={self.choice_temperature} must not be negative")

    def confidence_noise(self) -> np.ndarray:
        """Weight of the Gumbel noise in each step, float32 [num_steps]."""
        done = np.arange(1, self.num_steps + 1, dtype=np.float32) / np.float32(self.num_steps)
        return np.float32(self.choice_temperature) * (1 - done)


@dataclasses.dataclass(frozen=True)
class MaskGIT(Method):
    """One network, one loss."""

    network: bidirectional.BidirectionalTransformer
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        ids = jnp.zeros((1, self.network.num_tokens), jnp.int32)
        return {"model": self.network.init(key, ids, ids > 0, ids[:, 0])}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("masked_nll", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Smoothed cross-entropy in nats per masked token; samples whose "valid" entry is False do not count."""
        ratio_key, position_key, drop_key, dropout_key = jax.random.split(key, 4)
        net, ids = self.network, batch["ids"]
        known = ~random_positions(position_key, self.masked_counts(ratio_key, ids.shape[0]), net.num_tokens)
        cond = conditions.drop({"label": batch["label"]}, drop_key, self.config.label_drop, net.num_classes)
        logits = net.apply(
            variables["model"], ids, known, cond["label"], deterministic=False, rngs={"dropout": dropout_key}
        )
        targets = optax.smooth_labels(jax.nn.one_hot(ids, net.vocab_size), self.config.smoothing)
        nll = mean_over(optax.softmax_cross_entropy(logits, targets), ~known)
        valid = batch.get("valid", jnp.ones(nll.shape)).astype(nll.dtype)
        return jnp.sum(nll * valid) / jnp.maximum(jnp.sum(valid), 1), LossAux({})

    def masked_counts(self, key: Key, batch: int) -> Int[Array, "b"]:
        """Numbers of masked tokens for training: ceil(n gamma(r)) with r uniform, so at least 1."""
        num = self.network.num_tokens
        ratio = jax.random.uniform(key, (batch,), minval=1e-6, maxval=1.0)  # the logarithmic gamma is infinite at 0
        share = mask_schedules.masked_share(self.config.schedule, ratio, jnp.full(1, float(num)))
        return jnp.ceil(num * share).astype(jnp.int32)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] over masked tokens, of which there are 1 to all, each number as likely.

        `bits_per_token` is then an unbiased estimate of a bound: on average it is at least the negative log-likelihood
        per token of drawing one token after another in random order (Jensen). `accuracy` is the share of masked tokens
        whose largest logit is right.

        Reference: Uria et al., A Deep and Tractable Density Estimator, 2014, Eq. 9.
        """
        count_key, position_key = jax.random.split(key)
        net, ids = self.network, batch["ids"]
        counts = jax.random.randint(count_key, ids.shape[:1], 1, net.num_tokens + 1)
        hidden = random_positions(position_key, counts, net.num_tokens)
        logits = net.apply(variables["model"], ids, ~hidden, batch["label"])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return {
            "bits_per_token": mean_over(nll, hidden) / np.log(2),
            "accuracy": mean_over((jnp.argmax(logits, axis=-1) == ids).astype(nll.dtype), hidden),
        }

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        ids = jnp.zeros((keys.shape[0], self.network.num_tokens), jnp.int32)
        return self.complete(variables, Tokens(ids=ids), jnp.zeros(ids.shape, bool), cond, keys, options)

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        counts = mask_schedules.masked_counts(options.schedule, options.num_steps, self.network.num_tokens)
        law = masked.token_law(self.predictor(variables["model"], cond, options), options)
        keep = masked.most_confident(masked.by_table(counts, known), options.confidence_noise())
        state = masked.State(tokens.ids, known)
        state = masked.decode(law, state, keys, mask_schedules.segments(counts, 1), keep=keep)
        return Tokens(ids=state.tokens)

    def predictor(self, variables: Variables, cond: Cond, options: Sampling) -> masked.Predict:
        """Guided logits for `decoding.masked.token_law`."""
        net = self.network
        variables = cast_weights(variables, net.sizes.dtype)
        scales = lg.guidance_scales(options, options.num_steps)
        label = cond["label"]
        if lg.is_guided(scales):
            label = conditions.doubled({"label": label}, net.num_classes)["label"]

        def predict(
            state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
        ) -> tuple[Float[Array, "b n v"], None]:
            return net.apply(variables, state.tokens, state.known, label), None

        return masked.guided(predict, scales)

    def network_calls(self, options: Sampling) -> int:
        return options.num_steps


def random_positions(key: Key, counts: Int[Array, "b"], num_tokens: int) -> Bool[Array, "b n"]:
    """Marks as many positions of each row as `counts` says, all subsets of that size being as likely."""
    return masked.largest(jax.random.uniform(key, (counts.shape[0], num_tokens)), counts)


def mean_over(values: Float[Array, "b n"], marked: Bool[Array, "b n"]) -> Float[Array, "b"]:
    """Mean of each row over its marked entries, of which there must be one."""
    return jnp.sum(jnp.where(marked, values, 0), axis=1) / jnp.sum(marked, axis=1)


def build(config: Config, model: Model, task: Task) -> MaskGIT:
    """The method for discrete raster tokens, conditional on the class."""
    tokens = task.discrete_tokens("maskgit", multiscale=False)
    network = bidirectional.BidirectionalTransformer(model, tokens.vocab_size, tokens.grid, task.num_classes)
    return MaskGIT(network, config)
