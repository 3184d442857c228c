"""Masked diffusion of discrete tokens, time-agnostic: a bound on the likelihood that is trained and sampled from.

    -log p(x) <= n E_(m ~ U{1..n}) E_(m masked at random) mean over masked i of -log p(x_i | x_known, c)

The right side is the evidence bound of a process that hides every token at a random time, with the time integrated out;
the network need not know it. It is also the mean, over all orders, of the log-likelihood of drawing one token after
another. Sampling turns the process around. The first-hitting sampler goes from one revealed token to the next, with a
call of the network for each. The ancestral sampler moves through a grid of times, and several tokens of one interval
are drawn independently. Whether a token is revealed and which it is are drawn apart, and the latter from enough random
bits: one draw of both in float32 would lower the probability of everything rare.

Reference: Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024; Shi et al., Simplified and
Generalized Masked Diffusion for Discrete Data, 2024; Zheng et al., Masked Diffusion Models are Secretly Time-Agnostic
Masked Models and Exploit Inaccurate Categorical Sampling, 2024.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.diffusion import masking
from jaxar.methods import _conditions as conditions
from jaxar.methods._masked_tokens import MaskedTokens, network, random_positions
from jaxar.methods._masked_tokens import Sampling as CommonSampling
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Task, mean_of_valid
from jaxar.models import bidirectional
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Variables

Model = bidirectional.Sizes
_FIRST_TIME = 1e-4  # times are not drawn below it, where the weight has no bound


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      process: what training draws. "count": the number of masked tokens, uniformly from 1 to all (the time is
        integrated out). "linear", "cosine" or "polyX": a time, and every token's mask by itself, as `diffusion.masking`
        says. The expected loss is the same, its variance is not.
      label_drop: share of labels that training replaces by the null one; 0 for a model that is never guided.
    """

    process: str = "count"
    label_drop: float = 0.1

    def __post_init__(self):
        if self.process != "count":
            masking.check(self.process, "method.process")
        if not 0 <= self.label_drop <= 1:
            raise ConfigError(f"method.label_drop={self.label_drop} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling(CommonSampling):
    """The `sample` section.

    Attributes:
      num_steps: times of the ancestral sampler's grid; None for the first-hitting sampler. The network is called once
        for every time at which something changes.
      schedule: of the process, "linear", "cosine" or "polyX"; the first-hitting sampler's law does not depend on it.
    """

    num_steps: int | None = None
    schedule: str = "cosine"

    def __post_init__(self):
        super().__post_init__()
        masking.check(self.schedule, "sample.schedule")
        if self.num_steps is not None and self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1; None reveals one token per call")
        if self.num_steps is not None and self.refresh_every is not None:
            raise ConfigError(
                f"sample.refresh_every={self.refresh_every} needs to know how many tokens are masked, which is random "
                f"with num_steps={self.num_steps}; set one of them to None"
            )


@dataclasses.dataclass(frozen=True)
class MDM(MaskedTokens):
    """One network, one loss."""

    config: Config

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("bound", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """An unbiased estimate of the bound in nats per token; samples whose "valid" entry is False do not count."""
        hide_key, drop_key, dropout_key = jax.random.split(key, 3)
        net, ids = self.network, batch["ids"]
        hidden, weight = self.hide(hide_key, len(ids))
        cond = conditions.drop({"label": batch["label"]}, drop_key, self.config.label_drop, net.num_classes)
        logits = net.apply(
            variables["model"], ids, ~hidden, cond["label"], deterministic=False, rngs={"dropout": dropout_key}
        )
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return mean_of_valid(weight * jnp.sum(nll * hidden, axis=1), batch), LossAux({})

    def hide(self, key: Key, batch: int) -> tuple[Bool[Array, "b n"], Float[Array, "b"]]:
        """Masked tokens, and the weight that makes the sum over them an estimate of the bound per token.

        The times of a batch are spread evenly: (u + i / b) mod 1.
        """
        time_key, position_key = jax.random.split(key)
        n, process = self.network.num_tokens, self.config.process
        t = (jax.random.uniform(time_key) + jnp.arange(batch) / batch) % 1
        if process == "count":
            count = 1 + jnp.minimum(jnp.floor(n * t), n - 1).astype(jnp.int32)
            return random_positions(position_key, count, n), 1 / count
        t = jnp.maximum(t, _FIRST_TIME)
        hidden = jax.random.uniform(position_key, (batch, n)) < masking.masked_share(process, t)[:, None]
        return hidden, masking.weight(process, t) / n

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        calls, n = self.network_calls(options), self.network.num_tokens
        scales = lg.guidance_scales(options, calls)
        law, memory = self.rules(variables["model"], cond, options, scales, exact=True)
        priority = masked.random_priority(keys, n)
        if options.num_steps is None:
            counts = mask_schedules.one_by_one(n)
            choose = masked.next_in_order(priority, masked.by_table(counts, known))
            segments = mask_schedules.segments(counts, options.pieces)
        else:
            times = 1 - np.arange(1, options.num_steps + 1) / options.num_steps
            choose = masked.at_levels(priority, masking.masked_share(options.schedule, times), known)
            segments = (mask_schedules.unbounded(calls, n),)
        return Tokens(ids=masked.decode(law, masked.State(tokens.ids, known, memory), keys, segments, choose).tokens)

    def network_calls(self, options: Sampling) -> int:
        return min(options.num_steps or self.network.num_tokens, self.network.num_tokens)


def build(config: Config, model: Model, task: Task) -> MDM:
    """The method for discrete raster tokens, conditional on the class."""
    return MDM(network("mdm", model, task), config)
