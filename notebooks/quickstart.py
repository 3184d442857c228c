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
# # What the quickstart trained
#
# `bash launch/quickstart.sh` leaves two tokenizers and two autoregressive models of handwritten digits in
# `out/quickstart`. This notebook opens them, looks at how they attend, samples them, and takes a sample apart.

# %%
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxar
from jaxar.kernels.mask import MaskSpec
from jaxar.sampling import to_uint8

OUT = pathlib.Path(os.environ.get("JAXAR_QUICKSTART", "out/quickstart"))
LABELS = np.arange(10)


def show_rows(rows: dict[str, np.ndarray], titles: list[str]) -> None:
    """A picture per cell: images [n, h, w, 1] of each row under common titles."""
    count = max(map(len, rows.values()))
    _, axes = plt.subplots(len(rows), count, figsize=(count, 1.1 * len(rows) + 0.3), squeeze=False)
    for line, (name, images) in zip(axes, rows.items()):
        for axis, image in zip(line, images):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
        for axis in line:
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    plt.show()


# %% [markdown]
# ## Open the runs
# `jaxar.load` gives the method, its weights (the average that the run's configuration names), the tokenizer that was
# copied into the workdir, and the configuration. Nothing else is needed to sample.

# %%
ar, next_scale = jaxar.load(OUT / "ar"), jaxar.load(OUT / "next_scale")
for run in (ar, next_scale):
    size = sum(x.size for x in jax.tree.leaves(run.variables["model"]["params"]))
    scales = " + ".join(f"{h}x{w}" for h, w in run.tokenizer.spec.scales)
    print(f"{run.workdir.name}: {size:,} parameters, {scales} tokens of {run.tokenizer.spec.vocab_size} codes")

# %% [markdown]
# ## Who attends whom
# Raster order: a token sees itself and what came before. Next-scale: the tokens of a scale are drawn in parallel, so
# each sees its whole scale and all coarser ones. Masks are key ranges per query; the dense pictures are only for us.

# %%
raster = MaskSpec.causal(ar.tokenizer.spec.num_tokens)
scales = MaskSpec.block_causal(next_scale.tokenizer.spec.scale_lengths)
_, axes = plt.subplots(1, 2, figsize=(8, 4))
for axis, mask, title in zip(axes, (raster, scales), ("raster", "next-scale")):
    axis.imshow(mask.dense(), cmap="Blues")
    axis.set(title=title, xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# ## Guidance
# Each row is drawn from the same seeds: the scale of guidance alone differs. 1.0 is the model as trained; more makes
# samples more typical of their class and less varied.

# %%
for run in (ar, next_scale):
    drawn = {f"{scale:.1f}": run.sample(LABELS, seed=1, guidance_scale=scale) for scale in (1.0, 1.5, 3.0)}
    print(run.workdir.name)
    show_rows(drawn, [str(label) for label in LABELS])

# %% [markdown]
# ## An image, scale by scale
# A multi-scale tokenizer adds up what all scales contribute. Decoding the sum after each scale shows which scale
# decides what: the coarse ones place the strokes, the last one sharpens them.

# %%
tokenizer, weights = next_scale.tokenizer, next_scale.variables["tokenizer"]
images = next_scale.sample(LABELS, seed=1)
ids = tokenizer.encode(weights, jnp.asarray(images, jnp.float32) / 127.5 - 1).ids
partial = tokenizer.cumulative_features(weights, ids)
rows = {
    f"up to {h}x{w}": np.asarray(to_uint8(jnp.clip(tokenizer.decode_features(weights, features), -1, 1)))
    for (h, w), features in zip(tokenizer.spec.scales, partial)
}
show_rows({**rows, "sample": images}, [str(label) for label in LABELS])

# %% [markdown]
# The token maps of one digit:

# %%
DIGIT = 3
maps = np.split(np.asarray(ids[DIGIT]), np.cumsum(tokenizer.spec.scale_lengths)[:-1])
_, axes = plt.subplots(1, len(maps), figsize=(2.5 * len(maps), 2.5))
for axis, tokens, (h, w) in zip(axes, maps, tokenizer.spec.scales):
    axis.imshow(tokens.reshape(h, w), cmap="viridis", vmin=0, vmax=1.5 * tokenizer.spec.vocab_size)
    for (row, column), code in np.ndenumerate(tokens.reshape(h, w)):
        axis.text(column, row, code, ha="center", va="center", color="white", fontsize=8)
    axis.set(title=f"{h}x{w}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Learning curves
# `metrics.jsonl` has a line per logged step. Bits per token are on the test split: where they rise while the training
# loss falls, the model learns its 1,437 training images by heart.

# %%
_, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for axis, run in zip(axes, (ar, next_scale)):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    for name, scale, label in (("train/nll", 1 / np.log(2), "training"), ("eval/test/bits_per_token", 1.0, "test")):
        points = [(line["step"], scale * line[name]) for line in lines if name in line]
        if points:
            axis.plot(*zip(*points), label=label)
    axis.set(title=run.workdir.name, xlabel="step", ylabel="bits per token")
    axis.legend()
plt.show()
