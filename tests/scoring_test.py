"""What evaluation of a workdir does where its configuration and the machine do not fit by themselves."""

import types

import pytest

from jaxar import partition, scoring
from jaxar.config import ConfigError


def test_validation_runs_on_a_mesh_that_does_not_divide_its_batch(monkeypatch):
    opened = types.SimpleNamespace(
        config={"data": {"name": "digits"}, "eval": {"batch_size": 180}},
        mesh=partition.make_mesh(),
        method=types.SimpleNamespace(players=dict),
        variables={},
    )
    monkeypatch.setattr(scoring, "Validation", lambda method, prepare: lambda variables, batches: list(batches))
    batches = scoring.validate(opened)
    assert [len(batch["label"]) for batch in batches] == [184, 184]
    assert sum(int(batch["valid"].sum()) for batch in batches) == 360


def test_statistics_without_a_count_need_the_number_of_samples():
    statistics = types.SimpleNamespace(name="statistics.npz", train=None, num_images=None)
    opened = types.SimpleNamespace(task=types.SimpleNamespace(num_classes=10))
    with pytest.raises(ConfigError, match=r"--num is missing: statistics.npz does not say how many"):
        scoring.sample_labels(opened, statistics, None)
    assert list(scoring.sample_labels(opened, statistics, 3)) == [0, 1, 2]
