"""LlamaGen and VAR against numbers of the official implementations (tests/golden/*.json name source, commit and seed).

A failure here means that released weights no longer give the published logits. What may change legitimately: parameter
paths (then change the tables below), the order of float operations (within the stored tolerance). Ids may never change.
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

from jaxar.decoding import logits as lg
from jaxar.methods import ar, next_scale
from jaxar.methods.base import Task, TextSpec
from jaxar.tokenizers import multiscale_vq
from jaxar.tokenizers.base import ImageSpec, TokenSpec

pytestmark = pytest.mark.golden
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
LLAMAGEN = ("llamagen_c2i_d2", "llamagen_t2i_d2")
VAR = ("var_d2", "var_d2_nol2", "var_d2_sharedaln", "var_d2_nol2_sharedaln")

# Name tables: (our path, official name, layout). "{}" in an official name is the layer; our layers are stacked.
# Layouts: "linear" [out, in] -> [in, out]; "split" cuts the outputs into heads; ("heads", i) does so with block i of a
# fused [q | k | v]; "merge" [out, in] -> [heads, head_dim, out]; "layer" adds an axis for a stack of one; "row" drops a
# leading axis of size 1; "flat" joins all axes.
BLOCK, ATTENTION = "stack/layers", "stack/layers/attention"

LLAMAGEN_NAMES = (
    ("token_embedding/embedding", "tok_embeddings.weight", "same"),
    (f"{ATTENTION}/query/kernel", "layers.{}.attention.wqkv.weight", ("heads", 0)),
    (f"{ATTENTION}/key/kernel", "layers.{}.attention.wqkv.weight", ("heads", 1)),
    (f"{ATTENTION}/value/kernel", "layers.{}.attention.wqkv.weight", ("heads", 2)),
    (f"{ATTENTION}/out/kernel", "layers.{}.attention.wo.weight", "merge"),
    (f"{BLOCK}/attention_norm/scale", "layers.{}.attention_norm.weight", "same"),
    (f"{BLOCK}/mlp/gate/kernel", "layers.{}.feed_forward.w1.weight", "linear"),
    (f"{BLOCK}/mlp/up/kernel", "layers.{}.feed_forward.w3.weight", "linear"),
    (f"{BLOCK}/mlp/down/kernel", "layers.{}.feed_forward.w2.weight", "linear"),
    (f"{BLOCK}/mlp_norm/scale", "layers.{}.ffn_norm.weight", "same"),
    ("norm/scale", "norm.weight", "same"),
    ("head/kernel", "output.weight", "linear"),
)
LLAMAGEN_CONDITION = {
    "llamagen_c2i": (("class_embedding/embedding", "cls_embedding.embedding_table.weight", "same"),),
    "llamagen_t2i": (
        ("text_projection/up/kernel", "cls_embedding.cap_proj.fc1.weight", "linear"),
        ("text_projection/down/kernel", "cls_embedding.cap_proj.fc2.weight", "linear"),
        ("null_text", "cls_embedding.uncond_embedding", "same"),
    ),
}
VAR_NAMES = (
    ("class_embedding/embedding", "class_emb.weight", "same"),
    ("input_projection/kernel", "word_embed.weight", "linear"),
    ("input_projection/bias", "word_embed.bias", "same"),
    ("start", "pos_start", "row"),
    ("positions", "pos_1LC", "row"),
    ("levels", "lvl_embed.weight", "same"),
    (f"{ATTENTION}/query/kernel", "blocks.{}.attn.mat_qkv.weight", ("heads", 0)),
    (f"{ATTENTION}/key/kernel", "blocks.{}.attn.mat_qkv.weight", ("heads", 1)),
    (f"{ATTENTION}/value/kernel", "blocks.{}.attn.mat_qkv.weight", ("heads", 2)),
    (f"{ATTENTION}/query/bias", "blocks.{}.attn.q_bias", "split"),
    (f"{ATTENTION}/value/bias", "blocks.{}.attn.v_bias", "split"),
    (f"{ATTENTION}/out/kernel", "blocks.{}.attn.proj.weight", "merge"),
    (f"{ATTENTION}/out/bias", "blocks.{}.attn.proj.bias", "same"),
    (f"{BLOCK}/mlp/up/kernel", "blocks.{}.ffn.fc1.weight", "linear"),
    (f"{BLOCK}/mlp/up/bias", "blocks.{}.ffn.fc1.bias", "same"),
    (f"{BLOCK}/mlp/down/kernel", "blocks.{}.ffn.fc2.weight", "linear"),
    (f"{BLOCK}/mlp/down/bias", "blocks.{}.ffn.fc2.bias", "same"),
    ("head_modulation/kernel", "head_nm.ada_lin.1.weight", "linear_layer"),
    ("head_modulation/bias", "head_nm.ada_lin.1.bias", "layer"),
    ("head/kernel", "head.weight", "linear"),
    ("head/bias", "head.bias", "same"),
)
VAR_L2 = ((f"{ATTENTION}/scale", "blocks.{}.attn.scale_mul_1H11", "flat"),)
VAR_ADALN = {
    False: (
        ("modulation/kernel", "blocks.{}.ada_lin.1.weight", "linear"),
        ("modulation/bias", "blocks.{}.ada_lin.1.bias", "same"),
    ),
    True: (
        ("modulation/kernel", "shared_ada_lin.1.weight", "linear_layer"),
        ("modulation/bias", "shared_ada_lin.1.bias", "layer"),
        ("modulation/offset", "blocks.{}.ada_gss", "flat"),
    ),
}


def layouts(heads):
    """What each layout does to an official tensor."""

    def split(w):
        return w.T.reshape(*w.T.shape[:-1], heads, -1)

    return {
        "same": lambda w: w,
        "linear": lambda w: w.T,
        "linear_layer": lambda w: w.T[None],
        "layer": lambda w: w[None],
        "row": lambda w: w[0],
        "flat": lambda w: w.reshape(-1),
        "split": split,
        "merge": lambda w: w.T.reshape(heads, -1, w.shape[0]),
        **{("heads", i): lambda w, i=i: split(np.split(w, 3)[i]) for i in range(3)},
    }


def convert(names, tensors, heads, num_layers):
    """Our parameter tree, and the official names that were read."""
    params, read, to = {}, set(), layouts(heads)
    for ours, official, layout in names:
        if "{}" in official:
            sources = [official.format(layer) for layer in range(num_layers)]
            params[ours] = np.stack([to[layout](tensors[name]) for name in sources])
        else:
            sources = [official]
            params[ours] = to[layout](tensors[official])
        read.update(sources)
    params = {path: jnp.asarray(value) for path, value in params.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/"), read


def same_shapes(method, params):
    """The converted tree is exactly the tree of a fresh model."""
    fresh = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0)))["model"]["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


@functools.cache
def llamagen(name):
    """Method, variables, stored tensors, entries."""
    meta, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    given = meta["models"]["gpt"]["constructor"]
    side = round(given["block_size"] ** 0.5)
    sizes = ar.Model(
        num_layers=given["n_layer"],
        width=given["dim"],
        num_heads=given["n_head"],
        num_kv_heads=given["n_kv_head"],
        hidden_multiple=given["multiple_of"],
        rotary_base=float(given["rope_base"]),
        norm_eps=given["norm_eps"],
        dropout=0.0,
    )
    tokens = TokenSpec("discrete", ((side, side),), channels=8, vocab_size=given["vocab_size"])
    text = TextSpec(given["cls_token_num"], given["caption_dim"]) if given["model_type"] == "t2i" else None
    task = Task(ImageSpec(16 * side, 3), given.get("num_classes", 0), tokens, text=text)
    method = ar.build(ar.Config(label_drop=0.0), sizes, task)
    weights = {k.removeprefix("param/gpt/"): v for k, v in tensors.items() if k.startswith("param/")}
    names = LLAMAGEN_NAMES + LLAMAGEN_CONDITION[meta["family"]]
    params, read = convert(names, weights, given["n_head"], given["n_layer"])
    assert read == set(weights), set(weights) - read
    same_shapes(method, params)
    return method, {"model": {"params": params}}, tensors, meta["tensors"]


@functools.cache
def var(name):
    meta, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")
    given, vae = meta["models"]["var"]["constructor"], meta["models"]["vae"]["constructor"]
    sizes = next_scale.Model(
        num_layers=given["depth"],
        width=given["embed_dim"],
        num_heads=given["num_heads"],
        mlp_ratio=given["mlp_ratio"],
        qk_norm="l2" if given["attn_l2_norm"] else "none",
        shared_adaln=given["shared_aln"],
    )
    # Only the quantizer of the tokenizer is stored, and only it is needed.
    config = multiscale_vq.Config(
        vocab_size=vae["vocab_size"],
        code_channels=vae["z_channels"],
        scales=tuple(vae["v_patch_nums"]),
        num_phi=vae["share_quant_resi"],
        phi_ratio=vae["quant_resi"],
    )
    image = ImageSpec(config.scales[-1] * config.stack.stride, 3)
    tokenizer = multiscale_vq.build(config, image)
    method = next_scale.build(next_scale.Config(), sizes, Task(image, given["num_classes"], tokenizer.spec, tokenizer))
    weights = {k.removeprefix("param/var/"): v for k, v in tensors.items() if k.startswith("param/var/")}
    names = VAR_NAMES + VAR_ADALN[given["shared_aln"]] + (VAR_L2 if given["attn_l2_norm"] else ())
    params, read = convert(names, weights, given["num_heads"], given["depth"])
    assert read == set(weights), set(weights) - read
    same_shapes(method, params)
    phi = [tensors[f"param/vae/quantize.quant_resi.qresi_ls.{i}.weight"] for i in range(config.num_phi)]
    bias = [tensors[f"param/vae/quantize.quant_resi.qresi_ls.{i}.bias"] for i in range(config.num_phi)]
    quantizer = {
        "codebook": jnp.asarray(tensors["param/vae/quantize.embedding.weight"]),
        "phi": {"kernel": jnp.stack(phi).transpose(0, 3, 4, 2, 1), "bias": jnp.stack(bias)},
    }
    return method, {"model": {"params": params}, "tokenizer": {"params": quantizer}}, tensors, meta["tensors"]


def check(mine, tensors, entries, key):
    stored, rule = tensors[key], entries[key]["tolerance"]
    mine = np.asarray(mine)
    assert mine.shape == stored.shape
    if rule["kind"] == "exact":
        np.testing.assert_array_equal(mine, stored)
    elif rule["kind"] == "rtol":
        np.testing.assert_allclose(mine, stored, rtol=rule["value"])
    else:
        assert rule["kind"] == "max_over_std"
        assert np.abs(mine - stored).max() / stored.std() < rule["value"]


def keys(count):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def llamagen_cond(tensors, rows=slice(None)):
    if "in/caption" not in tensors:
        return {"label": jnp.asarray(tensors["in/cond_with_uncond"][rows])}
    return {"text": jnp.asarray(tensors["in/caption"]), "text_mask": jnp.asarray(tensors["in/caption_mask"]) > 0}


def all_logits(method, variables, ids, cond):
    """Logits at every position, those inside the condition too, by one `extend` over an empty cache."""
    net, weights = method.network, variables["model"]

    @jax.jit
    def run(ids, cond):
        parts = [net.apply(weights, cond, method="embed_condition"), net.apply(weights, ids, method="embed_tokens")]
        pad = ar.causal.padding(cond) if "text_mask" in cond else None
        cache = net.init_cache(ids.shape[0])
        return net.apply(weights, jnp.concatenate(parts, axis=1), cache, pad, method="extend")[0]

    return run(ids[:, :-1], cond)


@pytest.mark.parametrize("name", LLAMAGEN)
def test_llamagen_logits_and_loss(name):
    method, variables, tensors, entries = llamagen(name)
    ids, cond = jnp.asarray(tensors["in/idx"]), llamagen_cond(tensors)
    logits = all_logits(method, variables, ids, cond)
    check(logits, tensors, entries, "out/logits")
    batch = {"ids": ids, **cond} | ({"valid": tensors["in/valid"]} if "in/valid" in tensors else {})
    loss, _ = jax.jit(method.loss)(variables, batch, jax.random.key(0), jnp.int32(0))
    check(loss[None], tensors, entries, "out/loss")


def test_llamagen_null_caption_and_missing_mask():
    method, variables, tensors, entries = llamagen("llamagen_t2i_d2")
    ids, cond = jnp.asarray(tensors["in/idx"]), llamagen_cond(tensors)
    null = {**cond, "text_null": jnp.ones(2, bool)}
    check(all_logits(method, variables, ids, null), tensors, entries, "out/logits_uncond")
    del cond["text_mask"]
    check(all_logits(method, variables, ids, cond), tensors, entries, "out/logits_no_mask")


def test_llamagen_rotary_table():
    method, _, tensors, entries = llamagen("llamagen_c2i_d2")
    table = method.network.rotary()
    check(jnp.stack([table.cos, table.sin], axis=-1), tensors, entries, "out/freqs_cis")


LLAMAGEN_RUNS = [
    ("llamagen_c2i_d2", "out/gen_cfg"),
    ("llamagen_c2i_d2", "out/gen_cfg_interval"),
    ("llamagen_c2i_d2", "out/gen_nocfg"),
    ("llamagen_t2i_d2", "out/gen_cfg"),
]


@pytest.mark.parametrize("name, key", LLAMAGEN_RUNS)
def test_llamagen_generation(name, key):
    method, variables, tensors, entries = llamagen(name)
    args = entries[key]["call"]["args"]
    cond = {"label": jnp.asarray(tensors["in/cond"])} if "in/cond" in tensors else llamagen_cond(tensors)
    interval = lg.llamagen_interval(args["cfg_interval"], args["num_tokens"])
    options = ar.Sampling(
        guidance_scale=args["cfg_scale"], guidance_interval=interval, greedy=True, segments=2, unroll=False
    )
    count = tensors[key].shape[0]
    sample = jax.jit(lambda variables, cond: method.sample(variables, cond, keys(count), options).ids)
    check(sample(variables, cond), tensors, entries, key)


@pytest.mark.parametrize("name", LLAMAGEN)
def test_llamagen_guided_logits(name):
    """The stored ids, fed back, give the logits that they were chosen by."""
    method, variables, tensors, entries = llamagen(name)
    ids = jnp.asarray(tensors["out/gen_cfg"])
    cond = {"label": jnp.asarray(tensors["in/cond"])} if "in/cond" in tensors else llamagen_cond(tensors)
    both = ar.conditions.doubled(cond, method.network.num_classes)
    logits = jax.jit(method.network.apply)(variables["model"], jnp.concatenate([ids, ids]), both)
    scale = entries["out/gen_cfg"]["call"]["args"]["cfg_scale"]
    check(lg.guide(*jnp.split(logits, 2), scale), tensors, entries, "out/gen_cfg_logits")


@pytest.mark.parametrize("name", VAR)
def test_var(name):
    """Teacher-forced logits; greedy ids and final feature map of the decode loop; the logits that the ids came from."""
    method, variables, tensors, entries = var(name)
    args = entries["out/gen_idx_BL"]["call"]["args"]
    options = next_scale.Sampling(guidance_scale=1 + args["cfg_scale"], greedy=True)
    x, labels = jnp.asarray(tensors["in/x_BLCv_wo_first_l"]), jnp.asarray(tensors["in/label_B"])
    cond, drawn = {"label": jnp.asarray(tensors["in/gen_label_B"])}, jnp.asarray(tensors["out/gen_idx_BL"])

    @jax.jit
    def run(variables):
        ids, f_hat = method.sample_with_features(variables, cond, keys(drawn.shape[0]), options)
        teacher_input = functools.partial(method.tokenizer.teacher_input, variables["tokenizer"])
        both = next_scale.conditions.doubled(cond, method.network.num_classes)["label"]
        inputs = jnp.concatenate([x, *[teacher_input(drawn)] * 2])
        logits = method.network.apply(variables["model"], inputs, jnp.concatenate([labels, both]))
        return ids, f_hat, teacher_input(jnp.asarray(tensors["in/gt_idx_BL"])), logits

    ids, f_hat, inputs, logits = run(variables)
    np.testing.assert_allclose(inputs, x, atol=1e-5)
    check(logits[: x.shape[0]], tensors, entries, "out/logits_BLV")
    check(ids, tensors, entries, "out/gen_idx_BL")
    check(jnp.moveaxis(f_hat, -1, 1), tensors, entries, "out/gen_f_hat")
    scales = np.repeat(lg.guidance_scales(options, len(method.tokens.scales)), method.tokens.scale_lengths)
    conditional, null = jnp.split(logits[x.shape[0] :], 2)
    check(null + scales[:, None] * (conditional - null), tensors, entries, "out/gen_cfg_logits_BLV")
