"""Samplers of the same method and options share one program."""

import numpy as np

import jaxar


def test_a_second_call_traces_nothing(ar_run, monkeypatch):
    opened = jaxar.load(ar_run)
    method, traced = type(opened.method), []
    original = method.sample
    monkeypatch.setattr(method, "sample", lambda *args: traced.append(1) or original(*args))
    # A temperature of this test alone: programs are kept for the whole process.
    first, second = (opened.sample([0, 1], seed, temperature=0.7) for seed in (0, 1))
    assert len(traced) == 1
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(jaxar.load(ar_run).sample([0, 1], 0, temperature=0.7), first)
    assert len(traced) == 1
    opened.sample([0, 1], temperature=0.6)
    assert len(traced) == 2
