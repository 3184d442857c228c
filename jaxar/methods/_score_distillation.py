"""What methods share that distil a diffusion model by comparing scores on the noised samples of its student.

    x = G(z),    x_t = alpha(t) x + sigma(t) noise
    score of the student's law - teacher's score = alpha / sigma^2 (D_S - D_T)(x_t)

D_T is the frozen teacher's expectation of data. D_S is that of a second network, the score, which learns to denoise the
student's samples while the student, the generator G, learns from the difference. Everything is written with
expectations of data: they hold on every noise path and stay finite where scores do not.

A method states its loss as `terms`: numbers per sample. The score's denoising error is weighted as in the teacher's own
training; the papers' weights differ, what they are minimal at does not.

With several calls, the generator makes data at the first time in `Config.calls`, is given them again, noised to the
next time, and so on. Training does the same, so that its inputs have the law of those when sampling (Yin et al.,
Improved Distribution Matching Distillation for Fast Image Synthesis, 2024, Sec. 4.5): "backward simulation".
"""

import abc
import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _denoiser as denoisers
from jaxar.methods._shared_weights import taken_over
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Params, Variables

WHOLE = (1e-3, 1.0)  # times at which the score is trained, as shares; no noise at all would teach it nothing
_TINY = 1e-5
_AXES = (1, 2, 3)

Terms = dict[str, Float[Array, "b"]]


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: empty, the teacher says what its students are."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      calls: times at which the generator is called, falling, as shares of the teacher's times: 1 is noise alone.
      times: between which the generator is compared with the teacher, as such shares.
      generator_every: the score is trained in every step, the generator in every so many.
      guidance_scale: of the teacher.
    """

    calls: tuple[float, ...] = (1.0,)
    times: tuple[float, float] = (0.02, 0.98)
    generator_every: int = 1
    guidance_scale: float = 1.0

    def __post_init__(self):
        if not self.calls or list(self.calls) != sorted(set(self.calls), reverse=True):
            raise ConfigError(f"method.calls={self.calls} must fall, as in (1.0, 0.5)")
        if not all(0 < call <= 1 for call in self.calls):
            raise ConfigError(f"method.calls={self.calls} must lie in (0, 1]")
        if not 0 <= self.times[0] < self.times[1] <= 1:
            raise ConfigError(f"method.times={self.times} must satisfy 0 <= from < to <= 1")
        if self.generator_every < 1:
            raise ConfigError(f"method.generator_every={self.generator_every} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section. `steps`: calls of the generator, at most as many as `method.calls` has entries."""

    steps: int = 1

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"sample.steps={self.steps} must be at least 1")


class Draws(NamedTuple):
    """The random numbers of a loss.

    Attributes:
      starts: [k b h w c], noise of each call of the generator.
      call: [b], the call that is trained.
      share: [b], of the times that may be drawn.
      t: [b], the time at this share, at which both denoisers are asked.
      noise: [b h w c], what makes x_t of the generator's samples.
    """

    starts: Float[Array, "k b h w c"]
    call: Int[Array, "b"]
    share: Float[Array, "b"]
    t: Float[Array, "b"]
    noise: Float[Array, "b h w c"]


