"""Flow matching of pixels or latents: a network predicts the velocity from data to noise (SiT).

    x_t = alpha(t) x_0 + sigma(t) noise,    loss = |velocity of x_t - prediction|^2,    t uniform in [0, 1]

By default the network has the clock of the published one: it is told 1 - t and predicts the velocity towards data.

Reference: Ma et al., SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers,
2024; Lipman et al., Flow Matching for Generative Modeling, 2023; Liu et al., Flow Straight and Fast, 2023.

Golden: sit_d2
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import paths, solvers
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
      path: "linear", or "cosine" of constant variance; see `diffusion.paths`.
      label_drop: share of labels that training replaces by the null one; 0 for a model that is never guided.
      learn_sigma: the network has as many channels again that nothing reads, as published weights have.
      clock: what the network is told and follows: the time until "data" is reached, or that until "noise" is.
    """

    path: Literal["linear", "cosine"] = "linear"
    label_drop: float = 0.1
    learn_sigma: bool = False
    clock: Literal["data", "noise"] = "data"

    def __post_init__(self):
        canvases.check_label_drop(self.label_drop)


@dataclasses.dataclass(frozen=True)
class Sampling(canvases.Guidance):
    """The `sample` section.

    Attributes:
      num_steps: from noise to data, of equal length in time; the last of "sde" has length `last_step`.
      solver: "heun" (two calls per step, but for the last), or with one call per step "euler", "dpm_solver" (second
        order), "deis" of order `order`, 1 to 3, and "sde", which adds noise of variance sigma(t) per unit of time.
      last_step: of "sde", see above.
    """

    num_steps: int = 50
    solver: Literal["euler", "heun", "dpm_solver", "deis", "sde"] = "euler"
    order: int = 3
    last_step: float = 0.04

    def __post_init__(self):
        super().__post_init__()
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")
        if not 0 < self.last_step < 1:
            raise ConfigError(f"sample.last_step={self.last_step} must lie in (0, 1)")
        canvases.check_order(self.order)

    def table(self, path: paths.Path) -> solvers.Table:
        """The sampler's table on this path."""
        if self.solver == "sde":
            return solvers.euler_maruyama(path, np.append(np.linspace(1, self.last_step, self.num_steps), 0.0))
        times = np.linspace(1, 0, self.num_steps + 1)
        if self.solver == "dpm_solver":
            return solvers.dpm_solver(solvers.levels(path, times))
        if self.solver == "deis":
            return solvers.deis(path, times, self.order)
        return {"euler": solvers.euler, "heun": solvers.heun}[self.solver](path, times)


@dataclasses.dataclass(frozen=True)
class FlowMatching(denoisers.TrainedDenoiser):
    """One network, one loss."""

    config: Config

    @property
    def path(self) -> paths.Path:
        return paths.PATHS[self.config.path]

    def terms(
        self, model: Variables, x: Float[Array, "b h w c"], cond: Cond, t: Float[Array, "b"], noise: Array
    ) -> dict[str, Float[Array, "b"]]:
        """The term "mse": mean squared error of the velocity of data x at times t."""
        point = self.path(t)
        velocity = self.velocity(model, paths.add_noise(point, x, noise), t, cond["label"])
        return {"mse": jnp.mean((velocity - paths.velocity(point, x, noise)) ** 2, axis=(1, 2, 3))}

    def draw_times(self, key: Key, count: int) -> Float[Array, "b"]:
        return jax.random.uniform(key, (count,))

    def seen(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> tuple[Array, Float[Array, "b"]]:
        return x, 1 - t if self.config.clock == "data" else t

    def velocity(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        """The predicted velocity, from data to noise."""
        sign = -1 if self.config.clock == "data" else 1
        return sign * self.output(model, x, t, labels, *scalars)[..., : self.canvas.shape[-1]]

    def denoise(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        return paths.convert(self.path(t), x, self.velocity(model, x, t, labels, *scalars), "velocity", "denoised")

    def error_weight(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """That of the velocity."""
        at = self.path(t)
        return (at.alpha_slope - at.sigma_slope * at.alpha / at.sigma) ** 2

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        return self.solve(variables["model"], options.table(self.path), cond, keys, options)

    def network_calls(self, options: Sampling) -> int:
        return options.table(self.path).num_calls


def build(config: Config, model: Model, task: Task) -> FlowMatching:
    """The method for pixels or continuous tokens, conditional on the class.

    Raises:
      ConfigError: other tokens, or maps that the network cannot have.
    """
    canvas = canvases.canvas(task, "flow_matching")
    channels = canvas.shape[-1] * (2 if config.learn_sigma else 1)
    return FlowMatching(maps.network(model, canvas.shape, channels, task.num_classes), canvas, config)
