"""MeanFlow: a network predicts the average velocity between two times, so that one call goes from noise to data.

    u(x_t, r, t) = 1/(t - r) integral from r to t of v(x_s, s) ds    obeys    u = v - (t - r) du/dt

where du/dt = v d_x u + d_t u follows the trajectory at fixed r and is one forward-mode derivative. The loss is

    |u - stop(v - (t - r) du/dt)|^2,    each sample divided by a power of its own value

With data, v = noise - x_0 stands for the velocity, guided by the network's own u(x, t, t):

    v = omega (noise - x_0) + (1 - omega - kappa) u(x, t, t | null) + kappa u(x, t, t | label)

With a teacher, v is the guided velocity of the teacher.

Reference: Geng et al., Mean Flows for One-step Generative Modeling, 2025, Eq. 6, 10, 21 and 22.

Golden: meanflow_d2
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import _students as students
from jaxar.methods import flow_matching
from jaxar.methods.base import Cond, Task
from jaxar.models import dit
from jaxar.typing import Array, Bool, Float, Int, Key, Variables

Model, Sampling = dit.Sizes, students.Sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      omega, kappa: of guidance, see above; its scale is omega / (1 - kappa). Without a teacher.
      guidance_interval: times [from, to] that are guided.
      label_drop: share of labels replaced by the null one, whose velocity is not guided. Without a teacher.
      instant_share: of the batch that learns the velocity itself, r = t.
      time_mean, time_std: of the normal law of the logit of both times, of which t is the greater.
      norm_power, norm_eps: each squared error s, summed over a sample, is divided by (s + norm_eps)^norm_power.
      teacher: guidance of the teacher.
    """

    omega: float = 1.0
    kappa: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    label_drop: float = 0.1
    instant_share: float = 0.75
    time_mean: float = -0.4
    time_std: float = 1.0
    norm_power: float = 1.0
    norm_eps: float = 0.01
    teacher: canvases.Guidance = canvases.Guidance()  # noqa: RUF009 - frozen

    def __post_init__(self):
        canvases.check_label_drop(self.label_drop)
        if not 0 <= self.kappa < 1:
            raise ConfigError(f"method.kappa={self.kappa} must lie in [0, 1)")
        if not 0 <= self.instant_share <= 1:
            raise ConfigError(f"method.instant_share={self.instant_share} must lie in [0, 1]")
        start, stop = self.guidance_interval
        if not 0 <= start <= stop <= 1:
            raise ConfigError(f"method.guidance_interval={self.guidance_interval} must satisfy 0 <= from <= to <= 1")
        if self.time_std <= 0 or self.norm_eps <= 0:
            raise ConfigError(f"method.time_std={self.time_std} and method.norm_eps={self.norm_eps} must be positive")

    @property
    def guided(self) -> bool:
        return (self.omega, self.kappa) != (1.0, 0.0)


class Terms(NamedTuple):
    """Of one batch: the point and its velocity, the average velocity there, its derivative, the error's square [b]."""

    x: Array
    velocity: Array
    average: Array
    derivative: Array
    square: Array


