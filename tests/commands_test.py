"""The contract of `python -m jaxar.COMMAND`: help, JSON, and one line with exit code 2 for every mistake."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxar import cli, encode, evaluate, leaderboard, pairs, reference, sample, sweep, train
from jaxar import list as listing
from jaxar.data import __main__ as data

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {
    "train": train.command,
    "sample": sample.command,
    "evaluate": evaluate.command,
    "encode": encode.command,
    "pairs": pairs.command,
    "data": data.command,
    "list": listing.command,
    "reference": reference.command,
    "sweep": sweep.command,
    "leaderboard": leaderboard.command,
}


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; returns exit code, stdout and stderr."""

    def run(line):
        name, *argv = shlex.split(line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(COMMANDS[name], argv)
        return stop.value.code, *capsys.readouterr()

    return run


def copied(run, target):
    shutil.copytree(run, target)
    return target


@pytest.fixture(scope="module")
def places(tmp_path_factory, tokenizer_run, ar_run):
    """What command lines name in braces: runs, broken runs, and files of all kinds."""
    folder = tmp_path_factory.mktemp("places")
    shutil.rmtree(copied(tokenizer_run, folder / "unsaved") / "checkpoints")
    edited = copied(ar_run, folder / "edited") / "config.json"
    edited.write_text(edited.read_text().replace('"width": 32', '"width": 64'))
    (folder / "empty.py").touch()
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "fails.py").write_text("def get_config():\n    return missing\n")
    (folder / "nothing.py").write_text("def get_config():\n    return None\n")
    (folder / "text.npz").write_text("no zip file")
    images = np.zeros((8, 8, 8, 1), np.uint8)
    np.savez(folder / "images.npz", arr_0=images, arr_1=np.zeros(8, np.int64))
    np.savez(folder / "floats.npz", arr_0=images.astype(np.float32))
    np.savez(folder / "large.npz", arr_0=np.zeros((8, 16, 16, 1), np.uint8))
    np.savez(folder / "labels.npz", arr_0=images, arr_1=np.full(8, 10))
    np.savez(folder / "other.npz", samples=images)
    return {"configs": ROOT / "configs", "vq": tokenizer_run, "ar": ar_run, "in": folder}


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, run):
    code, out, err = run(f"{name} --help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: python -m jaxar.{name} ") and "--json" in out
    assert f"python -m jaxar.{name} " in out.partition("\n\n")[2]  # the docstring shows how it is called


def test_help_on_a_workdir_lists_the_options_of_its_sampler(run, ar_run):
    for name in ("sample", "evaluate"):
        code, out, _ = run(f"{name} --workdir={ar_run} --help")
        assert code == 0 and "--guidance_scale" in out and "--top_k" in out


VQ = "train --config={configs}/vq_digits.py:smoke --workdir={out}/run "
AR = "train --config={configs}/ar_digits.py:smoke --workdir={out}/run --config.tokenizer.from_={vq} "
SAMPLE = "sample --workdir={ar} --num=8 --out={out}/x.npz "
EVALUATE = "evaluate --workdir={ar} --reference=digits "
SCORE = "evaluate --samples={in}/images.npz "
REFERENCE = "reference --inception=x.pth --split=test --out={out}/x.npz --data.name=digits "
ENCODE = "encode --workdir={vq} --out={out}/cache "