class Made(NamedTuple):
    """What the generator made of `draws`: samples x of what it was given, and x_t. Gradients flow back through both."""

    draws: Draws
    cond: Cond
    given: Float[Array, "b h w c"]
    x: Float[Array, "b h w c"]
    noised: Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class ScoreDistillation(Method):
    """Generator and score, and how they are called; both start as the teacher where it says that they may."""

    teacher: denoisers.Denoiser
    student: denoisers.Denoiser
    config: Any

    @abc.abstractmethod
    def terms(self, variables: dict[str, Variables], made: Made, key: Key) -> Terms:
        """Terms of the generator's loss, which is their sum, of each sample."""

    def players(self) -> dict[str, PlayerSpec]:
        return {"generator": PlayerSpec(), "score": PlayerSpec(ema=False)}

    def init(self, key: Key) -> dict[str, Variables]:
        keys = jax.random.split(key)
        return {name: self.student.init(k)["model"] for name, k in zip(("generator", "score"), keys, strict=True)}

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        own = frozen["teacher"]["params"]
        return params | {name: taken_over(params[name], own) for name in ("generator", "score")}

    def losses(self) -> tuple[LossSpec, ...]:
        return (
            LossSpec("score", self.score_loss, ("score",)),
            LossSpec("generator", self.generator_loss, ("generator",), every=self.config.generator_every),
        )

    def score_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Denoising of the generator's samples."""
        draw_key, key = jax.random.split(key)
        draws = self.draw(draw_key, batch, WHOLE)
        made = jax.lax.stop_gradient(self.make(variables["generator"], conditions.of_batch(batch), draws))
        return total(self.score_terms(variables, _sound(made), batch, key), batch, made.x)

    def score_terms(self, variables: dict[str, Variables], made: Made, batch: Batch, key: Key) -> Terms:
        """Terms of the score's loss, of each sample."""
        return {"denoising": self.denoising_errors(variables["score"], made)}

    def denoising_errors(self, score: Variables, made: Made) -> Float[Array, "b"]:
        """Mean squared error of D_S(x_t), weighted as the error of the teacher's training."""
        error = self.student.denoise(score, made.noised, made.draws.t, made.cond["label"]) - made.x
        return self.teacher.error_weight(made.draws.t) * jnp.mean(error**2, axis=_AXES)

    def generator_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """The sum of `terms`."""
        draw_key, key = jax.random.split(key)
        draws = self.draw(draw_key, batch, self.config.times)
        made = self.make(variables["generator"], conditions.of_batch(batch), draws)
        return total(self.terms(variables, made, key), batch, made.x)

    def draw(self, key: Key, batch: Batch, shares: tuple[float, float]) -> Draws:
        """Random numbers for a batch, with times between `shares`."""
        start_key, call_key, time_key, noise_key = jax.random.split(key, 4)
        shape, count = (len(batch["label"]), *self.student.canvas.shape), len(self.config.calls)
        call = jax.random.randint(call_key, shape[:1], 0, count)
        share = jax.random.uniform(time_key, shape[:1], minval=shares[0], maxval=shares[1])
        starts = jax.random.normal(start_key, (count, *shape))
        return Draws(starts, call, share, self.time(share, call), jax.random.normal(noise_key, shape))

    def time(self, share: Any, call: Int[Array, "b"]) -> Float[Array, "b"]:
        """The time at which a sample of this call is looked at, for a share in [0, 1]."""
        return self.teacher.time_at(share)

    def make(self, generator: Variables, cond: Cond, draws: Draws) -> Made:
        """The generator's samples, and the same noised."""
        given, t = self.given(generator, cond, draws.starts, draws.call)
        x = isolated(self.student.denoise(generator, given, t, cond["label"]))
        return Made(draws, cond, given, x, self.noised(x, given, draws))

    def noised(self, x: Array, given: Array, draws: Draws) -> Float[Array, "b h w c"]:
        """x_t of the generator's samples `x`, which it made of `given`."""
        return paths.add_noise(self.teacher.path(draws.t), x, draws.noise)

    def given(
        self, generator: Variables, cond: Cond, starts: Float[Array, "k b h w c"], call: Int[Array, "b"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b"]]:
        """What the generator is given in its call number `call`, and the time of that call; no gradient goes back."""
        times = jnp.asarray([self.teacher.time_at(share) for share in self.config.calls])
        x = self.teacher.path(jnp.full(call.shape, times[0])).like(starts[0]).sigma * starts[0]
        for i in range(len(starts) - 1):
            begin, end = (jnp.full(call.shape, t) for t in times[i : i + 2])
            denoised = self.student.denoise(generator, x, begin, cond["label"])
            x = jnp.where((i < call)[:, None, None, None], self.onward(x, denoised, begin, end, starts[i + 1]), x)
        return jax.lax.stop_gradient(x), times[call]

    def onward(self, x: Array, denoised: Array, begin: Array, end: Array, noise: Array) -> Float[Array, "b h w c"]:
        """From one call of the generator, at x, to the input of the next: its estimate of data, noised anew."""
        return paths.add_noise(self.teacher.path(end), denoised, noise)

    def denoised(
        self, variables: dict[str, Variables], made: Made
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """D_T and D_S at x_t, as the generator's loss sees them."""
        return self.teacher_denoised(variables["teacher"], made), self.score_denoised(variables["score"], made)

    def teacher_denoised(self, teacher: Variables, made: Made) -> Float[Array, "b h w c"]:
        """D_T at x_t, guided."""
        guidance = canvases.Guidance(self.config.guidance_scale)
        return denoisers.guided(self.teacher, teacher, made.cond, guidance)(made.noised, made.draws.t)

    def score_denoised(self, score: Variables, made: Made) -> Float[Array, "b h w c"]:
        """D_S at x_t."""
        return self.student.denoise(score, made.noised, made.draws.t, made.cond["label"])

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] of new samples: "gap", mean square of D_S - D_T, and "denoising", the score's weighted error."""
        draws = self.draw(key, batch, self.config.times)
        made = self.make(variables["generator"], conditions.of_batch(batch), draws)
        real, fake = self.denoised(variables, made)
        errors = self.denoising_errors(variables["score"], made)
        return {"gap": jnp.mean((fake - real) ** 2, axis=_AXES), "denoising": errors}

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        self.network_calls(options)
        starts = jnp.stack([denoisers.noise_of(self.student, keys, i) for i in range(options.steps)])
        last = jnp.full(len(keys), options.steps - 1)
        given, t = self.given(variables["generator"], cond, starts, last)
        return self.student.canvas.tokens(self.student.denoise(variables["generator"], given, t, cond["label"]))

    def network_calls(self, options: Sampling) -> int:
        if options.steps > len(self.config.calls):
            raise ConfigError(
                f"sample.steps={options.steps} must be at most {len(self.config.calls)}, as many calls as the "
                f"generator was trained with: method.calls={self.config.calls}"
            )
        return options.steps

    @classmethod
    def of_task(cls, config: Any, task: Task, name: str, **parts: Any) -> Self:
        """The method for the task's teacher.

        Raises:
          ConfigError: no teacher, or one that does not denoise.
        """
        teacher = denoisers.of_teacher(task, name)
        return cls(teacher, teacher.student(), config, **parts)


def surrogate(x: Float[Array, "b h w c"], gradient: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """|x - stopped(x - gradient)|^2 / 2, mean over the map: its gradient in x is `gradient`."""
    target = jax.lax.stop_gradient(x - gradient)
    return 0.5 * jnp.mean((x - target) ** 2, axis=_AXES)


def inverse_error(x: Float[Array, "b h w c"], real: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 1"]:
    """DMD's weight 1 / mean |x - D_T|, which evens out how large differences are at different times; no gradient."""
    return jax.lax.stop_gradient(1 / jnp.maximum(jnp.mean(jnp.abs(x - real), axis=_AXES, keepdims=True), _TINY))


def score_identity(
    x: Float[Array, "b h w c"], real: Float[Array, "b h w c"], fake: Float[Array, "b h w c"], alpha: float
) -> Float[Array, "b"]:
    """SiD's estimate of the squared distance of the scores: (D_T - D_S)((D_T - x) - alpha (D_T - D_S)), mean."""
    gap = real - fake
    return jnp.mean(gap * ((real - x) - alpha * gap), axis=_AXES)


def detached(made: Made) -> Made:
    """The same without gradient through x_t: for losses whose gradient in x is given in closed form."""
    return made._replace(noised=jax.lax.stop_gradient(made.noised))


def total(terms: Terms, batch: Batch, x: Float[Array, "b h w c"]) -> tuple[Float[Array, ""], LossAux]:
    """Means of the terms over valid samples, and their sum; samples that are not finite count as 0.

    Args:
      x: what the terms were computed from.
    """
    valid = batch.get("valid", jnp.ones(len(x), bool))
    sound = _finite(x)
    means = {}
    for name, values in terms.items():
        counted = jnp.where(valid.astype(bool) & sound & jnp.isfinite(values), values, 0)
        means[name] = jnp.sum(counted) / jnp.maximum(jnp.sum(valid), 1)
    return sum(means.values()), LossAux(means)


@jax.custom_vjp
def isolated(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """x; a sample whose gradient is not finite gets none, and does not spoil that of the others."""
    return x


def _kept(_: None, gradient: Array) -> tuple[Array]:
    return (jnp.where(_finite(gradient)[:, None, None, None], gradient, 0),)


isolated.defvjp(lambda x: (x, None), _kept)


def _sound(made: Made) -> Made:
    """Zeros in place of samples that are not finite: the gradient of a network at those is not, whatever its weight."""
    sound = _finite(made.x)[:, None, None, None]
    return made._replace(**{name: jnp.where(sound, getattr(made, name), 0) for name in ("given", "x", "noised")})


def _finite(x: Array) -> Bool[Array, "b"]:
    return jnp.all(jnp.isfinite(x), axis=_AXES)