@dataclasses.dataclass(frozen=True)
class MeanFlow(students.Student):
    """One network, which is told t and t - r."""

    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        drop_key, time_key, noise_key = jax.random.split(key, 3)
        t, r = self.draw_times(time_key, len(x))
        noise = students.drawn(x, noise_key)
        dropped = jax.random.bernoulli(drop_key, self.config.label_drop, (len(x),))
        if self.teacher is None:
            terms = self.terms(variables["model"], x, noise, t, r, cond, dropped)
        else:
            z = paths.add_noise(self.path(t), x, noise)
            denoised = self.taught(variables, cond)(z, t)
            velocity = paths.convert(self.path(t), z, denoised, "denoised", "velocity")
            terms = self.compare(variables["model"], z, velocity, t, r, cond["label"])
        return self.normalized(terms.square)

    def terms(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        noise: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        r: Float[Array, "b"],
        cond: Cond,
        dropped: Bool[Array, "b"],
    ) -> Terms:
        """Of data x: times r <= t; `dropped` rows lose their label."""
        point = self.path(t)
        z, velocity = paths.add_noise(point, x, noise), paths.velocity(point, x, noise)
        labels = conditions.nullify(cond, dropped, self.num_classes)["label"]
        if self.config.guided:
            guided = self.guide(model, z, t, velocity, cond["label"])
            velocity = jnp.where(dropped[:, None, None, None], velocity, guided)
        return self.compare(model, z, velocity, t, r, labels)

    def guide(
        self, model: Variables, x: Float[Array, "b h w c"], t: Array, velocity: Array, labels: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """The velocity, guided by what the network itself predicts for and without the labels."""
        null = self.average(model, x, t, t, jnp.full_like(labels, self.num_classes))
        within = (t >= self.config.guidance_interval[0]) & (t <= self.config.guidance_interval[1])
        omega = jnp.where(within, self.config.omega, 1.0)[:, None, None, None]
        guided = omega * velocity + (1 - omega) * null
        if self.config.kappa == 0:
            return guided
        kappa = jnp.where(within, self.config.kappa, 0.0)[:, None, None, None]
        return guided + kappa * (self.average(model, x, t, t, labels) - null)

    def compare(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        velocity: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        r: Float[Array, "b"],
        labels: Int[Array, "b"],
    ) -> Terms:
        """How far the network is from the identity at x_t, for this velocity there."""
        velocity = jax.lax.stop_gradient(velocity)

        def average(x: Array, t: Array, r: Array) -> Array:
            return self.average(model, x, t, r, labels)

        mean, derivative = jax.jvp(average, (x, t, r), (velocity, jnp.ones_like(t), jnp.zeros_like(r)))
        target = jax.lax.stop_gradient(velocity - (t - r)[:, None, None, None] * derivative)
        return Terms(x, velocity, mean, derivative, jnp.sum((mean - target) ** 2, axis=(1, 2, 3)))

    def normalized(self, square: Float[Array, "b"]) -> Float[Array, "b"]:
        """Squared errors, divided by powers of their values."""
        return square / jax.lax.stop_gradient((square + self.config.norm_eps) ** self.config.norm_power)

    def draw_times(self, key: Key, count: int) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """t and r; the first rows, `instant_share` of them, have r = t."""
        logits = self.config.time_mean + self.config.time_std * jax.random.normal(key, (2, count))
        least, greatest = self.times
        times = least + (greatest - least) * jax.nn.sigmoid(logits)
        t, r = times.max(axis=0), times.min(axis=0)
        return t, jnp.where(jnp.arange(count) < round(count * self.config.instant_share), t, r)

    def average(self, model: Variables, x: Array, t: Array, r: Array, labels: Array) -> Float[Array, "b h w c"]:
        """u, the average velocity from t to r."""
        return self.network.velocity(model, x, t, labels, t - r)

    def denoise(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b h w c"]:
        """Data in one call."""
        return self.advance(model, x, t, jnp.full_like(t, self.times[0]), labels)

    def advance(self, model: Variables, x: Array, t: Array, s: Array, labels: Array) -> Float[Array, "b h w c"]:
        return x - (t - s)[:, None, None, None] * self.average(model, x, t, s, labels)

    def velocity(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b h w c"]:
        return self.average(model, x, t, t, labels)


def build(config: Config, model: Model, task: Task) -> MeanFlow:
    """With a teacher its own network, which is told the other time too; without one that of the section `model`.

    Raises:
      ConfigError: other tokens, maps that the patches do not divide, guidance of data that a teacher replaces, a
        teacher on another path than those of flow matching.
    """
    teacher = None
    if task.teacher is None:
        network = flow_matching.build(flow_matching.Config(clock="noise"), model, task).student(num_scalars=1)
    elif config.guided:
        raise ConfigError(
            f"method.omega={config.omega} and method.kappa={config.kappa} guide data; with a teacher leave them at 1 "
            "and 0 and use method.teacher.guidance_scale"
        )
    else:
        teacher = denoisers.of_teacher(task, "meanflow")
        if teacher.path not in paths.PATHS.values():
            raise ConfigError(
                "method.name='meanflow' needs a teacher on a path with smooth slopes and times from 0 to 1; train one "
                "with flow_matching"
            )
        network = teacher.student(num_scalars=1)
    return MeanFlow(students.forward_mode(network), teacher, config)
