"""What methods share that teach one network to jump along the trajectories from noise to data.

Their files hold what differs: what the network is compared with, and how samples use it.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths, trajectories
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _denoiser as denoisers
from jaxar.methods._shared_weights import taken_over
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Stage, mean_of_valid
from jaxar.models import dit
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Params, Shaped, Variables

TARGET = "target"  # the collection with the slower weights of a student that learns from itself
LATEST = jnp.iinfo(jnp.int32).max  # the step at which validation takes schedules to be


@dataclasses.dataclass(frozen=True)
class Model:
    """The `model` section: empty, the student is its teacher's network."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The `sample` section. `num_steps`: jumps from noise to data, and calls of the network."""

    num_steps: int = 1

    def __post_init__(self):
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Student(denoisers.Denoiser):
    """One network, one loss; a denoiser itself, so that it can teach others.

    Attributes:
      network: the denoiser that is trained.
      teacher: a frozen one, or None.
      config: the method's; with a teacher it has its guidance, `teacher`.
    """

    network: denoisers.Denoiser
    teacher: denoisers.Denoiser | None
    config: Any

    @property
    def canvas(self) -> canvases.Canvas:
        return self.network.canvas

    @property
    def times(self) -> tuple[float, float]:
        return self.network.times

    @property
    def path(self) -> paths.Path:
        return self.network.path

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def teaches(self) -> bool:
        return False

    def time_at(self, share: Any) -> Any:
        return self.network.time_at(share)

    def error_weight(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        return self.network.error_weight(t)

    def features(self, model: Variables, x: Array, t: Array, labels: Array) -> Float[Array, "b n d"]:
        return self.network.features(model, x, t, labels)

    @property
    def slowness(self) -> float | None:
        """Decay of the average in `TARGET`, 1 for one that only stages change; None without."""
        return None

    def denoise(self, model: Variables, x: Array, t: Array, labels: Array, *scalars: Array) -> Array:
        return self.network.denoise(model, x, t, labels, *scalars)

    def velocity(self, model: Variables, x: Array, t: Array, labels: Array, *scalars: Array) -> Array:
        return self.network.velocity(model, x, t, labels, *scalars)

    def student(self, num_scalars: int = 0) -> denoisers.Denoiser:
        return self.network.student(num_scalars)

    def players(self) -> dict[str, PlayerSpec]:
        follows = self.slowness is not None and self.slowness < 1
        return {"model": PlayerSpec(project=functools.partial(_follow, self.slowness) if follows else None)}

    def init(self, key: Key) -> dict[str, Variables]:
        model = self.network.init(key)["model"]
        return {"model": model if self.slowness is None else {**model, TARGET: _copy(model["params"])}}

    def warm_start(self, params: dict[str, Params], frozen: dict[str, Variables]) -> dict[str, Params]:
        """A student with all arrays of its teacher starts with them."""
        if self.teacher is None:
            return params
        return {**params, "model": taken_over(params["model"], frozen["teacher"]["params"])}

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("train", enter=None if self.slowness is None else begin_target),)

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("distillation", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean of `errors`; samples whose "valid" entry is False do not count."""
        return self.mean(self.errors, variables, batch, key, step)

    def mean(
        self, errors: Callable[..., Array], variables: dict[str, Variables], batch: Batch, key: Key, step: Array
    ) -> tuple[Float[Array, ""], LossAux]:
        """A loss from errors of single samples."""
        found = errors(variables, self.canvas.read(batch), conditions.of_batch(batch), key, step)
        return mean_of_valid(found, batch), LossAux({})

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """The figure "error" [b]: what the loss averages, at the end of every schedule."""
        cond = conditions.of_batch(batch)
        return {"error": self.errors(variables, self.canvas.read(batch), cond, key, jnp.int32(LATEST))}

    @abc.abstractmethod
    def errors(
        self, variables: dict[str, Variables], x: Float[Array, "b h w c"], cond: Cond, key: Key, step: Int[Array, ""]
    ) -> Float[Array, "b"]:
        """What the network is to make small, for data x; methods without data read their shape alone."""

    def slow(self, model: Variables) -> Variables:
        """The weights that targets are computed with, behind a stop: the average, or those of the step itself."""
        return jax.lax.stop_gradient(model if self.slowness is None else {**model, "params": model[TARGET]})

    def taught(self, variables: dict[str, Variables], cond: Cond) -> denoisers.Denoise:
        """The guided teacher."""
        return denoisers.guided(self.teacher, variables["teacher"], cond, self.config.teacher)

    def advance(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        s: Float[Array, "b"],
        labels: Int[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        """One step of sampling, from times t to s."""
        return trajectories.jump(self.path(t), self.path(s), x, self.denoise(model, x, t, labels))

    def visited(self, options: Any) -> Float[np.ndarray, "m"]:
        """Falling times between which sampling steps."""
        return np.asarray(self.time_at(np.linspace(1, 0, options.num_steps + 1)))

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Any) -> Tokens:
        def step(x: Array, t: Array, s: Array) -> Array:
            return self.advance(variables["model"], x, t, s, cond["label"])

        return self.canvas.tokens(follow(step, self.start(keys, options), self.visited(options)))

    def start(self, keys: Keys, options: Any) -> Float[Array, "b h w c"]:
        """x where sampling begins, noise alone."""
        return self.path(self.visited(options)[0]).sigma * denoisers.noise_of(self, keys)

    def network_calls(self, options: Any) -> int:
        return len(self.visited(options)) - 1


def follow(
    step: Callable[[Array, Array, Array], Array], x: Float[Array, "b h w c"], times: Float[np.ndarray, "m"]
) -> Float[Array, "b h w c"]:
    """x at the last of falling times, from x at the first; `step` moves x from times [b] to others."""

    def one(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = (jnp.full(len(x), end) for end in ends)
        return step(x, t, s), None

    times = jnp.asarray(times, jnp.float32)
    return jax.lax.scan(one, x, (times[:-1], times[1:]))[0]


def begin_target(state: Any) -> Any:
    """The slower weights are those of the network: the `enter` of a stage."""
    player = state.players["model"]
    player = player.replace(aux={**player.aux, TARGET: _copy(player.params)})
    return state.replace(players={**state.players, "model": player})


def _follow(decay: float, params: Params, aux: dict[str, Any], key: Key) -> tuple[Params, dict[str, Any]]:
    target = jax.tree.map(lambda slow, new: decay * slow + (1 - decay) * new, aux[TARGET], params)
    return params, {**aux, TARGET: target}


def _copy(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)  # an alias would be donated twice


@dataclasses.dataclass(frozen=True)
class Scales:
    """Guidance scales of the teacher, uniform from `low` to `high`; a student of several is told which."""

    low: float = 1.0
    high: float = 1.0

    def __post_init__(self):
        if self.low > self.high:
            raise ConfigError(f"method.guidance.low={self.low} must be at most method.guidance.high={self.high}")

    @property
    def num_told(self) -> int:
        return int(self.low < self.high)

    def draw(self, key: Key, count: int) -> Float[Array, "b"]:
        return jax.random.uniform(key, (count,), minval=self.low, maxval=self.high)

    def told(self, scale: Float[Array, "b"]) -> tuple[Float[Array, "b"], ...]:
        """The scalars of the student."""
        return (scale,) if self.num_told else ()

    def check(self, scale: float) -> None:
        """Refuses to tell a student what training never told it."""
        if self.num_told and not self.low <= scale <= self.high:
            raise ConfigError(
                f"sample.guidance_scale={scale} must lie in {self.low}..{self.high}, the scales of method.guidance"
            )


@dataclasses.dataclass(frozen=True)
class GuidedSampling(Sampling):
    """The `sample` section. `guidance_scale`: what a student of several scales is told; others ignore it."""

    guidance_scale: float = 1.0


class ToldStudent(Student):
    """A student that may be told the guidance scale; its `config` has `guidance`. Not told, it takes the least."""

    def denoise(self, model: Variables, x: Array, t: Array, labels: Array, *scalars: Array) -> Array:
        return self.network.denoise(model, x, t, labels, *(scalars or self.told(t, self.config.guidance.low)))

    def velocity(self, model: Variables, x: Array, t: Array, labels: Array, *scalars: Array) -> Array:
        return self.network.velocity(model, x, t, labels, *(scalars or self.told(t, self.config.guidance.low)))

    def told(self, like: Shaped[Array, "b"], scale: float) -> tuple[Float[Array, "b"], ...]:
        """The scalars of one scale for all samples."""
        self.config.guidance.check(scale)
        return self.config.guidance.told(jnp.full(len(like), scale))

    def network_calls(self, options: GuidedSampling) -> int:
        self.config.guidance.check(options.guidance_scale)
        return super().network_calls(options)


def guided_by(
    denoiser: denoisers.Denoiser, model: Variables, labels: Int[Array, "b"], scales: Scales, scale: Float[Array, "b"]
) -> denoisers.Denoise:
    """D guided by another scale for each sample: null + scale (cond - null)."""
    if scales == Scales():
        return lambda x, t: denoiser.denoise(model, x, t, labels)
    both = conditions.doubled({"label": labels}, denoiser.num_classes)["label"]

    def denoise(x: Array, t: Array) -> Array:
        cond, null = jnp.split(denoiser.denoise(model, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both), 2)
        return canvases.guide(cond, null, scale[:, None, None, None], None)

    return denoise


def check_decay(decay: float | None) -> None:
    """Refuses a decay outside [0, 1)."""
    if decay is not None and not 0 <= decay < 1:
        raise ConfigError(f"method.target_decay={decay} must lie in [0, 1); None takes the weights of the step itself")


def check_huber(scale: float | None) -> None:
    """Refuses scales of a pseudo-Huber distance without derivative."""
    if scale is not None and scale <= 0:
        raise ConfigError(f"method.huber={scale} must be positive; None takes the mean square")


def check_trajectory(rho: float, least_time: float) -> None:
    """Refuses levels that cannot be computed."""
    if rho <= 0:
        raise ConfigError(f"method.rho={rho} must be positive; 1 spaces levels evenly in time")
    if least_time <= 0:
        raise ConfigError(f"method.least_time={least_time} must be positive: where there is no noise, none is known")


def bounds(denoiser: denoisers.Denoiser, least: float) -> tuple[float, float]:
    """The times of trajectories that end at `least`, or before if the network knows nothing of it.

    Raises:
      ConfigError: they would end where they begin.
    """
    if least >= denoiser.times[1]:
        raise ConfigError(f"method.least_time={least} must be below the teacher's greatest time, {denoiser.times[1]}")
    return max(least, denoiser.times[0]), denoiser.times[1]


def forward_mode(denoiser: denoisers.Denoiser) -> denoisers.Denoiser:
    """The same with a kernel that `jax.jvp` can pass."""
    network = denoiser.network
    if not isinstance(network, dit.DiT):
        return denoiser
    sizes = dataclasses.replace(network.sizes, attention="sliced")
    return dataclasses.replace(denoiser, network=network.clone(sizes=sizes))


def drawn(x: Float[Array, "b *n"], key: Key) -> Float[Array, "b *n"]:
    """Standard normal noise of the same shape."""
    return jax.random.normal(key, x.shape)


def squared(x: Float[Array, "b *n"], y: Float[Array, "b *n"]) -> Float[Array, "b"]:
    """Mean squared difference of each sample."""
    return jnp.mean((x - y) ** 2, axis=tuple(range(1, x.ndim)))
