"""Training that is interrupted, by a kill, a request or a broken disk, ends where it would have ended."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxar import cli, train, workdir
from jaxar.checkpoints import list_saved

ROOT = pathlib.Path(__file__).parents[1]
STEPS, EVERY = 11, 3
OPTIONS = (
    f"--config={ROOT}/configs/vq_digits.py:smoke",
    f"--config.train.num_steps={STEPS}",
    f"--config.train.checkpoint_every={EVERY}",
    "--config.train.log_every=1",
    "--config.train.keep.latest=3",
    "--config.eval.every=6",
    "--config.eval.sample_every=None",
    "--config.optim.ema=(0.9,)",
)
ADVERSARIAL = (
    "--config.method.adversarial.weight=0.5",
    "--config.method.adversarial.start=4",
    "--config.model.num_layers=1",
)


def start(folder, *options, interruption=("SIGTERM", "never", "0")):
    """Exit code and stderr of a training process, with a signal if `interruption` (signal, moment, step) says so."""
    command = [sys.executable, str(ROOT / "tests" / "interruption.py"), *map(str, interruption)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = (*OPTIONS, f"--workdir={folder}", *options)
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    return done.returncode, done.stderr


def finish(folder, *options):
    code, stderr = start(folder, *options)
    assert code == 0, stderr[-3000:]
    return stderr


def interrupt(folder, name, moment, step, *options):
    code, stderr = start(folder, *options, interruption=(name, moment, step))
    assert code == {"SIGKILL": -9, "SIGTERM": cli.PREEMPTED}[name], stderr[-3000:]
    assert not (folder / "DONE").exists() and "Traceback" not in stderr
    return stderr


def steps(folder):
    return [saved.step for saved in list_saved(folder / "checkpoints")]


def fingerprints(folder, step=STEPS):
    """Of every array of a checkpoint, as saved beside them and verified when they are loaded."""
    (path,) = (folder / "checkpoints" / str(step) / "arrays").glob("*.json")
    return json.loads(path.read_text())


def figures(folder):
    """All lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("perf/", "time/"))} for line in lines]


def assert_same_end(folder, whole):
    assert fingerprints(folder) == fingerprints(whole)
    assert figures(folder) == figures(whole)
    assert (folder / "DONE").read_text() == f"{STEPS}\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run killed between checkpoints, with whole checkpoints before."""
    folder = tmp_path_factory.mktemp("killed")
    interrupt(folder, "SIGKILL", "step", 8)
    assert 3 in steps(folder)  # that of step 6 may not have been complete
    return folder


@pytest.fixture
def copy(killed, tmp_path):
    return pathlib.Path(shutil.copytree(killed, tmp_path / "copy"))


def test_a_run_that_was_killed_and_stopped_ends_bitwise_the_same(copy, whole):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # a kill may cut a line
    (copy / "DONE").write_text("5\n")  # as if a shorter run had ended before this one went on
    stderr = interrupt(copy, "SIGTERM", "step", 10)
    assert "saved step 10 of 11; rerun the same command" in stderr
    assert steps(copy)[-1] == 10
    finish(copy)
    assert_same_end(copy, whole)


@pytest.mark.slow
def test_a_kill_while_saving_loses_at_most_what_was_being_saved(copy, whole):
    interrupt(copy, "SIGKILL", "save", 9)
    assert steps(copy)[-1] in (6, 9)  # a checkpoint is there or it is not
    finish(copy)
    assert_same_end(copy, whole)


def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path):
    copy = pathlib.Path(shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("DONE")))
    largest = max(
        (copy / "checkpoints" / str(STEPS) / "player_tokenizer" / "d").iterdir(), key=lambda file: file.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    stderr = finish(copy)
    assert f"checkpoints/{STEPS} is damaged" in stderr and "trying the one before" in stderr
    assert [path.name for path in (copy / "damaged").iterdir()] == [f"{STEPS}.0"]  # nothing is deleted
    assert_same_end(copy, whole)


def test_training_never_starts_over_where_all_checkpoints_are_damaged(whole, tmp_path):
    copy = pathlib.Path(shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("DONE")))
    for record in (copy / "checkpoints").glob("*/arrays/*.json"):
        record.write_text("{")
    code, stderr = start(copy)
    assert code == 1
    assert stderr.strip().splitlines()[-1].startswith("error: all checkpoints in ")
    assert steps(copy) == steps(whole)


def test_a_finished_run_is_left_alone(whole):
    def written():
        return {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*") if path.is_file()}

    before, lines = written(), figures(whole)
    finish(whole)
    assert written() == before and figures(whole) == lines


def test_a_workdir_has_one_training_at_a_time(copy):
    lines = figures(copy)
    with workdir.held(copy):
        code, stderr = start(copy)
    assert code == cli.USER_ERROR and f"is being trained by process {os.getpid()} on" in stderr
    assert figures(copy) == lines
    with workdir.held(copy):  # it was given back
        pass


def test_a_workdir_says_what_it_is(whole):
    config = workdir.read_json(whole / "config.json")
    assert config["train"]["num_steps"] == STEPS and config["tokenizer"]["name"] == "vq"
    environment = workdir.read_json(whole / "environment.json")
    assert (
        environment["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1} and environment["packages"]["jax"] == jax.__version__
    )


@pytest.mark.parametrize(
    ("last", "asked", "stopped", "traced"),
    [
        (20, 3, None, [5, 8]),
        (11, 9, None, [5, 11]),  # the run ends before
        (2, 3, None, [1, 2]),
        (20, 9, 7, [5, 7]),  # a request to stop comes before
        (20, 0, None, []),
    ],
)
def test_a_profile_is_always_closed(monkeypatch, tmp_path, last, asked, stopped, traced):
    edges = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: edges.append(step))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: edges.append(step + 1))
    profiler = train._Profiler(tmp_path, 0, last, asked)
    for step in range(stopped or last):
        profiler.before(step)
        profiler.after(step + 1, None, step + 1 == stopped)
    assert edges == traced


def test_figures_have_the_names_that_notebooks_know(whole):
    lines = figures(whole)
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, STEPS + 1))
    assert {"train/loss", "train/grad_norm/tokenizer", "schedule/lr/tokenizer"} <= set(lines[0])
    assert all(np.isfinite(v) for line in lines for v in line.values() if v is not None)
    assert [line["step"] for line in lines if "eval/test/psnr" in line] == [6, STEPS]
    assert len({leaf["fingerprint"] for leaf in fingerprints(whole).values()}) > 20


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 5, 10])
def test_two_players_killed_at_any_step_end_bitwise_the_same(tmp_path, step):
    finish(tmp_path / "whole", *ADVERSARIAL)
    interrupt(tmp_path / "killed", "SIGKILL", "step", step, *ADVERSARIAL)
    finish(tmp_path / "killed", *ADVERSARIAL)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
