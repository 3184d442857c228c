"""The files of one run, and how a run is described so that it opens again without its data and parents.

config.json       the resolved configuration
task.json         what data, tokenizer and teacher fixed: enough to rebuild the method
environment.json  versions, devices and mesh of the last start
metrics.jsonl     one line per logged step
checkpoints/      Orbax, a folder per step
parents/NAME/     weights copied from another run, with their origin in parent.json
samples/          grids drawn while training
DONE              written when the last step is saved
.lock             held by the process that trains
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxar.config import ConfigError

# Keys that may change between starts of the same run: they steer length, layout and logging or say where the data lies,
# not what is learnt.
FREE = (
    "train.num_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "data.root",
    "data.data_dir",
    "data.num_threads",
    "mesh",
    "eval",
    "sample",
)


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Atomic: readers see the old file or the new one."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as it reads back from JSON (tuples are lists)."""
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise ConfigError(f"the configuration holds a value that JSON cannot store: {error}") from error


def started(workdir: pathlib.Path) -> bool:
    """Whether a run has passed its checks there: its configuration is written last."""
    return (workdir / "config.json").is_file()


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps every other training out of a workdir until the block or the process ends, however it ends.

    One process of a job holds it for all. Where the file system has no locks, nothing is kept out.

    Raises:
      ConfigError: another training holds it.
    """
    if jax.process_index():
        yield
        return
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"--workdir={str(workdir)!r} is being trained by {file.read() or 'another process'}; wait until that "
                "ends, stop it, or choose another folder"
            ) from error
        except OSError:  # no locks here
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def open_config(workdir: pathlib.Path, role: str) -> dict[str, Any]:
    """The configuration of an existing workdir.

    Args:
      role: how the user named it ("--workdir", "tokenizer.from_"); used in messages.
    Raises:
      ConfigError: the folder does not hold a run.
    """
    if not (workdir / "config.json").is_file() or not (workdir / "task.json").is_file():
        what = "does not exist" if not workdir.exists() else "holds no run (no config.json)"
        raise ConfigError(f"{role}={str(workdir)!r} {what}; train it first: python -m jaxar.train --workdir={workdir}")
    return read_json(workdir / "config.json")


def check_same_run(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Refuses to resume a workdir with a configuration that describes another run.

    Raises:
      ConfigError: naming the first key that differs.
    """
    if not started(workdir):
        return
    old, new = _flat(read_json(workdir / "config.json")), _flat(config)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not any(key == f or key.startswith(f + ".") for f in FREE):
            same = f"pass --config.{key}={old[key]!r}" if key in old else f"leave {key} out"
            raise ConfigError(
                f"{key}={_shown(new, key)}, but {workdir} was started with {_shown(old, key)}; choose a new --workdir, "
                f"or {same}"
            )


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "no value"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty section is as good as none."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            flat |= _flat(value, name)
        else:
            flat[name] = value
    return flat


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Where and with what a run was started."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "git_revision": _git_revision(),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def array_digest(array: np.ndarray) -> str:
    """A short name for the contents of an array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
