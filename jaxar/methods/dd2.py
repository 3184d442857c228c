"""Distilled Decoding 2: one call of a generator draws all tokens, trained by matching conditional scores.

The generator turns noise into values q_1 .. q_n, of which q_i depends on the noise up to i. Two denoisers look at q_i
on the straight path to noise, given the tokens before it:

    D_T, the teacher's: its law p(. | q_<i) over codes is a Dirac mixture, whose denoiser has a closed form
    D_S, that of the generator's own law: a second network, the score

The score learns from what the generator makes, in every step; the generator descends the difference of both, in every
few steps (`diffusion.token_scores`). If the law of q_<i is right and both denoisers agree at i, the law of q_<=i is
right: one token after another, but all in the same step.

Before that, the score learns D_T itself on given tokens ("ground truth score"), and the generator starts as its copy.

Codes are divided by their root mean square: noise and tokens are of one size, whatever the tokenizer's.

Generator and score give a velocity v, and D = x - t v. With `mixture` the score starts, but for the teacher's guidance
and filters, as D_T: it keeps the teacher's head, and D is the mean of a Dirac mixture with these laws, less t v.

Reference: Liu et al., Distilled Decoding 2: One-step Sampling of Image Auto-regressive Models with Conditional Score
Distillation, 2025. Difference: what precedes a token enters teacher and score as the nearest codes, so that the teacher
is asked for what it knows; the law that is matched is that of these codes. The first stage may read tokens of data,
published are those of the teacher. Not published: `mixture`, and generators that are called before t = 1.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.diffusion import codebook, token_scores
from jaxar.diffusion.token_scores import Denoise, Draws
from jaxar.methods import ar, next_scale
from jaxar.methods._shared_weights import common
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Stage, Task
from jaxar.models import diffusion_head, token_denoiser
from jaxar.nn import quantize
from jaxar.tokenizers.base import Tokenizer, Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Params, Variables


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: the layers are the teacher's.

    Attributes:
      head: sizes of the head that denoises a token.
      mixture: what it gives corrects a Dirac mixture with the laws of the teacher's head, which is kept and trained.
    """

    head: diffusion_head.Sizes = diffusion_head.Sizes()  # noqa: RUF009 - frozen
    mixture: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      init_steps: of the first stage, in which the score learns the teacher's.
      generator_every: in the second stage the score is trained in every step, the generator in every so many.
      draws: times at which each token is looked at per update; they share one call of the layers.
      times: between which they are drawn. Near 0 tokens are nearly clean, near 1 nothing is left of them.
      divergence: "fisher", the published one, or "kl"; see `diffusion.token_scores`.
      alpha: of the first.
      call: time at which the generator is called: it takes noise of that size for a noised token. At 1, as published,
        the denoiser that it starts as sees nothing in it, and gives the same tokens for any noise.
      teacher: how the teacher decodes; guidance and filters are part of the law that the generator learns.
    """

    init_steps: int = 1000
    generator_every: int = 5
    draws: int = 4
    times: tuple[float, float] = (0.02, 0.98)
    divergence: token_scores.Divergence = "fisher"
    alpha: float = 1.0
    call: float = 1.0
    teacher: lg.Sampling = lg.Sampling()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if self.init_steps < 0:
            raise ConfigError(f"method.init_steps={self.init_steps} must be at least 0, which leaves the stage out")
        for name in ("generator_every", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.times[0] < self.times[1] <= 1:
            raise ConfigError(f"method.times={self.times} must satisfy 0 < from < to <= 1")
        if not 0 < self.call <= 1:
            raise ConfigError(f"method.call={self.call} must lie in (0, 1]; 1 is noise alone")
        if self.teacher.greedy:
            raise ConfigError("method.teacher.greedy=True leaves nothing to distil; use a temperature")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section: empty, one call makes all tokens."""


class Teacher(Protocol):
    """What is asked of a teacher: its laws of all tokens at once. `ar.AR` and `next_scale.NextScale` have it."""

    def log_laws(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], cond: Cond, options: Any
    ) -> Float[Array, "b n v"]:
        """See `ar.AR.log_laws`."""


