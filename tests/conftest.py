"""Eight simulated devices for every test, and one compilation cache for all processes of a run."""

import fcntl
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

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
LONGEST = ("train_test", "methods_test", "commands_test", "sharded_test", "configs_test")


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them is left to one process at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder for the workdirs that all processes of a run of tests share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "runs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tokenizer_run(runs):
    """The workdir of a tokenizer of digits, trained two steps. Never change it; all tests share it."""
    workdir = runs / "vq"
    options = ("--config.optim.ema=(0.5,)", "--config.eval.every=None", "--config.eval.sample_every=None")
    return _trained(workdir, [f"--config={CONFIGS}/vq_digits.py:smoke", f"--workdir={workdir}", *options])


@pytest.fixture(scope="session")
def ar_run(tokenizer_run):
    """The workdir of a raster model of its tokens, trained two steps."""
    workdir = tokenizer_run.with_name("ar")
    return _trained(workdir, ar_options(workdir, tokenizer_run))


def ar_options(workdir, tokenizer, *options):
    """Options that train as `ar_run` was; the steps are so large that two of them move the samples."""
    return [
        f"--config={CONFIGS}/ar_digits.py:smoke",
        f"--workdir={workdir}",
        f"--config.tokenizer.from_={tokenizer}",
        "--config.optim.learning_rate=0.1",
        "--config.optim.schedule.name=constant",
        "--config.optim.schedule.warmup_steps=0",
        "--config.train.log_every=1",
        *options,
    ]


def _trained(workdir, options):
    from jaxar import train

    done = workdir.with_name(f"{workdir.name}.done")
    with workdir.with_name(f"{workdir.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            train.command(options)
            done.touch()
    return workdir
