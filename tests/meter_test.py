"""The meter stops a run whose updates are refused again and again, and says how to go on."""

import pathlib
import types

import pytest

from jaxar import logs, optim, partition
from jaxar.meter import Meter


def meter(max_bad_steps):
    optimizer = types.SimpleNamespace(config=optim.OptimConfig(max_bad_steps=max_bad_steps))
    setup = types.SimpleNamespace(
        folder=pathlib.Path("out/diverged"),
        train=types.SimpleNamespace(num_steps=10, batch_size=4, log_every=1),
        mesh=partition.single_device_mesh(),
        plan=types.SimpleNamespace(optimizers={"model": optimizer}),
    )
    silent = logs.Progress(total=10, start=0, enabled=False, title="")
    return Meter(setup, logs.MetricsWriter(setup.folder, 0, enabled=False), silent)


def figures(streak):
    return {"train/loss": 1.0, "train/bad_in_a_row/model": streak}


def test_too_many_refused_updates_in_a_row_stop_the_run():
    running = meter(max_bad_steps=3)
    running.step(1, figures(2))
    running.step(2, figures(3))
    with pytest.raises(FloatingPointError, match=r"step 2: the last 3 .*new --workdir.*init_from.from_='out/diverged'"):
        running.flush()
