"""Conditions and their null counterparts, which classifier-free guidance trains and samples with."""

import jax
import jax.numpy as jnp

from jaxar.methods.base import Batch, Cond
from jaxar.typing import Array, Bool, Key

NAMES = ("label", "text", "text_mask")


def of_batch(batch: Batch) -> Cond:
    """The conditions among the entries of a batch."""
    return {name: batch[name] for name in NAMES if name in batch}


def nullify(cond: Cond, rows: Bool[Array, "b"], num_classes: int | None) -> Cond:
    """Conditions whose marked rows are null: label `num_classes`, or the learned null caption under the same padding.

    Args:
      cond: "label", or "text" with "text_mask".
      num_classes: None for a model without labels.
    """
    if "text" in cond:
        return {**cond, "text_null": rows}
    return {**cond, "label": jnp.where(rows, num_classes, cond["label"])}


def drop(cond: Cond, key: Key, rate: float, num_classes: int | None) -> Cond:
    """Conditions of which each is null with probability `rate`."""
    size = jax.tree.leaves(cond)[0].shape[0]
    return nullify(cond, jax.random.bernoulli(key, rate, (size,)), num_classes)


def doubled(cond: Cond, num_classes: int | None) -> Cond:
    """The conditions, followed by a null one for each."""
    size = jax.tree.leaves(cond)[0].shape[0]
    both = jax.tree.map(lambda x: jnp.concatenate([x, x]), cond)
    return nullify(both, jnp.arange(2 * size) >= size, num_classes)