@dataclasses.dataclass(frozen=True)
class DD2(Method):
    """Generator and score, two networks of one architecture; teacher and tokenizer are frozen."""

    network: token_denoiser.RasterDenoiser | token_denoiser.NextScaleDenoiser
    config: Config
    teacher: Teacher
    options: ar.Sampling | next_scale.Sampling
    tokenizer: Tokenizer

    def players(self) -> dict[str, PlayerSpec]:
        no_decay = ("class_embedding", "^(start|positions|levels)$", "velocity_head/")
        return {"generator": PlayerSpec(no_decay=no_decay), "score": PlayerSpec(ema=False, no_decay=no_decay)}

    def init(self, key: Key) -> dict[str, Variables]:
        generator_key, score_key = jax.random.split(key)
        spec, label = self.tokenizer.spec, jnp.zeros(1, jnp.int32)
        values, t = jnp.zeros((1, spec.num_tokens, spec.channels)), jnp.ones((1, 1, spec.num_tokens))
        inputs = values[:, spec.scale_lengths[0] :] if spec.multiscale else jnp.zeros(t.shape[1:], jnp.int32)
        return {
            "generator": self.network.init(generator_key, values, label, values[None], t, method="after_noise"),
            "score": self.network.init(score_key, inputs, label, values[None], t, method="after_tokens"),
        }

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """Both players start with every part that they share with the teacher."""
        taught = frozen["teacher"]["params"]
        return {name: {**own, **common(taught, own)} for name, own in params.items()}

    def losses(self) -> tuple[LossSpec, ...]:
        return (
            LossSpec("ground_truth_score", self.ground_truth_score_loss, ("score",)),
            LossSpec("score", self.score_loss, ("score",)),
            LossSpec("generator", self.generator_loss, ("generator",), every=self.config.generator_every),
        )

    def stages(self) -> tuple[Stage, ...]:
        distillation = ("score", "generator")
        if self.config.init_steps == 0:
            return (Stage("distillation", losses=distillation),)
        return (
            Stage("initialisation", losses=("ground_truth_score",)),
            Stage("distillation", self.config.init_steps, distillation, start_generator),
        )

    def ground_truth_score_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Squared error of the score's velocity, given the tokens of the batch, against the teacher's closed form.

        The noised tokens follow the teacher's law, whatever tokens come before.
        """
        token_key, draw_key = jax.random.split(key)
        ids, labels, codes = batch["ids"], batch["label"], self.codes(variables)
        laws = self._laws(variables, ids, labels)
        values = codes[jax.random.categorical(token_key, laws)]
        draws = token_scores.draw(draw_key, self.config.draws, values.shape, self.config.times)
        x = token_scores.noised(values, draws)
        gap = dirac_denoiser(codes, laws)(x, draws.t) - self._score(variables, ids, labels)(x, draws.t)
        return jnp.mean(jnp.square(gap / draws.t[..., None])), LossAux({})

    def score_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Velocity matching on what the generator makes, given the nearest codes of what it made before."""
        values, draws = self._make(variables, batch["label"], key)
        values = jax.lax.stop_gradient(values)
        ids = quantize.nearest(values, self.codes(variables))
        x = token_scores.noised(values, draws)
        velocity = (x - self._score(variables, ids, batch["label"])(x, draws.t)) / draws.t[..., None]
        return token_scores.velocity_error(velocity, values, draws).mean(), LossAux({})

    def generator_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """The generator's loss of `diffusion.token_scores`, mean over tokens."""
        values, draws = self._make(variables, batch["label"], key)
        teacher, score, _, _ = self.denoisers(variables, values, batch["label"])
        x = token_scores.noised(values, draws)
        real, fake = teacher(x, draws.t), score(x, draws.t)
        terms = token_scores.generator_terms(values, real, fake, self.config.alpha, self.config.divergence)
        return jnp.mean(token_scores.inverse_error(values, real) * terms), LossAux({})

    def denoisers(
        self, variables: dict[str, Variables], values: Float[Array, "b n e"], labels: Int[Array, "b"]
    ) -> tuple[Denoise, Denoise, Int[Array, "b n"], Float[Array, "b n v"]]:
        """D_T and D_S given what precedes each of the values; with their nearest codes and the teacher's laws.

        Ids carry no gradient: none reaches the tokens that are given.
        """
        codes = self.codes(variables)
        ids = quantize.nearest(values, codes)
        laws = self._laws(variables, ids, labels)
        return dirac_denoiser(codes, laws), self._score(variables, ids, labels), ids, laws

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] of new samples with the labels of the batch.

        `teacher_bits`: per token, of the sample under the teacher's laws; `entropy_bits`, of those laws themselves: the
        same for samples of the teacher; `impossible`: share of tokens that these laws exclude, and which `teacher_bits`
        leaves out. `code_error`: mean squared distance to the nearest codes. `gap`: mean square of
        D_T - D_S.
        """
        values, draws = self._make(variables, batch["label"], key)
        teacher, score, ids, laws = self.denoisers(variables, values, batch["label"])
        x = token_scores.noised(values, draws)
        log_probs = jax.nn.log_softmax(laws)
        surprise = -jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
        possible = surprise < jnp.inf  # filters of the teacher may leave no probability
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1, where=log_probs > -jnp.inf)
        return {
            "teacher_bits": jnp.mean(surprise, axis=1, where=possible) / np.log(2),
            "impossible": 1 - possible.mean(axis=1),
            "entropy_bits": entropy.mean(axis=1) / np.log(2),
            "code_error": jnp.mean(jnp.square(values - self.codes(variables)[ids]), axis=(1, 2)),
            "gap": jnp.mean(jnp.square(teacher(x, draws.t) - score(x, draws.t)), axis=(0, 2, 3)),
        }

    def _make(
        self, variables: dict[str, Variables], labels: Int[Array, "b"], key: Key
    ) -> tuple[Float[Array, "b n e"], Draws]:
        """New samples, and random numbers to look at them."""
        noise_key, draw_key = jax.random.split(key)
        noise = self.noise(jax.random.split(noise_key, len(labels)))
        draws = token_scores.draw(draw_key, self.config.draws, noise.shape, self.config.times)
        return self.generate(variables, noise, labels), draws

    def generate(
        self, variables: dict[str, Variables], noise: Float[Array, "b n e"], labels: Int[Array, "b"]
    ) -> Float[Array, "b n e"]:
        """What the generator makes of noise, in the units of `codes`."""
        t = jnp.full((1, *noise.shape[:2]), self.config.call)
        x = self.config.call * noise[None]
        found = self.network.apply(variables["generator"], noise, labels, x, t, method="after_noise")
        return self._denoised(variables, found, x, t)[0]

    def noise(self, keys: Keys) -> Float[Array, "b n e"]:
        """Normal noise for all tokens, from the key of each sample."""
        shape = (self.tokenizer.spec.num_tokens, self.tokenizer.spec.channels)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def codes(self, variables: dict[str, Variables]) -> Float[Array, "v e"]:
        """The tokenizer's codes, divided by their root mean square."""
        codes = self.tokenizer.codes(variables["tokenizer"]).astype(jnp.float32)
        return codes / jnp.sqrt(jnp.mean(jnp.square(codes)))

    def _laws(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], labels: Int[Array, "b"]
    ) -> Float[Array, "b n v"]:
        known = {"model": variables["teacher"], "tokenizer": variables["tokenizer"]}
        return jax.lax.stop_gradient(self.teacher.log_laws(known, ids, {"label": labels}, self.options))

    def _score(self, variables: dict[str, Variables], ids: Int[Array, "b n"], labels: Int[Array, "b"]) -> Denoise:
        """D_S given what precedes each of `ids`."""
        inputs = ids
        if self.tokenizer.spec.multiscale:
            inputs = self.tokenizer.teacher_input(variables["tokenizer"], ids)

        def denoise(x: Float[Array, "m b n e"], t: Float[Array, "m b n"]) -> Float[Array, "m b n e"]:
            found = self.network.apply(variables["score"], inputs, labels, x, t, method="after_tokens")
            return self._denoised(variables, found, x, t)

        return denoise

    def _denoised(
        self,
        variables: dict[str, Variables],
        found: token_denoiser.Outputs,
        x: Float[Array, "m b n e"],
        t: Float[Array, "m b n"],
    ) -> Float[Array, "m b n e"]:
        """D, from what a network says about noised tokens."""
        origin = x if found.logits is None else dirac_denoiser(self.codes(variables), found.logits)(x, t)
        return origin - t[..., None] * found.velocity

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        values = self.generate(variables, self.noise(keys), cond["label"])
        return Tokens(ids=quantize.nearest(values, self.codes(variables)))

    def network_calls(self, options: Sampling) -> int:
        return 1


