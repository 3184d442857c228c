"""Trains any method: python -m jaxar.train --config=configs/NAME.py[:ARG] --workdir=DIR [--config.KEY=VALUE ...]

Rerunning the same command resumes from the newest checkpoint, bit for bit. Exit codes: 0 finished, 2 a mistake in the
arguments or the configuration, 75 saved but unfinished after SIGTERM.
"""

import functools
import pathlib
import signal
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxar import backend, checkpoints, cli, evaluation, flops, logs, partition, weights, workdir
from jaxar import state as state_lib
from jaxar.data import loader
from jaxar.experiment import Setup, prepare
from jaxar.meter import Meter
from jaxar.methods.base import Batch, Stage
from jaxar.state import TrainState
from jaxar.train_step import train_step
from jaxar.typing import Key, Variables

PROFILE_AFTER = 5  # steps of a process before a profile starts: compilation and warm-up are not what one looks for


def train(config: dict[str, Any], folder: pathlib.Path, profile_steps: int = 0) -> bool:
    """Runs or resumes a training run.

    Args:
      config: sections as plain dicts.
      folder: the workdir, created if needed.
      profile_steps: steps to trace with the JAX profiler, after the first few.
    Returns:
      True if the last step is done and saved, False if SIGTERM stopped it after a save.
    Raises:
      ConfigError: see `prepare` and `workdir.held`. FloatingPointError: too many refused updates in a row.
    """
    setup = prepare(config, folder)
    with workdir.held(folder):
        return _run(setup, profile_steps)


def _run(setup: Setup, profile_steps: int) -> bool:
    keeper = checkpoints.Checkpoints(setup.folder / "checkpoints", setup.train.keep)
    stop = _StopSignal()
    try:
        state = _restore_or_create(setup, keeper)
        _write_description(setup)  # last, so that a mistake found until here can be corrected in the same folder
        return _loop(setup, state, keeper, stop, profile_steps)
    finally:
        stop.release()
        keeper.close()


def _write_description(setup: Setup) -> None:
    if jax.process_index():
        return
    workdir.write_json(setup.folder / "config.json", setup.config)
    workdir.write_json(setup.folder / "task.json", setup.described)
    workdir.write_json(setup.folder / "environment.json", workdir.environment(setup.mesh))


def _restore_or_create(setup: Setup, keeper: checkpoints.Checkpoints) -> TrainState:
    abstract = state_lib.abstract(setup.method, setup.plan.optimizers, setup.mesh)
    state = keeper.restore(abstract)
    if state is not None:
        return state
    key = jax.random.fold_in(jax.random.key(setup.train.seed), 1)
    state = state_lib.create(setup.method, setup.plan.optimizers, setup.mesh, key)
    state = state_lib.warm_started(state, setup.method, setup.frozen)
    return weights.initialise(state, setup.config.get("init_from") or {}, abstract, setup.mesh)


def _loop(
    setup: Setup, state: TrainState, keeper: checkpoints.Checkpoints, stop: "_StopSignal", profile_steps: int
) -> bool:
    first, last = int(state.step), setup.train.num_steps
    writes = jax.process_index() == 0
    writer = logs.MetricsWriter(setup.folder, first, writes)
    progress = logs.Progress(last, first, writes, setup.folder.name)
    evaluator = evaluation.Evaluator(setup)
    meter = Meter(setup, writer, progress)
    batches = loader.train_batches(
        setup.data, batch_size=setup.train.batch_size, seed=setup.train.seed, start_step=first, mesh=setup.mesh
    )
    step_fn = StepPrograms(setup)
    profiler = _Profiler(setup.folder, first, last, profile_steps)
    key = jax.random.fold_in(jax.random.key(setup.train.seed), 2)
    stage = None
    if writes and first < last:
        (setup.folder / "DONE").unlink(missing_ok=True)  # of a shorter run that now goes on
    with jax.set_mesh(setup.mesh):
        for step in range(first, last):
            profiler.before(step)
            if (now := setup.method.stage(step)) != stage:
                state, stage = _enter(state, now, step, stage is None), now
            with meter.waiting():
                batch = next(batches)
            state, metrics = step_fn(state, setup.frozen, batch, key, step, meter)
            meter.step(step + 1, metrics)
            done = step + 1
            stopping = stop.requested(done)
            profiler.after(done, state, stopping)
            evaluates = evaluator.due(done)
            saves = done % setup.train.checkpoint_every == 0 or done == last or stopping
            if evaluates or saves:
                jax.block_until_ready(state.step)  # the step's own time belongs to training
                meter.flush()  # what a checkpoint follows must be in the log before it
                with meter.paused():
                    scores = evaluator.run(state, done, writer) if evaluates else {}
                    if saves:
                        keeper.save(state, scores)
            if stopping and done < last:
                keeper.wait()
                writer.close()
                print(f"SIGTERM: saved step {done} of {last}; rerun the same command to go on", file=sys.stderr)
                return False
        meter.flush()
    keeper.wait()
    progress.close()
    writer.close()
    if writes:
        (setup.folder / "DONE").write_text(f"{last}\n")
    return True


