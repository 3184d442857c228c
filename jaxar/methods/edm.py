"""EDM: a denoiser of pixels or latents under noise of any level, with inputs and outputs of unit variance.

    x_t = x_0 + t noise,    D(x, t) = c_skip x + c_out F(c_in x, log(t) / 4),    loss = |D - x_0|^2 / c_out^2

The time of the path is the noise's deviation; its logarithm is normal in training.

Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, Sec. 5, Alg. 1, 2.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

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
_MAX_RISE = np.sqrt(2) - 1  # a step's fresh noise has at most the deviation of what is there


RHO = 7.0  # published; see `Sampling.rho`


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      sigma_min, sigma_max: least and greatest deviation of the noise when sampling; at the greatest, x is noise alone.
      sigma_data: deviation of the data.
      log_mean, log_std: of the normal law of the logarithm of the deviation in training.
      label_drop: share of labels that training replaces by the null one; 0 for a model that is never guided.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    log_mean: float = -1.2
    log_std: float = 1.2
    label_drop: float = 0.1

    def __post_init__(self):
        canvases.check_label_drop(self.label_drop)
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"method.sigma_min={self.sigma_min} must lie between 0 and sigma_max={self.sigma_max}")
        for name in ("sigma_data", "log_std"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be positive")


@dataclasses.dataclass(frozen=True)
class Sampling(canvases.Guidance):
    """The `sample` section; the times of `guidance_interval` are shares of `method.sigma_max`.

    Attributes:
      num_steps: from noise to data.
      rho: how the deviations of the noise fall: their 1 / rho-th powers are evenly spaced.
      solver: "heun" (two calls per step, but for the last), or with one call per step "euler", "dpm_solver" (second
        order) and "deis" of order `order`, 1 to 3.
      churn: of "heun": over all steps, how much fresh noise raises the noise that is there. Each step raises its
        deviation by the share `churn / num_steps`, at most 0.41 and not above sigma_max.
      churn_range: deviations between which it does.
      churn_noise: deviation of the fresh noise, relative to what would keep the law.
    """

    num_steps: int = 18
    rho: float = RHO
    solver: Literal["heun", "euler", "dpm_solver", "deis"] = "heun"
    order: int = 3
    churn: float = 0.0
    churn_range: tuple[float, float] = (0.05, 50.0)
    churn_noise: float = 1.003

    def __post_init__(self):
        super().__post_init__()
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")
        if self.rho <= 0:
            raise ConfigError(f"sample.rho={self.rho} must be positive")
        canvases.check_order(self.order)
        if self.churn < 0 or (self.churn and self.solver != "heun"):
            raise ConfigError(
                f"sample.churn={self.churn} must be at least 0, and 0 for solver={self.solver!r}; use heun"
            )

    def table(self, config: Config) -> solvers.Table:
        """The sampler's table."""
        path, levels = paths.variance_exploding, sigmas(self.num_steps, config.sigma_min, config.sigma_max, self.rho)
        if self.solver == "dpm_solver":
            return solvers.dpm_solver(solvers.levels(path, levels))
        if self.solver == "deis":
            return solvers.deis(path, levels, self.order)
        if self.solver == "euler":
            return solvers.euler(path, levels)
        table = solvers.heun(path, levels, self._raised(levels[:-1], config.sigma_max))
        return table._replace(noise=self.churn_noise * table.noise)

    def _raised(self, levels: np.ndarray, most: float) -> np.ndarray:
        least, greatest = self.churn_range
        rise = min(self.churn / self.num_steps, _MAX_RISE)
        churned = (levels >= least) & (levels <= greatest)
        return np.where(churned, np.minimum(levels * (1 + rise), most), levels)


def sigmas(num_steps: int, least: float, greatest: float, rho: float = RHO) -> Float[np.ndarray, "m"]:
    """The falling deviations that a sampler visits: `num_steps` from `greatest` to `least`, then 0.

    Reference: Karras et al., 2022, Eq. 5.
    """
    return np.append(np.linspace(greatest ** (1 / rho), least ** (1 / rho), num_steps) ** rho, 0.0)


class Scales(NamedTuple):
    """Weights [b] of a network at deviations [b]: of x and of the output in D, of its input, and of the loss."""

    skip: Array
    output: Array
    input: Array
    loss: Array


def scales(t: Float[Array, "b"], sigma_data: float) -> Scales:
    """What gives the network's inputs and targets unit variance, and its errors equal weights.

    Reference: Karras et al., 2022, Table 1.
    """
    total = t**2 + sigma_data**2
    output = t * sigma_data / jnp.sqrt(total)
    return Scales(sigma_data**2 / total, output, 1 / jnp.sqrt(total), 1 / output**2)


@dataclasses.dataclass(frozen=True)
class EDM(denoisers.TrainedDenoiser):
    """One network, one loss."""

    config: Config

    @property
    def path(self) -> paths.Path:
        return paths.variance_exploding

    @property
    def times(self) -> tuple[float, float]:
        return self.config.sigma_min, self.config.sigma_max

    def terms(
        self, model: Variables, x: Float[Array, "b h w c"], cond: Cond, t: Float[Array, "b"], noise: Array
    ) -> dict[str, Float[Array, "b"]]:
        """The term "mse": weighted mean squared error of the estimate of data x under noise of deviation t."""
        denoised = self.denoise(model, paths.add_noise(self.path(t), x, noise), t, cond["label"])
        return {"mse": scales(t, self.config.sigma_data).loss * jnp.mean((denoised - x) ** 2, axis=(1, 2, 3))}

    def draw_times(self, key: Key, count: int) -> Float[Array, "b"]:
        return jnp.exp(self.config.log_mean + self.config.log_std * jax.random.normal(key, (count,)))

    def seen(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> tuple[Array, Float[Array, "b"]]:
        return scales(t, self.config.sigma_data).input[:, None, None, None] * x, jnp.log(t) / 4

    def denoise(
        self,
        model: Variables,
        x: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        labels: Int[Array, "b"],
        *scalars: Float[Array, "b"],
    ) -> Float[Array, "b h w c"]:
        skip, output, _, _ = (w[:, None, None, None] for w in scales(t, self.config.sigma_data))
        return skip * x + output * self.output(model, x, t, labels, *scalars)

    def time_at(self, share: Any) -> Any:
        """As the levels of a sampler with `RHO`."""
        least, greatest = (time ** (1 / RHO) for time in self.times)
        return (least + share * (greatest - least)) ** RHO

    def error_weight(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        return scales(t, self.config.sigma_data).loss

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        return self.solve(variables["model"], options.table(self.config), cond, keys, options)

    def network_calls(self, options: Sampling) -> int:
        return options.table(self.config).num_calls


def build(config: Config, model: Model, task: Task) -> EDM:
    """The method for pixels or continuous tokens, conditional on the class.

    Raises:
      ConfigError: other tokens, or maps that the network cannot have.
    """
    canvas = canvases.canvas(task, "edm")
    return EDM(maps.network(model, canvas.shape, canvas.shape[-1], task.num_classes), canvas, config)
