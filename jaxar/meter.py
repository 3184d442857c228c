"""Timing of a training run: what a step costs without compilation, evaluation and saving."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from jaxar import flops, logs
from jaxar.experiment import Setup


class Meter:
    """Logs figures of every `train.log_every`-th step, one step late.

    Fetching the figures of step n after step n + 1 was dispatched keeps the device busy.
    """

    def __init__(self, setup: Setup, writer: logs.MetricsWriter, progress: logs.Progress):
        self._setup, self._writer, self._progress = setup, writer, progress
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._compile_s = 0.0
        self._begun = time.perf_counter()
        self.step_flops = 0
        self._reset()

    def _reset(self) -> None:
        self._start, self._excluded, self._wait, self._steps = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for data."""
        begun = time.perf_counter()
        yield
        self._wait += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work that is not training."""
        begun = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - begun

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        begun = time.perf_counter()
        with self.paused():
            yield
        self._compile_s += time.perf_counter() - begun

    def step(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """After the dispatch of a step; `done` steps are now under way or finished."""
        self.flush()
        self._steps += 1
        if done % self._setup.train.log_every == 0 or done == self._setup.train.num_steps:
            self._pending = (done, metrics)

    def flush(self) -> None:
        """Writes the figures that wait, if any.

        Raises:
          FloatingPointError: too many updates in a row were refused.
        """
        if self._pending is None:
            return
        (done, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values |= self._performance(done)
        self._writer.write(done, values)
        self._progress.update(done, values["train/loss"], values["perf/images_per_s"])
        self._check_streak(done, values)
        self._reset()

    def _performance(self, done: int) -> dict[str, float]:
        now = time.perf_counter()
        step_time = max(now - self._start - self._excluded, 1e-9) / self._steps
        images_per_s = self._setup.train.batch_size / step_time
        devices = self._setup.mesh.size
        rate = self.step_flops / step_time / devices
        hours = (now - self._begun) / 3600
        figures = {
            "perf/step_time_s": step_time,
            "perf/images_per_s": images_per_s,
            "perf/images_per_s_per_device": images_per_s / devices,
            "perf/tflops_per_s_per_device": rate / 1e12,
            "perf/data_wait_s": self._wait / self._steps,
            "perf/compile_s": self._compile_s,
            "time/train_hours": hours,
            "time/device_hours": hours * devices,
            "time/eta_h": (self._setup.train.num_steps - done) * step_time / 3600,
        }
        device = self._setup.mesh.local_devices[0]
        if (peak := flops.peak_flops(device)) is not None:
            figures["perf/mfu"] = rate / peak
        if (memory := device.memory_stats()) is not None:  # CPUs keep no statistics
            figures |= {"mem/bytes_in_use": memory["bytes_in_use"], "mem/peak_bytes": memory["peak_bytes_in_use"]}
        return figures

    def _check_streak(self, done: int, values: dict[str, float]) -> None:
        for name, optimizer in self._setup.plan.optimizers.items():
            bad = values.get(f"train/bad_in_a_row/{name}", 0)
            if bad >= optimizer.config.max_bad_steps:
                raise FloatingPointError(
                    f"step {done}: the last {bad:.0f} updates of {name!r} were refused (loss or gradients not finite, "
                    "or a spike); the newest checkpoint is good: go on from it in a new --workdir, with a lower "
                    f"optim.learning_rate and init_from.from_={str(self._setup.folder)!r}"
                )
