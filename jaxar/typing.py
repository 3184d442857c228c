"""Shape-typed array aliases and the run-time checker shared by the whole package."""

from collections.abc import Mapping
from typing import Any

import jaxtyping
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

try:
    from beartype import beartype as _checker
except ModuleNotFoundError:  # a bare GPU machine: annotations stay documentation there
    _checker = None

Key = PRNGKeyArray
Keys = jaxtyping.Key[Array, "b"]  # one typed key per sample
Params = Mapping[str, Any]
Variables = Mapping[str, Any]  # {"params": ..., plus untrained collections}
Metrics = Mapping[str, Array]
FIXED = "fixed"  # the collection of arrays that belong to a network's weights and that nothing trains

__all__ = [
    "FIXED",
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Keys",
    "Metrics",
    "Params",
    "Shaped",
    "UInt8",
    "Variables",
    "typechecked",
]


def typechecked(fn):
    """Checks the shape annotations of `fn` at each call; under jit only tracing calls it, so it is free at run time."""
    return jaxtyping.jaxtyped(fn, typechecker=_checker)
