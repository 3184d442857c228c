"""How stored outputs are read and compared."""

import json

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.interop import fixtures, safetensors_file

STORED = np.array([[1.0, 2.0, 3.0, 4.0], [100.0, 200.0, 300.0, 400.0]])


def passes(mine, kind, value, stored=STORED, **rule):
    return fixtures.compare("out/x", np.asarray(mine), stored, {"kind": kind, "value": value, **rule}).passed


def test_max_over_std_is_over_the_whole_tensor():
    limit = 1e-3 * STORED.std()
    assert passes(STORED + 0.9 * limit, "max_over_std", 1e-3)
    assert not passes(STORED + np.eye(2, 4) * 1.1 * limit, "max_over_std", 1e-3)


def test_rowwise_gives_each_row_its_own_std():
    error = np.zeros_like(STORED)
    error[0, 0] = 1e-2
    assert passes(STORED + error, "max_over_std", 1e-3)
    assert not passes(STORED + error, "rowwise", 1e-3)
    assert passes(STORED + error[::-1], "rowwise", 1e-3)


def test_rtol_is_per_element_or_of_a_scale():
    assert passes(STORED * (1 + 0.9e-3), "rtol", 1e-3)
    assert not passes(STORED + 2e-3, "rtol", 1e-3)
    assert passes(STORED + 2e-3, "rtol", 1e-3, scale=10.0)
    assert not passes(STORED + 2e-2, "rtol", 1e-3, scale=10.0)
    assert passes(STORED * 0 + 0.9e-12, "rtol", 1e-3, STORED * 0)


def test_exact_takes_equal_infinities_and_nothing_else():
    stored = np.array([-np.inf, 0.0, 3.0])
    assert passes(stored, "exact", 0, stored)
    assert not passes(np.array([-np.inf, 1e-9, 3.0]), "exact", 0, stored)


def test_soft_counts_elements_that_agree():
    ids = np.arange(10)
    assert passes(np.where(ids < 3, ids + 1, ids), "soft", 0.7, ids)
    assert not passes(np.where(ids < 4, ids + 1, ids), "soft", 0.7, ids)
    assert passes(ids + 5, "soft", 0, ids)


def test_nan_never_passes():
    bad = np.where(STORED == 3, np.nan, STORED)
    for kind in ("max_over_std", "rowwise", "rtol", "exact"):
        assert not passes(bad, kind, 1e9), kind


def test_rows_say_how_far_off_a_value_is():
    row = fixtures.compare("out/x", STORED + [[0, 0, 0, 0.5]] * 2, STORED, {"kind": "max_over_std", "value": 1})
    assert (row.max_error, row.equal) == (0.5, 0.75)
    assert row.error_over_std == pytest.approx(0.5 / STORED.std())


def test_another_shape_is_an_error():
    with pytest.raises(ConfigError, match=r"out/x is \[4\] here and \[2, 4\] in the fixture"):
        passes(STORED[0], "exact", 0)


@pytest.fixture
def fixture(tmp_path):
    tensors = {"in/x": np.arange(12.0).reshape(4, 3), "in/rows": np.array([2, 0]), "out/y": np.zeros(3)}
    entry = {"call": {"fn": "f", "args": {"a": 1}}, "part": "y", "tolerance": {"kind": "exact", "value": 0}}
    meta = {"format": 1, "name": "x", "family": "var", "models": {}, "tensors": {"in/x": {}, "out/y": entry}}
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    (tmp_path / "x.json").write_text(json.dumps(meta))
    return fixtures.read(tmp_path / "x.safetensors")


def test_references_are_replaced_wherever_they_stand(fixture):
    x = np.arange(12.0).reshape(4, 3)
    assert fixture.resolve([1, None, "a", {"tensor": "in/x", "index": 1}])[3].tolist() == x[1].tolist()
    assert fixture.resolve({"tensor": "in/x", "rows": [3, 3, 0]}).tolist() == x[[3, 3, 0]].tolist()
    assert fixture.resolve({"tensor": "in/x", "slice": [1, 3]}).tolist() == x[1:3].tolist()
    with pytest.raises(ConfigError, match="refers to 'in/z', which is not stored"):
        fixture.resolve({"tensor": "in/z"})


def test_selections_apply_in_order(fixture):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    points = fixtures.selected(fixture, x, ({"op": "points_yx", "at": [[1, 2], [3, 0]]},))
    np.testing.assert_array_equal(points, np.stack([x[:, 1, 2], x[:, 3, 0]], axis=1))
    steps = (
        {"op": "slice", "axis": 1, "start": 0, "stop": 4, "step": 2},
        {"op": "take", "axis": 3, "indices": {"tensor": "in/rows"}},
    )
    np.testing.assert_array_equal(fixtures.selected(fixture, x, steps), x[:, ::2][..., [2, 0]])
    spread = fixtures.selected(fixture, x, ({"op": "std", "axes": [1, 2]},))
    np.testing.assert_allclose(spread, x.astype(np.float64).std((1, 2)))
    assert fixtures.selected(fixture, x, ({"op": "mean", "axes": [0, 1, 2, 3]},)).dtype == np.float64


def test_incomplete_fixtures_are_one_error(fixture):
    described = fixture.path.with_suffix(".json")
    whole = described.read_text()
    for text, message in (
        (whole.replace('"format": 1', '"format": 2'), "has format 2"),
        (whole.replace('"part"', '"prat"'), "does not describe a fixture .KeyError: 'part'"),
        (whole[:-5], "does not describe a fixture"),
        (whole.replace("out/y", "out/z"), "lacks out/z"),
    ):
        described.write_text(text)
        with pytest.raises(ConfigError, match=message):
            fixtures.read(fixture.path)
    with pytest.raises(ConfigError, match="is no file; a fixture is a pair"):
        fixtures.read(fixture.path.with_name("y.safetensors"))
