"""What is measured while training: a validation pass, and samples against a reference."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar import logs, sampling, settings
from jaxar.data import loader, pictures
from jaxar.experiment import Setup
from jaxar.methods.base import Batch, Method
from jaxar.metrics import protocol, reference
from jaxar.state import TrainState
from jaxar.train_step import Prepare
from jaxar.typing import Array, Key, Metrics, Variables


class Evaluator:
    """Runs the `eval` section of a training run; its programs are compiled once."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._validation = Validation(setup.method, setup.plan.prepare)
        self._options = settings.build_sampling(setup.config)
        wanted = setup.eval.reference if self._options is not None else None
        self._reference = reference.load(wanted, data_dir=setup.data.data_dir) if wanted else None
        self._sampler = sampling.Sampler(setup.method, setup.task.tokenizer, self._options, setup.mesh)

    def due(self, done: int) -> bool:
        """Whether anything is to be measured after `done` steps; the last step always is, if anything ever is."""
        return self._due(self._setup.eval.every, done) or self._due(self._setup.eval.sample_every, done)

    def _due(self, every: int | None, done: int) -> bool:
        return every is not None and (done % every == 0 or done == self._setup.train.num_steps)

    def run(self, state: TrainState, done: int, writer: logs.MetricsWriter) -> dict[str, float]:
        """Measures, writes and returns what is due after `done` steps."""
        variables = {**self._setup.frozen, **averaged(state, self._setup.eval.ema)}
        scores: dict[str, float] = {}
        if self._due(self._setup.eval.every, done):
            figures = self._validation(variables, self._test_batches(), self._setup.eval.max_batches)
            scores |= {f"eval/test/{name}": value for name, value in figures.items()}
        if self._due(self._setup.eval.sample_every, done):
            scores |= self._draw(variables, done, writer)
        writer.write(done, scores)
        return scores

    def _draw(self, variables: dict[str, Variables], done: int, writer: logs.MetricsWriter) -> dict[str, float]:
        """Draws the grid of this step, and measures samples against the reference if there is one."""
        if self._options is None:
            return self._draw_reconstructions(variables, done, writer)
        config, described = self._setup.eval, self._setup.described
        count = max(config.grid, config.num_samples if config.reference else 0)
        labels = sampling.balanced_labels(count, self._setup.info.num_classes)
        cond = sampling.conditions(self._setup.task, labels, described.get("captions"))
        images = self._sampler(variables, cond, np.arange(count), self._setup.train.seed)
        titles = [described["class_names"][label] for label in labels[: config.grid]]
        self._save_grid(pictures.grid(images[: config.grid], titles), done, writer)
        if config.reference is None:
            return {}
        measured = protocol.evaluate_samples(images, labels, self._reference, self._setup.train.seed)
        return {f"eval/{config.reference}/{name}": value for name, value in measured["metrics"].items()}

    def _draw_reconstructions(
        self, variables: dict[str, Variables], done: int, writer: logs.MetricsWriter
    ) -> dict[str, float]:
        images = next(self._test_batches())["image"][: self._setup.eval.grid]
        again = sampling.reconstruct(self._setup.task.tokenizer, variables["tokenizer"], images)
        rows = np.concatenate([sampling.to_host(part) for part in (sampling.to_uint8(images), again)])
        picture = pictures.grid(rows, columns=len(images) // 2 or 1)
        self._save_grid(picture, done, writer)
        return {}

    def _test_batches(self) -> Iterator[Batch]:
        return loader.eval_batches(
            self._setup.data, "test", batch_size=self._setup.eval.batch_size, mesh=self._setup.mesh
        )

    def _save_grid(self, picture: Any, done: int, writer: logs.MetricsWriter) -> None:
        if jax.process_index() == 0:
            folder = self._setup.folder / "samples"
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"step_{done:08d}.png")
            writer.picture(done, "samples/grid", np.asarray(picture.convert("RGB")))


def averaged(state: TrainState, ema: str | None) -> dict[str, Variables]:
    """Variables of all players, with the average `ema` of those that keep it (None, "raw": none)."""
    averages = {name: {"params": p.emas[ema]} for name, p in state.players.items() if ema in p.emas}
    return {name: {**own, **averages.get(name, {})} for name, own in state.variables().items()}


class Validation:
    """A method's validation figures over the batches of a split; compiled once."""

    def __init__(self, method: Method, prepare: Prepare | None):
        self._measure = jax.jit(functools.partial(_measure, method, prepare))

    def __call__(
        self, variables: dict[str, Variables], batches: Iterator[Batch], max_batches: int | None = None
    ) -> dict[str, float]:
        """Means over the valid examples of at most `max_batches` batches."""
        parts, counts = [], []
        for index, batch in enumerate(itertools.islice(batches, max_batches)):
            valid = batch.pop("valid")
            parts.append(self._measure(variables, batch, valid, jax.random.fold_in(jax.random.key(0), index)))
            counts.append(int(jnp.sum(valid)))
        parts = jax.device_get(parts)
        return {name: float(np.average([part[name] for part in parts], weights=counts)) for name in parts[0]}


def _measure(
    method: Method, prepare: Any, variables: dict[str, Variables], batch: Batch, valid: Array, key: Key
) -> Metrics:
    ready = prepare(variables, batch, None) if prepare else batch
    figures = method.evaluate(variables, ready, key)
    weight = valid / jnp.maximum(jnp.sum(valid), 1)
    return {name: jnp.sum(value * weight) if value.ndim else value for name, value in figures.items()}
