"""The tokenizers against numbers of the official implementations (tests/golden/*.json name source, commit and seed).

A failure here means that released weights no longer give the published pictures. What may change legitimately:
parameter paths (then change the tables below), the order of float operations (within the stored tolerance). Ids must
stay.
"""

import functools
import json
import pathlib

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxar.config import parse
from jaxar.tokenizers import kl, multiscale_vq, vq
from jaxar.tokenizers.base import ImageSpec, Tokens

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

# Name tables: rows (our path, official path, transform), one per module; `convert` says what each transform does.
CONV, NORM = ("conv",), ("norm",)


def residual_block(ours, official, shortcut):
    rows = [(f"{ours}/norm_1", f"{official}.norm1", NORM), (f"{ours}/conv_1", f"{official}.conv1", CONV)]
    rows += [(f"{ours}/norm_2", f"{official}.norm2", NORM), (f"{ours}/conv_2", f"{official}.conv2", CONV)]
    return rows + ([(f"{ours}/shortcut", f"{official}.nin_shortcut", CONV)] if shortcut else [])


def attention(ours, official, fused):
    """VAR keeps query, key and value in one convolution, LlamaGen has one each."""
    rows = [(f"{ours}/norm", f"{official}.norm", NORM), (f"{ours}/out", f"{official}.proj_out", CONV)]
    for i, name in enumerate(("query", "key", "value")):
        rows.append((f"{ours}/{name}", f"{official}.{'qkv' if fused else name[0]}", ("part", i, 3) if fused else CONV))
    return rows


def conv_stacks(stack, style):
    """Rows of encoder and decoder; `style` holds what the official code bases call things."""
    rows, last, widths = [], len(stack.widths) - 1, stack.widths
    for part, blocks in (("encoder", stack.num_res_blocks), ("decoder", stack.num_res_blocks + 1)):
        for name, kind in (("conv_in", CONV), ("norm_out", NORM), ("conv_out", CONV)):
            rows.append((f"{part}/{name}", f"{part}.{name}", kind))
        mid = [f"{part}.{name}" for name in style["mid"]]
        rows += residual_block(f"{part}/middle/block_0", mid[0], False)
        rows += attention(f"{part}/middle/attention", mid[1], style["fused"])
        rows += residual_block(f"{part}/middle/block_1", mid[2], False)
        for i, width in enumerate(widths):
            level = f"{part}.{style['level'](part, i, last)}"
            before = widths[min(i + 1, last)] if part == "decoder" else (stack.channels, *widths)[i]
            for j in range(blocks):
                shortcut = j == 0 and width != before
                rows += residual_block(f"{part}/level_{i}/block_{j}", f"{level}.{style['block']}.{j}", shortcut)
                if i == last and (part == "encoder" or style["decoder_attention"]):
                    rows += attention(f"{part}/level_{i}/attention_{j}", f"{level}.attn.{j}", style["fused"])
            if i != (last if part == "encoder" else 0):
                step = "downsample" if part == "encoder" else "upsample"
                rows.append((f"{part}/{step}_{i}", f"{level}.{step}", ("conv_in_block",)))
    return rows + [(name, name, CONV) for name in ("quant_conv", "post_quant_conv")]


def var_level(part, i, last):
    return f"{'down' if part == 'encoder' else 'up'}.{i}"


def llamagen_level(part, i, last):
    return f"conv_blocks.{i if part == 'encoder' else last - i}"


VAR = {
    "fused": True,
    "mid": ("mid.block_1", "mid.attn_1", "mid.block_2"),
    "level": var_level,
    "block": "block",
    "decoder_attention": True,
}
LLAMAGEN = VAR | {"fused": False, "mid": ("mid.0", "mid.1", "mid.2"), "level": llamagen_level, "block": "res"}
MAR = VAR | {"fused": False, "decoder_attention": False}


