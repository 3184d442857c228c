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
from jaxar.methods import _denoiser as denoisers
from jaxar.methods.base import Cond, Task
from jaxar.models import maps
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Variables

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
class Diffusion(denoisers.TrainedDenoiser):
    """One network, one loss."""

    config: Config

    @property
    def path(self) -> paths.Path:
        """Time i / n is that of step i - 1 of n."""
        return paths.tabulated(self.config.process.tables.sqrt_alphas_cumprod)

    @property
    def times(self) -> tuple[float, float]:
        return 1 / self.config.base_steps, 1.0

    def terms(
        self, model: Variables, x: Float[Array, "b h w c"], cond: Cond, t: Int[Array, "b"], noise: Array
    ) -> dict[str, Float[Array, "b"]]:
        """The terms "mse" of the noise and "vb" in bits per channel, of data x at steps t of the whole process."""
        tables = self.config.process.tables
        noised = ddpm.add_noise(tables, x, t, noise)
        return ddpm.training_terms(tables, x, t, noise, self._predict(model, noised, t, cond["label"]))._asdict()

    def draw_times(self, key: Key, count: int) -> Int[Array, "b"]:
        """Steps of the whole process."""
        return jax.random.randint(key, (count,), 0, self.config.base_steps)

    def _predict(self, model: Variables, x: Array, step: Array, labels: Array) -> Float[Array, "b h w 2*c"]:
        return self.network.apply(model, x, step.astype(jnp.float32), labels)

    def seen(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> tuple[Array, Float[Array, "b"]]:
        return x, t * self.config.base_steps - 1

    def denoise(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        noise = self.output(model, x, t, labels, *scalars)[..., : self.canvas.shape[-1]]
        return paths.convert(self.path(t), x, noise, "noise", "denoised")

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
