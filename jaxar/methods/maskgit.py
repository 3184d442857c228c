"""Masked generation of discrete tokens: all of them are predicted at once, and the most confident ones stay.

    loss = mean over masked i of -log p(x_i | x_known, c),    share of masked tokens gamma(r), r ~ U(0, 1)

Sampling starts from masks. Each of a few steps draws every masked token, and masks again the least confident ones, as
many as gamma asks for; the confidence is the logarithm of the drawn id's probability plus Gumbel noise that fades.
Guidance is not part of the paper; `label_drop` and `guidance_scale` switch it on. `model.multimodal` makes the network
Meissonic's, conditional on text where the task has text.

Reference: Chang et al., MaskGIT: Masked Generative Image Transformer, 2022, Sec. 3; Bai et al., Meissonic: Revitalizing
Masked Generative Transformers for Efficient High-Resolution Text-to-Image Synthesis, 2024.

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
from jaxar.methods._masked_tokens import MaskedTokens, mean_over, network, random_positions
from jaxar.methods._masked_tokens import Sampling as CommonSampling
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Task, mean_of_valid
from jaxar.models import bidirectional
from jaxar.models.multimodal import MultimodalTransformer, Options, check
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Variables


@dataclasses.dataclass(frozen=True)
class Model(bidirectional.Sizes):
    """The `model` section. `multimodal`: Meissonic's additions; None for the network of MaskGIT."""

    multimodal: Options | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.multimodal is not None:
            check(self, self.multimodal)


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      schedule: gamma, from which training draws the share of masked tokens.
      smoothing: share of the target that is spread over all codes.
      label_drop: share of conditions that training replaces by the null one; 0 for a model that is never guided.
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
class Sampling(CommonSampling):
    """The `sample` section.

    Attributes:
      num_steps: network calls.
      schedule: gamma, the share of tokens that are still masked after each step.
      choice_temperature: weight of the Gumbel noise on the confidence, fading linearly to 0 at the last step.
      sure_above: confident decoding: a step keeps all tokens of larger probability, if there are any, and sampling ends
        when nothing is masked; None keeps as many as the schedule says. (Yu et al., Dimple, 2025, use 0.95.)
    """

    num_steps: int = 8
    schedule: str = "cosine"
    choice_temperature: float = 4.5
    sure_above: float | None = None

    def __post_init__(self):
        super().__post_init__()
        mask_schedules.check(self.schedule, "sample.schedule")
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")
        if self.choice_temperature < 0:
            raise ConfigError(f"sample.choice_temperature={self.choice_temperature} must not be negative")
        if self.sure_above is not None and not 0 <= self.sure_above <= 1:
            raise ConfigError(f"sample.sure_above={self.sure_above} must lie in [0, 1]; None switches it off")
        if self.sure_above is not None and self.refresh_every is not None:
            raise ConfigError(
                f"sample.refresh_every={self.refresh_every} needs to know how many tokens are masked, which depends on "
                f"the draws with sure_above={self.sure_above}; set one of them to None"
            )

    def confidence_noise(self) -> np.ndarray:
        """Weight of the Gumbel noise in each step, float32 [num_steps]."""
        done = np.arange(1, self.num_steps + 1, dtype=np.float32) / np.float32(self.num_steps)
        return np.float32(self.choice_temperature) * (1 - done)


@dataclasses.dataclass(frozen=True)
class MaskGIT(MaskedTokens):
    """One network, one loss."""

    config: Config

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("masked_nll", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Smoothed cross-entropy in nats per masked token; samples whose "valid" entry is False do not count."""
        ratio_key, position_key, drop_key, dropout_key = jax.random.split(key, 4)
        net, ids = self.network, batch["ids"]
        known = ~random_positions(position_key, self.masked_counts(ratio_key, ids.shape[0]), net.num_tokens)
        cond = conditions.drop(self.conditions(batch), drop_key, self.config.label_drop, net.num_classes)
        logits = self.logits(variables["model"], ids, known, cond, deterministic=False, rngs={"dropout": dropout_key})
        targets = optax.smooth_labels(jax.nn.one_hot(ids, net.vocab_size), self.config.smoothing)
        nll = mean_over(optax.softmax_cross_entropy(logits, targets), ~known)
        return mean_of_valid(nll, batch), LossAux({})

    def masked_counts(self, key: Key, batch: int) -> Int[Array, "b"]:
        """Numbers of masked tokens for training: ceil(n gamma(r)) with r uniform, so at least 1."""
        num = self.network.num_tokens
        ratio = jax.random.uniform(key, (batch,), minval=1e-6, maxval=1.0)  # the logarithmic gamma is infinite at 0
        share = mask_schedules.masked_share(self.config.schedule, ratio, jnp.full(1, float(num)))
        return jnp.ceil(num * share).astype(jnp.int32)

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
        scales = lg.guidance_scales(options, options.num_steps)
        early = options.sure_above is not None
        law, memory = self.rules(variables["model"], cond, options, scales, unfiltered=early)
        remaining = masked.by_table(counts, known)
        keep = masked.most_confident(masked.at_least_one(remaining) if early else remaining, options.confidence_noise())
        if early:
            keep = masked.confident(keep, options.sure_above)
        segments = mask_schedules.segments(counts, options.pieces)
        state = masked.State(tokens.ids, known, memory)
        return Tokens(ids=masked.decode(law, state, keys, segments, keep=keep, stop_early=early).tokens)

    def network_calls(self, options: Sampling) -> int:
        """The most that a sample may need, if `sure_above` is set."""
        return options.num_steps


def build(config: Config, model: Model, task: Task) -> MaskGIT:
    """The method for discrete raster tokens, conditional on the class; on text, with `model.multimodal` and a task with
    text.

    Raises:
      ConfigError: the task has other tokens, or a map that does not divide into squares of 2x2 for `compress`.
    """
    if model.multimodal is None:
        return MaskGIT(network("maskgit", model, task), config)
    tokens = task.discrete_tokens("maskgit", multiscale=False)
    if model.multimodal.compress and (tokens.grid[0] % 2 or tokens.grid[1] % 2):
        raise ConfigError(
            f"model.multimodal.compress=True needs maps of even height and width, the tokenizer gives {tokens.grid}; "
            "set it to False"
        )
    condition = {"num_classes": task.num_classes}
    if task.text is not None:
        condition = {"text": (task.text.length, task.text.width)}
    net = MultimodalTransformer(model, model.multimodal, tokens.vocab_size, tokens.grid, **condition)
    return MaskGIT(net, config)
