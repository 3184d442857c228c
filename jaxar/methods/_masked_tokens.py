"""What the methods that predict masked discrete tokens with one network share.

Their files hold what differs: which tokens training hides and how it weighs them, and in which order sampling reveals
them.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked, reuse
from jaxar.methods import _conditions as conditions
from jaxar.methods.base import Batch, Cond, Method, PlayerSpec, Task
from jaxar.models.bidirectional import BidirectionalTransformer, Sizes
from jaxar.models.multimodal import MultimodalTransformer
from jaxar.nn.layers import cast_weights
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class Sampling(lg.Sampling):
    """The options that the samplers share.

    Attributes:
      refresh_every: reuse of keys and values, see `decoding.reuse`: a step computes only tokens that are masked or were
        decided in the step before it, and every so many steps all of them. None, and 1, are exact.
      segments: pieces of the loop under reuse; each step of a piece computes as many tokens as the first one needs.
    """

    refresh_every: int | None = None
    segments: int = 4

    def __post_init__(self):
        super().__post_init__()
        reuse.check(self.refresh_every)
        if self.segments < 1:
            raise ConfigError(f"sample.segments={self.segments} must be at least 1")

    @property
    def pieces(self) -> int:
        """Of the loop."""
        return 1 if self.refresh_every is None else self.segments


class Completer(Method):
    """A sampler of discrete tokens that can start from any of them: samples are completions of nothing."""

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Of a sample."""

    def sample(self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Any) -> Tokens:
        ids = jnp.zeros((keys.shape[0], self.num_tokens), jnp.int32)
        return self.complete(variables, Tokens(ids=ids), jnp.zeros(ids.shape, bool), cond, keys, options)


@dataclasses.dataclass(frozen=True)
class MaskedTokens(Completer):
    """One network."""

    network: BidirectionalTransformer | MultimodalTransformer

    @property
    def num_tokens(self) -> int:
        return self.network.num_tokens

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        net, ids = self.network, jnp.zeros((1, self.network.num_tokens), jnp.int32)
        cond = {"label": ids[:, 0]}
        if isinstance(net, MultimodalTransformer) and net.text is not None:
            cond = {"text": jnp.zeros((1, *net.text))}
        return {"model": net.init(key, ids, ids > 0, self._read(cond))}

    def conditions(self, given: Batch | Cond) -> Cond:
        """The entries that the network reads."""
        names = self.network.reads if isinstance(self.network, MultimodalTransformer) else ("label",)
        return {name: given[name] for name in names if name in given}

    def logits(
        self, variables: Variables, ids: Int[Array, "b n"], known: Bool[Array, "b n"], cond: Cond, **options: Any
    ) -> Float[Array, "b n v"]:
        """Of the network, with the `options` of `flax.linen.Module.apply`."""
        return self.network.apply(variables, ids, known, self._read(cond), **options)

    def _read(self, cond: Cond) -> Cond | Int[Array, "b"]:
        return cond if isinstance(self.network, MultimodalTransformer) else cond["label"]

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b] over masked tokens, of which there are 1 to all, each number as likely.

        `bits_per_token` is then an unbiased estimate of a bound: on average it is at least the negative log-likelihood
        per token of drawing one token after another in random order (Jensen). `accuracy` is the share of masked tokens
        whose largest logit is right.

        Reference: Uria et al., A Deep and Tractable Density Estimator, 2014, Eq. 9.
        """
        count_key, position_key = jax.random.split(key)
        net, ids = self.network, batch["ids"]
        counts = jax.random.randint(count_key, ids.shape[:1], 1, net.num_tokens + 1)
        hidden = random_positions(position_key, counts, net.num_tokens)
        logits = self.logits(variables["model"], ids, ~hidden, self.conditions(batch))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        return {
            "bits_per_token": mean_over(nll, hidden) / np.log(2),
            "accuracy": mean_over((jnp.argmax(logits, axis=-1) == ids).astype(nll.dtype), hidden),
        }

    def rules(
        self,
        variables: Variables,
        cond: Cond,
        options: Sampling,
        scales: np.ndarray,
        exact: bool = False,
        unfiltered: bool = False,
    ) -> tuple[masked.Law, reuse.Memory | None]:
        """The law of `decoding.masked`, and the `State.extra` that it starts with.

        Args:
          variables: of the network.
          scales: of guidance at each step, from `logits.guidance_scales`.
          exact, unfiltered: as for `token_law`.
        Raises:
          ConfigError: reuse by a network that cannot.
        """
        if options.refresh_every is None:
            predict = self.predictor(variables, cond, scales)
            return masked.token_law(predict, options, exact, unfiltered), None
        if not isinstance(self.network, BidirectionalTransformer):
            raise ConfigError(
                f"sample.refresh_every={options.refresh_every}: a model with model.multimodal has no reuse; use None"
            )
        predict, memory = self.reusing_predictor(variables, cond, scales, options.refresh_every)
        return masked.token_law(predict, options, exact, unfiltered, reuse.asked), memory

    def predictor(self, variables: Variables, cond: Cond, scales: np.ndarray) -> masked.Predict:
        """Guided logits for `decoding.masked.token_law`; arguments as for `rules`."""
        net = self.network
        variables, cond = cast_weights(variables, net.sizes.dtype), self.doubled(cond, scales)

        def predict(
            state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
        ) -> tuple[Float[Array, "b n v"], None]:
            return self.logits(variables, state.tokens, state.known, cond), None

        return masked.guided(predict, scales)

    def reusing_predictor(
        self, variables: Variables, cond: Cond, scales: np.ndarray, refresh_every: int
    ) -> tuple[masked.Predict, reuse.Memory]:
        """As `predictor`, but of the positions `reuse.asked`, from keys and values that are kept in a memory."""
        net = self.network
        variables = cast_weights(variables, net.sizes.dtype)
        label = self.doubled(cond, scales)["label"]

        def compute(whole: bool) -> reuse.Compute:
            def logits(state: masked.State, segment: mask_schedules.Segment) -> tuple[Float[Array, "b m v"], Any]:
                positions, _ = reuse.due(state, segment)
                args = state.tokens, state.known, label, positions, state.extra.cache
                return net.apply(variables, *args, whole, method="extend")

            return logits

        predict = reuse.alternating(compute(True), compute(False), refresh_every)
        return masked.guided(predict, scales), reuse.begin(net.init_cache(len(label)), len(label), net.num_tokens)

    def doubled(self, cond: Cond, scales: np.ndarray) -> Cond:
        """What the network reads, with null conditions behind it under guidance."""
        cond = self.conditions(cond)
        return conditions.doubled(cond, self.network.num_classes) if lg.is_guided(scales) else cond


def random_positions(key: Key, counts: Int[Array, "b"], num_tokens: int) -> Bool[Array, "b n"]:
    """Marks as many positions of each row as `counts` says, all subsets of that size being as likely."""
    return masked.largest(jax.random.uniform(key, (counts.shape[0], num_tokens)), counts)


def mean_over(values: Float[Array, "b n"], marked: Bool[Array, "b n"]) -> Float[Array, "b"]:
    """Mean of each row over its marked entries, of which there must be one."""
    return jnp.sum(jnp.where(marked, values, 0), axis=1) / jnp.sum(marked, axis=1)


def network(method: str, model: Sizes, task: Task) -> BidirectionalTransformer:
    """The network for the discrete raster tokens of a task, conditional on the class.

    Raises:
      ConfigError: the task has other tokens.
    """
    tokens = task.discrete_tokens(method, multiscale=False)
    return BidirectionalTransformer(model, tokens.vocab_size, tokens.grid, task.num_classes)
