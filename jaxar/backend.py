"""What every command does with JAX before its first computation."""

import os
import pathlib

import jax

# Variables that a launcher sets when it starts one process per host or device. A TPU VM outside GKE has none: JAX finds
# its pod in the metadata server, and launch/tpu_pod.sh sets JAXAR_CLUSTER to say that it should. Slurm sets the list of
# a step's nodes for what srun starts, not for a command in the shell of an allocation, which is a process by itself.
_CLUSTER = (
    "JAX_COORDINATOR_ADDRESS",
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "TPU_WORKER_HOSTNAMES",
    "JAXAR_CLUSTER",
)


def initialize() -> None:
    """Joins the cluster, if there is one, and turns on the persistent compilation cache."""
    _join_cluster()
    if not jax.config.jax_compilation_cache_dir:
        folder = pathlib.Path(os.environ.get("JAXAR_CACHE_DIR", "~/.cache/jaxar")).expanduser() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _join_cluster() -> None:
    """Starts JAX's coordination service where a cluster is detected; a no-op on a single machine.

    The addresses come from the environment (Slurm, Open MPI, TPU pods, or JAX_COORDINATOR_ADDRESS with
    JAX_NUM_PROCESSES and JAX_PROCESS_ID).
    """
    if jax.distributed.is_initialized() or not any(os.environ.get(name) for name in _CLUSTER):
        return
    if os.environ.get("SLURM_STEP_NODELIST") and int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    explicit = {}
    if os.environ.get("JAX_NUM_PROCESSES"):
        explicit = {
            "coordinator_address": os.environ["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
        }
    if jax.config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's "recoverability" stays off: with it the coordinator leaves without waiting, which aborts those still there.
    jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=60)
