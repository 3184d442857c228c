"""Weights of fixtures that are too large to be stored: drawn from their names, and verified against a checksum.

The fixture states, beside shapes, an arithmetic formula per kind of entry over `z`, standard normal numbers that
depend on salt and name alone.
"""

import ast
import fnmatch
import operator
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxar.config import ConfigError, unknown
from jaxar.interop.readers import fingerprint

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS = {"sqrt": np.sqrt, "exp": np.exp}


def draw(entries: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
    """The arrays that a fixture describes in place of storing them, float32.

    Args:
      entries: by name, "shape" and the "first" and "last" value.
      weights: "rule", a formula per pattern of names; "salt"; "sha256_of_all_values".
      what: the file, for messages.
    Raises:
      ConfigError: a formula that is none, or other values than those of the fixture.
    """
    drawn = {
        name: _draw(name, tuple(entry["shape"]), weights["rule"], weights.get("salt") or "")
        for name, entry in entries.items()
    }
    if fingerprint(drawn) != weights["sha256_of_all_values"]["hex"]:  # the rounding of exp may differ
        off = [
            name
            for name, entry in entries.items()
            if not np.allclose(drawn[name].ravel()[[0, -1]], [entry["first"], entry["last"]], rtol=1e-6, atol=0)
        ]
        if off:
            raise ConfigError(f"{what}: {len(off)} of the drawn weights are not those of the fixture ({off[0]}, ...)")
    return drawn


def _draw(name: str, shape: tuple[int, ...], rules: Mapping[str, str], salt: str) -> np.ndarray:
    matching = [formula for pattern, formula in rules.items() if fnmatch.fnmatchcase(name, pattern)]
    if not matching:
        raise unknown("kind of drawn weight", name, rules)
    z = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode()))).standard_normal(shape)
    return np.asarray(_evaluate(ast.parse(matching[0], mode="eval").body, {"z": z, "shape": shape}), np.float32)


def _evaluate(node: ast.AST, values: Mapping[str, Any]) -> Any:
    """The value of an arithmetic expression; nothing else is executed."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Subscript(value=ast.Name(id="shape"), slice=ast.Constant(value=int() as index)):
            return values["shape"][index]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_evaluate(argument, values))
    raise ConfigError(f"{ast.unparse(node)!r} is no formula for drawn weights")
