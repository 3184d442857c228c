"""The one attention call of the package: argument checks, and the choice of an implementation.

`auto` asks first what the mask is. Structure that is static is cut into unmasked pieces (`xla.sliced`), each of which
then runs on the fastest unmasked attention of the platform: cuDNN on NVIDIA GPUs for 16-bit types, XLA elsewhere. Long
sequences on a TPU take the flash kernel, which skips the same work and never holds queries by keys in memory. Masks
that only the data knows take one masked XLA call.

Which platform a program runs on is settled when it is lowered, so accelerated branches sit in a
`jax.lax.platform_dependent` beside the XLA one. They are traced only where they can be lowered at all: when the mesh in
scope, or else the default backend, is of that platform.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jaxar.config import ConfigError, unknown
from jaxar.kernels import xla
from jaxar.kernels.flash_tpu import flash_attention
from jaxar.kernels.mask import DynamicRanges, MaskSpec
from jaxar.kernels.reference import reference
from jaxar.kernels.sharding import per_shard
from jaxar.typing import Array, Float, typechecked

Implementation = Literal["auto", "reference", "xla", "sliced", "cudnn", "flash_tpu"]

# An estimate without a timing on a device: from here on, the logits that XLA holds (queries by keys in float32) take 4
# MiB per head, while the flash kernel's grid has steps enough to hide what starting each costs.
FLASH_TPU_LENGTH = 1024


@typechecked
def attention(
    q: Float[Array, "b t h e"],
    k: Float[Array, "b s k e"],
    v: Float[Array, "b s k e"],
    mask: MaskSpec | None = None,
    dynamic: DynamicRanges | None = None,
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "b t h e"]:
    """Softmax attention, accumulated in float32; query head h reads key/value head h // (heads / kv_heads).

    Args:
      q: queries.
      k, v: keys and values; kv_heads divides heads.
      mask: static structure, t queries by s keys; None lets every query attend every key.
      dynamic: ranges that are data (cache lengths, padding), intersected with `mask`.
      scale: factor of the logits, 1 / sqrt(e) by default.
      implementation: an `Implementation`; "auto" takes the fastest that fits. "reference", "xla" and "sliced" run
        everywhere and have forward-mode derivatives, which the others lack: a method that takes a jvp through its
        network must name one of them. "flash_tpu" is interpreted, slowly, where the target is no TPU.
    Returns:
      In the type of `q`. A query without keys gives zeros.
    Raises:
      ConfigError: shapes that do not fit, an unknown implementation, or one that cannot compute this call.
    """
    mask = MaskSpec.full(q.shape[1], k.shape[1]) if mask is None else mask
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k, mask, dynamic)
    if implementation not in get_args(Implementation):
        raise unknown("attention implementation", implementation, get_args(Implementation))
    if implementation == "auto":
        return _auto(q, k, v, mask, dynamic, scale)
    refuse = _REFUSALS.get(implementation)
    if refuse is not None and (reason := refuse(q, k, v, dynamic)):
        raise ConfigError(f"attention implementation {implementation!r} {reason}; use 'auto'")
    return _IMPLEMENTATIONS[implementation](q, k, v, mask, dynamic, scale)


def _auto(q: Array, k: Array, v: Array, mask: MaskSpec, dynamic: DynamicRanges | None, scale: float) -> Array:
    def run(name: str) -> Callable[..., Array]:
        return lambda q, k, v, dynamic: _IMPLEMENTATIONS[name](q, k, v, mask, dynamic, scale)

    everywhere = run("xla" if _refuse_sliced(q, k, v, dynamic) else "sliced")
    target = target_platform()
    long = min(q.shape[1], k.shape[1]) >= FLASH_TPU_LENGTH
    if target == "gpu" and _refuse_cudnn(q, k, v, dynamic) is None:
        return jax.lax.platform_dependent(q, k, v, dynamic, cuda=run("cudnn"), default=everywhere)
    if target == "tpu" and long and _refuse_flash_tpu(q, k, v, dynamic) is None:
        return jax.lax.platform_dependent(q, k, v, dynamic, tpu=run("flash_tpu"), default=everywhere)
    return everywhere(q, k, v, dynamic)


def target_platform() -> str:
    """The platform that the program being traced is most likely lowered for: "cpu", "gpu" or "tpu"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _check(q: Array, k: Array, mask: MaskSpec, dynamic: DynamicRanges | None) -> None:
    (b, t, heads, _), (_, s, kv_heads, _) = q.shape, k.shape
    if heads % kv_heads:
        raise ConfigError(f"heads={heads} is not a multiple of kv_heads={kv_heads}")
    if (mask.num_queries, mask.kv_len) != (t, s):
        raise ConfigError(
            f"mask is for {mask.num_queries} queries and {mask.kv_len} keys, q and k have {t} and {s}; "
            "use mask.rows() for part of the queries"
        )
    if dynamic is None:
        return
    for name, ends in (("start", dynamic.start), ("stop", dynamic.stop)):
        if ends.shape[-1] != t or ends.shape[:-2] not in ((), (1,), (b,)):
            raise ConfigError(f"dynamic.{name} has shape {ends.shape}; it must be [ranges, {t}] or [{b}, ranges, {t}]")
    if dynamic.extra is not None and dynamic.extra.shape not in ((t, s), (1, t, s), (b, t, s)):
        raise ConfigError(f"dynamic.extra has shape {dynamic.extra.shape}; it must be [{t}, {s}] or [{b}, {t}, {s}]")


