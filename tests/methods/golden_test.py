"""MAR against numbers of the official implementation (tests/golden/mar_*.json name source, commit and seed).

A failure here means that released weights no longer give the published samples. What may change legitimately: paths of
parameters (then change the tables below), the order of float operations (within the stored tolerance); masks must stay.
"""

import functools
import json
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxar.decoding import mask_schedules, masked
from jaxar.diffusion import ddpm
from jaxar.diffusion.process import Process
from jaxar.methods import _continuous_law as continuous
from jaxar.methods import _token_heads as heads
from jaxar.methods import mar
from jaxar.methods.base import Task
from jaxar.models import diffusion_head
from jaxar.models.mar import patchify, unpatchify
from jaxar.nn.timestep import sinusoids
from jaxar.tokenizers.base import ImageSpec, TokenSpec

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

# Name tables: (our module, official module, layout of the kernel). "{}" in an official name is the layer; our layers
# are stacked. Layouts: "linear" [out, in] -> [in, out]; "norm"; (tower, i) cuts block i of a fused [q | k | v] into
# the tower's heads; (tower, "merge") [out, in] -> [heads, head_dim, out].
HEAD_NAMES = (
    ("time/up", "time_embed.mlp.0", "linear"),
    ("time/down", "time_embed.mlp.2", "linear"),
    ("condition", "cond_embed", "linear"),
    ("input", "input_proj", "linear"),
    ("layers/norm", "res_blocks.{}.in_ln", "norm"),
    ("layers/up", "res_blocks.{}.mlp.0", "linear"),
    ("layers/down", "res_blocks.{}.mlp.2", "linear"),
    ("layers/modulation", "res_blocks.{}.adaLN_modulation.1", "linear"),
    ("modulation", "final_layer.adaLN_modulation.1", "linear"),
    ("output", "final_layer.linear", "linear"),
)


def tower(part):
    block, layers = f"{part}_blocks.{{}}", f"{part}/layers"
    return (
        *((f"{layers}/attention/{name}", f"{block}.attn.qkv", (part, i)) for i, name in enumerate(QUERY_KEY_VALUE)),
        (f"{layers}/attention/out", f"{block}.attn.proj", (part, "merge")),
        (f"{layers}/attention_norm", f"{block}.norm1", "norm"),
        (f"{layers}/mlp/up", f"{block}.mlp.fc1", "linear"),
        (f"{layers}/mlp/down", f"{block}.mlp.fc2", "linear"),
        (f"{layers}/mlp_norm", f"{block}.norm2", "norm"),
        (f"{part}_norm", f"{part}_norm", "norm"),
    )


QUERY_KEY_VALUE = ("query", "key", "value")
MAR_NAMES = (
    ("token_projection", "z_proj", "linear"),
    ("token_norm", "z_proj_ln", "norm"),
    *tower("encoder"),
    ("decoder_projection", "decoder_embed", "linear"),
    *tower("decoder"),
    *((f"head/{ours}", f"diffloss.net.{official}", layout) for ours, official, layout in HEAD_NAMES),
)
MAR_TABLES = (
    ("encoder_positions", "encoder_pos_embed_learned"),
    ("decoder_positions", "decoder_pos_embed_learned"),
    ("head_positions", "diffusion_pos_embed_learned"),
)


def convert_module(weight, bias, layout, num_heads):
    """Our parameters of one official module."""
    if layout == "norm":
        return {"scale": weight, "bias": bias}
    if layout == "linear":
        return {"kernel": weight.T, "bias": bias}
    count, part = num_heads[layout[0]], layout[1]
    if part == "merge":
        return {"kernel": weight.T.reshape(count, -1, weight.shape[0]), "bias": bias}
    weight, bias = np.split(weight, 3)[part], np.split(bias, 3)[part]
    return {"kernel": weight.T.reshape(weight.shape[1], count, -1), "bias": bias.reshape(count, -1)}


def convert(names, tensors, num_layers, num_heads=None):
    """Our parameter tree, and the official names that were read. `num_layers` by the beginning of official names."""
    params, read = {}, set()
    for ours, official, layout in names:
        layers = next((n for prefix, n in num_layers.items() if official.startswith(prefix) and "{}" in official), None)
        modules = [official.format(i) for i in range(layers)] if layers else [official]
        keys = [(f"{m}.weight", f"{m}.bias") for m in modules]
        parts = [convert_module(tensors[w], tensors[b], layout, num_heads) for w, b in keys]
        read.update(*keys)
        for name in parts[0]:
            params[f"{ours}/{name}"] = np.stack([p[name] for p in parts]) if layers else parts[0][name]
    return params, read


