"""An opened workdir: what the commands and notebooks sample, evaluate and analyse with."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxar import parents, partition, sampling, settings, weights, workdir
from jaxar.methods.base import Method, Task
from jaxar.tokenizers.base import Tokenizer
from jaxar.typing import Array, Variables


@dataclasses.dataclass(frozen=True)
class Run:
    """An opened workdir: the method, its weights and everything to sample with.

    Attributes:
      variables: of the players and frozen parents ("tokenizer", "teacher"), by name.
      options: the sampling options of the configuration, None for a tokenizer's run.
      step, ema: which weights these are.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    class_names: tuple[str, ...]
    captions: tuple[str, ...]
    task: Task
    method: Method
    variables: dict[str, Variables]
    options: Any
    mesh: Mesh
    step: int
    ema: str | None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None for a method over pixels; its variables are `variables["tokenizer"]`."""
        return self.task.tokenizer

    def sample(
        self, labels: Sequence[int], seed: int = 0, captions: Sequence[str] | None = None, **options: Any
    ) -> np.ndarray:
        """Images of the given classes, uint8 [b h w c]; sample i depends on (seed, i, label) alone.

        Args:
          captions: for a text-conditional model; default: examples from its data.
          options: changes to the sampling options, such as guidance_scale=2.0.
        """
        sampler = self.sampler(**options)
        cond = sampling.conditions(self.task, np.asarray(labels, np.int32), captions or self.captions)
        return sampler(self.variables, cond, np.arange(len(labels)), seed)

    def sampler(self, batch_size: int | None = None, **options: Any) -> sampling.Sampler:
        """A sampler with changed options; it compiles at its first call and keeps the program."""
        chosen = settings.build_sampling(self.config, options)
        return sampling.Sampler(self.method, self.task.tokenizer, chosen, self.mesh, batch_size)

    def reconstruct(self, images: Array) -> np.ndarray:
        """Images through the tokenizer and back. images: [b h w c] in [-1, 1]; returns uint8."""
        return sampling.to_host(sampling.reconstruct(self.task.tokenizer, self.variables["tokenizer"], images))


def load(
    path: str | pathlib.Path,
    *,
    step: int | None = None,
    ema: str | None = None,
    mesh: Mesh | None = None,
    role: str = "workdir",
) -> Run:
    """Opens a workdir for sampling and analysis.

    Args:
      step: which checkpoint; None for the best one by metric if the run kept one, else the newest.
      ema: which average ("0.999"), "raw" for none; None for what the run's `eval.ema` says.
      mesh: where to put the weights; None for the first device.
    Raises:
      ConfigError: the folder holds no run, or not the checkpoint or average asked for.
      DamagedCheckpointError: the checkpoint cannot be read.
    """
    folder = pathlib.Path(path)
    config = workdir.open_config(folder, role)
    described = workdir.read_json(folder / "task.json")
    mesh = mesh or partition.single_device_mesh()
    task = settings.build_task(described)
    method = settings.build_method(config, task)
    step = weights.choose_step(folder, config, step, role)
    ema = weights.choose_average(config, ema)
    variables = parents.load_adopted(folder, task, mesh)
    for index, player in enumerate(method.players()):
        # The first player must have the average that is asked for; a critic has none.
        average = ema if index == 0 or ema in weights.averages(config, method, player) else None
        variables[player] = weights.load_weights(folder, method, player, step, average, mesh)
    return Run(
        workdir=folder,
        config=config,
        class_names=tuple(described["class_names"]),
        captions=tuple(described.get("captions") or ()),
        task=task,
        method=method,
        variables=variables,
        options=settings.build_sampling(config),
        mesh=mesh,
        step=step,
        ema=ema,
    )
