"""Models to enumerate: three tokens out of three ids, whose conditionals are tables; and Pearson's test."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

VOCAB, LENGTH, COUNT, SEEDS = 3, 3, 20_000, 3
SEQUENCES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
BASE = (VOCAB + 1) ** np.arange(LENGTH)[::-1]  # a state is its ids read as a number, VOCAB standing for a mask


def table(seed):
    """Logits [state, position, v] of a model that no joint law needs to agree with."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=((VOCAB + 1) ** LENGTH, LENGTH, VOCAB)).astype(np.float32)


def conditionals(joint):
    """The logits of the model whose conditionals are those of a joint law [v v v]."""
    logits = np.zeros(((VOCAB + 1) ** LENGTH, LENGTH, VOCAB), np.float32)
    for state in itertools.product(range(VOCAB + 1), repeat=LENGTH):
        index = tuple(slice(None) if s == VOCAB else slice(s, s + 1) for s in state)
        for i in range(LENGTH):
            others = tuple(j for j in range(LENGTH) if j != i)
            marginal = joint[index].sum(axis=others)
            logits[np.dot(state, BASE), i] = np.log(marginal) if len(marginal) == VOCAB else 0
    return logits


def by_order(model, order, groups=(1, 1, 1), factors=(1, 1, 1)):
    """Probabilities of all sequences when `groups` of positions are drawn one after another, in this order.

    The logits of each group are multiplied by its factor.
    """
    log_probs = [scipy.special.log_softmax(model.astype(np.float64) * factor, axis=-1) for factor in factors]
    result = np.zeros(len(SEQUENCES))
    for row, ids in enumerate(SEQUENCES):
        state, begin = np.full(LENGTH, VOCAB), 0
        for size, of_group in zip(groups, log_probs):
            positions = list(order[begin : begin + size])
            result[row] += of_group[state @ BASE, positions, ids[positions]].sum()
            state[positions] = ids[positions]
            begin += size
    return np.exp(result)


def over_orders(model):
    return np.mean([by_order(model, order) for order in itertools.permutations(range(LENGTH))], axis=0)


def p_values(sample, law):
    """Of Pearson's test that `sample(keys) -> ids` follows `law`, for several seeds."""
    result = []
    for seed in range(SEEDS):
        ids = np.asarray(sample(jax.random.split(jax.random.key(seed), COUNT)))
        observed = np.bincount(ids @ VOCAB ** np.arange(LENGTH)[::-1], minlength=len(law))
        assert (observed[law == 0] == 0).all()
        observed, expected = observed[law > 0], COUNT * law[law > 0]
        rare = expected < 5
        pooled = [np.append(x[~rare], x[rare].sum()) if rare.any() else x for x in (observed, expected)]
        result.append(scipy.stats.chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue)
    return np.array(result)


class TableNetwork:
    """In place of a bidirectional network; labels choose among tables, the last of which is the null class."""

    vocab_size, num_tokens = VOCAB, LENGTH

    def __init__(self, *tables):
        self.tables, self.num_classes = np.stack(tables), len(tables) - 1
        self.sizes = types.SimpleNamespace(dtype="float32")

    def apply(self, variables, ids, known, label, **options):
        return jnp.asarray(self.tables)[label, jnp.where(known, ids, VOCAB) @ jnp.asarray(BASE)]
