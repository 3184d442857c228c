"""Progressive distillation: a student learns to do in one step what its teacher does in two, again and again.

    target(z_t) = the D whose step of DDIM from t to t - 1/N ends where two steps of the teacher of 1/(2N) end
    loss = max(alpha^2 / sigma^2, 1) |D(z_t, t) - target|^2

N halves with every stage; the student of a stage is the teacher of the next. Before that a stage may teach the student
guidance: one network, told the scale, for the two calls of a guided teacher.

Reference: Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, Alg. 2; Meng et al., On
Distillation of Guided Diffusion Models, 2023, Sec. 3.1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths, trajectories
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Stage, Task
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Variables

Model, Sampling = students.Model, students.GuidedSampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      first: number of steps N of the first student, a power of two; its teacher takes twice as many.
      stage_steps: of training for each N; the last stage, with N = 1, lasts until training ends.
      guidance_steps: of training of the stage that teaches guidance.
      guidance: its scales.
    """

    first: int = 512
    stage_steps: int = 50_000
    guidance_steps: int = 0
    guidance: students.Scales = students.Scales()  # noqa: RUF009 - frozen

    def __post_init__(self):
        if self.first < 1 or self.first & (self.first - 1):
            raise ConfigError(f"method.first={self.first} must be a power of two")
        if self.stage_steps < 1:
            raise ConfigError(f"method.stage_steps={self.stage_steps} must be at least 1")
        if (self.guidance_steps > 0) != (self.guidance != students.Scales()):
            raise ConfigError(
                f"method.guidance_steps={self.guidance_steps} and method.guidance={self.guidance} must be set "
                "together: a stage teaches guidance of scales other than 1"
            )

    @property
    def halvings(self) -> int:
        return self.first.bit_length() - 1

    def steps_at(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """N at a step of training."""
        stage = jnp.clip((step - self.guidance_steps) // self.stage_steps, 0, self.halvings)
        return self.first >> stage


@dataclasses.dataclass(frozen=True)
class Progressive(students.ToldStudent):
    """One network; the teacher of a stage is kept beside its weights."""

    @property
    def slowness(self) -> float:
        return 1.0

    def losses(self) -> tuple[LossSpec, ...]:
        halve = LossSpec("halve", self.loss, ("model",))
        return (LossSpec("guide", self.guidance_loss, ("model",)), halve) if self.config.guidance_steps else (halve,)

    def stages(self) -> tuple[Stage, ...]:
        begin, guide = self.config.guidance_steps, (Stage("guide", 0, ("guide",)),)
        halve = tuple(
            Stage(
                f"{self.config.first >> i} steps",
                begin + i * self.config.stage_steps,
                ("halve",),
                students.begin_target,
            )
            for i in range(self.config.halvings + 1)
        )
        return guide + halve if begin else halve

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        """Of one step of the student in place of two of the teacher."""
        index_key, noise_key, scale_key = jax.random.split(key, 3)
        model, labels = variables["model"], cond["label"]
        told = self.config.guidance.told(self.config.guidance.draw(scale_key, len(x)))
        count = self.config.steps_at(step)
        index = jax.random.randint(index_key, (len(x),), 1, count + 1)
        t, middle, s = (self.time(index - back, count) for back in (0, 0.5, 1))
        noised = paths.add_noise(self.path(t), x, students.drawn(x, noise_key))

        def teacher(x: Array, t: Array) -> Array:
            return self.network.denoise(self.slow(model), x, t, labels, *told)

        target = jax.lax.stop_gradient(self.target(teacher, noised, t, middle, s))
        return self._weighted(self.network.denoise(model, noised, t, labels, *told), target, t)

    def target(
        self, teacher: denoisers.Denoise, x: Float[Array, "b h w c"], t: Array, middle: Array, s: Array
    ) -> Float[Array, "b h w c"]:
        """The D that makes one step of DDIM from t to s equal to two of the teacher."""
        start, between, stop = self.path(t), self.path(middle), self.path(s)
        halfway = trajectories.jump(start, between, x, teacher(x, t))
        end = trajectories.jump(between, stop, halfway, teacher(halfway, middle))
        return trajectories.aim(start, stop, x, end)

    def guidance_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Error of the student where its teacher is guided."""
        return self.mean(self.guidance_errors, variables, batch, key, step)

    def guidance_errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        time_key, noise_key, scale_key = jax.random.split(key, 3)
        scale = self.config.guidance.draw(scale_key, len(x))
        t = self.time(1 - jax.random.uniform(time_key, (len(x),)), 1)
        noised = paths.add_noise(self.path(t), x, students.drawn(x, noise_key))
        guided = students.guided_by(self.teacher, variables["teacher"], cond["label"], self.config.guidance, scale)
        told = self.config.guidance.told(scale)
        found = self.network.denoise(variables["model"], noised, t, cond["label"], *told)
        return self._weighted(found, jax.lax.stop_gradient(guided(noised, t)), t)

    def time(self, index: Array, count: Array | int) -> Float[Array, "b"]:
        """Time number `index` of the grid of `count` steps."""
        return self.time_at(index / count)

    def _weighted(self, found: Array, target: Array, t: Float[Array, "b"]) -> Float[Array, "b"]:
        at = self.path(t)
        return jnp.maximum((at.alpha / at.sigma) ** 2, 1) * students.squared(found, target)

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        labels = cond["label"]
        told = self.told(labels, options.guidance_scale)

        def step(x: Array, t: Array, s: Array) -> Array:
            denoised = self.network.denoise(variables["model"], x, t, labels, *told)
            return trajectories.jump(self.path(t), self.path(s), x, denoised)

        return self.canvas.tokens(students.follow(step, self.start(keys, options), self.visited(options)))


def build(config: Config, model: Model, task: Task) -> Progressive:
    """The method for a teacher's network, which is told the guidance scale if there are several.

    Raises:
      ConfigError: no teacher, one that does not denoise, or a student that cannot start as it.
    """
    teacher = denoisers.of_teacher(task, "progressive")
    student = teacher.student(config.guidance.num_told)
    if not config.guidance_steps and not denoisers.starts_as(student, teacher):
        raise ConfigError(
            "method.name='progressive' begins with a copy of its teacher, and a student of this one has other weights; "
            "let it learn the teacher first: method.guidance_steps, with method.guidance"
        )
    return Progressive(student, teacher, config)
