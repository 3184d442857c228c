"""A method small enough to compute by hand: two linear players with untrained statistics."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxar import optim, partition, state
from jaxar.methods.base import LossAux, LossSpec, Method, PlayerSpec, Stage
from jaxar.train_step import Plan, train_step


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """`generator` g and `critic` c are vectors; the generator's loss flows through the critic's."""

    plan: tuple[LossSpec, ...] = ()
    project: Callable | None = None
    phases: tuple[Stage, ...] = (Stage("train"),)

    def players(self):
        return {"generator": PlayerSpec(project=self.project), "critic": PlayerSpec(ema=False)}

    def init(self, key):
        def player(value):
            boxed = nn.LogicallyPartitioned(jnp.full((2,), value), ("embed",), rules=())
            return {"params": {"w": boxed}, "stats": {"seen": jnp.zeros(())}}

        return {"generator": player(1.0), "critic": player(3.0)}

    def losses(self):
        return self.plan or (
            LossSpec("generate", generate, ("generator",)),
            LossSpec("criticise", criticise, ("critic",)),
        )

    def stages(self):
        return self.phases

    def evaluate(self, variables, batch, key):
        return {"score": batch["x"][:, 0]}


class Simultaneous(Toy):
    simultaneous: ClassVar[bool] = True


def generate(variables, batch, key, step):
    """mean_x sum(c * g * x): its gradient in g is c * mean(x)."""
    g, c = variables["generator"], variables["critic"]
    loss = jnp.mean(jnp.sum(c["params"]["w"] * g["params"]["w"] * batch["x"], axis=-1))
    stats = {"stats": {"seen": g["stats"]["seen"] + batch["x"].shape[0]}}
    return loss, LossAux({"noise": jax.random.normal(key)}, {"generator": stats})


def criticise(variables, batch, key, step):
    """sum(g * c): its gradient in c is g."""
    return jnp.sum(variables["generator"]["params"]["w"] * variables["critic"]["params"]["w"]), LossAux({})


SGD = {
    "name": "sgd",
    "b1": 0.0,
    "learning_rate": 0.5,
    "schedule": {"name": "constant"},
    "weight_decay": 0.0,
    "clip_norm": None,
}


def make(method, section=SGD, num_steps=100, **plan):
    """(plan, initial state) on one device."""
    optimizers = optim.build(section, method, num_steps)
    mesh = partition.single_device_mesh()
    return Plan(method, optimizers, **plan), state.create(method, optimizers, mesh, jax.random.key(0))


def alternated(method, section, frozen, make_batch, iterations, params=None, watch=lambda state: None):
    """(`watch(state)` of every iteration, the last state) of a method whose generator waits, in one program.

    Args:
      make_batch: a key to a batch; every step has its own.
      iterations: of `generator_every` steps each, of which the first trains all players.
      params: where players start, by name; those left out start fresh.
    """
    every = method.config.generator_every
    plan, begun = make(method, section, iterations * every)
    begun = begun.replace(
        players={name: p.replace(params=(params or {}).get(name, p.params)) for name, p in begun.players.items()}
    )

    def step(current, active):
        batch = make_batch(jax.random.fold_in(jax.random.key(5), current.step))
        return train_step(current, frozen, batch, jax.random.key(1), plan=plan, active=active)[0]

    def iterate(current, _):
        current = step(current, method.active(0))
        current, _ = jax.lax.scan(lambda c, _: (step(c, method.active(1)), None), current, length=every - 1)
        return current, watch(current)

    last, seen = jax.jit(lambda c: jax.lax.scan(iterate, c, length=iterations))(begun)
    return seen, last
