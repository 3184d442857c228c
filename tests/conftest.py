"""Eight simulated devices for every test, and one compilation cache for all processes of a run."""

import os
import pathlib

# Set before jax starts; subprocesses of the tests inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Programs of the tests run for milliseconds and compile for seconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

NO_EVALUATION = ("--config.eval.every=None", "--config.eval.sample_every=None")
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="session")
def tokenizer_run(tmp_path_factory):
    """The workdir of a tokenizer of digits, trained two steps. Never change it; tests of a group share one."""
    return _trained(tmp_path_factory.mktemp("runs") / "vq", "vq_digits", "--config.optim.ema=(0.5,)", *NO_EVALUATION)


@pytest.fixture(scope="session")
def ar_run(tokenizer_run):
    """The workdir of a raster model of its tokens, trained two steps."""
    return _trained(
        tokenizer_run.with_name("ar"),
        "ar_digits",
        f"--config.tokenizer.from_={tokenizer_run}",
        "--config.train.log_every=1",
    )


def _trained(workdir, config, *options):
    from jaxar import train

    train.command([f"--config={CONFIGS}/{config}.py:smoke", f"--workdir={workdir}", *options])
    return workdir
