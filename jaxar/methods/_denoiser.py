"""Diffusion models as distillation sees them: the expectation of data on a noise path, whatever the network predicts.

    D(x, t) = E[x_0 | x_t = x],    x_t = alpha(t) x_0 + sigma(t) noise,    t in `times`: least, greatest

Noise, velocity and score follow from D by `diffusion.paths.convert`. A student of the same architecture is the same
denoiser with other variables, and a generator of one call is the denoiser at the noisiest time. A student may be told
more than the time: where a jump ends, or how it is guided. These are its `scalars`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar.config import ConfigError
from jaxar.diffusion import paths, solvers
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods._shared_weights import has_all
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task, mean_of_valid
from jaxar.models import dit, maps
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Variables

Denoise = Callable[[Float[Array, "b h w c"], Float[Array, "b"]], Float[Array, "b h w c"]]  # (x, time) -> E[x_0]


class Denoiser(Method):
    """A method with one network, "model", that denoises.

    Attributes:
      canvas: the maps.
      times: the least and the greatest time that the network knows. At the greatest, x is taken to be noise alone.
    """

    canvas: canvases.Canvas
    times: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    @abc.abstractmethod
    def path(self) -> paths.Path:
        """The noise path."""

    @property
    def teaches(self) -> bool:
        """Whether `denoise` is the expectation of data at all times, as teachers must have it."""
        return True

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Labels are below it; it is itself the null label."""

    @abc.abstractmethod
    def denoise(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        """D(x, t) for labels in 0..num_classes, without dropout."""

    def time_at(self, share: Any) -> Any:
        """Times at shares in [0, 1] of the way from the least to the greatest, as training and calls are spread."""
        least, greatest = self.times
        return least + share * (greatest - least)

    def features(
        self, model: Variables, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b n d"]:
        """What a discriminator reads of a noised map; by default the map, D and the time at each pixel."""
        time = jnp.broadcast_to(t[:, None, None, None], (*x.shape[:3], 1))
        maps = jnp.concatenate([x, self.denoise(model, x, t, labels), time], axis=-1)
        return maps.reshape(len(x), -1, maps.shape[-1])

    def error_weight(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """What makes |D - x_0|^2 the error that such networks are trained with; by default that of the noise."""
        at = self.path(t)
        return (at.alpha / at.sigma) ** 2

    def velocity(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        """The expected derivative of x by time; not where sigma is 0, unless a network predicts it."""
        denoised = self.denoise(model, x, t, labels, *scalars)
        return paths.convert(self.path(t), x, denoised, "denoised", "velocity")

    def student(self, num_scalars: int = 0) -> "Denoiser":
        """What a student of this teacher trains: another denoiser on the same path, which is told so many scalars.

        By default one like itself. A student that is the teacher (`is`) starts with its weights.

        Raises:
          ConfigError: its network takes none.
        """
        if num_scalars:
            raise ConfigError(
                f"a student of this {type(self).__name__} can be told the time alone, and this method tells it more; "
                "use a teacher of flow_matching, diffusion or edm with a transformer"
            )
        return self


@dataclasses.dataclass(frozen=True)
class TrainedDenoiser(Denoiser):
    """A denoiser that learns from data: one network, one loss. Its file says what the network sees and is to predict.

    Attributes:
      config: the method's; its `label_drop` is the share of labels that training replaces by the null one.
    """

    network: maps.Network
    canvas: canvases.Canvas
    config: Any

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        x, t, label = jnp.zeros((1, *self.canvas.shape)), jnp.zeros(1), jnp.zeros(1, int)
        return {"model": self.network.init(key, x, t, label, *[t] * self.network.num_scalars)}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("denoise", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean of the sum of `terms`; samples whose "valid" entry is False do not count."""
        drop_key, draw_key = jax.random.split(key)
        x, cond = self.canvas.read(batch), conditions.of_batch(batch)
        cond = conditions.drop(cond, drop_key, self.config.label_drop, self.num_classes)
        terms = self.terms(variables["model"], x, cond, *self.draw(draw_key, x))
        means = {name: mean_of_valid(values, batch) for name, values in terms.items()}
        return sum(means.values()), LossAux(means)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """The terms [b] of the loss, at random times."""
        x = self.canvas.read(batch)
        return self.terms(variables["model"], x, conditions.of_batch(batch), *self.draw(key, x))

    def draw(self, key: Key, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b"], Float[Array, "b h w c"]]:
        """Times of training and noise."""
        time_key, noise_key = jax.random.split(key)
        return self.draw_times(time_key, len(x)), jax.random.normal(noise_key, x.shape)

    @abc.abstractmethod
    def draw_times(self, key: Key, count: int) -> Float[Array, "b"]:
        """Times of training, as `terms` takes them."""

    @abc.abstractmethod
    def terms(
        self, model: Variables, x: Float[Array, "b h w c"], cond: Cond, t: Float[Array, "b"], noise: Array
    ) -> dict[str, Float[Array, "b"]]:
        """The loss of data x under this noise at times t, a sum of terms; the first is "mse"."""

    @abc.abstractmethod
    def seen(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> tuple[Array, Float[Array, "b"]]:
        """The map and the number that the network is told for x at times t."""

    def output(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Array,
    ) -> Float[Array, "b h w o"]:
        """Of the network, for x at times t."""
        return self.network.apply(model, *self.seen(x, t), labels, *scalars)

    def features(
        self, model: Variables, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b n d"]:
        """Those of a transformer's last block; of other networks the default ones."""
        if not isinstance(self.network, dit.DiT):
            return super().features(model, x, t, labels)
        return self.network.apply(model, *self.seen(x, t), labels, method="features")

    def solve(
        self, model: Variables, table: solvers.Table, cond: Cond, keys: Keys, guidance: canvases.Guidance
    ) -> Tokens:
        """Samples by a solver's table from noise at its first time."""

        def noise(index: Int[Array, ""]) -> Array:
            return noise_of(self, keys, index + 1)

        start = self.path(table.times[0]).sigma * noise_of(self, keys)
        return self.canvas.tokens(solvers.sample(table, guided(self, model, cond, guidance), start, noise))

    def student(self, num_scalars: int = 0) -> Self:
        if not isinstance(self.network, dit.DiT):
            return super().student(num_scalars)
        if num_scalars == self.network.num_scalars:
            return self
        return dataclasses.replace(self, network=self.network.clone(num_scalars=num_scalars))


def guided(denoiser: Denoiser, model: Variables, cond: Cond, guidance: canvases.Guidance) -> Denoise:
    """D for these conditions: null + s (cond - null). Guiding noise or velocity is the same, they are affine in D."""

    def network(x: Array, t: Array, labels: Array) -> Array:
        return denoiser.denoise(model, x, t, labels)

    return canvases.guided(network, cond, denoiser.num_classes, guidance, denoiser.times[1])


def generate(
    denoiser: Denoiser, model: Variables, noise: Float[Array, "b h w c"], cond: Cond, time: float | None = None
) -> Float[Array, "b h w c"]:
    """Data in one call from standard normal noise, taken as x at `time`; None for the greatest time."""
    t = jnp.full(len(noise), denoiser.times[1] if time is None else time)
    x = denoiser.path(t).like(noise).sigma * noise
    return denoiser.denoise(model, x, t, cond["label"])


def noise_of(denoiser: Denoiser, keys: Keys, number: int = 0) -> Float[Array, "b h w c"]:
    """Standard normal noise from the key of each sample; another for each `number`."""
    return canvases.normal(keys, denoiser.canvas.shape, number)


def starts_as(student: Denoiser, teacher: Denoiser) -> bool:
    """Whether the student has all of its teacher's parameters, of which there must be some."""
    own, fresh = (
        nn.meta.unbox(jax.eval_shape(denoiser.init, jax.random.key(0)))["model"]["params"]
        for denoiser in (teacher, student)
    )
    return bool(own) and has_all(fresh, own)


def of_teacher(task: Task, method: str) -> Denoiser:
    """The task's teacher.

    Raises:
      ConfigError: no teacher, one that does not denoise at all times, or one of other maps or classes than the task.
    """
    teacher = task.teacher
    if not isinstance(teacher, Denoiser) or not teacher.teaches:
        given = "none" if teacher is None else type(teacher).__name__
        raise ConfigError(
            f"method.name={method!r} needs a diffusion teacher (flow_matching, diffusion, edm), there is {given}; name "
            "its workdir in teacher.from_, or one in closed form in teacher.method"
        )
    canvas = canvases.canvas(task, method)
    if (teacher.canvas, teacher.num_classes) != (canvas, task.num_classes):
        raise ConfigError(
            f"method.name={method!r}: the teacher draws {teacher.num_classes} classes of {teacher.canvas.shape} maps, "
            f"the task has {task.num_classes} of {canvas.shape}; name another workdir in teacher.from_, or other data"
        )
    return teacher
