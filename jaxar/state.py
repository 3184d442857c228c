"""Training state: one pytree of arrays, born sharded, with nothing in it but arrays."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxar import optim, partition
from jaxar.methods.base import Method
from jaxar.typing import Array, Float, Int, Key, Params, Variables


@flax.struct.dataclass
class Guard:
    """Why updates are refused: how many were, in all and in a row, and the mean accepted gradient norm."""

    skipped: Int[Array, ""]
    streak: Int[Array, ""]
    norm: Float[Array, ""]


@flax.struct.dataclass
class PlayerState:
    """One network: params, untrained collections `aux`, optimizer state, EMAs by name, guard, count of updates."""

    params: Params
    aux: dict[str, Any]
    opt_state: Any
    emas: dict[str, Params]
    guard: Guard
    updates: Int[Array, ""]

    @property
    def variables(self) -> Variables:
        return {"params": self.params, **self.aux}


@flax.struct.dataclass
class TrainState:
    """Everything that training changes. No functions, no keys, no configuration."""

    step: Int[Array, ""]
    players: dict[str, PlayerState]

    def variables(self) -> dict[str, Variables]:
        return {name: player.variables for name, player in self.players.items()}


def ema_name(decay: float) -> str:
    """The key under which an average is kept ("0.999")."""
    return f"{decay:g}"


def _boxed_state(method: Method, optimizers: dict[str, optim.Optimizer], key: Key) -> TrainState:
    players = {}
    for name, variables in method.init(key).items():
        params, aux = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        spec = method.players()[name]
        # An average starts as a copy: an alias would be donated twice.
        emas = {ema_name(d): jax.tree.map(jnp.copy, params) for d in optimizers[name].ema if spec.ema}
        players[name] = PlayerState(
            params=params,
            aux=aux,
            opt_state=optimizers[name].init(params),
            emas=emas,
            guard=Guard(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(())),
            updates=jnp.zeros((), jnp.int32),
        )
    return TrainState(jnp.zeros((), jnp.int32), players)


def abstract(method: Method, optimizers: dict[str, optim.Optimizer], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state: what init produces and what restore asks for. Costs no memory.

    Raises:
      ConfigError: a parameter that the mesh does not divide.
    """
    boxed = jax.eval_shape(lambda key: _boxed_state(method, optimizers, key), jax.random.key(0))
    shardings = partition.shardings_of(boxed, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.meta.unbox(boxed), shardings
    )


def create(method: Method, optimizers: dict[str, optim.Optimizer], mesh: Mesh, key: Key) -> TrainState:
    """The initial state, computed in its final layout: no device ever holds the unsharded model."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(method, optimizers, mesh))
    # The program runs once: on CPUs, where compiling it takes longest, unoptimized code is ready four times sooner.
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    init = jax.jit(
        lambda k: nn.meta.unbox(_boxed_state(method, optimizers, k)), out_shardings=shardings, compiler_options=options
    )
    with jax.set_mesh(mesh):
        return init(key)


def warm_started(state: TrainState, method: Method, frozen: dict[str, Variables]) -> TrainState:
    """A fresh state after the method's `warm_start`; averages start as copies."""
    if type(method).warm_start is Method.warm_start:
        return state

    def start(state: TrainState, frozen: dict[str, Variables]) -> TrainState:
        params = method.warm_start({name: player.params for name, player in state.players.items()}, frozen)
        players = {
            name: player.replace(params=params[name], emas=dict.fromkeys(player.emas, params[name]))
            for name, player in state.players.items()
        }
        return state.replace(players=players)

    return jax.jit(start, out_shardings=jax.tree.map(lambda x: x.sharding, state))(state, frozen)
