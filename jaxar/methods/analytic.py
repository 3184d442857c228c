"""A teacher in closed form: the exact denoiser of a mixture of Gaussians, without weights.

It stands in a configuration where a trained teacher would be named, for methods that are to be tried on a law that is
known, `teacher = {"method": {"name": "analytic", "law": {...}}}`, and reads nothing of the data but their shape and
labels. The data source `points` draws from the same laws.

Reference: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, App. B.3, for points;
with a variance about each of them the posterior stays a mixture.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from jaxar.config import ConfigError
from jaxar.diffusion import mixtures, paths, solvers
from jaxar.methods import _canvas as canvases
from jaxar.methods import _denoiser as denoisers
from jaxar.methods import edm, flow_matching
from jaxar.methods.base import Batch, Cond, LossSpec, PlayerSpec, Task
from jaxar.models import vector
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Variables

Model = vector.Sizes  # of its students


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      path: "linear" or "cosine", see `diffusion.paths`; "ve" adds noise to data that stay as they are, as EDM does.
      law: of the data.
      sigma_min, sigma_max: of "ve", least and greatest deviation of the noise.
    """

    path: Literal["linear", "cosine", "ve"] = "linear"
    law: mixtures.Mixture = mixtures.Mixture()  # noqa: RUF009 - frozen
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        _ = self.edm_config  # refuses deviations that it cannot have

    @property
    def edm_config(self) -> edm.Config:
        """Of students on "ve"."""
        return edm.Config(self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class Sampling(canvases.Guidance):
    """The `sample` section. `num_steps`: of Heun's method from noise to data."""

    num_steps: int = 50

    def __post_init__(self):
        super().__post_init__()
        if self.num_steps < 1:
            raise ConfigError(f"sample.num_steps={self.num_steps} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Analytic(denoisers.Denoiser):
    """A denoiser with nothing to train."""

    config: Config
    canvas: canvases.Canvas
    labels: int
    students: vector.Sizes

    @property
    def path(self) -> paths.Path:
        return {**paths.PATHS, "ve": paths.variance_exploding}[self.config.path]

    @property
    def times(self) -> tuple[float, float]:
        return (self.config.sigma_min, self.config.sigma_max) if self.config.path == "ve" else (0.0, 1.0)

    def time_at(self, share: Any) -> Any:
        return self.student().time_at(share)

    def error_weight(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        return self.student().error_weight(t)

    @property
    def num_classes(self) -> int:
        return self.labels

    @property
    def law(self) -> mixtures.Components:
        return self.config.law.components(math.prod(self.canvas.shape), self.labels)

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec(ema=False)}

    def init(self, key: Key) -> dict[str, Variables]:
        return {"model": {"params": {}}}

    def losses(self) -> tuple[LossSpec, ...]:
        return ()

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        return {}

    def denoise(
        self, model: Variables, x: Float[Array, "b h w c"], t: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        return mixtures.denoise(self.law, self.path(t), x.reshape(len(x), -1), labels).reshape(x.shape)

    def flow(
        self, x: Float[Array, "b h w c"], begin: Float[Array, "b"], end: Float[Array, "b"], labels: Int[Array, "b"]
    ) -> Float[Array, "b h w c"]:
        """Where the probability flow carries x from times `begin` to times `end`; see `mixtures.flow`."""
        flat = x.reshape(len(x), -1)
        return mixtures.flow(self.law, self.path(begin), self.path(end), flat, labels).reshape(x.shape)

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        denoise = denoisers.guided(self, variables["model"], cond, options)
        start = self.path(np.array(self.times[1])).sigma * denoisers.noise_of(self, keys)
        return self.canvas.tokens(solvers.sample(self._table(options), denoise, start, lambda index: start))

    def network_calls(self, options: Sampling) -> int:
        return self._table(options).num_calls

    def _table(self, options: Sampling) -> solvers.Table:
        if self.config.path == "ve":
            return solvers.heun(self.path, edm.sigmas(options.num_steps, *self.times))
        return solvers.heun(self.path, np.linspace(1, 0, options.num_steps + 1))

    def student(self, num_scalars: int = 0) -> flow_matching.FlowMatching | edm.EDM:
        """A small network on the same path."""
        network = vector.VectorNetwork(self.students, self.canvas.shape[-1], self.labels)
        if self.config.path == "ve":
            return edm.EDM(network, self.canvas, self.config.edm_config).student(num_scalars)
        return flow_matching.FlowMatching(network, self.canvas, flow_matching.Config(self.config.path)).student(
            num_scalars
        )


def build(config: Config, model: Model, task: Task) -> Analytic:
    """The denoiser of maps of the task's shape.

    Raises:
      ConfigError: discrete tokens, or a law over other shapes or classes.
    """
    canvas = canvases.canvas(task, "analytic")
    method = Analytic(config, canvas, task.num_classes, model)
    _ = method.law  # refuses what does not fit
    return method