MISTAKES = [
    # What is to be trained, and where.
    ("train", "the following arguments are required: --config, --workdir; see --help"),
    ("train --config={configs}/vq_digits.py", "required: --workdir"),
    (VQ + "--workdr=x", "unknown option '--workdr'.*did you mean '--workdir'"),
    (VQ + "--profile=-1", "--profile: '-1' is not in 0, 1"),
    (
        "train --config={configs}/vq_digit.py --workdir={out}",
        "unknown configuration file.*did you mean '.*vq_digits.py'",
    ),
    ("train --config={in}/images.npz --workdir={out}", "images.npz is no Python file"),
    ("train --config={in}/syntax.py --workdir={out}", "syntax.py fails, line 1: SyntaxError"),
    ("train --config={in}/fails.py --workdir={out}", "fails.py fails, line 2: NameError: name 'missing'"),
    ("train --config={in}/nothing.py --workdir={out}", "get_config returned None; it must return a ConfigDict"),
    ("train --config={in}/empty.py --workdir={out}", r"has no function get_config\(arg\); see configs/ for examples"),
    ("train --config={configs}/vq_digits.py:smke --workdir={out}", "argument of the.*'smke'.*did you mean 'smoke'"),
    ("train --config={configs}/vq_digits.py:smoke --workdir={in}/text.npz", "--workdir: .*text.npz cannot be made"),
    # Keys and types.
    (VQ + "--config.trian.num_steps=3", "unknown section '--config.trian'.*did you mean '--config.train'"),
    (VQ + "--config.train.num_stepz=3", "unknown key 'train.num_stepz'.*did you mean 'train.num_steps'"),
    (VQ + "--config.train.num_steps=many", "train.num_steps='many' has type str; it must be int"),
    (VQ + "--config.eval.ema=0.5", "eval.ema=0.5 has type float; it must be str or None, written \"'0.5'\""),
    (VQ + "--config.sample.top_k=5", "sample=.*'top_k': 5.* method 'autoencoder' does not sample"),
    (VQ + "--config.teacher.form_=x", "unknown key 'teacher.form_'.*did you mean 'teacher.from_'"),
    # Names.
    (VQ + "--config.method.name=autoencode", "unknown method 'autoencode'.*did you mean 'autoencoder'"),
    (VQ + "--config.method.name=5", "unknown method 5; known: .*ar, .*autoencoder"),
    (VQ + "--config.method.name=json.tool", "method 'json.tool': the module has no Config"),
    (VQ + "--config.method.name=no.such", "unknown method 'no.such'.*importable module path"),
    (VQ + "--config.data.name=digit", "unknown dataset 'digit'.*did you mean 'digits'"),
    (VQ + "--config.tokenizer.name=vqq", "unknown tokenizer 'vqq'.*did you mean 'vq'"),
    (VQ + "--config.optim.schedule.name=cosin", "optim.schedule.name 'cosin'.*did you mean 'cosine'"),
    (AR + "--config.eval.reference=digit", "eval.reference 'digit'.*did you mean 'digits'"),
    (AR + "--config.eval.ema=\\'0.5\\'", "unknown value of eval.ema '0.5'; known: 0.995, raw"),
    # Values.
    (VQ + "--config.train.num_steps=0", "train.num_steps=0 must be at least 1"),
    (VQ + "--config.train.seed=-1", "train.seed=-1 must lie in 0..2147483647"),
    (VQ + "--config.optim.learning_rate=-1", "optim.learning_rate=-1.0 must be positive"),
    (VQ + "--config.mesh.data=3", "mesh data=3 .* needs 3 devices, 8 are visible; choose sizes whose product is 8"),
    (VQ + "--config.mesh.fsdp=0", "mesh.fsdp=0 must be at least 1"),
    (VQ + "--config.train.batch_size=12", "12 is not divisible by mesh data.fsdp=8; use a multiple of 8"),
    (VQ + "--config.train.accumulate=3", "train.batch_size=8 is not divisible by train.accumulate=3"),
    (
        VQ + "--config.eval.batch_size=12",
        "eval.batch_size=12 is not divisible by mesh data.fsdp=8; use a multiple of 8",
    ),
    (VQ + "--config.eval.every=0", "eval.every=0 must be at least 1; None turns it off"),
    (VQ + "--config.eval.every=-2", "eval.every=-2 must be at least 1; None turns it off"),
    (VQ + "--config.eval.sample_every=0", "eval.sample_every=0 must be at least 1; None turns it off"),
    (VQ + "--config.eval.batch_size=0", "eval.batch_size=0 must be at least 1$"),
    (VQ + "--config.eval.max_batches=0", "eval.max_batches=0 must be at least 1; None takes them all"),
    (VQ + "--config.eval.num_samples=0", "eval.num_samples=0 must be at least 1$"),
    (VQ + "--config.eval.grid=-1", "eval.grid=-1 must be at least 1$"),
    (AR + "--config.mesh.data=1 --config.mesh.tensor=8", "not divisible by mesh tensor=8"),
    (AR + "--config.model.num_heads=3", "num_heads"),
    # Parents and sources.
    (AR + "--config.tokenizer.from_={out}/no", "tokenizer.from_='.*/no' does not exist; train it first"),
    (AR + "--config.tokenizer.from_={in}", "tokenizer.from_=.* holds no run"),
    (AR + "--config.tokenizer.from_={in}/unsaved", "tokenizer.from_=.*unsaved' has no checkpoint yet; run python -m"),
    (AR + "--config.tokenizer.step=7", r"tokenizer.from_=.* has no checkpoint of step 7; it has \[2\]"),
    (AR + "--config.tokenizer.ema=\\'0.9\\'", "unknown average '0.9'; known: 0.5, raw"),
    (AR + "--config.tokenizer.form_=x", "unknown key 'tokenizer.form_'.*did you mean 'tokenizer.from_'"),
    (AR + "--config.init_from.from_={out}/no", "init_from.from_='.*/no' does not exist; train it first"),
    (AR + "--config.init_from.from_={vq}", "has players tokenizer, this method has model; they share none"),
    (AR + "--config.init_from.from_={ar} --config.model.width=64", "init_from.from_=.* other shapes"),
    (AR + "--config.init_from.from_={ar} --config.init_from.state=True", "goes on at step 2 .* ask for more steps"),
    # A workdir that holds another run.
    (
        VQ + "--workdir={vq} --config.optim.ema=(0.5,) --config.train.num_steps=1",
        "num_steps=1, but .* has done 2 steps",
    ),
    (VQ + "--workdir={vq}", r"optim.ema=no value, but .*/vq was started with \[0.5\]; .* pass --config.optim.ema="),
    (VQ + "--workdir={ar}", "but .*/ar was started with"),
    (
        AR + "--workdir={ar} --config.train.log_every=1 --config.model.width=64",
        "model.width=64, but .* started with 32",
    ),
    # Samples.
    ("sample --num=8 --out=x.npz", "required: --workdir"),
    ("sample --workdir", "--workdir: expected one argument; see --help"),
    (SAMPLE + "--workdir={out}/no", "--workdir='.*/no' does not exist; train it first"),
    (SAMPLE + "--workdir={vq}", "--workdir=.* holds a tokenizer, which does not sample; use jaxar.evaluate"),
    (SAMPLE + "--workdir={in}/unsaved", "--workdir=.*unsaved' has no checkpoint yet"),
    (SAMPLE + "--workdir={in}/edited", r"checkpoint .*/2 has .* with shape .* the configuration gives .*config.json"),
    (SAMPLE + "--num=0", "--num: '0' is not in 1, 2, ..."),
    (SAMPLE + "--num=x", "--num: 'x' is not in 1, 2, ..."),
    (SAMPLE + "--num=+-5", r"--num: '\+-5' is not in 1, 2, ..."),
    (SAMPLE + "--batch_size=0", "--batch_size: '0' is not in 1, 2, ..."),
    (SAMPLE + "--seed=-1", "--seed: '-1' is not in 0..2147483647"),
    (SAMPLE + "--out={out}/x.png", "--out='.*x.png' must end in .npz"),
    (SAMPLE + "--out=/proc/no/x.npz", "--out: /proc/no cannot be made"),
    (SAMPLE + "--class_id=10", r"--class_id=10 must be in 0..9 \(0, 1"),
    (SAMPLE + "--class_id=-1", "--class_id=-1 must be in 0..9"),
    (SAMPLE + "--caption=two", "--caption='two': this model is conditioned on classes; use --class_id"),
    (SAMPLE + "--tok_p=0.5", "unknown option '--tok_p'.*did you mean '--top_p'"),
    (SAMPLE + "--image=x.png", "--image and --mask belong together; give both"),
    (SAMPLE + "--image=x.png --mask=0,0,1,1", "--image=x.png: AR cannot keep parts of a picture; use a masked method"),
    (SAMPLE + "--top_p=2", r"sample.top_p=2.0 must lie in \(0, 1\]; None switches it off"),
    (SAMPLE + "--top_k=many", "sample.top_k='many' has type str; it must be int or None"),
    (SAMPLE + "--step=7", r"--workdir=.* has no checkpoint of step 7; it has \[2\]"),
    (SAMPLE + "--ema=0.5", "unknown average '0.5'; known: 0.995, raw"),
    # Evaluation.
    ("evaluate --reference=digits", "one of the arguments --workdir --samples is required"),
    ("evaluate --workdir={ar}", "required: --reference"),
    (EVALUATE + "--samples=x.npz", "--samples: not allowed with argument --workdir"),
    (EVALUATE + "--workdir={out}/no", "--workdir='.*/no' does not exist"),
    (EVALUATE + "--reference=digit", "unknown dataset 'digit'.*did you mean 'digits'"),
    (EVALUATE + "--features=digit", "unknown feature network 'digit'.*did you mean 'digits'"),
    (EVALUATE + "--seeds=0,a", "--seeds: 'a' is not in 0..2147483647"),
    (EVALUATE + "--num=0", "--num: '0' is not in 1, 2, ..."),
    (EVALUATE + "--workdir={vq} --num=8", "--num: .*/vq' holds a tokenizer, which is evaluated on the test split"),
    (EVALUATE + "--workdir={vq} --seeds=1", "--seeds: .*/vq' holds a tokenizer"),
    (EVALUATE + "--top_p=2", "sample.top_p=2.0 must lie in"),
    (EVALUATE + "--workdir={vq} --features=digit", "unknown feature network 'digit'.*did you mean 'digits'"),
    (EVALUATE + "--workdir={vq} --reference=digit", "value of --reference 'digit'.*did you mean 'digits'"),
    (SCORE + "--reference={in}/images.npz", "say which feature network to use"),
    (SCORE + "--reference={in}/no.npz --features=digits", "reference='.*no.npz' does not exist"),
    (SCORE + "--reference={in}/other.npz --features=digits", "other.npz has keys samples; it needs arr_0"),
    (SCORE + "--reference=digits --samples={in}/no.npz", "--samples='.*no.npz' does not exist"),
    (SCORE + "--reference=digits --samples={in}/text.npz", "--samples='.*text.npz' is no readable .npz file"),
    (SCORE + "--reference=digits --samples={in}/other.npz", "has keys samples; it needs arr_0"),
    (SCORE + "--reference=digits --samples={in}/floats.npz", "float32"),
    (SCORE + "--reference=digits --samples={in}/large.npz", r"shape \(8, 16, 16, 1\) .* it takes uint8 \(n, 8, 8, 1\)"),
    (SCORE + "--reference=digits --samples={in}/labels.npz", "labels reach from 10 to 10.* classes 0..9"),
    (EVALUATE + "--inception=no.pth", "--inception='no.pth' is no file; give pt_inception-2015-12-05-6726825d.pth"),
    (EVALUATE + "--inception={in}/text.npz", "text.npz is neither safetensors, nor torch's"),
    (EVALUATE + "--inception=x --features=digits", "--features: not allowed with argument --inception"),
    (REFERENCE + "--split=val", "--split: invalid choice: 'val'"),
    (REFERENCE + "--out={out}/x", "--out='.*x' must end in .npz"),
    (REFERENCE + "--data.name=digit", "unknown dataset 'digit'.*did you mean 'digits'"),
    (REFERENCE + "--inception=no.pth", "--inception='no.pth' is no file; give pt_inception"),
    # Caches and data.
    ("encode --workdir={vq}", "required: --out"),
    (ENCODE + "--workdir={out}/no", "--workdir='.*/no' does not exist"),
    (ENCODE + "--splits=val", "unknown split 'val'; known: test, train"),
    (ENCODE + "--variants=two", "--variants: invalid choice: 'two'"),
    (ENCODE + "--batch_size=0", "--batch_size: '0' is not in 1, 2, ..."),
    (ENCODE + "--data.sift=1", "unknown key 'data.sift'.*did you mean 'data.shift'"),
    (ENCODE + "--out={in}/text.npz", "token cache: .*text.npz.* cannot be made"),
    (ENCODE + "--verify_only", "cache .*/cache/train does not exist"),
    (ENCODE + "--step=7", "has no checkpoint of step 7"),
    ("data prepare", "required: name"),
    ("list mthods", "kind: invalid choice: 'mthods'"),
]


