"""ARDiT's distillation: a masked or raster teacher over continuous tokens whose head draws a token in one call.

Some tokens of an image are given, the others hidden. The generator, a copy of the teacher, draws each hidden token from
noise by one call of its head, and descends an integral of divergences from the teacher's law of that token:

    q = w - v_G(w, 1),  x = (1 - t) q + t noise,    gradient in q = v_T(x, t) - v_S(x, t)

with the velocities v of straight paths given the same tokens. The score S, another copy, learns that of the generator's
samples. Sampling is the teacher's, with as many calls of the transformer and one of the head after each.

Reference: Liu et al., Autoregressive Diffusion Transformer for Text-to-Speech Synthesis, 2024. Differences: tokens are
given as in the teacher's training, in random order too; the regression on the teacher's own samples is left out.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import token_scores
from jaxar.diffusion.token_scores import Denoise, Draws
from jaxar.methods import _conditions as conditions
from jaxar.methods import _token_heads as heads
from jaxar.methods import mar
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Params, Variables


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: empty, both players have their teacher's sizes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      generator_every: the score is trained in every step, the generator in every so many.
      draws: times at which each token is looked at per update; they share one call of the transformer.
      times: between which they are drawn. Near 0 tokens are nearly clean, near 1 nothing is left of them.
      guidance_scale: of the teacher; its guided law is what the generator learns.
    """

    generator_every: int = 1
    draws: int = 4
    times: tuple[float, float] = (0.02, 0.98)
    guidance_scale: float = 1.0

    def __post_init__(self):
        for name in ("generator_every", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.times[0] < self.times[1] <= 1:
            raise ConfigError(f"method.times={self.times} must satisfy 0 < from < to <= 1")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section.

    Attributes:
      num_steps: calls of the transformer; as many as tokens reveal one after another.
      segments: pieces of the loop; the encoder of each reads as many tokens as that piece has revealed.
    """

    num_steps: int = 64
    segments: int = 4

    def __post_init__(self):
        for name in ("num_steps", "segments"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sample.{name}={getattr(self, name)} must be at least 1")

    def of_teacher(self) -> mar.Sampling:
        """The same, as the teacher's sampler says it."""
        return mar.Sampling(self.num_steps, heads.Steps(1), segments=self.segments)


class Made(NamedTuple):
    """A batch with some tokens hidden, what the generator makes of them, and random numbers to look at it.

    Attributes:
      values: the generator's tokens; those that are not hidden have no meaning.
    """

    tokens: Float[Array, "b n e"]
    hidden: Bool[Array, "b n"]
    cond: Cond
    values: Float[Array, "b n e"]
    draws: Draws


@dataclasses.dataclass(frozen=True)
class ARDiT(Method):
    """Generator and score, two networks like the teacher's."""

    teacher: mar.MAR
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        spec = next(iter(self.teacher.players().values()))
        return {"generator": spec, "score": dataclasses.replace(spec, ema=False)}

    def init(self, key: Key) -> dict[str, Variables]:
        keys = jax.random.split(key)
        return {name: self.teacher.init(k)["model"] for name, k in zip(("generator", "score"), keys, strict=True)}

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """Both players start as their teacher."""
        return dict.fromkeys(params, frozen["teacher"]["params"])

    def losses(self) -> tuple[LossSpec, ...]:
        return (
            LossSpec("score", self.score_loss, ("score",)),
            LossSpec("generator", self.generator_loss, ("generator",), every=self.config.generator_every),
        )

    def score_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Velocity matching on the generator's hidden tokens."""
        made = jax.lax.stop_gradient(self._make(variables, batch, key))
        x, t = token_scores.noised(made.values, made.draws), made.draws.t
        velocity = (x - self._denoiser(variables["score"], made)(x, t)) / t[..., None]
        errors = token_scores.velocity_error(velocity, made.values, made.draws)
        return mar.hidden_mean(errors.mean(axis=0), made.hidden), LossAux({})

    def generator_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """What has the gradient v_T - v_S in the generator's hidden tokens, mean over tokens and channels."""
        made = self._make(variables, batch, key)
        real, fake = self._denoised(variables, made)
        terms = token_scores.generator_terms(made.values, real, fake, divergence="kl") / made.draws.t
        return mar.hidden_mean(terms.mean(axis=0), made.hidden), LossAux({})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] over tokens hidden as in training: `gap`, mean square of D_T - D_S."""
        made = self._make(variables, batch, key)
        real, fake = self._denoised(variables, made)
        return {"gap": jax.vmap(mar.hidden_mean)(jnp.mean((real - fake) ** 2, axis=(0, 3)), made.hidden)}

    def _denoised(
        self, variables: dict[str, Variables], made: Made
    ) -> tuple[Float[Array, "m b n e"], Float[Array, "m b n e"]]:
        """D_T, guided, and D_S of the noised tokens."""
        x, t = token_scores.noised(made.values, made.draws), made.draws.t
        real, fake = (self._denoiser(variables[name], made)(x, t) for name in ("teacher", "score"))
        scale = self.config.guidance_scale
        if scale != 1:
            rows = jnp.ones(len(made.tokens), bool)
            null = made._replace(cond=conditions.nullify(made.cond, rows, self.teacher.network.num_classes))
            uncond = self._denoiser(variables["teacher"], null)(x, t)
            real = uncond + scale * (real - uncond)
        return real, fake

    def _make(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Made:
        hide_key, noise_key, draw_key = jax.random.split(key, 3)
        tokens, cond = self.teacher.tokens(batch["latents"]), conditions.of_batch(batch)
        hidden = self.teacher.hide(hide_key, len(tokens))
        noise = jax.random.normal(noise_key, tokens.shape)
        draws = token_scores.draw(draw_key, self.config.draws, tokens.shape, self.config.times)
        given = Made(tokens, hidden, cond, noise, draws)
        values = self._denoiser(variables["generator"], given)(noise[None], jnp.ones((1, *noise.shape[:2])))[0]
        return given._replace(values=values)

    def _denoiser(self, model: Variables, made: Made) -> Denoise:
        """The expectation of hidden tokens x - t v given the others, from the network with these variables."""
        z = self.teacher.vectors(model, made.tokens, ~made.hidden, made.cond, self.teacher.most_known)

        def denoise(x: Float[Array, "m b n e"], t: Float[Array, "m b n"]) -> Float[Array, "m b n e"]:
            each = jnp.broadcast_to(z, (*t.shape, z.shape[-1]))
            rows = (y.reshape(-1, y.shape[-1]) for y in (x, each))
            velocity = self.teacher.velocity(model, *rows, t.reshape(-1))
            return x - t[..., None] * velocity.reshape(x.shape)

        return denoise

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        return self.teacher.sample({"model": variables["generator"]}, cond, keys, options.of_teacher())

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        model = {"model": variables["generator"]}
        return self.teacher.complete(model, tokens, known, cond, keys, options.of_teacher())

    def network_calls(self, options: Sampling) -> int:
        """Calls of the transformer; each is followed by one of the head."""
        return options.num_steps


def build(config: Config, model: Model, task: Task) -> ARDiT:
    """The generator for the task's teacher.

    Raises:
      ConfigError: no teacher, or one without a head that learned velocities.
    """
    teacher = task.teacher
    if not isinstance(teacher, mar.MAR) or not isinstance(teacher.head, heads.Flow):
        raise ConfigError(
            "method.name='ardit' needs a teacher of the method mar with head 'flow' (configs/mar_digits.py:flow); name "
            "its workdir in teacher.from_"
        )
    return ARDiT(teacher, config)
