"""Every fixture in tests/golden whose family is known, recomputed; and fixtures that were tampered with.

A failure here means that released weights no longer give the published numbers. What may change legitimately:
parameter paths (then change the family's table), the order of float operations (within the stored tolerance). Ids may
never change.
"""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from jaxar import cli, lookup
from jaxar.decoding import mask_schedules
from jaxar.diffusion import process
from jaxar.interop import base, check, fixtures, safetensors_file
from jaxar.interop.families import mar_diffloss

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
pytestmark = pytest.mark.golden


def known():
    """Fixtures by name, of the families that there are."""
    families = lookup.names(base.PACKAGE)
    described = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}
    return [name for name, meta in described.items() if meta.get("family") in families]


# Fixtures that differ from another one by an option or two, those that compile longest, and the whole Inception
# network, of which tests/models/inception_test.py has the beginning.
SLOW = (
    *("hmar_d2", "inception_fid", "llamagen_t2i_d2", "llamagen_vq16", "mar_d2", "mar_diffloss"),
    *("var_d2_nol2", "var_d2_nol2_sharedaln", "var_d2_sharedaln", "var_vqvae_c6"),
)


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())


@pytest.mark.parametrize("name", [marked(name) for name in known()])
def test_our_networks_and_samplers_give_the_official_numbers(name):
    fixture = fixtures.read(GOLDEN / f"{name}.safetensors")
    rows = check.check(fixture)
    assert not [row for row in rows if not row.passed]
    weights = {f"param/{model}" for model in fixture.models}
    assert {row.output for row in rows} == weights | {output.name for output in fixture.outputs}


def test_every_family_has_a_fixture():
    families = {json.loads((GOLDEN / f"{name}.json").read_text())["family"] for name in known()}
    assert families == set(lookup.names(base.PACKAGE))


def swapped(entries, one, other):
    """A table in which two official names have changed places."""
    names = {one: other, other: one}

    def replaced(name):
        return next((name.replace(a, b) for a, b in names.items() if a in name), name)

    return [dataclasses.replace(entry, official=tuple(map(replaced, entry.official))) for entry in entries]


def fault(monkeypatch, what):
    """Puts a mistake into our code."""
    if what == "two layers of the head":
        entries = mar_diffloss.entries
        monkeypatch.setattr(
            mar_diffloss, "entries", lambda *args: swapped(entries(*args), "res_blocks.0.mlp.0", "res_blocks.0.mlp.2")
        )
    elif what == "the noise schedule":
        monkeypatch.setattr(process, "_MAX_BETA", 0.998)
    else:
        shifted = mask_schedules.within_bounds
        monkeypatch.setattr(mask_schedules, "within_bounds", lambda wanted: shifted(wanted + 1))


FAULTS = {
    "two layers of the head": ("mar_diffloss", ("out/y",)),
    "the noise schedule": ("mar_schedules", ("out/betas_train",)),
    "the masking schedule": ("mar_schedules", ("out/counts_8", "out/counts_16", "out/counts_64")),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_mistake_in_a_table_or_schedule_is_noticed(what, monkeypatch):
    name, outputs = FAULTS[what]
    fixture = fixtures.read(GOLDEN / f"{name}.safetensors")
    fixture = dataclasses.replace(fixture, outputs=tuple(o for o in fixture.outputs if o.name in outputs))
    fault(monkeypatch, what)
    failed = {row.output for row in check.check(fixture) if not row.passed}
    assert failed == set(outputs)


@pytest.fixture
def small(tmp_path):
    """A copy of a fixture with its cheapest outputs; returns its path, arrays and description."""
    meta = json.loads((GOLDEN / "llamagen_c2i_d2.json").read_text())
    cheap = ("in/idx", "in/cond_with_uncond", "out/logits")
    meta["tensors"] = {name: meta["tensors"][name] for name in cheap}
    path = tmp_path / "small.safetensors"
    shutil.copy(GOLDEN / "llamagen_c2i_d2.safetensors", path)

    def write(change=lambda arrays, meta: None):
        arrays = safetensors_file.read(GOLDEN / "llamagen_c2i_d2.safetensors")
        change(arrays, meta)
        safetensors_file.write(path, arrays)
        path.with_suffix(".json").write_text(json.dumps(meta))
        return path

    return write


def command(capsys, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(check.command, [str(a) for a in argv])
    return stop.value.code, *capsys.readouterr()


def test_the_command_passes_and_prints_a_row_per_output(small, capsys):
    code, out, _ = command(capsys, small(), "--json")
    result = json.loads(out)
    assert code == 0 and result["passed"]
    rows = result["fixtures"][0]["rows"]
    assert [row["output"] for row in rows] == ["param/gpt", "out/logits"]
    assert rows[1]["error_over_std"] < 1e-5


def test_a_fixture_that_cannot_be_checked_does_not_hide_the_others(small, tmp_path, capsys):
    code, out, err = command(capsys, tmp_path / "absent.safetensors", small(), "--json")
    assert code == 2 and "absent.safetensors is no file" in err
    assert [result["passed"] for result in json.loads(out)["fixtures"]] == [False, True]


def test_a_perturbed_weight_fails(small, capsys):
    def perturb(arrays, meta):
        arrays["param/gpt/norm.weight"] = arrays["param/gpt/norm.weight"] * np.float32(1.001)

    code, out, _ = command(capsys, small(perturb))
    assert code == 1
    assert "FAILED" in out and "param/gpt" in out


def test_a_perturbed_output_fails(small, capsys):
    def perturb(arrays, meta):
        arrays["out/logits"] = arrays["out/logits"] + np.float32(1e-3) * (np.arange(64) == 5)

    code, out, _ = command(capsys, small(perturb), "--json")
    assert code == 1 and not json.loads(out)["passed"]


MISTAKES = {
    "a family": (lambda a, m: m.update(family="vra"), "unknown family 'vra'.*did you mean 'var'"),
    "a function": (
        lambda a, m: m["tensors"]["out/logits"]["call"].update(fn="forwards"),
        "unknown function of family 'llamagen_c2i' 'forwards'.*did you mean 'forward'",
    ),
    "a part": (lambda a, m: m["tensors"]["out/logits"].update(part="logit"), "unknown part of forward 'logit'"),
    "an option": (
        lambda a, m: m["models"]["gpt"]["constructor"].update(n_layers=3),
        "unknown key 'gpt.n_layers'.*did you mean 'gpt.n_layer'",
    ),
    "weights": (
        lambda a, m: a.update({"param/gpt/more": a.pop("param/gpt/norm.weight")}),
        "does not fit its architecture: missing: norm.weight; unknown: more",
    ),
    "a tolerance": (
        lambda a, m: m["tensors"]["out/logits"]["tolerance"].update(kind="close"),
        "unknown kind of tolerance 'close'",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_a_fixture_says_wrongly_is_one_line(what, small, capsys):
    change, message = MISTAKES[what]
    code, _, err = command(capsys, small(change))
    assert code == 2 and err.count("\n") == 1

    assert re.search(message, err)
