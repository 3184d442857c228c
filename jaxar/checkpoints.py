"""Checkpoints: asynchronous and atomic through Orbax, verified by fingerprints of our own on the way back.

Orbax guarantees that a finished directory is whole, but neither falls back from a damaged one nor notices flipped bits.
Every save therefore records a fingerprint per array, and restore takes the newest checkpoint whose fingerprints agree.
Each player is its own entry, so that any subset of networks and averages loads.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxar.config import ConfigError
from jaxar.state import PlayerState, TrainState

_RECORD = "arrays"  # the entry that holds shape, dtype and fingerprint of every array
_POLICIES = ocp.training.preservation_policies


class DamagedCheckpointError(RuntimeError):
    """A checkpoint that cannot be trusted; where it was the last one, training must stop rather than start over."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `latest`, and the `best` ones by `metric` (None: no metric)."""

    latest: int = 2
    best: int = 0
    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self):
        if self.latest < 1:
            raise ConfigError(f"train.keep.latest={self.latest} must be at least 1: resuming needs the newest")
        if (self.best > 0) != (self.metric is not None):
            raise ConfigError(f"train.keep.best={self.best} and train.keep.metric={self.metric!r} go together")

    def value(self, metrics: Any) -> float:
        """The metric of one checkpoint as a number to minimise; a checkpoint without it counts as the worst."""
        value = (metrics or {}).get(self.metric)
        if value is None or not np.isfinite(value):
            return float("inf")
        return float(value) if self.mode == "min" else -float(value)

    def policy(self) -> Any:
        latest = _POLICIES.LatestN(self.latest)
        if not self.best:
            return latest
        best = _POLICIES.BestN(get_metric_fn=self.value, reverse=True, n=self.best)
        return _POLICIES.AnyPreservationPolicy([latest, best])


class Checkpoints:
    """The checkpoints of one training run. Saving returns at once; it is durable after the next save, or `wait`."""

    def __init__(self, directory: pathlib.Path, retention: Retention = Retention()):
        self.directory = directory.absolute()
        self._open = lambda: ocp.training.Checkpointer(
            self.directory,
            context=_context(),
            cleanup_tmp_directories=True,
            preservation_policy=retention.policy(),
        )
        self._orbax = self._open()
        self._pending: Any = None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the finished checkpoints, ascending."""
        return tuple(sorted(c.step for c in self._orbax.checkpoints))

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving `state` under its step; a step that is already saved is left alone.

        Raises:
          OSError: the previous save failed (a full disk, say); the checkpoints before it are good.
        """
        self.wait()
        step = int(state.step)
        if step in self.steps:
            return
        entries = {f"player_{name}": _entry(player) for name, player in state.players.items()}
        self._pending = self._orbax.save_checkpointables_async(
            step,
            {**entries, _RECORD: _record(entries)},
            force=True,
            metrics={k: float(v) for k, v in metrics.items()},
        )

    def wait(self) -> None:
        """Blocks until the save under way is durable and reports its error, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, in the layout of `abstract`; None if there is none at all.

        Damaged checkpoints are named in a warning and moved to `damaged/` beside the others, so that training can save
        their step again and nothing is lost.

        Raises:
          DamagedCheckpointError: there are checkpoints, but none can be read.
          ConfigError: the checkpoint holds other networks or shapes than `abstract`.
        """
        self.wait()
        damaged = []
        for step in reversed(self.steps):
            try:
                state = load_state(self.directory, step, abstract)
            except DamagedCheckpointError as damage:
                logging.warning("%s; trying the one before", damage)
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return state
        if damaged:
            raise DamagedCheckpointError(
                f"all checkpoints in {self.directory} are damaged (steps {damaged}); "
                "restore them from a copy, or train into a new workdir"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            folder = self.directory.parent / "damaged"
            folder.mkdir(exist_ok=True)
            for step in steps:
                number = len(list(folder.iterdir()))
                (self.directory / str(step)).rename(folder / f"{step}.{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._orbax.close()
        self._orbax = self._open()

    def close(self) -> None:
        """Finishes the save under way."""
        self.wait()
        self._orbax.close()


def load_state(directory: pathlib.Path, step: int, abstract: TrainState) -> TrainState:
    """The whole state of one checkpoint, in the layout of `abstract`.

    Raises:
      DamagedCheckpointError: the checkpoint is damaged.
      ConfigError: it holds other networks or shapes than `abstract`.
    """
    targets = {f"player_{name}": _entry(player) for name, player in abstract.players.items()}
    entries = _load_verified(directory, step, targets)
    players = {name: PlayerState(**entries[f"player_{name}"]) for name in abstract.players}
    return TrainState(jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding), players)


def load_player(directory: pathlib.Path, step: int, name: str, abstract: dict[str, Any]) -> dict[str, Any]:
    """Parts of one player from one checkpoint.

    Args:
      directory: the `checkpoints` folder of a workdir.
      abstract: a subset of the fields of `PlayerState` ({"params": ..., "aux": ...} or {"emas": {"0.999": ...}}).
    Raises:
      DamagedCheckpointError: the checkpoint is damaged.
      ConfigError: it holds other shapes, or lacks what is asked for.
    """
    return _load_verified(directory, step, {f"player_{name}": abstract})[f"player_{name}"]


@dataclasses.dataclass(frozen=True)
class Saved:
    """A finished checkpoint as seen from outside: its step and the metrics saved with it."""

    step: int
    metrics: dict[str, float]


def list_saved(directory: pathlib.Path) -> tuple[Saved, ...]:
    """Finished checkpoints of a workdir, by step.

    Reads file names and metrics alone. Opening the directory through Orbax would make processes wait for one another,
    and hang where one of them finds the directory and another, a moment earlier, does not.
    """
    finished = [path.parent for path in directory.glob("*/_CHECKPOINT_METADATA") if path.parent.name.isdigit()]
    return tuple(Saved(int(path.name), _metrics(path)) for path in sorted(finished, key=lambda path: int(path.name)))


def _metrics(checkpoint: pathlib.Path) -> dict[str, float]:
    path = checkpoint / "metrics" / "metrics"
    return json.loads(path.read_text()) if path.exists() else {}


def save_tree(directory: pathlib.Path, tree: Any) -> None:
    """Writes one pytree of arrays atomically (weights copied from a parent run)."""
    record = _record({"tree": tree})
    with _context(), ocp.training.Checkpointer(directory.absolute(), cleanup_tmp_directories=True) as checkpointer:
        checkpointer.save_checkpointables(0, {"tree": tree, _RECORD: record}, force=True, overwrite=True)


def load_tree(directory: pathlib.Path, abstract: Any) -> Any:
    """Reads what `save_tree` wrote.

    Raises:
      DamagedCheckpointError, ConfigError: as for `load_player`.
    """
    return _load_verified(directory, 0, {"tree": abstract})["tree"]


def _entry(player: PlayerState) -> dict[str, Any]:
    return {field.name: getattr(player, field.name) for field in dataclasses.fields(player)}


def _load_verified(directory: pathlib.Path, step: int, targets: dict[str, Any]) -> dict[str, Any]:
    """Loads entries (or parts of them) into the layout of `targets` and compares their fingerprints."""
    try:
        with _context(), ocp.training.Checkpointer(directory.absolute()) as checkpointer:
            record = checkpointer.load_checkpointables(step, {_RECORD: None})[_RECORD]
            _check_match(directory / str(step), targets, record)
            loaded = checkpointer.load_checkpointables(step, targets)
        error = None
    except ConfigError:
        raise
    except Exception as caught:
        error = caught
    if not _agreed(error is None):
        cause = "another process cannot read it" if error is None else _cause(error)
        raise DamagedCheckpointError(f"checkpoint {directory / str(step)} is damaged: {cause}") from error
    wrong = [name for name, mark in fingerprints(loaded).items() if mark != record[name]["fingerprint"]]
    if wrong:
        names = ", ".join(wrong[:3]) + (" ..." if len(wrong) > 3 else "")
        raise DamagedCheckpointError(f"checkpoint {directory / str(step)} is damaged: {names} changed on disk")
    return loaded


def _agreed(good: bool) -> bool:
    """Whether it went well in every process: damage that one alone sees must not part it from the others."""
    return good if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(good))))