def dirac_denoiser(codes: Float[Array, "v e"], laws: Float[Array, "b n v"]) -> Denoise:
    """The denoiser of tokens whose probabilities have these logarithms, up to a constant of each token."""

    def denoise(x: Float[Array, "m b n e"], t: Float[Array, "m b n"]) -> Float[Array, "m b n e"]:
        return codebook.denoise(x, t, codes, jnp.broadcast_to(laws, (*t.shape, laws.shape[-1])))

    return denoise


def start_generator(state: Any) -> Any:
    """The generator, and its averages, take over what they share with the score."""
    generator, score = state.players["generator"], state.players["score"]
    params = {**generator.params, **common(score.params, generator.params)}
    generator = generator.replace(params=params, emas=dict.fromkeys(generator.emas, params))
    return state.replace(players={**state.players, "generator": generator})


def build(config: Config, model: Model, task: Task) -> DD2:
    """The generator for the task's teacher.

    Raises:
      ConfigError: no teacher, or one of another kind.
    """
    teacher, spec = task.teacher, task.tokens
    chosen = dataclasses.asdict(config.teacher)
    own = dict(head_sizes=model.head, mixture=model.mixture)
    if isinstance(teacher, ar.AR) and teacher.network.text is None:
        net = teacher.network
        network = token_denoiser.RasterDenoiser(
            net.sizes, net.vocab_size, net.grid, net.num_classes, channels=spec.channels, **own
        )
        options = ar.Sampling(**chosen)
    elif type(teacher) is next_scale.NextScale:  # those derived from it see and draw other things
        net = teacher.network
        network = token_denoiser.NextScaleDenoiser(
            net.sizes,
            net.vocab_size,
            net.scale_lengths,
            net.channels,
            net.num_classes,
            scales=spec.scales,
            **own,
        )
        options = next_scale.Sampling(**chosen)
    else:
        raise ConfigError(
            "method.name='dd2' needs a class-conditional teacher of the methods ar or next_scale; name its workdir in "
            "teacher.from_"
        )
    return DD2(network, config, teacher, options, task.with_codes("dd2"))