@pytest.mark.parametrize(
    "line, message", MISTAKES, ids=[f"{n}-{line.split()[0]}" for n, (line, _) in enumerate(MISTAKES)]
)
def test_a_mistake_is_one_line_and_leaves_nothing_to_clean_up(line, message, run, places, tmp_path):
    code, out, err = run(line.format(**places, out=tmp_path))
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert re.search(message, err.strip()), err
    assert (code, out) == (2, "")
    assert not (tmp_path / "run" / "config.json").exists()  # so that the corrected command runs in the same workdir


@pytest.fixture
def answer(run, places, tmp_path):
    """The JSON that a command prints, as the one thing on stdout."""

    def answer(line):
        code, out, _ = run(line.format(**places, out=tmp_path) + " --json")
        assert code == 0 and out.count("\n") == 1
        return json.loads(out)

    return answer


def test_list_as_json(answer, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = answer("list")
    assert set(found) == {"methods", "tokenizers", "datasets", "configs"}
    assert found["methods"]["ar"].startswith("Raster autoregression") and "digits" in found["datasets"]
    assert set(answer("list tokenizers")["tokenizers"]) == set(found["tokenizers"]) >= {"vq", "multiscale_vq"}
    assert "configs/vq_digits.py" in found["configs"] and all(found["configs"].values())


def test_data_as_json(answer):
    assert answer("data inspect digits")["num_classes"] == 10


def test_sample_and_evaluate_as_json(answer, tmp_path):
    drawn = answer(SAMPLE + "--guidance_scale=1")
    assert (drawn["num"], drawn["step"], drawn["seed"], drawn["network_calls"]) == (8, 2, 0, 16)
    assert pathlib.Path(drawn["out"]).is_file() and pathlib.Path(drawn["grid"]).is_file()
    scored = answer(f"evaluate --samples={drawn['out']} --reference=digits")
    assert scored["protocol"]["n"] == 8 and np.isfinite(scored["metrics"]["fd_digits"])


def process(*argv):
    command = [sys.executable, "-m", *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def test_a_process_that_trains_logs_to_stderr_and_answers_on_stdout(tmp_path):
    config = f"--config={ROOT}/configs/vq_digits.py:smoke"
    options = ("--config.train.batch_size=8", "--config.eval.every=None", "--config.eval.sample_every=None")
    done = process("jaxar.train", config, f"--workdir={tmp_path}/run", "--json", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"workdir": f"{tmp_path}/run", "finished": True, "step": 2}
    assert "run 2/2 (100%)" in done.stderr and "Traceback" not in done.stderr


def test_a_process_with_a_mistake_prints_one_line():
    done = process("jaxar.sample", "--workdir=no", "--num=1", "--out=x.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --workdir='no' does not exist") and done.stderr.count("\n") == 1