def _refuse_sliced(q: Array, k: Array, v: Array, dynamic: DynamicRanges | None) -> str | None:
    return "slices by static masks alone, and dynamic ranges are given" if dynamic is not None else None


def _refuse_cudnn(q: Array, k: Array, v: Array, dynamic: DynamicRanges | None) -> str | None:
    if dynamic is not None:
        return "takes static masks alone, and dynamic ranges are given"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"needs bfloat16 or float16, got {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"needs a head_dim that is a multiple of 8 and at most 128, got {q.shape[-1]}"
    return None


def _refuse_flash_tpu(q: Array, k: Array, v: Array, dynamic: DynamicRanges | None) -> str | None:
    if dynamic is not None and dynamic.extra is not None:
        return "takes ranges alone, and dynamic.extra is given"
    if not q.dtype == k.dtype == v.dtype:
        return f"needs one type for q, k and v, got {q.dtype}, {k.dtype}, {v.dtype}"
    return None


def _sliced(q: Array, k: Array, v: Array, mask: MaskSpec, dynamic: None, scale: float) -> Array:
    return xla.sliced(q, k, v, mask, scale)


def _cudnn(q: Array, k: Array, v: Array, mask: MaskSpec, dynamic: None, scale: float) -> Array:
    """cuDNN for full and causal masks and for the unmasked pieces of others; it would turn a mask into a dense bias."""
    if mask.is_full or mask.is_causal:
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=not mask.is_full, implementation="cudnn")
    return xla.sliced(q, k, v, mask, scale, piece=_cudnn_piece)


def _cudnn_piece(q: Array, k: Array, v: Array, mask: MaskSpec, dynamic: None, scale: float) -> Array:
    whole = mask.is_full or mask.is_causal
    return (_cudnn if whole else xla.masked)(q, k, v, mask, dynamic, scale)


def _flash_tpu(q: Array, k: Array, v: Array, mask: MaskSpec, dynamic: DynamicRanges | None, scale: float) -> Array:
    interpret = target_platform() != "tpu"
    kernel = per_shard(lambda q, k, v, dynamic: flash_attention(q, k, v, mask, dynamic, scale, interpret=interpret))
    return kernel(q, k, v, dynamic)


_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "reference": reference,
    "xla": xla.masked,
    "sliced": _sliced,
    "cudnn": _cudnn,
    "flash_tpu": _flash_tpu,
}
_REFUSALS = {"sliced": _refuse_sliced, "cudnn": _refuse_cudnn, "flash_tpu": _refuse_flash_tpu}
