# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From sixteen calls to one
#
# `bash launch/quickstart.sh` leaves an autoregressive model of handwritten digits and a student that draws all its
# tokens in one call (Distilled Decoding 1). This notebook follows the idea: a flow that turns noise into tokens with
# exactly the teacher's probabilities, the student that learns where it ends, and what that costs and saves. At the end
# is the map of all few-step methods on the same data.

# %%
import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxar
from jaxar.diffusion import codebook
from jaxar.run import Run
from jaxar.sampling import to_uint8
from jaxar.tokenizers.base import Tokens

OUT = pathlib.Path(os.environ.get("JAXAR_QUICKSTART", "out/quickstart"))
LEADERBOARD = pathlib.Path(os.environ.get("JAXAR_LEADERBOARD", "docs/leaderboard.json"))
LABELS = np.arange(10)
FEW = 4  # calls of the network

# %% [markdown]
# ## A token as the end of a flow
# Five codes in the plane, with probabilities. Noise at time 1 flows to a code at time 0 along the velocity
# $(x - D(x, t)) / t$, where $D$ is the mean of the posterior over codes: no network is asked. Each code receives just
# the share of noise that it is probable, and the same noise always ends at the same code.

# %%
codes = jnp.array([[1.5, 0.3], [0.2, 1.6], [-1.4, 0.7], [-0.8, -1.3], [1.0, -1.2]])
probs = jnp.array([0.4, 0.1, 0.25, 0.2, 0.05])
STEPS = 60


def paths(noise: jax.Array) -> jax.Array:
    """Points [steps, n, 2] of the flow, by Euler's method."""

    def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = jnp.broadcast_to(jnp.log(probs), (len(x), len(probs)))
        denoised = codebook.denoise(x, jnp.full(len(x), t), codes, law)
        return x - (x - denoised) / (t * STEPS), x

    return jax.lax.scan(step, noise, jnp.linspace(1, 1 / STEPS, STEPS))[1]


noise = jax.random.normal(jax.random.key(0), (4000, 2))
law = jnp.broadcast_to(jnp.log(probs), (len(noise), len(probs)))
ends = np.asarray(codebook.codes_of_noise(noise, codes, law, STEPS))
print("probability  ", np.asarray(probs))
print("share of noise", np.bincount(ends, minlength=len(probs)) / len(noise))

_, axes = plt.subplots(1, 2, figsize=(10, 5))
axes[0].scatter(*noise.T, c=ends, cmap="tab10", s=4)
axes[0].set_title("noise, coloured by the code that it becomes")
for line in np.asarray(paths(noise[:60])).transpose(1, 2, 0):
    axes[1].plot(*line, color="grey", linewidth=0.7)
axes[1].set_title("sixty trajectories")
for axis in axes:
    axis.scatter(*codes.T, c=np.arange(len(codes)), cmap="tab10", s=160, edgecolors="black", zorder=3)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# ## The same noise, decided token by token and in one call
# The teacher needs a call per token: the probabilities of a token are known only when those before it are. The student
# has seen many pairs of noise and the tokens that the teacher made of it, and names all of them at once.

# %%
student = jaxar.load(OUT / "dd1")
method, variables = student.method, student.variables


def pictures(ids: jax.Array) -> np.ndarray:
    decoded = student.tokenizer.decode(variables["tokenizer"], Tokens(ids=ids))
    return np.asarray(to_uint8(jnp.clip(decoded, -1, 1)))


keys = jax.random.split(jax.random.key(3), len(LABELS))
by_teacher = jax.jit(lambda keys: method.decide(variables, method.noise(keys), jnp.asarray(LABELS)))(keys)
by_student = jax.jit(lambda keys: method.sample(variables, {"label": jnp.asarray(LABELS)}, keys, student.options).ids)(
    keys
)
agreement = np.asarray(by_teacher == by_student)
rows = {"teacher, 16 calls": pictures(by_teacher), "student, 1 call": pictures(by_student)}
_, axes = plt.subplots(len(rows), len(LABELS), figsize=(len(LABELS), 2.6))
for line, (name, images) in zip(axes, rows.items()):
    for axis, image in zip(line, images):
        axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()
print(f"{agreement.mean():.0%} of these tokens are the same; many codes look alike")

# %% [markdown]
# Later tokens hang on all earlier ones, so that a single other code early on changes what comes after it: the student
# agrees with the teacher most on the first tokens.

# %%
many = jax.random.split(jax.random.key(4), 256)
labels = jnp.arange(256) % 10
targets = jax.jit(lambda keys: method.decide(variables, method.noise(keys), labels))(many)
guesses = jax.jit(lambda keys: method.sample(variables, {"label": labels}, keys, student.options).ids)(many)
plt.figure(figsize=(6, 3))
plt.bar(np.arange(method.num_tokens), np.mean(np.asarray(targets == guesses), axis=0))
plt.xlabel("token")
plt.ylabel("same code as the teacher's")
plt.show()

# %% [markdown]
# ## What it saves

# %%
teacher = jaxar.load(OUT / "ar")


def milliseconds(run: Run, batch_size: int) -> float:
    """Per image, the best of three calls after the one that compiles."""
    labels = np.arange(batch_size) % 10
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        run.sample(labels, seed=1)
        times.append(time.perf_counter() - begun)
    return 1000 * min(times[1:]) / batch_size


for batch_size in (1, 64):
    slow, fast = milliseconds(teacher, batch_size), milliseconds(student, batch_size)
    print(f"batch {batch_size}: {slow:.2f} ms per image, in one call {fast:.2f} ms: {slow / fast:.1f} times as fast")

# %% [markdown]
# ## All few-step methods
# `python -m jaxar.leaderboard --suite=digits --out=out/leaderboard` trains every method on the same data under the same
# budget. Below are its figures as they are kept in `docs`: students (filled) and the models that they learn from
# (open). Left is faster, down is better; the dashed line is the distance of real training images.

# %%
rows = {row["method"]: row for row in json.loads(LEADERBOARD.read_text())["rows"] if "metrics" in row}
few = {name: row for name, row in rows.items() if row["network_calls"] <= FEW}
teachers = {row["teacher"] for row in few.values()} & rows.keys() - few.keys()
plt.figure(figsize=(9, 6))
for name in (*few, *sorted(teachers)):
    x, y = rows[name]["latency_ms"]["64"], rows[name]["metrics"]["fd_digits"]["mean"]
    plt.plot(x, y, "o", fillstyle="full" if name in few else "none", color="tab:blue" if name in few else "tab:red")
    plt.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points")
if rows:
    plt.axhline(next(iter(rows.values()))["floor"]["fd_digits"]["mean"], color="grey", linestyle="--")
plt.xscale("log")
plt.yscale("log")
plt.xlabel("ms per image, batch 64")
plt.ylabel("fd_digits")
plt.show()
