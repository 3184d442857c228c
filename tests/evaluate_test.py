"""`jaxar.evaluate --inception` and `jaxar.reference` on digits, with a few random features for the network's."""

import json
import pathlib

import numpy as np
import pytest

from jaxar import cli, evaluate, reference
from jaxar.interop import inception_weights
from jaxar.metrics import fid, inception

pytestmark = pytest.mark.xdist_group("runs")
WIDTHS = inception.Features(6, 5, 10)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    projections = [np.random.default_rng(i).normal(size=(64, width)) / 256 for i, width in enumerate(WIDTHS)]

    def extract(net, images):
        assert len(images) <= net.batch_size
        pixels = images.reshape(len(images), -1).astype(np.float64)
        return inception.Features(*((pixels @ p).astype(np.float32) for p in projections))

    def load(path, mesh, batch_size):
        return inception.Extractor(None, mesh, batch_size, sha256=str(path))

    monkeypatch.setattr(inception, "extract", extract)
    monkeypatch.setattr(inception_weights, "load", load)
    for module in (inception, fid):
        monkeypatch.setattr(module, "POOL_DIM", WIDTHS.pool)
        monkeypatch.setattr(module, "SPATIAL_DIM", WIDTHS.spatial)


@pytest.fixture
def run(capsys, tmp_path):
    """Runs a command of this test's "weights"; returns its JSON, or the message of an error."""

    def run(command, line):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(command, [*line.format(out=tmp_path).split(), "--inception=weights", "--json"])
        out, err = capsys.readouterr()
        return json.loads(out) if stop.value.code == 0 else err

    return run


@pytest.mark.slow
def test_references_are_made_and_used_for_what_they_are(run, tokenizer_run, ar_run):
    made = run(reference.command, "--split=train --out={out}/train.npz --data.name=digits --images=50")
    assert (made["kind"], made["n"], made["images"]) == ("gfid", 1437, 50)
    made = run(reference.command, "--split=test --out={out}/test.npz --data.name=digits")
    assert (made["kind"], made["n"], made["images"]) == ("rfid", 360, 0)

    generated = f"--workdir={ar_run} --num=16 --seeds=0,1 --batch_size=16 --reference="
    found = run(evaluate.command, generated + "{out}/train.npz")
    assert set(found["metrics"]) == {"fid", "sfid", "inception_score", "precision", "recall"}
    assert found["metrics"]["fid"]["min"] > 0 and found["validation"]["bits_per_token"] > 0
    assert (found["protocol"]["name"], found["protocol"]["n"], found["protocol"]["seeds"]) == ("gfid", 16, [0, 1])
    assert json.loads(pathlib.Path(found["file"]).read_text())["protocol"]["features_sha256"] == "weights"
    assert "test.npz has kind='rfid'; needed is 'gfid'" in run(evaluate.command, generated + "{out}/test.npz")
    assert "--inception needs a file of statistics" in run(evaluate.command, generated + "digits")

    reconstructed = f"--workdir={tokenizer_run} --batch_size=100 --reference="
    found = run(evaluate.command, reconstructed + "{out}/test.npz")
    assert set(found["metrics"]) == {"psnr", "ssim", "rfid", "rsfid", "inception_score"}
    assert found["protocol"]["n"] == 360 and found["metrics"]["rfid"] > 0
    assert "train.npz has kind='gfid'; needed is 'rfid'" in run(evaluate.command, reconstructed + "{out}/train.npz")


def test_samples_in_a_file(run, tmp_path):
    run(reference.command, "--split=train --out={out}/train.npz --data.name=digits --images=4")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images)
    found = run(evaluate.command, "--samples={out}/samples.npz --reference={out}/train.npz")
    assert found["metrics"]["fid"] > 1 and found["protocol"]["n"] == 40 and found["metrics"]["recall"] <= 1
