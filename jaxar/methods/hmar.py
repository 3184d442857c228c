"""Markovian next-scale prediction, and masked prediction inside a scale, whose schedule is chosen when sampling.

    p(r_1 .. r_K | c) = prod_k p(r_k | c, f_{k-1}),    loss = -sum_k w_k mean over the tokens of r_k of log p

f_{k-1} is the tokenizer's feature map of the scales before k: a scale attends itself alone, and nothing is cached. The
second network shares the lower layers and draws some tokens of a scale given the others. It is trained after the first,
which then stays as it is, on -log p of masked tokens, the same ones in the whole batch. Sampling draws a scale at once,
keeps the most confident tokens, and draws the others anew in as many passes as `mask_schedule` says.

Reference: Kumbong et al., HMAR: Efficient Hierarchical Masked Auto-Regressive Image Generation, 2025.

Golden: hmar_d2
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxar.config import ConfigError
from jaxar.decoding import ar, mask_schedules, masked
from jaxar.decoding import logits as lg
from jaxar.kernels.mask import MaskSpec
from jaxar.methods import _conditions as conditions
from jaxar.methods import next_scale
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Stage, Task
from jaxar.models import hmar as parts
from jaxar.models.next_scale import NextScaleTransformer
from jaxar.nn.layers import cast_weights
from jaxar.nn.transformer import split_layers
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables

Model = next_scale.Model
_REFINE = 1 << 31  # random numbers of a scale's mask passes; the first passes use the tokens' positions


@dataclasses.dataclass(frozen=True)
class Config(next_scale.Config):
    """The `method` section.

    Attributes:
      refiner_layers: layers that the masked prediction does not share, the last ones; 0 for none and no such network.
      refine_start: step at which the training of the first network ends and that of the second begins; None for never.
        With `init_from`, 0 trains the second network alone.
    """

    refiner_layers: int = 8
    refine_start: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.refiner_layers < 0:
            raise ConfigError(f"method.refiner_layers={self.refiner_layers} must be at least 0, which makes no refiner")
        if self.refine_start is not None and (self.refine_start < 0 or not self.refiner_layers):
            raise ConfigError(
                f"method.refine_start={self.refine_start} must be a step, and needs method.refiner_layers of at least "
                "1; None trains no refiner"
            )


@dataclasses.dataclass(frozen=True)
class Sampling(next_scale.Sampling):
    """The `sample` section.

    Attributes:
      mask_schedule: per scale, tokens that the first pass and each mask pass keep, ((1,), (1, 3), (1, 1, 2, 5)); those
        of a scale sum to its number of tokens. Scales without an entry are drawn in one pass.
      mask_guidance_scale: guidance of all mask passes.
    """

    mask_schedule: tuple[tuple[int, ...], ...] = ()
    mask_guidance_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not all(entry and min(entry) > 0 for entry in self.mask_schedule):
            raise ConfigError(
                f"sample.mask_schedule={self.mask_schedule} must hold numbers of tokens, at least one per scale and "
                "all positive"
            )


class Given(NamedTuple):
    """Tokens that are not drawn: `ids` [b n] where `known` [b n]."""

    ids: Int[Array, "b n"]
    known: Bool[Array, "b n"]


@dataclasses.dataclass(frozen=True)
class HMAR(next_scale.NextScale):
    """Players `model`, the next-scale network, and `refiner`, what the masked prediction has of its own."""

    config: Config
    branch: parts.MaskedBranch | None

    def players(self) -> dict[str, PlayerSpec]:
        return super().players() | ({"refiner": PlayerSpec()} if self.branch else {})

    def init(self, key: Key) -> dict[str, Variables]:
        variables = super().init(key)
        if self.branch is None:
            return variables
        x = jnp.zeros((1, 1, self.branch.sizes.width))
        return {**variables, "refiner": self.branch.init(jax.random.fold_in(key, 1), x, x[:, 0])}

    def losses(self) -> tuple[LossSpec, ...]:
        masked_nll = (LossSpec("masked_nll", self.masked_loss, ("refiner",)),)
        return super().losses() + (masked_nll if self.branch else ())

    def stages(self) -> tuple[Stage, ...]:
        first = Stage("next_scale", 0, ("nll",))
        if self.config.refine_start is None:
            return (first,)
        second = Stage("refine", self.config.refine_start, ("masked_nll",), self.begin_refining)
        return (first, second) if second.start else (second,)

    def begin_refining(self, state: Any) -> Any:
        """The training state as the second stage finds it.

        The first network ends as its slowest average, if it has one, which is what samples are drawn with; the second
        starts as a copy of its last layers and head.
        """
        model, refiner = state.players["model"], state.players["refiner"]
        slowest = max(model.emas, key=float, default=None)
        params = model.params if slowest is None else model.emas[slowest]
        own = {**refiner.params, **parts.branch_of(params, self.branch)}
        players = {"model": _starting_from(model, params), "refiner": _starting_from(refiner, own)}
        return state.replace(players={**state.players, **players})

    def mean_nll(self, nll: Float[Array, "b n"]) -> Float[Array, ""]:
        return jnp.sum(nll.mean(axis=0) * token_weights(self.tokens.scale_lengths))

    def masked_loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean cross-entropy in nats over the masked tokens of all scales but the first."""
        hidden_key, drop_key, dropout_key = jax.random.split(key, 3)
        cond = conditions.drop(conditions.of_batch(batch), drop_key, self.config.label_drop, self.network.num_classes)
        nll, _ = self._masked_nll(variables, batch["ids"], cond["label"], hidden_key, dropout_key)
        return nll.mean(), LossAux({})

    def _masked_nll(
        self,
        variables: dict[str, Variables],
        ids: Int[Array, "b n"],
        labels: Int[Array, "b"],
        hidden_key: Key,
        dropout_key: Key | None,
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """Nats per masked token, and the share of masked tokens whose largest logit is right."""
        hidden = random_hidden(hidden_key, self.tokens.scale_lengths[1:])
        features, own = jax.lax.stop_gradient(self.streams(variables["tokenizer"], ids))
        logits = self.masked_logits(variables, features, own, hidden, labels, dropout_key)
        first = self.tokens.scale_lengths[0]
        logits, ids = logits[:, first:], ids[:, first:]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
        right = jnp.argmax(logits, axis=-1) == ids
        return tuple(jnp.sum(x * hidden, axis=1) / jnp.sum(hidden) for x in (nll, right))

    def streams(
        self, tokenizer: Variables, ids: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b m c"], Float[Array, "b m c"]]:
        """What the masked prediction reads of all scales but the first: their usual inputs, their own features."""
        pieces = jnp.split(ids, np.cumsum(self.tokens.scale_lengths)[:-1], axis=1)
        own = [self.tokenizer.own_features(tokenizer, k, piece) for k, piece in enumerate(pieces) if k]
        return self.tokenizer.teacher_input(tokenizer, ids), jnp.concatenate(own, axis=1)

    def masked_logits(
        self,
        variables: dict[str, Variables],
        features: Float[Array, "b m c"],
        own: Float[Array, "b m c"],
        hidden: Bool[Array, "m"],
        labels: Int[Array, "b"],
        dropout_key: Key | None = None,
    ) -> Float[Array, "b n v"]:
        """Logits of all tokens of all scales, each scale given those of its tokens that are not hidden.

        Args:
          features, own: from `streams`.
          hidden: the same tokens in all rows.
          dropout_key: of the branch; the shared layers, which do not learn here, go without dropout.
        """
        shared, branch = parts.shared_layers(self.network, self.branch), self.branch
        of_shared, of_branch = parts.shared_variables(variables["model"], branch), variables["refiner"]
        rows = jnp.broadcast_to(hidden, features.shape[:2])
        condition = shared.apply(of_shared, labels, method="condition")
        summed, added = branch.apply(of_branch, features, own, rows, method="streams")
        x, _ = shared.apply(of_shared, summed, condition, added=added, method="activations")
        mask = MaskSpec.block_diagonal(self.tokens.scale_lengths)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return branch.apply(of_branch, x, condition.start, mask, deterministic=not rngs, rngs=rngs)

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """The figures of next-scale prediction; `masked_bits_per_token` and `masked_accuracy` of masked tokens."""
        figures = super().evaluate(variables, batch, key)
        if self.branch is None:
            return figures
        nll, right = self._masked_nll(variables, batch["ids"], batch["label"], key, None)
        return {**figures, "masked_bits_per_token": nll / np.log(2), "masked_accuracy": right}

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
        refine = refine or self._refine(variables, cond, keys, options)
        return super().sample_with_features(variables, cond, keys, options, draw, refine, num_scales)

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        """As `sample`; mask passes draw the unknown tokens of a scale given the known ones among the others."""
        refine = self._refine(variables, cond, keys, options, Given(tokens.ids, known))
        return Tokens(ids=self.sample_with_features(variables, cond, keys, options, refine=refine)[0])

    def _refine(
        self, variables: dict[str, Variables], cond: Cond, keys: Keys, options: Sampling, given: Given | None = None
    ) -> ar.Refine | None:
        """What happens to the tokens of a scale after the first pass, None for nothing."""
        schedule = self.kept(options)
        refines = any(len(kept) > 1 for kept in schedule)
        if given is None and not refines:
            return None
        predictor = self._predictor(variables, cond, options) if refines else None
        stops = np.cumsum((0, *self.tokens.scale_lengths))

        def refine(
            scale: int, inputs: Array | None, logits: Float[Array, "b t v"], ids: Int[Array, "b t"]
        ) -> Int[Array, "b t"]:
            kept, known = schedule[scale], jnp.zeros(ids.shape, bool)
            if given is not None:
                given_ids, known = (x[:, stops[scale] : stops[scale + 1]] for x in given)
                ids = jnp.where(known, given_ids, ids)
            if len(kept) == 1:
                return ids
            first = masked.Drawn(ids, lg.log_prob(lg.filtered(logits, options), ids))
            law = masked.token_law(predictor(scale, inputs, len(kept) - 1), options)
            stream = masked.fold(keys, _REFINE + scale)
            return masked.refine(law, first, known, stream, mask_schedules.kept_counts(kept)).tokens

        return refine

    def _predictor(
        self, variables: dict[str, Variables], cond: Cond, options: Sampling
    ) -> Callable[[int, Float[Array, "b m c"], int], masked.Predict]:
        """(scale, its input, number of mask passes) -> guided logits of masked tokens of that scale."""
        shared = parts.shared_layers(self.network, self.branch).clone(unroll=options.unroll)
        branch = self.branch.clone(unroll=options.unroll)
        of_shared = self._prepared(parts.shared_variables(variables["model"], branch), options.unroll)
        of_branch = self._prepared(variables["refiner"], options.unroll)
        guided = options.mask_guidance_scale != 1
        label = conditions.doubled(cond, self.network.num_classes)["label"] if guided else cond["label"]
        condition = shared.apply(of_shared, label, method="condition")
        own_condition = branch.apply(of_branch, condition.start, method="condition")

        def of_scale(scale: int, inputs: Float[Array, "b m c"], passes: int) -> masked.Predict:
            features = jnp.concatenate([inputs, inputs]) if guided else inputs

            def predict(
                state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
            ) -> tuple[Float[Array, "b n v"], None]:
                own = self.tokenizer.own_features(variables["tokenizer"], scale, state.tokens)
                summed, added = branch.apply(of_branch, features, own, ~state.known, method="streams")
                x, _ = shared.apply(of_shared, summed, condition, scale, added=added, method="activations")
                return branch.apply(of_branch, x, own_condition, method="logits"), None

            return masked.guided(predict, np.full(passes, options.mask_guidance_scale, np.float32))

        return of_scale

    def _prepared(self, variables: Variables, unroll: bool) -> Variables:
        variables = cast_weights(variables, self.network.sizes.dtype)
        return split_layers(variables) if unroll else variables

    def kept(self, options: Sampling) -> tuple[tuple[int, ...], ...]:
        """Tokens that each pass keeps, for every scale.

        Raises:
          ConfigError: a schedule that does not fit the scales, or asks for mask passes of a method without refiner.
        """
        lengths, given = self.tokens.scale_lengths, options.mask_schedule
        schedule = given + tuple((length,) for length in lengths[len(given) :])
        if len(given) > len(lengths) or tuple(map(sum, schedule)) != lengths or len(schedule[0]) > 1:
            raise ConfigError(
                f"sample.mask_schedule={given} must have numbers that sum to {', '.join(map(str, lengths))}, the "
                "tokens of the scales, and one for the first; () draws every scale in one pass"
            )
        if self.branch is None and any(len(kept) > 1 for kept in schedule):
            raise ConfigError(f"sample.mask_schedule={given} has mask passes, but this run has no refiner; use ()")
        return schedule

    def network_calls(self, options: Sampling) -> int:
        return sum(map(len, self.kept(options)))


def _starting_from(player: Any, params: Any) -> Any:
    """A player with these parameters, its averages starting as copies."""
    copies = {decay: jax.tree.map(jnp.copy, params) for decay in player.emas}
    return player.replace(params=jax.tree.map(jnp.copy, params), emas=copies)


def token_weights(scale_lengths: tuple[int, ...]) -> Float[np.ndarray, "n"]:
    """Weight of each token in the loss; together 1.

    A scale has the weight w_k, which all of its tokens share: w_k is proportional to the standard normal density at
    (a_{K+1-k} - mean a) / std a, with a_k the side of scale k and the unbiased standard deviation. Scales of middling
    size weigh most, the first and the last least.

    Reference: the published code.
    """
    sides = np.sqrt(scale_lengths)[::-1]
    z = (sides - sides.mean()) / sides.std(ddof=1)
    density = np.exp(-(z**2) / 2)
    return np.repeat(density / density.sum() / scale_lengths, scale_lengths)


def random_hidden(key: Key, lengths: tuple[int, ...]) -> Bool[Array, "m"]:
    """Marks tokens for training: of every scale ceil(p n) of its n tokens anywhere, with one p uniform in (0, 1]."""
    share_key, position_key = jax.random.split(key)
    share = 1 - jax.random.uniform(share_key)
    rows = [
        masked.largest(
            jax.random.uniform(jax.random.fold_in(position_key, scale), (1, length)),
            jnp.ceil(share * length).astype(jnp.int32)[None],
        )
        for scale, length in enumerate(lengths)
    ]
    return jnp.concatenate(rows, axis=1)[0]


def build(config: Config, model: Model, task: Task) -> HMAR:
    """The method for discrete multi-scale tokens, conditional on the class.

    Raises:
      ConfigError: tokens of another kind, or a refiner that the network has no room for.
    """
    tokens = task.discrete_tokens("hmar", multiscale=True)
    network = NextScaleTransformer(
        model, tokens.vocab_size, tokens.scale_lengths, tokens.channels, task.num_classes, markov=True
    )
    if not config.refiner_layers:
        return HMAR(network, config, task.tokenizer, None)
    if config.refiner_layers > model.num_layers:
        raise ConfigError(
            f"method.refiner_layers={config.refiner_layers} must be at most model.num_layers={model.num_layers}"
        )
    if model.shared_adaln:
        raise ConfigError("model.shared_adaln=True leaves a refiner no adaLN of its own; use method.refiner_layers=0")
    sizes = dataclasses.replace(model, num_layers=config.refiner_layers)
    return HMAR(network, config, task.tokenizer, parts.MaskedBranch(sizes, tokens.vocab_size))