def _check_match(path: pathlib.Path, targets: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuses a checkpoint of another model before Orbax casts or mislays anything."""
    wanted = dict(_named_leaves(targets))
    missing = [name for name in wanted if name not in record]
    way_out = "use the configuration in the workdir's config.json, or a new workdir"
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"checkpoint {path} lacks {missing[0]}{more}: the configuration describes another model; {way_out}"
        )
    for name, leaf in wanted.items():
        stored = (tuple(record[name]["shape"]), record[name]["dtype"])
        if stored != (tuple(leaf.shape), str(leaf.dtype)):
            raise ConfigError(
                f"checkpoint {path} has {name} with shape {stored[0]} {stored[1]}, the configuration gives "
                f"{tuple(leaf.shape)} {leaf.dtype}; {way_out}"
            )


def _record(entries: dict[str, Any]) -> dict[str, Any]:
    """What is written beside the arrays: shape, dtype and fingerprint of each, by path."""
    marks = fingerprints(entries)
    leaves = dict(_named_leaves(entries))
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "fingerprint": marks[name]}
        for name, leaf in leaves.items()
    }


def _context() -> ocp.Context:
    """Orbax options: parts of an entry may be loaded, and the record is one JSON file."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=_RECORD)
    context.checkpointables.registry = registry
    return context


def _cause(error: BaseException) -> str:
    """The innermost cause: Orbax wraps a missing file in messages about handlers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def fingerprints(tree: Any) -> dict[str, int]:
    """A 32-bit fingerprint per array, by path; independent of sharding, sensitive to every bit and position."""
    marks = _fingerprint(tree)
    return {name: int(mark) for name, mark in _named_leaves(jax.device_get(marks))}


@jax.jit
def _fingerprint(tree: Any) -> Any:
    return jax.tree.map(_fingerprint_leaf, tree)


def _fingerprint_leaf(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    # Row-major positions, without a reshape: that would gather a sharded array on every device.
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = bits * jnp.uint32(2246822519)
    mixed ^= mixed >> 15
    # The odd weight makes equal values at other positions count differently.
    return jnp.sum(mixed * (2 * position + 1), dtype=jnp.uint32)
