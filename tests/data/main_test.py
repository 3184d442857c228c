"""python -m jaxar.data: output for people and programs, and one-line mistakes."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxar import cli
from jaxar.data import __main__ as main


def _run(capsys, *argv):
    """Exit code, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as exit:
        cli.main(main.command, list(argv))
    return exit.value.code, *capsys.readouterr()


@pytest.fixture
def run(capsys, data_dir, monkeypatch):
    monkeypatch.setenv("JAXAR_DATA_DIR", data_dir)
    return lambda *argv: _run(capsys, *argv)


def test_prepare(run, data_dir):
    code, out, err = run("prepare", "digits", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"dataset": "digits", "data_dir": data_dir, "splits": {"train": 1437, "test": 360}}
    assert run("prepare", "digits")[1].splitlines() == [
        "dataset:      digits",
        f"data dir:     {data_dir}",
        "splits:       train 1437, test 360",
    ]


def test_preparing_from_nothing_prints_nothing_else(tmp_path):
    argv = [sys.executable, "-m", "jaxar.data", "prepare", "digits", f"--data_dir={tmp_path}", "--json"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["splits"] == {"train": 1437, "test": 360}
    assert result.stderr == ""


def test_inspect_reports_and_draws(run, tmp_path):
    out_file = tmp_path / "new" / "grid.png"
    code, out, _ = run("inspect", "digits", f"--out={out_file}", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["image_shape"] == [8, 8, 1] and facts["num_classes"] == 10
    assert facts["class_names"] == list("0123456789") and facts["picture"] == str(out_file)
    page = np.asarray(Image.open(out_file))
    assert page.shape[1] > 8 * 96 and np.ptp(page) == 255
    train = out_file.read_bytes()
    run("inspect", "digits", f"--out={out_file}", "--split=test")
    assert out_file.read_bytes() != train


def test_options_are_keys_of_the_data_section(run):
    code, out, _ = run("inspect", "glyphs", "--image_size=64", "--text={'length': 16, 'width': 8}", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["image_shape"] == [64, 64, 3]
    assert facts["text"] == {"length": 16, "width": 8} and len(facts["captions"]) == 16
    text = run("inspect", "glyphs", "--image_size=64")[1]
    assert "image shape:  64 x 64 x 3" in text and "0, 1, 2" in text and "..." in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "digit"], "unknown dataset 'digit'.*did you mean 'digits'"),
        (["inspect", "digits", "--imagesize=3"], "unknown key 'data.imagesize'.*did you mean 'data.image_size'"),
        (["inspect", "digits", "--image_size=x"], "data.image_size='x' has type str; it must be int"),
        (["inspect", "digits", "--shift"], "option --shift is unknown or lacks its value"),
        (["inspect", "digits", "extra"], "unexpected argument 'extra'"),
        (["look", "digits"], "invalid choice: 'look'"),
        (["inspect", "folder", "--root=/no/such"], "data.root='/no/such' is not a folder"),
        (["prepare", "digits", "--data_dir=/proc/none"], "data.data_dir: /proc/none.* choose a folder you can write"),
        (["inspect", "digits", "--out=/tmp/grid.xyz"], "--out=/tmp/grid.xyz cannot be written.*ends in .png"),
        (["inspect", "tfds", "--dataset=mnist"], "data.dataset='mnist' is not prepared"),
        (["inspect", "digits", "--cache=/no/such"], "cache /no/such/train does not exist"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(run, argv, message):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert re.search(message, err)


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0 and "prepare" in out and "--out" in out
