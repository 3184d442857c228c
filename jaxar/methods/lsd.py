"""Learnt few-step samplers of masked diffusion: coefficients (LSD), and times too (LSD+), of a frozen network.

In step i of K the student reveals every masked token with some probability, and draws it from the network's logits f at
the start of the step:

    q_i(x_j | x) = softmax(c_i f_j(x)),    c_i trained from 1

LSD+ also trains the probabilities, which says when the K steps take place. The network does not know the time, so a
factor on the rate of revealing would be another way to write this; the coefficients scale its output.

The teacher reveals one token after another, in the same order. Every prediction of the student is compared with the one
that the teacher makes later, when it knows what the student has drawn before token j:

    loss = 1/n E sum over j of KL(q_i(x_j | x at the start of the step) || p(x_j | all tokens before j)),  tokens from q

Given order and times the sum is the divergence of the student's law of all tokens from the teacher's; the mean over
orders and times bounds that of the sampled laws (KL is convex in both). It is 0 for one token per step. Gradients are
unbiased: where draws and times enter by which tokens are known, they come from the score function, with the mean of the
other samples as the baseline.

Other distances would not do. Predictions for the same tokens agree at c = 1. And in the other direction, if the network
has the conditionals of a joint law p,

    KL(p || q) = sum over steps of E_p [ KL(p(x_step | x) || product of p(x_j | x)) + sum over j of KL(p_j || q_ij) ],

whose first term has no coefficient in it and whose second is 0 at c = 1: no coefficient helps, whatever the times. The
direction taken here punishes tokens that do not go together, which sharper predictions (c > 1) avoid.

Reference: Fu et al., Learnable Sampler Distillation for Discrete Diffusion Models, 2025. Differences: masked diffusion
with exact steps for Euler steps of a score; the distance above, because theirs compares predictions of equal times; the
teacher sees the student's own tokens, for starts at a small Hamming distance.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.diffusion import masking
from jaxar.methods import mdm
from jaxar.methods._masked_tokens import Completer
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Task, mean_of_valid
from jaxar.partition import logical
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Params, Variables


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: empty, all that is trained are a few numbers per step."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      num_steps: K, of the student.
      learn_times: LSD+.
      schedule: "linear", "cosine" or "polyX", whose masked shares at K equal steps of time the student starts with.
      teacher: how the teacher decodes; guidance and temperature are part of the law that the student learns, and of the
        logits that its coefficients scale.
    """

    num_steps: int = 4
    learn_times: bool = False
    schedule: str = "cosine"
    teacher: lg.Sampling = lg.Sampling()  # noqa: RUF009 - frozen

    def __post_init__(self):
        masking.check(self.schedule, "method.schedule")
        if self.num_steps < 1:
            raise ConfigError(f"method.num_steps={self.num_steps} must be at least 1")
        if self.learn_times and self.num_steps == 1:
            raise ConfigError("method.learn_times=True needs method.num_steps of at least 2; one step has no time")
        if self.teacher.greedy or self.teacher.top_k is not None or self.teacher.top_p is not None:
            raise ConfigError(
                "method.teacher must leave every token possible, or the divergence is infinite; use temperature in "
                "place of greedy, top_k and top_p"
            )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section: empty, number of steps and guidance are those of training."""


class Trace(NamedTuple):
    """A batch of the student's samples, tokens in the order in which they were revealed.

    Attributes:
      kl: divergence of each token's prediction from the teacher's, in nats.
      log_prob: of each token under the student's law.
      log_share: logarithm of the share of tokens that the step of each token reveals.
    """

    kl: Float[Array, "b n"]
    log_prob: Float[Array, "b n"]
    log_share: Float[Array, "b n"]


@dataclasses.dataclass(frozen=True)
class LSD(Completer):
    """The numbers are the only player; the network is the teacher's."""

    teacher: mdm.MDM
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        count = self.config.num_steps
        params = {"coefficients": logical(jax.nn.initializers.ones, None)(key, (count,))}
        if self.config.learn_times:
            params["log_odds"] = logical(jax.nn.initializers.zeros, None)(key, (count - 1,))
        return {"model": {"params": params}}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("kl", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """The divergence in nats per token; samples whose "valid" entry is False do not count."""
        trace = self.trace(variables, batch["label"], jax.random.split(key, len(batch["label"])))
        total = jnp.sum(trace.kl, axis=1)
        later = jnp.cumsum(trace.kl[:, ::-1], axis=1)[:, ::-1] - trace.kl
        score = jnp.sum(trace.log_prob * _above_others(later), axis=1)
        score += jnp.sum(trace.log_share, axis=1) * _above_others(total)
        per_token = (total + score - jax.lax.stop_gradient(score)) / trace.kl.shape[1]
        return mean_of_valid(per_token, batch), LossAux({})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: `kl`, the loss, and `kl_untrained`, of all coefficients 1 and the schedule's times."""
        keys = jax.random.split(key, len(batch["label"]))
        fresh = jax.tree.map(jnp.zeros_like, variables["model"]["params"])
        untrained = {**variables, "model": {"params": {**fresh, "coefficients": fresh["coefficients"] + 1}}}
        traces = {"kl": variables, "kl_untrained": untrained}
        return {name: jnp.mean(self.trace(v, batch["label"], keys).kl, axis=1) for name, v in traces.items()}

    def trace(self, variables: dict[str, Variables], label: Int[Array, "b"], keys: Keys) -> Trace:
        """Samples of the student, differentiable as far as the tokens are given."""
        params, net, options = variables["model"]["params"], self.teacher.network, self.config.teacher
        cond, shape = {"label": label}, (len(label), net.num_tokens)
        nothing = masked.State(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros((*shape, net.vocab_size)))
        state, priority = self._decode(jax.lax.stop_gradient(params), variables["teacher"], nothing, cond, keys)
        order = jnp.argsort(-priority, axis=1, stable=True)
        levels = self.levels(params)
        steps = masked.steps_at(priority, levels)
        scaled = params["coefficients"][steps][..., None] * state.extra
        log_q = jax.nn.log_softmax(lg.filtered(scaled, options))
        taught = self._one_by_one(variables["teacher"], state.tokens, cond, order)
        log_p = jax.nn.log_softmax(lg.filtered(taught, options))
        shares = -jnp.diff(levels, prepend=1.0)
        figures = Trace(
            jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1),
            jnp.take_along_axis(log_q, state.tokens[..., None], axis=-1)[..., 0],
            jnp.log(shares)[steps],
        )
        return Trace(*(jnp.take_along_axis(figure, order, axis=1) for figure in figures))

    def levels(self, params: Params) -> Float[Array, "k"]:
        """Shares of tokens that are masked after each step."""
        times = 1 - np.arange(1, self.config.num_steps + 1) / self.config.num_steps
        levels = masking.masked_share(self.config.schedule, times)
        return masking.with_odds(levels, params["log_odds"]) if self.config.learn_times else jnp.asarray(levels)

    @property
    def num_tokens(self) -> int:
        return self.teacher.network.num_tokens

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        start = masked.State(tokens.ids, known)
        return Tokens(ids=self._decode(variables["model"]["params"], variables["teacher"], start, cond, keys)[0].tokens)

    def _decode(
        self, params: Params, teacher: Variables, start: masked.State, cond: Cond, keys: Keys
    ) -> tuple[masked.State, Float[Array, "b n"]]:
        """The student's sampler, and the priorities by which it reveals tokens.

        Where the state has an `extra`, it becomes the teacher's logits [b n v] at the draw of each token.
        """
        net, options = self.teacher.network, self.config.teacher
        calls = self.network_calls(Sampling())
        levels, priority = self.levels(params), masked.random_priority(keys, net.num_tokens)
        factors = params["coefficients"][masked.steps_at(priority, levels)][..., None]
        predict = self.teacher.predictor(teacher, cond, lg.guidance_scales(options, calls))

        def scaled(
            state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
        ) -> tuple[Float[Array, "b n v"], Any]:
            logits, _ = predict(state._replace(extra=None), step, segment)
            seen = None if state.extra is None else jnp.where(state.known[..., None], state.extra, logits)
            return factors * logits, seen

        law = masked.token_law(scaled, options, exact=True)
        segments = (mask_schedules.unbounded(calls, net.num_tokens),)
        choose = masked.at_levels(priority, levels, start.known)
        return masked.decode(law, start, keys, segments, choose), priority

    def _one_by_one(
        self, teacher: Variables, ids: Int[Array, "b n"], cond: Cond, order: Int[Array, "b n"]
    ) -> Float[Array, "b n v"]:
        """The teacher's logits of each token given those before it in the order."""
        net, turn = self.teacher.network, jnp.argsort(order, axis=1)
        predict = self.teacher.predictor(teacher, cond, lg.guidance_scales(self.config.teacher, net.num_tokens))
        segment = mask_schedules.unbounded(net.num_tokens, net.num_tokens)

        def step(seen: Float[Array, "b n v"], i: Int[Array, ""]) -> tuple[Float[Array, "b n v"], None]:
            logits, _ = predict(masked.State(ids, turn < i), i, segment)
            return jnp.where((turn == i)[..., None], logits, seen), None

        nothing = jnp.zeros((*ids.shape, net.vocab_size))
        return jax.lax.scan(step, nothing, jnp.arange(net.num_tokens))[0]

    def network_calls(self, options: Sampling) -> int:
        return min(self.config.num_steps, self.teacher.network.num_tokens)


def _above_others(values: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """Each value less the mean of the other samples, as a constant."""
    others = (jnp.sum(values, axis=0) - values) / max(len(values) - 1, 1)
    return jax.lax.stop_gradient(values - others)


def build(config: Config, model: Model, task: Task) -> LSD:
    """The few-step sampler of the masked diffusion of `teacher.from_`.

    Raises:
      ConfigError: no teacher, or one of another method.
    """
    if not isinstance(task.teacher, mdm.MDM):
        raise ConfigError("method.name='lsd' needs teacher.from_, the workdir of an mdm run")
    return LSD(task.teacher, config)
