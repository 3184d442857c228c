"""Sections become dataclasses, and every mistake is one line that says what would be right."""

import dataclasses
from typing import Literal

import pytest

from jaxar.config import ConfigError, parse, unknown


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    size: int
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    sides: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()
    maybe: int | None = None
    flag: bool = False

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"size={self.size} must not be negative")


def test_values_are_converted_and_the_result_is_hashable():
    parsed = parse(Outer, {"size": 4, "rate": 1, "sides": [3, 4], "pair": [0, 2], "inner": {"width": 5}}, "model")
    assert parsed == Outer(4, 1.0, "a", (3, 4), (0.0, 2.0), Inner(5)) and isinstance(parsed.rate, float)
    assert hash(parsed) == hash(Outer(4, 1.0, "a", (3, 4), (0.0, 2.0), Inner(5)))


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "model.size is missing; it must be int"),
        ({"size": 1, "sise": 2}, "unknown key 'model.sise'.*did you mean 'model.size'"),
        ({"size": "4"}, "model.size='4' has type str; it must be int"),
        ({"size": 4.0}, "model.size=4.0 has type float"),
        ({"size": True}, "model.size=True has type bool"),
        ({"size": 1, "rate": "x"}, "model.rate='x' has type str; it must be float"),
        ({"size": 1, "kind": "c"}, "unknown value of model.kind 'c'; known: a, b"),
        ({"size": 1, "sides": 3}, "model.sides=3 has type int; it must be a tuple of int"),
        ({"size": 1, "sides": [1, "x"]}, r"model.sides\[1\]='x'"),
        ({"size": 1, "pair": [1.0]}, "it must be a tuple of 2 values"),
        ({"size": 1, "inner": {"widht": 1}}, "did you mean 'model.inner.width'"),
        ({"size": 1, "inner": 3}, "model.inner=3 must be a section with keys width"),
        ({"size": 1, "maybe": "x"}, "it must be int or None"),
        ({"size": 1, "flag": 1}, "model.flag=1 has type int; it must be bool"),
        ({"size": -1}, "model: size=-1 must not be negative"),
    ],
)
def test_mistakes_are_one_line_with_field_value_and_a_way_out(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(Outer, values, "model")
    assert "\n" not in str(error.value)


def test_unknown_names_list_what_is_known():
    assert str(unknown("method", "vra", ["var", "ar"])) == "unknown method 'vra'; known: ar, var; did you mean 'var'?"
    assert str(unknown("method", "zzz", [])) == "unknown method 'zzz'; known: none"
