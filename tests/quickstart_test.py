"""The quickstart's chain of commands without training, and the notebooks on what it leaves."""

import json
import os
import pathlib
import subprocess
import sys

import jupytext
import nbclient
import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # minutes of compilation for what the commands' own tests try one by one


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, str(ROOT / "launch" / "quickstart.py"), "--arg=smoke", f"--out={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_the_report_has_every_figure(out):
    report = json.loads((out / "report.json").read_text())
    assert list(report["models"]) == ["ar", "next_scale"]
    for name, calls in (("ar", 16), ("next_scale", 4)):
        model = report["models"][name]
        for figure in ("fd_digits", "kid_digits", "class_consistency", "precision", "recall"):
            values = model["metrics"][figure]
            assert values["min"] <= values["mean"] <= values["max"], figure
        assert model["floor"]["fd_digits"]["mean"] < model["metrics"]["fd_digits"]["mean"]
        assert model["network_calls"] == calls and model["ms_per_image"] > 0
        assert model["validation"]["bits_per_token"] == pytest.approx(4.0, abs=0.3)  # 16 codes, untrained
    student = report["students"]["dd1"]
    assert student["teacher"] == "ar" and student["network_calls"] == 1
    assert np.isfinite(student["metrics"]["fd_digits"]["mean"]) and 0 <= student["validation"]["agreement"] <= 1
    assert all(np.isfinite(t["metrics"]["psnr"]) for t in report["tokenizers"].values())
    text = (out / "report.md").read_text()
    assert "| ar |" in text and "| next_scale |" in text and "FID" not in text
    assert "| ar (teacher) | 16 |" in text and "| dd1 (student) | 1 |" in text


def test_the_pictures_show_something(out):
    for name in ("grid.png", "curves.png", "ar/samples.png", "next_scale/samples.png", "dd1/samples.png"):
        assert np.asarray(Image.open(out / name).convert("L")).std() > 10, name


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_notebooks_run(path, out, monkeypatch):
    monkeypatch.setenv("JAXAR_QUICKSTART", str(out))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbclient.execute(jupytext.read(path), timeout=600, kernel_name="python3")
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures
