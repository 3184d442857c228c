"""Speed of the samplers: python -m benchmarks.sampling [--batch=1,8] [--cache=true,false] [--side=8,16] [--json]

Measures whole images of tokens, without the tokenizer's decoder. Options take several values; all combinations are run.
LlamaGen-B: --layers=12 --width=768 --vocab=16384. VAR-d16: --method=next_scale --layers=16 --width=1024.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.networks import NUM_CLASSES, Network, num_parameters, random_variables
from jaxar.decoding import ar as loops
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods import ar, next_scale
from jaxar.methods.base import Cond, Method
from jaxar.typing import Array, Float, Int, Keys, Variables


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the network is sampled; `segments` concerns raster sampling alone, and neither it nor `unroll` no cache."""

    batch: int = 1
    cache: bool = True
    guidance: float = 2.0
    top_k: int = 0
    top_p: float = 1.0
    segments: int = 4
    unroll: bool = False

    def options(self, method: Method) -> ar.Sampling | next_scale.Sampling:
        common = dict(guidance_scale=self.guidance, top_k=self.top_k or None, top_p=self.top_p, unroll=self.unroll)
        if isinstance(method, ar.AR):
            return ar.Sampling(segments=self.segments, **common)
        return next_scale.Sampling(**common)


def run(network: Network, sampler: Sampler, repeat: int) -> dict[str, Any]:
    """One row of results."""
    method = network.build()
    variables = random_variables(method)
    options = sampler.options(method)
    cond = {"label": jnp.arange(sampler.batch) % NUM_CLASSES}

    def sample(variables: dict[str, Variables], cond: Cond, keys: Keys) -> Int[Array, "b n"]:
        if sampler.cache:
            return method.sample(variables, cond, keys, options).ids
        recompute = _raster_without_cache if isinstance(method, ar.AR) else _scales_without_cache
        return recompute(method, variables, cond, keys, options)

    def keys(call: int) -> Keys:
        return jax.random.split(jax.random.key(call), sampler.batch)

    timing = measure.measure(
        sample, (variables, cond, keys(0)), repeat, lambda args, _, call: (variables, cond, keys(call + 1))
    )
    return {
        **dataclasses.asdict(network),
        **dataclasses.asdict(sampler),
        **dataclasses.asdict(timing),
        "parameters": num_parameters(variables),
        "images_per_s": sampler.batch / timing.wall_s,
        "tokens_per_s": sampler.batch * network.num_tokens / timing.wall_s,
        "network_calls": method.network_calls(options),
        "peak_bytes": measure.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def _raster_without_cache(
    method: ar.AR, variables: dict[str, Variables], cond: Cond, keys: Keys, options: ar.Sampling
) -> Int[Array, "b n"]:
    """What the cache saves: each token takes a forward pass over the whole sequence, whose tail is not yet drawn."""
    count = method.network.num_tokens
    scales = lg.guidance_scales(options, count)
    cond = conditions.doubled(cond, method.network.num_classes) if lg.is_guided(scales) else cond

    def extend(
        ids: Int[Array, "b 1"] | None, step: Int[Array, ""] | int, drawn: Int[Array, "b n"], stop: int
    ) -> tuple[Float[Array, "b 1 v"], Int[Array, "b n"]]:
        if ids is not None:
            drawn = jax.lax.dynamic_update_slice(drawn, ids, (0, step - 1))
        logits = method.network.apply(variables["model"], drawn, cond)
        return jax.lax.dynamic_slice_in_dim(logits, step, 1, axis=1), drawn

    empty = jnp.zeros((cond["label"].shape[0], count), jnp.int32)
    return loops.next_token(
        loops.guided(extend, scales), None, empty, keys, count, functools.partial(lg.draw, options=options)
    )


def _scales_without_cache(
    method: next_scale.NextScale, variables: dict[str, Variables], cond: Cond, keys: Keys, options: next_scale.Sampling
) -> Int[Array, "b n"]:
    """The same for scales: each takes a forward pass over all of them."""
    spec = method.tokens
    lengths, first = spec.scale_lengths, spec.scale_lengths[0]
    scales = lg.guidance_scales(options, len(lengths))
    canvas = jnp.zeros((cond["label"].shape[0], *spec.grid, spec.channels))
    cond = conditions.doubled(cond, method.network.num_classes) if lg.is_guided(scales) else cond

    def extend(
        features: Float[Array, "b t c"] | None, scale: int, inputs: Float[Array, "b m c"]
    ) -> tuple[Float[Array, "b t v"], Float[Array, "b m c"]]:
        begin, end = sum(lengths[:scale]), sum(lengths[: scale + 1])
        if features is not None:
            inputs = inputs.at[:, begin - first : end - first].set(features)
        return method.network.apply(variables["model"], inputs, cond["label"])[:, begin:end], inputs

    empty = jnp.zeros((cond["label"].shape[0], spec.num_tokens - first, spec.channels))
    next_input = functools.partial(method.tokenizer.next_input, variables["tokenizer"])
    extend = loops.guided(extend, scales)
    return loops.next_scale(
        extend, next_input, canvas, empty, keys, lengths, functools.partial(lg.draw, options=options)
    )[0]


def main() -> None:
    args = measure.parser(__doc__, Network, Sampler).parse_args()
    measure.use_fresh_cache()
    for network in measure.combinations(args, Network):
        for sampler in measure.combinations(args, Sampler):
            measure.report(run(network, sampler, args.repeat), args.json)


if __name__ == "__main__":
    main()
