"""A light layer that lets a frozen masked model draw several tokens jointly for each of its own calls.

Tokens are revealed one by one in random order. The teacher is called for the first of every group; for the others its
last hidden vectors are updated by one trained layer, which reads what was revealed since, and its head turns them into
laws. Training lets the teacher reveal a group one token per call, and compares on what is still masked:

    loss = mean over j of KL(p_teacher(. | x after j more tokens) || p_layer(. | hidden vectors of x, the j tokens))

Groups of one token are the teacher's own sequential sampling; a fresh layer draws each group independently.

Reference: Bansal, Sanghavi, Enabling Approximate Joint Sampling in Diffusion LMs, 2025. Difference: training starts
from tokens of the data with a random share of them masked, and positions are revealed in random order.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxar.config import ConfigError
from jaxar.decoding import logits as lg
from jaxar.decoding import mask_schedules, masked
from jaxar.methods import _conditions as conditions
from jaxar.methods._masked_tokens import Completer, MaskedTokens, mean_over, random_positions
from jaxar.methods.base import Batch, Cond, LossAux, LossSpec, PlayerSpec, Task, mean_of_valid
from jaxar.models import joint_layer
from jaxar.models.bidirectional import BidirectionalTransformer
from jaxar.tokenizers.base import Tokens
from jaxar.typing import Array, Bool, Float, Int, Key, Keys, Metrics, Variables

Model = joint_layer.Sizes
Sampling = lg.Sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """The `method` section.

    Attributes:
      group: tokens revealed per call of the teacher.
      label_drop: share of labels that training replaces by the null one; the teacher must know it.
    """

    group: int = 4
    label_drop: float = 0.1

    def __post_init__(self):
        if self.group < 2:
            raise ConfigError(f"method.group={self.group} must be at least 2; the teacher alone draws one by one")
        if not 0 <= self.label_drop <= 1:
            raise ConfigError(f"method.label_drop={self.label_drop} must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class JointSampler(Completer):
    """One trained layer over a frozen teacher."""

    network: joint_layer.JointLayer
    teacher: MaskedTokens
    config: Config

    def players(self) -> dict[str, PlayerSpec]:
        return {"model": PlayerSpec()}

    def init(self, key: Key) -> dict[str, Variables]:
        hidden = jnp.zeros((1, 1, self.network.width))
        return {"model": self.network.init(key, hidden, hidden)}

    def losses(self) -> tuple[LossSpec, ...]:
        return (LossSpec("kl", self.loss, ("model",)),)

    def loss(
        self, variables: dict[str, Variables], batch: Batch, key: Key, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], LossAux]:
        """Mean divergence in nats per masked token; samples whose "valid" entry is False do not count."""
        drop_key, group_key = jax.random.split(key)
        classes = self.teacher.network.num_classes
        cond = conditions.drop({"label": batch["label"]}, drop_key, self.config.label_drop, classes)
        figures = self.divergences(variables, batch["ids"], cond["label"], group_key)
        return mean_of_valid(figures["kl"], batch), LossAux(
            {"kl_unchanged": mean_of_valid(figures["unchanged"], batch)}
        )

    def evaluate(self, variables: dict[str, Variables], batch: Batch, key: Key) -> Metrics:
        """Figures [b]: the loss, and what it is without the layer (tokens of a group independent)."""
        figures = self.divergences(variables, batch["ids"], batch["label"], key)
        return {"kl": figures["kl"], "kl_unchanged": figures["unchanged"]}

    def divergences(
        self, variables: dict[str, Variables], ids: Int[Array, "b n"], label: Int[Array, "b"], key: Key
    ) -> dict[str, Float[Array, "b"]]:
        """Divergences from the teacher in nats per masked token, means over 1..group-1 revealed tokens.

        Returns:
          "kl" of the layer's laws and "unchanged" of the teacher's own laws before anything was revealed.
        """
        group, n = self.config.group, self.teacher.network.num_tokens
        count_key, position_key, order_key, draw_key = jax.random.split(key, 4)
        counts = jax.random.randint(count_key, (len(ids),), group, n + 1)
        before = ~random_positions(position_key, counts, n)
        order = jnp.where(before, 2.0, jax.random.uniform(order_key, ids.shape))
        turn = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
        hidden = self._teach(variables, "hidden", ids, before, label)
        stale = log_p = jax.nn.log_softmax(self._teach(variables, "logits", hidden))
        terms = {"kl": 0.0, "unchanged": 0.0}
        for j in range(1, group):
            ids = jnp.where(turn == j - 1, jax.random.categorical(jax.random.fold_in(draw_key, j), log_p), ids)
            new = turn < j
            fresh = self._teach(variables, "hidden", ids, before | new, label)
            log_p = jax.nn.log_softmax(self._teach(variables, "logits", fresh))
            updated = jax.nn.log_softmax(self.updated_logits(variables, hidden, ids, new))
            for name, log_q in (("kl", updated), ("unchanged", stale)):
                kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
                terms[name] += mean_over(kl, ~(before | new)) / (group - 1)
        return terms

    def updated_logits(
        self,
        variables: dict[str, Variables],
        hidden: Float[Array, "b n d"],
        ids: Int[Array, "b n"],
        new: Bool[Array, "b n"],
    ) -> Float[Array, "b n v"]:
        """Logits from the teacher's old hidden vectors and the tokens marked as new."""
        vectors = self._teach(variables, "embed", ids, new)
        hidden = self.network.apply(variables["model"], hidden, vectors)
        return self._teach(variables, "logits", hidden)

    def _teach(self, variables: dict[str, Variables], method: str, *args: Array) -> Array:
        return self.teacher.network.apply(variables["teacher"], *args, method=method)

    @property
    def num_tokens(self) -> int:
        return self.teacher.network.num_tokens

    def complete(
        self,
        variables: dict[str, Variables],
        tokens: Tokens,
        known: Bool[Array, "b n"],
        cond: Cond,
        keys: Keys,
        options: Sampling,
    ) -> Tokens:
        net = self.teacher.network
        n = net.num_tokens
        scales = lg.guidance_scales(options, n)
        label = self.teacher.doubled(cond, scales)["label"]
        law = masked.token_law(self.predictor(variables, label, scales), options)
        counts = mask_schedules.one_by_one(n)
        choose = masked.next_in_order(masked.random_priority(keys, n), masked.by_table(counts, known))
        hidden = jnp.zeros((len(label), n, self.network.width), net.sizes.dtype)
        start = masked.State(tokens.ids, known, (hidden, jnp.zeros((len(label), n), bool)))
        return Tokens(ids=masked.decode(law, start, keys, mask_schedules.segments(counts, 1), choose).tokens)

    def predictor(self, variables: dict[str, Variables], label: Int[Array, "b"], scales: np.ndarray) -> masked.Predict:
        """Guided logits; `State.extra` holds the teacher's last hidden vectors and what was known to them."""

        def called(state: masked.State) -> tuple[Float[Array, "b n v"], Any]:
            hidden = self._teach(variables, "hidden", state.tokens, state.known, label)
            return self._teach(variables, "logits", hidden), (hidden, state.known)

        def updated(state: masked.State) -> tuple[Float[Array, "b n v"], Any]:
            hidden, before = state.extra
            return self.updated_logits(variables, hidden, state.tokens, state.known & ~before), state.extra

        def predict(
            state: masked.State, step: Int[Array, ""], segment: mask_schedules.Segment
        ) -> tuple[Float[Array, "b n v"], Any]:
            return jax.lax.cond(step % self.config.group == 0, called, updated, state)

        return masked.guided(predict, scales)

    def network_calls(self, options: Sampling) -> int:
        """Calls of the teacher; each is followed by group - 1 calls of the layer."""
        return -(-self.teacher.network.num_tokens // self.config.group)


def build(config: Config, model: Model, task: Task) -> JointSampler:
    """The method over the masked model of `teacher.from_`.

    Raises:
      ConfigError: no teacher, one of another kind, or one with fewer tokens than a group.
    """
    teacher = task.teacher
    if not isinstance(teacher, MaskedTokens) or not isinstance(teacher.network, BidirectionalTransformer):
        raise ConfigError(
            "method.name='joint_sampler' needs teacher.from_, the workdir of a maskgit or mdm run without "
            "model.multimodal"
        )
    if teacher.network.num_tokens < config.group:
        raise ConfigError(f"method.group={config.group} exceeds the teacher's {teacher.network.num_tokens} tokens")
    return JointSampler(joint_layer.JointLayer(model, teacher.network.sizes.width), teacher, config)
