"""Floating-point operations of a traced function, counted from its jaxpr, and the peak rates of known devices.

XLA's own cost analysis counts the body of a scan once, so a scanned stack of 36 layers looks like one. Walking the
jaxpr multiplies by trip counts. Matrix products and convolutions count 2 operations per multiply-add; everything else
is left out, as is usual for model FLOPs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxar.methods.base import LossSpec

# Peak dense bf16 rate per device in FLOP/s, from the vendors' data sheets, by `device.device_kind`.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak bf16 FLOP/s of one device, None where it is not known (CPUs, say)."""
    return PEAK_FLOPS.get(device.device_kind)


def count(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call of `fn`.

    Args:
      fn: traceable; `args`: arrays or `jax.ShapeDtypeStruct`s.
    Raises:
      ValueError: a `while_loop` that contains matrix products, whose trip count is not known.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    return sum(_equation_flops(eqn) for eqn in jaxpr.eqns)


def _equation_flops(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        lhs = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in contract)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        return int(estimate.flops) if estimate is not None else 0
    if name == "scan":
        return params["length"] * _jaxpr_flops(params["jaxpr"].jaxpr)
    if name == "while":
        body = _jaxpr_flops(params["body_jaxpr"].jaxpr)
        if body:
            raise ValueError("a while_loop with matrix products has no static FLOP count; use lax.scan")
        return 0
    if name == "cond":
        return max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
    return sum(_jaxpr_flops(inner) for inner in _inner_jaxprs(params))


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """Jaxprs of calls (jit, remat, custom derivatives): the primal computation alone."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            inner = params[key]
            return [inner.jaxpr if hasattr(inner, "jaxpr") else inner]
    return []


def training_step(variables: Any, batch: Any, prepare: Callable[..., Any] | None, losses: Sequence[LossSpec]) -> int:
    """Model FLOPs of one train step: three times the forward pass of each loss, plus encoders run in the step.

    The factor counts a forward and a backward of twice its cost, without recomputation (Chowdhery et al., PaLM, 2022,
    appendix B). Networks that a loss does not update are counted as if they were, an overestimate for critics' inputs.

    Args:
      variables, batch: abstract trees; variables of frozen parents included.
      losses: the `LossSpec`s of the step.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), np.int32)
    encode = count(prepare, variables, batch, key) if prepare else 0
    ready = jax.eval_shape(prepare, variables, batch, key) if prepare else batch
    return encode * len(losses) + sum(3 * count(loss.fn, variables, ready, key, step) for loss in losses)