def tree(params):
    return flax.traverse_util.unflatten_dict({path: jnp.asarray(value) for path, value in params.items()}, sep="/")


@functools.cache
def stored(name):
    """The description of a fixture, and its tensors."""
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def outputs(name):
    return [pytest.param(name, key, id=f"{name}-{key}") for key in stored(name)[0]["tensors"] if key.startswith("out/")]


def check(mine, name, key):
    entry, expected = stored(name)[0]["tensors"][key], stored(name)[1][key]
    mine, tolerance = np.asarray(mine), entry["tolerance"]
    assert mine.shape == expected.shape
    error = np.abs(mine - expected)
    if tolerance["kind"] == "exact":
        np.testing.assert_array_equal(mine, expected)
    elif tolerance["kind"] == "rtol":
        np.testing.assert_allclose(mine, expected, rtol=tolerance["value"])
    elif tolerance["kind"] == "rowwise":
        axes = tuple(range(1, mine.ndim))
        assert (error.max(axes) / expected.std(axes)).max() < tolerance["value"]
    else:
        assert error.max() / expected.std() < tolerance["value"]


def arguments(name, key):
    """Function name and arguments of the call that gave an output."""
    meta, tensors = stored(name)
    call = meta["tensors"][key]["call"]
    values = {k: jnp.asarray(tensors[v["tensor"]]) if isinstance(v, dict) else v for k, v in call["args"].items()}
    return call["fn"], values


def process_of(args):
    return Process(args["noise_schedule"], args["base_steps"], args["respacing"])


@pytest.mark.parametrize("name, key", outputs("mar_schedules"))
def test_schedules(name, key):
    fn, args = arguments(name, key)
    part = stored(name)[0]["tensors"][key]["part"]
    if fn == "diffusion_tables":
        return check(getattr(process_of(args).tables, part), name, key)
    left = mask_schedules.masked_counts("cosine", args["num_iter"], args["seq_len"], float)[:, -1]
    if part == "counts":
        return check(-np.diff(left, prepend=args["seq_len"]), name, key)
    options = mar.Sampling(guidance_scale=args["cfg_scale"], guidance_schedule=args["cfg_schedule"])
    return check(continuous.guidance_scales(options, jnp.asarray(left), args["seq_len"]), name, key)


