"""Trajectory distribution matching: a few-step student whose law on each stretch of the path is its teacher's.

The generator goes from call to call without new noise: from its estimate x of data and the noise that x leaves of its
input. On the stretch from time b of a call to time e of the next (0 after the last),

    x_e = alpha_e x + sigma_e (input - alpha_b x) / sigma_b
    x_t = r x_e + s n,    r = alpha_t / alpha_e,  s^2 = sigma_t^2 - r^2 sigma_e^2,  n drawn,  e < t < b
    gradient in x = (D_S - D_T)(x_t) / mean |x - D_T|

The score learns the law of x_t, by denoising n: a D for which the score (alpha_t D - x_t) / sigma_t^2 is -n / s. With
one call, which ends in data, all this is DMD.

Reference: Luo et al., Learning Few-Step Diffusion Models by Trajectory Distribution Matching, 2025. The published code
regresses on x and corrects by an approximate importance weight that x_t is not x plus independent noise; denoising n
needs no correction.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from jaxar.diffusion import paths
from jaxar.methods import _score_distillation as distillation
from jaxar.methods.base import Task
from jaxar.typing import Array, Float, Int, Key, Variables

Model, Sampling = distillation.Model, distillation.Sampling


@dataclasses.dataclass(frozen=True)
class Config(distillation.Config):
    """The `method` section. `times`: shares of each stretch, 0 where it ends."""

    calls: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)


class Stretch(NamedTuple):
    """The end x_e of a sample's stretch, alpha and sigma there, and r and s of x_t; all [b 1 1 1] but x_e."""

    x: Float[Array, "b h w c"]
    alpha: Array
    sigma: Array
    ratio: Array
    spread: Array


class TDM(distillation.ScoreDistillation):
    """Generator and score."""

    def terms(self, variables: dict[str, Variables], made: distillation.Made, key: Key) -> distillation.Terms:
        real, fake = self.denoised(variables, distillation.detached(made))
        gradient = distillation.inverse_error(made.x, real) * (fake - real)
        return {"divergence": distillation.surrogate(made.x, gradient)}

    def time(self, share: Array, call: Int[Array, "b"]) -> Float[Array, "b"]:
        begin, end = self._shares(call)
        return self.teacher.time_at(end + share * (begin - end))

    def noised(self, x: Array, given: Array, draws: distillation.Draws) -> Float[Array, "b h w c"]:
        end = self._stretch(x, given, draws)
        return end.ratio * end.x + end.spread * draws.noise

    def denoising_errors(self, score: Variables, made: distillation.Made) -> Float[Array, "b"]:
        """The weighted error of D as above, and the less the shorter the way from the stretch's end is."""
        draws, end = made.draws, self._stretch(made.x, made.given, made.draws)
        at = self.teacher.path(draws.t).like(made.x)
        target = end.x / end.alpha - at.alpha * (end.sigma / end.alpha) ** 2 / end.spread * draws.noise
        error = self.student.denoise(score, made.noised, draws.t, made.cond["label"]) - target
        weighted = jnp.mean((end.spread / at.sigma * error) ** 2, axis=(1, 2, 3))
        return self.teacher.error_weight(draws.t) * weighted

    def onward(self, x: Array, denoised: Array, begin: Array, end: Array, noise: Array) -> Float[Array, "b h w c"]:
        left = paths.convert(self.teacher.path(begin), x, denoised, "denoised", "noise")
        return paths.add_noise(self.teacher.path(end), denoised, left)

    def _shares(self, call: Int[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Where the stretches of these calls begin and end, as shares of the teacher's times."""
        shares = jnp.asarray([*self.config.calls, 0.0])
        return shares[call], shares[call + 1]

    def _bounds(self, call: Int[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """The same as times; the last stretch ends at data."""
        begin, end = self._shares(call)
        return self.teacher.time_at(begin), jnp.where(end > 0, self.teacher.time_at(end), 0.0)

    def _stretch(self, x: Array, given: Array, draws: distillation.Draws) -> Stretch:
        begin, end = self._bounds(draws.call)
        at, last = self.teacher.path(draws.t).like(x), self.teacher.path(end).like(x)
        ratio = at.alpha / last.alpha
        spread = jnp.sqrt(at.sigma**2 - (ratio * last.sigma) ** 2)
        arrived = self.onward(given, x, begin, end, draws.noise)
        return Stretch(arrived, last.alpha, last.sigma, ratio, spread)


def build(config: Config, model: Model, task: Task) -> TDM:
    """The student of the task's teacher.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    return TDM.of_task(config, task, "tdm")
