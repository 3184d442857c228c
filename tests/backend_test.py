"""When a process joins others, by what launchers leave in the environment."""

import types

import pytest

from jaxar import backend

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
ALLOCATION = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2"}
STEP = {**ALLOCATION, "SLURM_STEP_NODELIST": "node[1-2]"}


@pytest.mark.parametrize(
    ("environment", "joined"),
    [
        ({}, []),
        (EXPLICIT, [{"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}]),
        (ALLOCATION, []),  # a command in the shell of an allocation, not under srun
        (STEP, [{}]),
        ({**STEP, "SLURM_NTASKS": "1"}, []),
    ],
)
def test_a_process_joins_a_cluster_where_there_is_one(monkeypatch, environment, joined):
    for name in (*backend._CLUSTER, *EXPLICIT, *STEP, "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    distributed = types.SimpleNamespace(
        is_initialized=lambda: False, initialize=lambda heartbeat_timeout_seconds, **given: calls.append(given)
    )
    stand_in = types.SimpleNamespace(distributed=distributed, config=types.SimpleNamespace(jax_platforms=None))
    monkeypatch.setattr(backend, "jax", stand_in)
    backend._join_cluster()
    assert calls == joined
