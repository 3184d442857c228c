"""SCott: consistency distillation along trajectories that a stochastic solver draws.

The neighbour of x_t is reached in a few steps of the guided teacher, each of which replaces part of the noise by fresh
one (`eta`, as in DDIM). The student is told the guidance scale. With eta = 0 this is consistency distillation; the
larger eta is, the more the student averages over what the fresh noise would have made of x_t.

An adversary compares the student's samples with data, and restores what averages lose.

Reference: Liu et al., SCott: Accelerating Diffusion Models with Stochastic Consistency Distillation, 2024.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths, trajectories
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _landing as landing
from jaxar.methods import _students as students
from jaxar.methods._adversarial_students import Adversarial, AdversarialStudent, Contest
from jaxar.methods.base import Cond, Task
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Key, Keys, Variables

Model, Sampling = students.Model, students.GuidedSampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      levels: of noise, each pair of neighbours as likely.
      substeps: of the teacher between neighbours.
      eta: share of fresh noise, 0..1.
      target_decay: of the average of weights that gives the targets.
      huber: scale of the pseudo-Huber distance, None for the mean square.
      rho, least_time: as in `consistency`.
      guidance: scales of the teacher.
      adversarial: the discriminator.
    """

    levels: int = 42
    substeps: int = 3
    eta: float = 0.2
    target_decay: float | None = 0.95
    huber: float | None = None
    rho: float = 1.0
    least_time: float = 0.002
    guidance: students.Scales = students.Scales()  # noqa: RUF009 - frozen
    adversarial: Adversarial = Adversarial()  # noqa: RUF009 - frozen

    def __post_init__(self):
        students.check_decay(self.target_decay)
        students.check_trajectory(self.rho, self.least_time)
        students.check_huber(self.huber)
        if self.levels < 2:
            raise ConfigError(f"method.levels={self.levels} must be at least 2")
        if self.substeps < 1:
            raise ConfigError(f"method.substeps={self.substeps} must be at least 1")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"method.eta={self.eta} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class SCott(AdversarialStudent, landing.LandingStudent, students.ToldStudent):
    """One network, and a discriminator if its weight is not 0."""

    def landings(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key
    ) -> landing.Landings:
        level_key, noise_key, scale_key, solver_key = jax.random.split(key, 4)
        lower = jax.random.randint(level_key, (len(x),), 0, self.config.levels - 1)
        t, s = (trajectories.level(i, self.config.levels, self.bounds, self.config.rho) for i in (lower + 1, lower))
        scale = self.config.guidance.draw(scale_key, len(x))
        denoise = students.guided_by(self.teacher, variables["teacher"], cond["label"], self.config.guidance, scale)
        noised = paths.add_noise(self.path(t), x, students.drawn(x, noise_key))
        earlier = self.solve(denoise, noised, t, s, solver_key)
        points = landing.Neighbours(noised, t, jax.lax.stop_gradient(earlier), s)
        end = jnp.full_like(t, self.bounds[0])
        told = self.config.guidance.told(scale)
        return landing.landings(self, variables["model"], points, end, cond["label"], *told)

    def contest(self, landed: landing.Landings, x: Float[Array, "b h w c"], key: Key) -> Contest:
        """Samples and data, noised to one time."""
        time_key, *keys = jax.random.split(key, 3)
        t = jnp.maximum(self.time_at(jax.random.uniform(time_key, landed.end.shape)), landed.end)
        noise = [students.drawn(x, key) for key in keys]
        found = trajectories.renoise(self.path(landed.end), self.path(t), landed.found, noise[0])
        return Contest(found, paths.add_noise(self.path(t), x, noise[1]), t)

    def solve(
        self, denoise: denoisers.Denoise, x: Float[Array, "b h w c"], t: Array, s: Array, key: Key
    ) -> Float[Array, "b h w c"]:
        """The teacher's steps from times t to s, of even length in time."""
        count = self.config.substeps
        for i in range(count):
            now, after = t + (s - t) * i / count, t + (s - t) * (i + 1) / count
            noise = students.drawn(x, jax.random.fold_in(key, i))
            x = trajectories.stochastic_jump(
                self.path(now), self.path(after), x, denoise(x, now), noise, self.config.eta
            )
        return x

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        model, labels = variables["model"], cond["label"]
        told = self.told(labels, options.guidance_scale)
        return self.canvas.tokens(landing.renoised_sample(self, model, keys, options, labels, *told))


def build(config: Config, model: Model, task: Task) -> SCott:
    """The method for a teacher's network.

    Raises:
      ConfigError: no teacher, or one that does not denoise.
    """
    teacher = denoisers.of_teacher(task, "scott")
    return SCott(teacher.student(config.guidance.num_told), teacher, config)
