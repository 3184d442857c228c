"""The one train step: every method, with any number of players, goes through this function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxar import optim
from jaxar.methods.base import Batch, LossAux, LossSpec, Method
from jaxar.state import Guard, PlayerState, TrainState, ema_name
from jaxar.typing import Array, Bool, Float, Int, Key, Metrics, Variables

Prepare = Callable[[dict[str, Variables], Batch, Key], Batch]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What the step needs beside arrays; static, compared by identity.

    Attributes:
      method: losses and players.
      optimizers: one per player.
      prepare: turns a data batch into what the losses read (a tokenizer's encoder), or None.
      accumulate: microbatches per step; must divide the batch.
    """

    method: Method
    optimizers: dict[str, optim.Optimizer]
    prepare: Prepare | None = None
    accumulate: int = 1


def train_step(
    state: TrainState, frozen: dict[str, Variables], batch: Batch, key: Key, *, plan: Plan, active: tuple[str, ...]
) -> tuple[TrainState, Metrics]:
    """One step of training: the active losses in declared order, each followed by the update of its players.

    Args:
      state: donated by the caller.
      frozen: variables of parents (tokenizer, teacher), never updated.
      batch: arrays with a leading batch axis.
      key: root key of the run; everything random derives from it and `state.step`.
      plan: static.
      active: names of the losses of this step, from `method.active(step)`; static.
    Returns:
      The next state and scalar metrics.
    """
    key = jax.random.fold_in(key, state.step)
    metrics: dict[str, Array] = {}
    players = dict(state.players)
    before = dict(players)
    total = jnp.zeros(())
    for index, loss in enumerate(plan.method.losses()):
        if loss.name not in active:
            continue
        prior = dict(players)
        seen = before if plan.method.simultaneous else prior
        loss_key = jax.random.fold_in(key, index)
        value, aux, grads = _gradients(loss, seen, frozen, batch, loss_key, state.step, plan)
        metrics |= {f"train/{k}": v for k, v in aux.metrics.items()} | {f"train/{loss.name}": value}
        total += value
        for name, new in aux.collections.items():
            players[name] = players[name].replace(aux=players[name].aux | new)
        accepted = finite = jnp.isfinite(value)
        for name in loss.updates:
            project_key = jax.random.fold_in(loss_key, 1 << 20)
            players[name], good, stats = _update(
                players[name], prior[name].aux, grads[name], finite, state.step, project_key, plan, name
            )
            accepted &= good
            metrics |= {f"{stat}/{name}": v for stat, v in stats.items()}
        for name in aux.collections:
            if name not in loss.updates:  # what a bad batch put into the others goes with the refused updates
                kept = _select(accepted, players[name].aux, prior[name].aux)
                players[name] = players[name].replace(aux=kept)
    metrics["train/loss"] = total
    return TrainState(state.step + 1, players), metrics


def _gradients(
    loss: LossSpec,
    players: dict[str, PlayerState],
    frozen: dict[str, Variables],
    batch: Batch,
    key: Key,
    step: Int[Array, ""],
    plan: Plan,
) -> tuple[Float[Array, ""], LossAux, dict[str, Any]]:
    """Value, auxiliaries and gradients of one loss, averaged over microbatches."""
    trained = {name: players[name].params for name in loss.updates}
    # The others stop at their parameters, not at their inputs: gradients flow through them.
    others = {n: jax.lax.stop_gradient(p.params) for n, p in players.items() if n not in loss.updates}
    aux = {name: player.aux for name, player in players.items()}

    def value(params: dict[str, Any], aux: dict[str, Any], micro: Batch, micro_key: Key):
        prepare_key, fn_key = jax.random.split(micro_key)
        ready = plan.prepare(frozen, micro, prepare_key) if plan.prepare else micro
        variables = {name: {"params": p, **aux[name]} for name, p in (others | params).items()}
        return loss.fn({**frozen, **variables}, ready, fn_key, step)

    gradient = jax.value_and_grad(value, has_aux=True)
    if plan.accumulate == 1:
        (result, out), grads = gradient(trained, aux, batch, jax.random.fold_in(key, 0))
        return result, out, grads

    # Microbatch m takes rows m, m + accumulate, ...: with the batch sharded over devices each row stays where it is.
    split = jax.tree.map(lambda x: x.reshape(-1, plan.accumulate, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry: Any, inputs: tuple[Int[Array, ""], Batch]) -> tuple[Any, None]:
        total, aux = carry
        index, micro = inputs
        (result, out), grads = gradient(trained, aux, micro, jax.random.fold_in(key, index))
        aux = {name: aux[name] | out.collections.get(name, {}) for name in aux}
        return (jax.tree.map(jnp.add, total, (result, out.metrics, grads)), aux), None

    first = jax.tree.map(lambda x: x[0], split)
    (result, out), grads = jax.eval_shape(gradient, trained, aux, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (result, out.metrics, grads))
    (total, aux), _ = jax.lax.scan(add, (zeros, aux), (jnp.arange(plan.accumulate), split))
    result, metrics, grads = jax.tree.map(lambda x: x / plan.accumulate, total)
    changed = {name: {k: aux[name][k] for k in new} for name, new in out.collections.items()}
    return result, LossAux(metrics, changed), grads


def _update(
    player: PlayerState,
    prior_aux: dict[str, Any],
    grads: Any,
    finite: Bool[Array, ""],
    step: Int[Array, ""],
    key: Key,
    plan: Plan,
    name: str,
) -> tuple[PlayerState, Bool[Array, ""], Metrics]:
    """One optimizer update, refused as a whole if the loss or gradients are not finite or spike.

    Returns:
      The player, whether the update was accepted, and its figures.
    """
    optimizer, spec = plan.optimizers[name], plan.method.players()[name]
    norm = optax.tree.norm(grads)
    good = finite & jnp.isfinite(norm)
    if optimizer.config.spike is not None:
        usual = jnp.where(player.guard.norm > 0, player.guard.norm * optimizer.config.spike, jnp.inf)
        good &= norm <= usual
    change, opt_state = optimizer.update(grads, player.opt_state, player.params, step)
    params, aux = optax.apply_updates(player.params, change), player.aux
    if spec.project is not None:
        params, aux = spec.project(params, aux, key)
    emas = {
        ema_name(decay): optax.incremental_update(params, player.emas[ema_name(decay)], 1 - decay)
        for decay in (optimizer.ema if spec.ema else ())
    }
    mean = jnp.where(player.guard.norm > 0, 0.99 * player.guard.norm + 0.01 * norm, norm)
    updated = player.replace(
        params=params,
        aux=aux,
        opt_state=opt_state,
        emas=emas,
        guard=Guard(player.guard.skipped, jnp.zeros((), jnp.int32), mean),
        updates=player.updates + 1,
    )
    # A refused update leaves no trace: the statistics that a bad batch put into `aux` go too.
    guard = Guard(player.guard.skipped + 1, player.guard.streak + 1, player.guard.norm)
    refused = player.replace(aux=prior_aux, guard=guard)
    result = _select(good, updated, refused)
    metrics = {
        "train/grad_norm": norm,
        "train/param_norm": optax.tree.norm(result.params),
        "train/update_norm": jnp.where(good, optax.tree.norm(change), 0),
        "train/skipped": result.guard.skipped,
        "train/bad_in_a_row": result.guard.streak,
        "schedule/lr": optimizer.learning_rate(step),
    }
    return result, good, metrics


def _select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