class StepPrograms:
    """The compiled train step: one program per set of active losses, compiled when first needed and timed apart."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._programs: dict[tuple[str, ...], Any] = {}
        self._flops: dict[tuple[str, ...], int] = {}

    def __call__(
        self, state: TrainState, frozen: dict[str, Variables], batch: Batch, key: Key, step: int, meter: Meter
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        active = self._setup.method.active(step)
        if active not in self._programs:
            with meter.compiling():
                self._programs[active] = self._compile(active, state, frozen, batch, key)
                self._flops[active] = self._count(active, state, frozen, batch)
        meter.step_flops = self._flops[active]
        return self._programs[active](state, frozen, batch, key)

    def _compile(self, active: tuple[str, ...], *args: Any) -> Any:
        shardings = jax.tree.map(lambda x: x.sharding, args[0])
        fn = functools.partial(train_step, plan=self._setup.plan, active=active)
        jitted = jax.jit(fn, out_shardings=(shardings, partition.replicated(self._setup.mesh)), donate_argnums=0)
        return jitted.lower(*args).compile()

    def _count(self, active: tuple[str, ...], state: TrainState, frozen: dict[str, Variables], batch: Batch) -> int:
        losses = [loss for loss in self._setup.method.losses() if loss.name in active]
        return flops.training_step({**frozen, **state.variables()}, batch, self._setup.plan.prepare, losses)


def _enter(state: TrainState, stage: Stage, step: int, first_of_process: bool) -> TrainState:
    """Applies a stage's transition exactly once: a checkpoint of its first step was saved before it."""
    if stage.enter is None or (first_of_process and stage.start != step):
        return state
    return jax.jit(stage.enter, out_shardings=jax.tree.map(lambda x: x.sharding, state))(state)


class _StopSignal:
    """Remembers SIGTERM until the loop asks; in a multi-process run the answer is agreed between processes."""

    def __init__(self):
        self._asked = False
        self._previous = None
        # With several processes JAX's own preemption service listens, and must keep the handler.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def release(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)


class _Profiler:
    """Traces the steps that `--profile` asks for, or those that are left where the run ends before."""

    def __init__(self, folder: pathlib.Path, first: int, last: int, steps: int):
        begin = min(first + PROFILE_AFTER, last - 1)
        self._folder, self._steps = folder / "profile", range(begin, min(begin + steps, last))
        self._running = False

    def before(self, step: int) -> None:
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, done: int, state: TrainState, stopping: bool) -> None:
        if self._running and (stopping or done not in self._steps):
            jax.block_until_ready(state)  # the steps are dispatched, and only then done
            jax.profiler.stop_trace()
            self._running = False


def command(argv: list[str]) -> int:
    parser = cli.Parser(__doc__, prog="python -m jaxar.train")
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a configuration file and its argument")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where everything about the run is kept")
    parser.add_argument("--profile", type=cli.integer(0), default=0, metavar="N", help="trace N steps into DIR/profile")
    parser.add_json()
    args, overrides = parser.parse_known(argv, ["--config."])
    config = cli.load_config(args.config, overrides)
    backend.initialize()
    folder = pathlib.Path(args.workdir)
    finished = train(config, folder, args.profile)
    result = {
        "workdir": str(folder),
        "finished": finished,
        "step": checkpoints.list_saved(folder / "checkpoints")[-1].step,
    }
    cli.emit(result, f"{'finished' if finished else 'stopped'} at step {result['step']}: {folder}", args.json)
    return 0 if finished else cli.PREEMPTED


if __name__ == "__main__":
    cli.main(command)
