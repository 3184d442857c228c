"""The launch scripts: their syntax, their help, what they run again, and a real training in two processes."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = ("rerun", "slurm", "multihost_gpu", "tpu_pod")


def bash(script, *args, path=None, **variables):
    """The finished script; `path` is searched for programs first."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = ["bash", str(LAUNCH / f"{script}.sh"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.fixture
def program(tmp_path):
    """Writes an executable shell script into tmp_path."""

    def write(name, text):
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
        return file

    return write


@pytest.mark.parametrize("script", [*SCRIPTS, "quickstart", "setup_env", "test"])
def test_a_script_is_valid_bash(script):
    done = subprocess.run(["bash", "-n", str(LAUNCH / f"{script}.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_how_the_script_is_called(script):
    done = bash(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"launch/{script}.sh" in done.stdout and "set -" not in done.stdout and "#SBATCH" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_its_command_is_a_users_mistake(script):
    done = bash(script)
    assert done.returncode == 2 and "--help" in done.stderr


@pytest.mark.parametrize(
    ("codes", "restarts", "end", "calls"),
    [
        ([75, 75, 0], 0, 0, 3),  # saved but unfinished: always again
        ([2], 3, 2, 1),  # a mistake: never again
        ([1, 134, 0], 3, 0, 3),
        ([1, 75, 1, 1], 1, 1, 3),  # one rerun after a failure, and the one after 75
    ],
)
def test_what_is_run_again(program, tmp_path, codes, restarts, end, calls):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = program("command", 'cd "$(dirname "$0")"; echo "$1" >>calls; exit "$(sed -n "$(wc -l <calls)p" codes)"')
    done = bash("rerun", f"--restarts={restarts}", "--delay=0", "--", command, "two words")
    assert done.returncode == end, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["two words"] * calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_the_command_and_ends_the_script(program, tmp_path, number):
    command = program("command", 'trap "sleep 0.3; exit 75" TERM; touch "$0.ready"; while :; do sleep 0.05; done')
    # A shell cannot trap a signal that it was started to ignore, as the tests themselves are in the background.
    script = subprocess.Popen(
        ["bash", str(LAUNCH / "rerun.sh"), "--delay=0", "--", str(command)],
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        while not (tmp_path / "command.ready").exists() and script.poll() is None:
            time.sleep(0.02)
        script.send_signal(number)
        assert script.wait(timeout=20) == 75
    finally:
        script.kill()


@pytest.mark.parametrize(
    ("code", "count", "requeued"), [(75, 9, True), (0, 0, False), (2, 0, False), (1, 2, True), (1, 3, False)]
)
def test_slurm_queues_an_unfinished_job_again(program, tmp_path, code, count, requeued):
    program("srun", f'echo "$*" >>"{tmp_path}/srun.log"; exit {code}')
    program("scontrol", f'echo "$*" >>"{tmp_path}/scontrol.log"')
    done = bash("slurm", "train", "--x", path=tmp_path, SLURM_JOB_ID="17", SLURM_RESTART_COUNT=str(count))
    assert done.returncode == (0 if requeued else code), done.stderr
    assert (tmp_path / "srun.log").read_text().splitlines()[0].endswith(" train --x")
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 17\n" if requeued else "")


@pytest.mark.parametrize(("tasks", "devices"), [("1", "0,1,2,3"), ("4", "")])
def test_slurm_gives_a_lone_task_all_devices_of_its_node(program, tmp_path, tasks, devices):
    program("srun", 'echo "devices=${JAX_LOCAL_DEVICE_IDS:-}"')
    variables = {"SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": "4"}
    assert bash("slurm", "train", path=tmp_path, **variables).stdout == f"devices={devices}\n"


def test_a_tpu_pod_runs_the_command_on_all_workers(program, tmp_path):
    program("gcloud", r'printf "%s\n" "$@"')
    options = ("--name=pod", "--zone=here", "--project=mine", "--dir=my code", "--restarts=5")
    done = bash("tpu_pod", *options, "--", "python", "--note=two words", path=tmp_path)
    *head, command = done.stdout.splitlines()
    assert head == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=here", "--project=mine", "--worker=all"]
    # What the remote shell makes of it, with `cd` and the environment watched.
    watched = (
        f'cd() {{ echo "in $1"; }}; bash() {{ printf \'%s|\' "$@"; }}; env() {{ echo $1; shift; "$@"; }}; {command}'
    )
    watched = watched.replace("--command=", "")
    seen = subprocess.run(["bash", "-c", watched], capture_output=True, text=True, check=True).stdout
    assert seen == "in my code\nJAXAR_CLUSTER=tpu\nlaunch/rerun.sh|--restarts=5|--|python|--note=two words|"


@pytest.mark.parametrize("wrong", ["--rank=2", "--hosts=two", "--coordinator=localhost", "--ranks=0"])
def test_multihost_refuses_what_cannot_work(wrong):
    done = bash(
        "multihost_gpu", "--coordinator=localhost:1", "--hosts=2", "--rank=0", wrong, "--restarts=0", "--", "false"
    )
    assert done.returncode == 2 and "--help" in done.stderr


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def train(name, folder, *options):
    config = f"--config={ROOT}/configs/{name}.py:smoke"
    return [sys.executable, "-m", "jaxar.train", config, f"--workdir={folder}", "--config.train.log_every=1", *options]


def in_two_processes(*command):
    """Exit codes and stderr of both, started as on two hosts."""
    head = ["bash", str(LAUNCH / "multihost_gpu.sh"), f"--coordinator=127.0.0.1:{free_port()}", "--hosts=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*head, f"--rank={rank}", "--restarts=0", "--", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=400)[1][-3000:] for process in processes]
    finally:
        for process in processes:
            process.terminate()
    return [process.returncode for process in processes], "\n".join(errors)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A workdir trained by two processes with one device each."""
    folder = tmp_path_factory.mktemp("launch") / "two"
    codes, errors = in_two_processes(*train("vq_digits", folder))
    assert codes == [0, 0], errors
    return folder


def figures(folder):
    """The lines of metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.split("/")[0] not in ("perf", "time", "mem")} for line in lines]


@pytest.mark.slow
def test_two_processes_train_as_one_does(two, tmp_path):
    done = subprocess.run(train("vq_digits", tmp_path / "one"), env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    ours, theirs = figures(two), figures(tmp_path / "one")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 2]
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=1e-4, atol=1e-6, err_msg=str(list(b)))
    # One writer: of two, one would go on in a file that the other has replaced, and leave its own TensorBoard log.
    assert len(list((two / "tensorboard").iterdir())) == 1
    pictures = [np.asarray(Image.open(f / "samples" / "step_00000002.png"), int) for f in (two, tmp_path / "one")]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # rounded to bytes


@pytest.mark.slow
def test_a_model_in_two_processes_adopts_the_tokenizer_of_one_trained_in_two(two, tmp_path):
    codes, errors = in_two_processes(*train("ar_digits", tmp_path / "ar", f"--config.tokenizer.from_={two}"))
    assert codes == [0, 0], errors
    assert (tmp_path / "ar" / "DONE").exists()


@pytest.mark.slow
def test_two_processes_evaluate_and_encode_as_one_does(two, tmp_path):
    evaluations = two / "evaluations"

    def module(name, *options):
        return [sys.executable, "-m", f"jaxar.{name}", f"--workdir={two}", *options]

    def evaluated():
        (file,) = evaluations.iterdir()
        result = json.loads(file.read_text())
        file.unlink()
        return result

    codes, errors = in_two_processes(*module("evaluate", "--reference=digits"))
    assert codes == [0, 0], errors
    ours = evaluated()
    codes, errors = in_two_processes(*module("encode", f"--out={tmp_path / 'cache'}", "--splits=test"))
    assert codes == [0, 0], errors
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(module("evaluate", "--reference=digits"), env=environment, check=True)
    subprocess.run(module("encode", f"--out={tmp_path / 'one'}", "--splits=test"), env=environment, check=True)
    alone = evaluated()
    for group in ("metrics", "validation"):
        assert ours[group].keys() == alone[group].keys()
        np.testing.assert_allclose(list(ours[group].values()), list(alone[group].values()), rtol=1e-3)
    for file in (tmp_path / "one" / "test").glob("*.npy"):
        np.testing.assert_array_equal(np.load(file), np.load(tmp_path / "cache" / "test" / file.name))
