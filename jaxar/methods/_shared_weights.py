"""What networks of different shape have in common."""

from typing import Any

import jax
import jax.numpy as jnp


def common(source: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """Entries of `source` that `target` has with the same shapes."""

    def shapes(tree: Any) -> Any:
        return jax.tree.map(jnp.shape, tree)

    return {name: part for name, part in source.items() if name in target and shapes(part) == shapes(target[name])}


def has_all(fresh: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether `fresh` has every entry of `own`, in these shapes."""
    return common(own, fresh).keys() == own.keys()


def taken_over(fresh: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Fresh parameters, replaced by a teacher's `own` if the network has all of them, in these shapes."""
    return {**fresh, **own} if has_all(fresh, own) else fresh
