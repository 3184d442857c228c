"""Denoising diffusion of pixels or latents by a network that predicts the noise and its variance (DiT).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise,    loss = |noise - prediction|^2 + bound of the variance

Reference: Peebles & Xie, Scalable Diffusion Models with Transformers, 2023; Nichol & Dhariwal, Improved Denoising
Diffusion Probabilistic Models, 2021.

Golden: dit_d2
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.diffusion import ddpm, paths, solvers
from jaxar.diffusion.process import Process, Schedule, Tables
from jaxar.methods import _canvas as canvases
from jaxar.methods import _conditions as conditions
from jaxar.methods import _denoiser as denoisers
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Task, mean_of_valid
from jaxar.models import maps
from jaxar.models.dit import DiT
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Variables

Model = maps.Sizes


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      schedule, base_steps: of the process, see `diffusion.process.Process`.
      label_drop: share of labels that training replaces by the null one; 0 for a model that is never guided.
    """

    schedule: Schedule = "linear"
    base_steps: int = 1000
    label_drop: float = 0.1

    def __post_init__(self):
        canvases.check_label_drop(self.label_drop)
        _ = self.process  # refuses steps that it cannot have

    @property
    def process(self) -> Process:
        return Process(self.schedule, self.base_steps)


@dataclasses.dataclass(frozen=True)
class Sampling(canvases.Guidance):
    """The `sample` section.

    Attributes:
      respacing: the steps that are kept, as in `Process`: "250" so many, evenly spaced.
      solver: "ancestral" draws the reverse steps with the network's variance; "ddim", "dpm_solver" (second order) and
        "deis" of order `order`, 1 to 3, use its estimate of the data alone and draw nothing after the start.
      clip: whether the estimate of the data is clipped to [-1, 1], for pixels.
    """

    respacing: str = "250"
    solver: Literal["ancestral", "ddim", "dpm_solver", "deis"] = "ancestral"
    clip: bool = False
    order: int = 3

    def __post_init__(self):
        super().__post_init__()
        canvases.check_order(self.order)


@dataclasses.dataclass(frozen=True)
class Diffusion(denoisers.Denoiser):
    """One network, one loss."""

    network: maps.Network
    canvas: canvases.Canvas
    config: Config

    @property
    def path(self) -> paths.Path:
        """Time i / n is that of step i - 1 of n."""
        return paths.tabulated(self.config.process.tables.sqrt_alphas_cumprod)

    @property
    def times(self) -> tuple[float, float]:
        return 1 / self.config.base_steps, 1.0

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
        """Mean of both terms; samples whose "valid" entry is False do not count."""
        drop_key, draw_key = jax.random.split(key)
        x, cond = self.canvas.read(batch), conditions.of_batch(batch)
        cond = conditions.drop(cond, drop_key, self.config.label_drop, self.num_classes)
        terms = self.terms(variables["model"], x, cond, *self._draw(draw_key, x))
        mean = {name: mean_of_valid(values, batch) for name, values in terms.items()}
        return sum(mean.values()), LossAux(mean)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: "mse" of the noise and "vb" in bits per channel, at random times."""
        x = self.canvas.read(batch)
        return self.terms(variables["model"], x, conditions.of_batch(batch), *self._draw(key, x))

    def terms(
        self, model: Variables, x: Float[Array, "b h w c"], cond: Cond, t: Int[Array, "b"], noise: Array
    ) -> dict[str, Float[Array, "b"]]:
        """Loss terms of data x at steps t of the whole process."""
        tables = self.config.process.tables
        noised = ddpm.add_noise(tables, x, t, noise)
        return ddpm.training_terms(tables, x, t, noise, self._predict(model, noised, t, cond["label"]))._asdict()

    def _draw(self, key: Key, x: Array) -> tuple[Int[Array, "b"], Array]:
        time_key, noise_key = jax.random.split(key)
        t = jax.random.randint(time_key, x.shape[:1], 0, self.config.base_steps)
        return t, jax.random.normal(noise_key, x.shape)

    def _predict(
        self, model: Variables, x: Array, t: Array, labels: Array, *scalars: Array
    ) -> Float[Array, "b h w 2*c"]:
        return self.network.apply(model, x, t.astype(jnp.float32), labels, *scalars)

    def denoise(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        noise = self._predict(model, x, t * self.config.base_steps - 1, labels, *scalars)[..., : self.canvas.shape[-1]]
        return paths.convert(self.path(t), x, noise, "noise", "denoised")

    def features(
        self, model: Variables, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b n d"]:
        if not isinstance(self.network, DiT):
            return super().features(model, x, t, labels)
        return self.network.apply(model, x, t * self.config.base_steps - 1, labels, method="features")

    def student(self, num_scalars: int = 0) -> "Diffusion":
        if not isinstance(self.network, DiT):
            return super().student(num_scalars)
        if num_scalars == self.network.num_scalars:
            return self
        return dataclasses.replace(self, network=self.network.clone(num_scalars=num_scalars))

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        shape, tables = self.canvas.shape, self._shortened(options).tables
        predict = self.predict(variables["model"], cond, options)
        start = canvases.normal(keys, shape, 0)

        def noise(index: Int[Array, ""]) -> Array:
            return canvases.normal(keys, shape, index + 1)

        if options.solver == "ancestral":
            return self.canvas.tokens(ddpm.sample(tables, predict, start, noise, clip=options.clip))

        def denoise(x: Array, index: Array) -> Array:
            t = index.astype(jnp.int32)
            return ddpm.reverse(tables, x, t, predict(x, jnp.asarray(tables.timesteps)[t]), options.clip).denoised

        return self.canvas.tokens(solvers.sample(self._table(options), denoise, start, noise))

    def _table(self, options: Sampling) -> solvers.Table:
        """Of a solver that draws nothing; its calls are told the indices of the shortened process."""
        process = self._shortened(options)
        levels = visited(process.tables)
        if options.solver != "deis":
            return {"ddim": solvers.ddim, "dpm_solver": solvers.dpm_solver}[options.solver](levels)
        times = np.append((np.array(process.kept[::-1]) + 1) / process.base_steps, 0.0)
        return solvers.deis(self.path, times, options.order)._replace(times=levels.times)

    def predict(self, model: Variables, cond: Cond, options: Sampling) -> canvases.Predict:
        """The guided network: (x, timesteps of the whole process) -> noise and variance."""
        channels = self.canvas.shape[-1]

        def network(x: Array, t: Array, labels: Array) -> Array:
            return self._predict(model, x, t, labels)

        return canvases.guided(network, cond, self.num_classes, options, self.config.base_steps, channels)

    def network_calls(self, options: Sampling) -> int:
        return self._shortened(options).num_steps

    def _shortened(self, options: Sampling) -> Process:
        return dataclasses.replace(self.config.process, respacing=options.respacing)


def visited(tables: Tables) -> solvers.Levels:
    """The levels of a process from the noisiest to data; their times are its indices."""
    alpha = np.append(tables.sqrt_alphas_cumprod[::-1], 1.0)
    sigma = np.append(tables.sqrt_one_minus_alphas_cumprod[::-1], 0.0)
    return solvers.Levels(np.arange(len(alpha) - 1)[::-1], alpha, sigma)


def build(config: Config, model: Model, task: Task) -> Diffusion:
    """The method for pixels or continuous tokens, conditional on the class.

    Raises:
      ConfigError: other tokens, or maps that the network cannot have.
    """
    canvas = canvases.canvas(task, "diffusion")
    network = maps.network(model, canvas.shape, 2 * canvas.shape[-1], task.num_classes, config.base_steps)
    return Diffusion(network, canvas, config)