def convert(rows, tensors):
    """Our parameter tree, and the official names that were read."""
    params, read = {}, set()

    def take(name):
        read.add(name)
        return tensors[name]

    for ours, official, (kind, *extra) in rows:
        if kind == "norm":
            params[f"{ours}/scale"], params[f"{ours}/bias"] = take(f"{official}.weight"), take(f"{official}.bias")
        elif kind == "codebook":
            params[ours] = take(f"{official}.weight")
        elif kind == "stack":  # several official convolutions, stacked in ours
            kernels = [take(f"{official}.{i}.weight").transpose(2, 3, 1, 0) for i in range(extra[0])]
            params[f"{ours}/kernel"] = np.stack(kernels)
            params[f"{ours}/bias"] = np.stack([take(f"{official}.{i}.bias") for i in range(extra[0])])
        else:
            if kind == "conv_in_block":
                ours, official = f"{ours}/conv", f"{official}.conv"
            kernel, bias = take(f"{official}.weight").transpose(2, 3, 1, 0), take(f"{official}.bias")
            if kind == "part":
                i, n = extra
                kernel, bias = np.split(kernel, n, axis=-1)[i], np.split(bias, n)[i]
            params[f"{ours}/kernel"], params[f"{ours}/bias"] = kernel, bias
    params = {path: jnp.asarray(value) for path, value in params.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/"), read


def stack_section(groups, channels, multipliers, num_res_blocks):
    return {"channels": channels, "multipliers": multipliers, "num_res_blocks": num_res_blocks, "groups": groups}


@functools.cache
def fixture(name):
    """Tokenizer, variables, stored tensors and entries of one fixture."""
    meta, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    (model,) = meta["models"].values()
    given, fixed = model["constructor"], model.get("fixed_in_class", model)
    groups, image = model["group_norm_groups"], ImageSpec(tensors["in/img"].shape[-1], 3)
    if meta["family"] == "var_vqvae":
        stack = stack_section(groups, given["ch"], fixed["ch_mult"], fixed["num_res_blocks"])
        values = {"vocab_size": given["vocab_size"], "code_channels": given["z_channels"], "stack": stack}
        values |= {"scales": given["v_patch_nums"], "num_phi": given["share_quant_resi"], "beta": given["beta"]}
        tokenizer = multiscale_vq.build(parse(multiscale_vq.Config, values, "tokenizer"), image)
        rows = [*conv_stacks(tokenizer.config.stack, VAR), ("codebook", "quantize.embedding", ("codebook",))]
        rows.append(("phi", "quantize.quant_resi.qresi_ls", ("stack", given["share_quant_resi"])))
    elif meta["family"] == "mar_kl":
        stack = stack_section(groups, model["encoder_decoder_ch"], given["ch_mult"], model["num_res_blocks"])
        values = {"latent_channels": given["embed_dim"], "stack": stack}
        tokenizer = kl.build(parse(kl.Config, values, "tokenizer"), image)
        rows = conv_stacks(tokenizer.config.stack, MAR)
    else:
        stack = stack_section(groups, model["encoder_decoder_ch"], given["encoder_ch_mult"], model["num_res_blocks"])
        values = {"vocab_size": given["codebook_size"], "code_channels": given["codebook_embed_dim"], "stack": stack}
        values |= {"latent_channels": given["z_channels"], "beta": given["commit_loss_beta"]}
        tokenizer = vq.build(parse(vq.Config, values, "tokenizer"), image)
        rows = [*conv_stacks(tokenizer.config.stack, LLAMAGEN), ("codebook", "quantize.embedding", ("codebook",))]
    weights = {k.removeprefix(model["prefix"]): v for k, v in tensors.items() if k.startswith("param/")}
    params, read = convert(rows, weights)
    assert read == set(weights), set(weights) - read
    return tokenizer, {"params": params}, tensors, meta["tensors"]


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


def nchw(x):
    return np.moveaxis(np.asarray(x), -1, -3)


def var_call(tokenizer, variables, fn, args):
    """Parts of one call, in the fixture's layout."""
    if fn == "encode_features":
        return {"features": nchw(tokenizer.features(variables, nhwc(args["image"])))}
    if fn == "encode_ids":
        return {"ids": tokenizer.encode(variables, nhwc(args["image"])).ids}
    if fn == "cumulative_features":
        return {"f_hat_per_scale": nchw(tokenizer.residual(variables, nhwc(args["features"])).sums)}
    if fn == "teacher_input":
        return {"x": tokenizer.teacher_input(variables, args["ids"])}
    if fn == "decode_ids":
        f_hat = tokenizer.cumulative_features(variables, args["ids"])[args["num_scales"] - 1]
        return {"image": nchw(jnp.clip(tokenizer.decode_features(variables, f_hat), -1, 1))}
    if fn == "decode_features":
        return {"image": nchw(tokenizer.decode_features(variables, nhwc(args["features"])))}
    if fn == "next_input":
        start = sum(tokenizer.spec.scale_lengths[: args["scale"]])
        ids = args["ids"][:, start : start + tokenizer.spec.scale_lengths[args["scale"]]]
        f_hat, x = tokenizer.next_input(variables, args["scale"], nhwc(args["f_hat"]), ids)
        return {"f_hat": nchw(f_hat), "next_input": nchw(x.reshape(x.shape[0], *tokenizer.spec.scales[2], -1))}
    assert fn == "loss"
    features, sums = nhwc(args["features"]), tokenizer.residual(variables, nhwc(args["features"])).sums
    return {"vq_loss": (1 + tokenizer.config.beta) * jnp.mean((sums - features) ** 2)[None]}


def llamagen_call(tokenizer, variables, fn, args):
    if fn == "encode_features":
        return {"features": nchw(tokenizer.features(variables, nhwc(args["image"])))}
    if fn == "encode_ids":
        ids = tokenizer.encode(variables, nhwc(args["image"])).ids
        return {"ids": ids, "quantized": nchw(tokenizer.quantized(variables, ids))}
    if fn == "codebook_entry":
        return {"quantized": nchw(tokenizer.quantized(variables, args["ids"]))}
    if fn == "decode_ids":
        return {"image": nchw(tokenizer.decode_features(variables, tokenizer.quantized(variables, args["ids"])))}
    result = tokenizer.reconstruct(variables, nhwc(args["image"]), None, train=False)
    return {"image": nchw(result.images)}


def kl_call(tokenizer, variables, fn, args):
    if fn == "encode":
        posterior = tokenizer.posterior(variables, nhwc(args["image"]))
        moments = {"mean": posterior.mean, "logvar": posterior.log_variance, "std": posterior.std}
        return {name: nchw(value) for name, value in moments.items()} | {"kl": posterior.divergence()}
    if fn == "draw_latent":
        mean, noise = nhwc(args["mean"]), nhwc(args["noise"])
        return {"latent": nchw(kl.Posterior(mean, 2 * jnp.log(nhwc(args["std"]))).draw(noise))}
    return {"image": nchw(tokenizer.decode_latents(variables, nhwc(args["latent"])))}


CALLS = {"var_vqvae_c6": var_call, "llamagen_vq16": llamagen_call, "mar_kl16": kl_call}


def resolve(tensors, value):
    """An argument: a number, or a reference to a stored tensor."""
    if not isinstance(value, dict):
        return value
    tensor = tensors[value["tensor"]]
    return jnp.asarray(tensor[value["index"]] if "index" in value else tensor)


def outputs():
    """All stored outputs, except LlamaGen's losses, which the next test compares."""
    for name in CALLS:
        entries = json.loads((GOLDEN / f"{name}.json").read_text())["tensors"]
        for key, entry in entries.items():
            if "call" in entry and not (name == "llamagen_vq16" and entry["call"]["fn"] == "loss"):
                yield pytest.param(name, key, id=f"{name}-{key}")


@pytest.mark.parametrize("name, key", list(outputs()))
def test_output_of_the_official_code(name, key):
    tokenizer, variables, tensors, entries = fixture(name)
    entry, stored = entries[key], tensors[key]
    fn, args = entry["call"]["fn"], {k: resolve(tensors, v) for k, v in entry["call"]["args"].items()}
    mine = np.asarray(CALLS[name](tokenizer, variables, fn, args)[entry["part"]])
    assert mine.shape == stored.shape
    kind, value = entry["tolerance"]["kind"], entry["tolerance"]["value"]
    if kind == "exact":
        np.testing.assert_array_equal(mine, stored)
    elif kind == "rtol":
        np.testing.assert_allclose(mine, stored, rtol=value)
    else:
        assert np.abs(mine - stored).max() / stored.std() < value


def test_losses_of_training_are_the_official_ones():
    """The features of the stored images are the stored features, so `reconstruct` must give the stored losses."""
    tokenizer, variables, tensors, _ = fixture("llamagen_vq16")
    terms = tokenizer.reconstruct(variables, nhwc(tensors["in/img"]), None, train=False).metrics
    np.testing.assert_allclose(terms["codebook_loss"], tensors["out/vq_loss"][0], rtol=1e-4)
    np.testing.assert_allclose(terms["commitment_loss"], tensors["out/commit_loss"][0], rtol=1e-4)

    tokenizer, variables, tensors, _ = fixture("var_vqvae_c6")
    result = tokenizer.reconstruct(variables, nhwc(tensors["in/img"]), None, train=False)
    np.testing.assert_allclose(result.loss, tensors["out/vq_loss"][0], rtol=1e-4)
    assert np.abs(nchw(result.images) - tensors["out/dec_unclamped"]).max() / tensors["out/dec_unclamped"].std() < 1e-4


def test_decode_clips():
    tokenizer, variables, tensors, _ = fixture("var_vqvae_c6")
    images = nchw(tokenizer.decode(variables, Tokens(ids=jnp.asarray(tensors["out/idx_BL"]))))
    expected = np.clip(tensors["out/dec_unclamped"], -1, 1)
    assert np.abs(images - expected).max() / expected.std() < 1e-4
    assert np.abs(images).max() == 1.0