@functools.cache
def head():
    """The head alone, as a function of tokens, times and conditions."""
    meta, tensors = stored("mar_diffloss")
    given = meta["models"]["net"]["constructor"]
    sizes = diffusion_head.Sizes(num_layers=given["num_res_blocks"], width=given["model_channels"])
    net = diffusion_head.DiffusionHead(sizes, given["out_channels"])
    weights = {k.removeprefix("param/net/"): v for k, v in tensors.items() if k.startswith("param/")}
    params, read = convert(HEAD_NAMES, weights, {"res_blocks": given["num_res_blocks"]})
    params = tree(params)
    assert read == set(weights)
    shapes = jax.ShapeDtypeStruct((1, given["in_channels"]), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    condition = jax.ShapeDtypeStruct((1, given["z_channels"]), jnp.float32)
    fresh = nn.meta.unbox(jax.eval_shape(net.init, jax.random.key(0), *shapes, condition))["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    return jax.jit(lambda x, t, z: net.apply({"params": params}, x, t.astype(jnp.float32), z))


def head_call(fn, args):
    """The parts that a call of the family mar_diffloss returns."""
    if fn == "forward":
        return {"out": head()(args["x"], args["t"], args["c"])}
    if fn == "forward_with_cfg":
        return {"out": forward_with_guidance(**args)}
    if fn == "time_embedding":
        return {"embedding": sinusoids(args["t"].astype(jnp.float32), args["dim"], float(args["max_period"]))}
    tables = process_of(args).tables
    if fn == "q_sample":
        return {"x_t": ddpm.add_noise(tables, args["x_start"], args["t"], args["noise"])}
    if fn == "loss":
        noised = ddpm.add_noise(tables, args["x_start"], args["t"], args["noise"])
        output = head()(noised, args["t"], args["c"])
        terms = ddpm.training_terms(tables, args["x_start"], args["t"], args["noise"], output)
        return terms._asdict() | {"loss": terms.mse + terms.vb}
    if fn == "p_mean_variance":
        output = head()(args["x_t"], jnp.asarray(tables.timesteps)[args["t"]], args["c"])
        moments = ddpm.reverse(tables, args["x_t"], args["t"], output, args["clip_denoised"])
        variance = jnp.exp(moments.log_variance)
        return {"pred_xstart": moments.denoised, "variance": variance} | moments._asdict()
    return {"sample": trajectory(tables, args)[-1], "trajectory": trajectory(tables, args)}


def forward_with_guidance(x, t, c, cfg_scale):
    """As the sampler guides: one x for both halves, guidance on the noise alone, v of the conditional half.

    The official function repeats the guided noise in both halves and returns each half's own v.
    """
    half = x.shape[0] // 2
    output = head()(jnp.concatenate([x[:half], x[:half]]), t, c)
    guided = ddpm.guided(output, cfg_scale)
    eps = jnp.split(guided, 2, axis=-1)[0]
    return jnp.concatenate([guided, jnp.concatenate([eps, jnp.split(output[half:], 2, axis=-1)[1]], axis=-1)])


def trajectory(tables, args):
    """Samples after 1, 2, ... steps, each by `ddpm.step`; the last is compared with `ddpm.sample` below."""

    def advance(x, index):
        t = jnp.full(x.shape[:1], len(tables.betas) - 1 - index)
        output = head()(x, jnp.asarray(tables.timesteps)[t], args["c"])
        x = ddpm.step(tables, x, t, output, args["noise_step"][index], args["temperature"], args["clip_denoised"])
        return x, x

    return jax.lax.scan(advance, args["noise_init"], jnp.arange(len(tables.betas)))[1]


@pytest.mark.parametrize("name, key", outputs("mar_diffloss"))
def test_diffusion_head(name, key):
    fn, args = arguments(name, key)
    part = stored(name)[0]["tensors"][key]["part"]
    check(head_call(fn, args)[part], name, key)


def test_the_sampling_loop_of_the_head():
    _, args = arguments("mar_diffloss", "out/loop_out")
    result = ddpm.sample(
        process_of(args).tables,
        lambda x, t: head()(x, t, args["c"]),
        args["noise_init"],
        lambda index: args["noise_step"][index],
        args["temperature"],
    )
    check(result, "mar_diffloss", "out/loop_out")


@functools.cache
def model():
    """The method of mar_d2, and its converted variables."""
    meta, tensors = stored("mar_d2")
    given = meta["models"]["mar"]["constructor"]
    towers = [
        mar.mar.Tower(given[f"{p}_depth"], given[f"{p}_embed_dim"], given[f"{p}_num_heads"])
        for p in ("encoder", "decoder")
    ]
    head_sizes = diffusion_head.Sizes(given["diffloss_d"], given["diffloss_w"])
    sizes = mar.Model(*towers, head_sizes, given["buffer_size"], given["patch_size"], given["mlp_ratio"])
    side = given["img_size"] // given["vae_stride"]
    tokens = TokenSpec("continuous", ((side, side),), given["vae_embed_dim"])
    task = Task(ImageSpec(given["img_size"], 3), given["class_num"], tokens)
    method = mar.build(mar.Config(repeats=given["diffusion_batch_mul"]), sizes, task)
    weights = {k.removeprefix("param/mar/"): v for k, v in tensors.items() if k.startswith("param/")}
    layers = {"encoder_blocks": towers[0].num_layers, "decoder_blocks": towers[1].num_layers}
    layers["diffloss.net.res_blocks"] = given["diffloss_d"]
    count = {"encoder": towers[0].num_heads, "decoder": towers[1].num_heads}
    params, read = convert(MAR_NAMES, weights, layers, count)
    params |= {ours: weights[official][0] for ours, official in MAR_TABLES}
    params["mask_token"] = weights["mask_token"].reshape(-1)
    params["class_embedding/embedding"] = np.concatenate([weights["class_emb.weight"], weights["fake_latent"]])
    read |= {official for _, official in MAR_TABLES} | {"mask_token", "class_emb.weight", "fake_latent"}
    assert read == set(weights), read ^ set(weights)
    fresh = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0)))["model"]["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, tree(params))
    return method, {"params": tree(params)}


def raster(latent):
    """[b c h w] as rows [b h*w c]."""
    return latent.reshape(*latent.shape[:2], -1).transpose(0, 2, 1)


def labels_of(method, args, batch):
    null = jnp.full(batch, method.network.num_classes)
    return {"label": null if args["labels"] is None else args["labels"]}


def model_call(fn, args):
    """The parts that a call of the family mar returns, all but `sample`."""
    method, variables = model()
    net, patch = method.network, method.network.sizes.patch_size
    if fn == "patchify":
        return {"tokens": patchify(raster(args["latent"]), method.grid, patch)}
    if fn == "loss":
        (b, n, c), k = args["target"].shape, method.config.repeats
        t, noise = args["t"].reshape(k, b, n).swapaxes(0, 1), args["noise"].reshape(k, b, n, c).swapaxes(0, 1)
        terms = jax.jit(method.token_losses)(variables, args["target"], args["z"], t, noise)
        return {"loss": sum(mar.hidden_mean(values, args["mask"] > 0) for values in terms.values())[None]}
    known = args["mask"] == 0
    positions = jnp.argsort(~known, axis=1, stable=True)[:, : int(known[0].sum())]
    if fn == "encode":
        shown = jnp.take_along_axis(args["tokens"], positions[..., None], axis=1)
        cond = labels_of(method, args, shown.shape[0])
        return {"encoded": jax.jit(functools.partial(net.apply, method="encode"))(variables, shown, positions, cond)}
    return {"z": jax.jit(functools.partial(net.apply, method="decode"))(variables, args["encoded"], positions)}


@pytest.mark.parametrize("key", ["out/tokens", "out/enc", "out/enc_uncond", "out/z", "out/z_uncond", "out/loss"])
def test_model(key):
    fn, args = arguments("mar_d2", key)
    check(model_call(fn, args)[stored("mar_d2")[0]["tensors"][key]["part"]], "mar_d2", key)


def test_one_pass_of_the_method_is_encoder_and_decoder_over_padded_tokens():
    """The method reads known tokens from the whole image, padded to the most that a sample may know."""
    method, variables = model()
    _, args = arguments("mar_d2", "out/enc")
    z = jax.jit(method.vectors, static_argnums=4)(
        variables, args["tokens"], args["mask"] == 0, {"label": args["labels"]}, args["tokens"].shape[1] - 3
    )
    check(z, "mar_d2", "out/z")


@pytest.fixture(scope="module")
def sampled():
    """Latents, and the mask, predicted positions and guidance of each step."""
    method, variables = model()
    _, args = arguments("mar_d2", "out/sample_latent")
    options = mar.Sampling(
        num_steps=args["num_iter"],
        head=heads.Steps(first=args["respacing"], temperature=args["temperature"]),
        guidance_scale=args["cfg_scale"],
        guidance_schedule=args["cfg_schedule"],
        segments=2,
    )
    places = jnp.arange(args["orders"].shape[1])
    priority = jax.vmap(lambda order: jnp.zeros(len(places)).at[order].set(places))(args["orders"])

    def noise(keys, step, positions):
        take = jax.vmap(lambda values, at: values[at])
        return (
            take(args["noise_init"][step], positions),
            lambda index: take(args["noise_step"][step, index], positions),
        )

    @jax.jit
    def run():
        keys = jax.random.split(jax.random.key(0), len(args["labels"]))
        state = masked.State(jnp.zeros((*priority.shape, method.network.channels)), jnp.zeros(priority.shape, bool))
        cond = labels_of(method, args, len(priority))
        return method.reveal(variables, cond, keys, options, state, priority, noise, priority.shape[1])

    return args, options, priority, np.asarray(run())


def test_samples(sampled):
    method, _ = model()
    latents = unpatchify(jnp.asarray(sampled[3]), method.grid, method.network.sizes.patch_size)
    check(latents.swapaxes(1, 2).reshape(latents.shape[0], -1, *method.grid), "mar_d2", "out/sample_latent")


def test_masks_and_guidance_of_the_sampler(sampled):
    """Which tokens are hidden before each step, which are drawn, and how strongly they are guided."""
    _, options, priority, _ = sampled
    n, hidden = priority.shape[1], jnp.ones(priority.shape, bool)
    counts = mask_schedules.masked_counts("cosine", options.num_steps, n, float)
    choose = masked.next_in_order(priority, masked.by_table(counts, ~hidden))
    masks, drawn, scales = [], [], []
    for step in range(options.num_steps):
        chosen = choose(hidden, jnp.int32(step), None)
        masks.append(hidden)
        drawn.append(chosen)
        hidden &= ~chosen
        scales.append(continuous.guidance_scales(options, hidden[0].sum(), n))
    check(np.array(masks).astype(np.int32), "mar_d2", "out/sample_mask")
    check(np.array(drawn).astype(np.int32), "mar_d2", "out/sample_pred")
    check(np.array(scales), "mar_d2", "out/sample_cfg_iter")
