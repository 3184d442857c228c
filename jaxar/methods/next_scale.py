"""Next-scale autoregression: token maps coarse to fine, each drawn in parallel given all coarser ones.

    p(r_1 .. r_K | c) = prod_k p(r_k | c, r_1 .. r_{k-1}),    loss = -mean over all tokens of log p

The input of scale k is the tokenizer's feature map f_hat of the scales before it, resized to scale k. Guidance grows
linearly from none at the first scale to s at the last.

Reference: Tian et al., Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, 2024, Eq. 6
and Sec. 3.2.

Golden: var_d2, var_d2_nol2, var_d2_sharedaln, var_d2_nol2_sharedaln
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import ar
from jaxar.decoding import logits as lg
from jaxar.methods import _conditions as conditions
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, Method, PlayerSpec, Task
from jaxar.models import next_scale
from jaxar.nn.cache import KVCache
from jaxar.nn.layers import cast_weights
from jaxar.nn.transformer import split_layers
from jaxar.tokenizers.base import MultiscaleTokenizer, Tokens, TokenSpec
from jaxar.typing import Array, Float, Int, Key, Keys, Metrics, Variables

Model = next_scale.Sizes


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section. `label_drop`: share of labels that training replaces by the null class."""

    label_drop: float = 0.1

    def __post_init__(self):
        if not 0 <= self.label_drop <= 1:
            raise ConfigError(f"method.label_drop={self.label_drop} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling(lg.Sampling):
    """The `sample` section. `unroll`: a straight line of layers at every scale: slow to compile, faster after."""

    guidance_schedule: Literal["constant", "linear"] = "linear"
    unroll: bool = False


@dataclasses.dataclass(frozen=True)
class NextScale(Method):
    """One network, one loss; the tokenizer is frozen and supplies the inputs."""

    network: next_scale.NextScaleTransformer
    config: Config
    tokenizer: MultiscaleTokenizer

    @property
    def tokens(self) -> TokenSpec:
        return self.tokenizer.spec

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec(no_decay=("^class_embedding/", "^(start|positions|levels)$"))}

    def init(self, key: Key) -> dict[str, Variables]:
        spec = self.tokens
        features = jnp.zeros((1, spec.num_tokens - spec.scale_lengths[0], spec.channels))
        return {"model": self.network.init(key, features, jnp.zeros(1, jnp.int32))}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("nll", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean cross-entropy in nats over the tokens of all scales, each token counting alike."""
        drop_key, dropout_key = jax.random.split(key)
        cond = conditions.drop(conditions.of_batch(batch), drop_key, self.config.label_drop, self.network.num_classes)
        logits = self._logits(variables, batch["ids"], cond["label"], dropout_key)
        return self.mean_nll(optax.softmax_cross_entropy_with_integer_labels(logits, batch["ids"])), LossAux({})

    def mean_nll(self, nll: Float[Array, "b n"]) -> Float[Array, ""]:
        """The loss, from the cross-entropy of every token."""
        return nll.mean()

    def _logits(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], labels: Int[Array, "b"], dropout_key: Key | None
    ) -> Float[Array, "b n v"]:
        """Teacher-forced logits; no dropout without a key."""
        features = jax.lax.stop_gradient(self.tokenizer.teacher_input(variables["tokenizer"], ids))
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.network.apply(variables["model"], features, labels, deterministic=not rngs, rngs=rngs)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: `bits_per_token` over all scales and of each one, and `accuracy` of the largest logit."""
        ids = batch["ids"]
        logits = self._logits(variables, ids, batch["label"], None)
        bits = optax.softmax_cross_entropy_with_integer_labels(logits, ids) / np.log(2)
        per_scale = jnp.split(bits, np.cumsum(self.tokens.scale_lengths)[:-1], axis=1)
        return {
            "bits_per_token": bits.mean(axis=1),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == ids, axis=1),
            **{f"bits_per_token_scale_{k}": part.mean(axis=1) for k, part in enumerate(per_scale, 1)},
        }

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling) -> Tokens:
        ids, _ = self.sample_with_features(variables, cond, keys, options)
        return Tokens(ids=ids)

    def roll_out(
        self,
        variables: dict[str, Variables],
        cond: Cond,
        keys: Keys | None,
        options: Sampling,
        draw: ar.Draw,
        given: Int[Array, "b t"] | None = None,
        stop: int | None = None,
    ) -> Int[Array, "b n"]:
        """The tokens that `draw` takes from the model's guided logits, scale by scale; `keys` are for it alone.

        Args:
          given: tokens of the first scales, which are not drawn; None for none.
          stop: n, the tokens of given and drawn scales; None for all.
        """
        ends = np.cumsum(self.tokens.scale_lengths)

        def keep(scale: int, inputs: Any, logits: Array, drawn: Int[Array, "b t"]) -> Int[Array, "b t"]:
            return drawn if ends[scale] > given.shape[1] else given[:, ends[scale] - drawn.shape[1] : ends[scale]]

        num_scales = None if stop is None else self.roll_out_calls(0, stop)
        refine = None if given is None else keep
        return self.sample_with_features(variables, cond, keys, options, draw, refine, num_scales)[0]

    def roll_out_calls(self, given: int, stop: int) -> int:
        """Sequential calls of the network in `roll_out`, for numbers of tokens; given scales take a call each too."""
        return int(np.searchsorted(np.cumsum(self.tokens.scale_lengths), stop)) + 1

    def log_laws(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], cond: Cond, options: lg.Sampling
    ) -> Float[Array, "b n v"]:
        """Logarithms of the laws, unnormalised, from which sampling draws each token if coarser scales are `ids`."""

        def logits(labels: Int[Array, "b"]) -> Float[Array, "b n v"]:
            return self._logits(variables, ids, labels, None)

        null = jnp.full_like(cond["label"], self.network.num_classes)
        per_scale = lg.guidance_scales(options, len(self.tokens.scales))
        scales = np.repeat(per_scale, self.tokens.scale_lengths)
        return lg.filtered(lg.guided_at(logits(cond["label"]), lambda: logits(null), scales), options)

    def sample_with_features(
        self,
        variables: dict[str, Variables],
        cond: Cond,
        keys: Keys | None,
        options: Sampling,
        draw: ar.Draw | None = None,
        refine: ar.Refine | None = None,
        num_scales: int | None = None,
    ) -> tuple[Int[Array, "b n"], Float[Array, "b h w c"]]:
        """Tokens (samples, unless `draw` says otherwise) and their feature maps f_hat, which the decoder reads.

        `refine` as in `decoding.ar.next_scale`; only the first `num_scales` are drawn unless it is None.
        """
        draw = draw or functools.partial(lg.draw, options=options)
        spec = self.tokens
        scales = lg.guidance_scales(options, len(spec.scales))
        f_hat = jnp.zeros((cond["label"].shape[0], *spec.grid, spec.channels))
        if lg.is_guided(scales):
            cond = conditions.doubled(cond, self.network.num_classes)
        extend, cache = self.decoder(variables["model"], cond, options.unroll)
        next_input = functools.partial(self.tokenizer.next_input, variables["tokenizer"])
        extend = ar.guided(extend, scales)
        return ar.next_scale(extend, next_input, f_hat, cache, keys, spec.scale_lengths[:num_scales], draw, refine)

    def decoder(self, variables: Variables, cond: Cond, unroll: bool) -> tuple[ar.Extend, KVCache | None]:
        """An `extend` for `decoding.ar.next_scale`, and its empty cache if the network has one."""
        net = self.network.clone(unroll=unroll)
        variables = cast_weights(variables, net.sizes.dtype)
        variables = split_layers(variables) if unroll else variables
        condition = net.apply(variables, cond["label"], method="condition")

        def extend(
            features: Float[Array, "b t c"] | None, scale: int, cache: KVCache | None
        ) -> tuple[Float[Array, "b t v"], KVCache | None]:
            return net.apply(variables, features, scale, condition, cache, method="extend")

        return extend, net.init_cache(cond["label"].shape[0])

    def network_calls(self, options: Sampling) -> int:
        return len(self.tokens.scales)


def build(config: Config, model: Model, task: Task) -> NextScale:
    """The method for discrete multi-scale tokens, conditional on the class."""
    tokens = task.discrete_tokens("next_scale", multiscale=True)
    network = next_scale.NextScaleTransformer(
        model, tokens.vocab_size, tokens.scale_lengths, tokens.channels, task.num_classes
    )
    return NextScale(network, config, task.tokenizer)
