"""Official files become workdirs that the commands open, and come out again bit for bit."""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

import jaxar
from jaxar import cli, convert, evaluate, sample
from jaxar.config import ConfigError
from jaxar.interop import base, fixtures, readers, safetensors_file, workdirs

GOLDEN = pathlib.Path(__file__).parent / "golden"
pytestmark = pytest.mark.xdist_group("runs")


def stored(name, model):
    """Official arrays and description of one network of a fixture."""
    fixture = fixtures.read(GOLDEN / f"{name}.safetensors")
    return fixture.weights(model), fixture.models[model]


def run(command, *argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(command, [str(a) for a in argv])
    return stop.value.code


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A workdir of VAR, and the official arrays of transformer and tokenizer it was made of."""
    folder = tmp_path_factory.mktemp("converted")
    transformer, sizes = stored("var_d2", "var")
    tokenizer, vae = stored("var_vqvae_c6", "vae")
    transformer |= {"lvl_1L": np.repeat(np.arange(4), [1, 4, 9, 16])[None]}  # int64, as in published files
    tokenizer |= {"quantize.ema_vocab_hit_SV": np.arange(256, dtype=np.float32).reshape(4, 64)}
    safetensors_file.write(folder / "var.safetensors", {f"module.{k}": v for k, v in transformer.items()})
    safetensors_file.write(folder / "vae.safetensors", tokenizer)
    (folder / "arch.json").write_text(json.dumps({"var": sizes["constructor"], "vae": vae}))
    convert.command(
        [
            "--arch=var",
            f"--arch_config={folder}/arch.json",
            f"--weights={folder}/var.safetensors",
            f"--tokenizer={folder}/vae.safetensors",
            f"--workdir={folder}/run",
        ]
    )
    return folder, {"var": transformer, "vae": tokenizer}


def test_a_converted_workdir_samples_as_any_other(converted, tmp_path):
    folder, _ = converted
    assert run(sample.command, f"--workdir={folder}/run", "--num=3", f"--out={tmp_path}/x.npz", "--top_k=5") == 0
    with np.load(tmp_path / "x.npz") as saved:
        assert saved["arr_0"].shape == (3, 64, 64, 3) and saved["arr_0"].std() > 1


def test_the_opened_run_has_the_official_weights(converted):
    folder, arrays = converted
    opened = jaxar.load(folder / "run")
    weights = opened.variables["model"]["params"]
    np.testing.assert_array_equal(weights["head"]["kernel"], arrays["var"]["head.weight"].T)
    codebook = opened.variables["tokenizer"]["params"]["codebook"]
    np.testing.assert_array_equal(codebook, arrays["vae"]["quantize.embedding.weight"])
    np.testing.assert_array_equal(opened.variables["tokenizer"]["code_use"]["features"], codebook)
    assert opened.options.guidance_scale == 2.5


def test_official_arrays_come_out_bit_for_bit(converted, tmp_path):
    folder, arrays = converted
    targets = [f"--export={tmp_path}/var.safetensors", f"--tokenizer={tmp_path}/vae.safetensors"]
    assert run(convert.command, f"--workdir={folder}/run", *targets) == 0
    same(readers.read(tmp_path / "var.safetensors"), arrays["var"])
    same(readers.read(tmp_path / "vae.safetensors"), arrays["vae"])


@pytest.fixture(scope="module", params=[pytest.param("mar", marks=pytest.mark.slow), "maskgit"])
def masked_model(request, tmp_path_factory):
    """A workdir of a masked method, made of files as published; its folder, and the official arrays by option."""
    folder = tmp_path_factory.mktemp(request.param)
    names = {
        "mar": ("mar_d2", "mar", "mar_kl16", "vae"),
        "maskgit": ("maskgit_d2", "transformer", "maskgit_vqgan", "vqgan"),
    }
    fixture, model, tokenizer_fixture, tokenizer = names[request.param]
    (weights, sizes), (codec, described) = stored(fixture, model), stored(tokenizer_fixture, tokenizer)
    if request.param == "mar":  # a checkpoint of training, of which the average counts
        raw = {f"module.{name}": np.zeros_like(x) for name, x in weights.items()}
        average = {f"module.{name}": x for name, x in weights.items()}
        trees = {"model": raw, "model_ema": average, "epoch": 400}, {"model": dict(codec)}
    else:
        trees = tuple({"params": traverse_util.unflatten_dict(x, sep="/")} for x in (weights, codec))
    for option, tree in zip(("weights", "tokenizer"), trees):
        (folder / option).write_bytes(serialization.msgpack_serialize(tree))
    code = run(
        convert.command,
        f"--arch={request.param}",
        "--arch_config=" + json.dumps({model: sizes, tokenizer: described}),
        f"--weights={folder}/weights",
        f"--tokenizer={folder}/tokenizer",
        f"--workdir={folder}/run",
    )
    assert code == 0
    return folder / "run", {"export": weights, "tokenizer": codec}


def test_masked_models_sample_from_published_files(masked_model, tmp_path):
    folder, _ = masked_model
    assert run(sample.command, f"--workdir={folder}", "--num=2", f"--out={tmp_path}/x.npz", "--num_steps=3") == 0
    with np.load(tmp_path / "x.npz") as saved:
        assert saved["arr_0"].shape == (2, 64, 64, 3) and saved["arr_0"].std() > 1


def test_masked_models_come_out_bit_for_bit(masked_model, tmp_path):
    folder, arrays = masked_model
    targets = [f"--{option}={tmp_path}/{option}.safetensors" for option in arrays]
    assert run(convert.command, f"--workdir={folder}", *targets) == 0
    for option, expected in arrays.items():
        same(readers.read(tmp_path / f"{option}.safetensors"), expected)


@pytest.mark.slow
def test_half_precision_comes_out_as_it_went_in(tmp_path):
    arrays, described = stored("llamagen_vq16", "vq")
    arrays = {name: x.astype(jnp.bfloat16) for name, x in arrays.items()}
    safetensors_file.write(tmp_path / "vq.safetensors", arrays)
    files, models = {"weights": tmp_path / "vq.safetensors"}, {"vq": described | {"image_size": 32}}
    convert.convert("llamagen_vq", files, tmp_path / "run", models, {})
    same(workdirs.official_files(jaxar.load(tmp_path / "run"))["weights"], arrays)


@pytest.mark.slow
def test_a_converted_tokenizer_is_evaluated(tmp_path, capsys):
    arrays, described = stored("llamagen_vq16", "vq")
    safetensors_file.write(tmp_path / "vq.safetensors", arrays)
    arch = json.dumps({"vq": described | {"image_size": 32}})
    code = run(
        convert.command,
        "--arch=llamagen_vq",
        f"--arch_config={arch}",
        f"--weights={tmp_path}/vq.safetensors",
        f"--workdir={tmp_path}/run",
        "--data.name=glyphs",
        "--data.test_size=8",
    )
    assert code == 0
    capsys.readouterr()
    assert run(evaluate.command, f"--workdir={tmp_path}/run", "--reference=glyphs", "--batch_size=8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["psnr"] > 0


@pytest.fixture(scope="module")
def hmar(tmp_path_factory):
    """Official arrays of HMAR by option of the command, in files, and the architecture; the tokenizer's are random."""
    folder = tmp_path_factory.mktemp("hmar")
    fixture = fixtures.read(GOLDEN / "hmar_d2.safetensors")
    sizes = {"ch": 4, "ch_mult": (1, 2), "num_res_blocks": 1, "using_sa": False, "group_norm_groups": 2}
    models = {**fixture.models, "vae": {**fixture.models["vae"], **sizes}}
    tokenizer = base.family("hmar").describe(models).options["tokenizer"]
    rng = np.random.default_rng(0)
    drawn = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in tokenizer.shapes().items()}
    arrays = {"weights": fixture.weights("nsp"), "refiner": fixture.weights("mp")}
    arrays["tokenizer"] = tokenizer.table.to_official(drawn)
    for option, stored in arrays.items():
        safetensors_file.write(folder / f"{option}.safetensors", stored)
    return {option: folder / f"{option}.safetensors" for option in arrays}, arrays, models


@pytest.mark.slow
def test_hmar_samples_with_mask_passes_and_comes_out_bit_for_bit(hmar, tmp_path):
    files, arrays, models = hmar
    convert.convert("hmar", files, tmp_path / "run", models, {})
    opened = jaxar.load(tmp_path / "run")
    images = opened.sample([0, 1], mask_schedule=((1,), (1, 3)), top_k=5)
    assert images.shape == (2, 8, 8, 3) and images.std() > 1
    targets = {option: tmp_path / f"{option}.safetensors" for option in files}
    convert.export(tmp_path / "run", targets, None, None)
    for option, path in targets.items():
        same(readers.read(path), arrays[option])


@pytest.mark.slow
def test_hmar_without_its_mask_predictor_has_no_refiner(hmar, tmp_path):
    files, _, models = hmar
    convert.convert("hmar", {o: files[o] for o in ("weights", "tokenizer")}, tmp_path / "run", models, {})
    opened = jaxar.load(tmp_path / "run")
    assert sorted(opened.variables) == ["model", "tokenizer"] and opened.method.branch is None
    with pytest.raises(ConfigError, match="holds no refiner apart from its weights"):
        convert.export(tmp_path / "run", {"refiner": tmp_path / "x.safetensors"}, None, None)


def test_a_run_of_our_own_is_exported_under_our_names(ar_run, tmp_path):
    targets = [f"--export={tmp_path}/ar.safetensors", f"--tokenizer={tmp_path}/vq.safetensors"]
    assert run(convert.command, f"--workdir={ar_run}", *targets) == 0
    opened, found = jaxar.load(ar_run), safetensors_file.read(tmp_path / "ar.safetensors")
    kernel = opened.variables["model"]["params"]["stack"]["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(found["params/stack/layers/attention/query/kernel"], kernel)
    found = safetensors_file.read(tmp_path / "vq.safetensors")
    np.testing.assert_array_equal(found["params/codebook"], opened.variables["tokenizer"]["params"]["codebook"])


def test_published_names_have_the_published_sizes():
    """Parameters without buffers, to three digits; abstract, so that nothing is allocated."""
    sizes = {"var_d16": 310, "var_d30": 2010, "hmar_d16": 310, "hmar_d20": 600, "hmar_d24": 1033, "hmar_d30": 2010}
    sizes |= {"llamagen_b_256": 111, "llamagen_3b_384": 3096}
    sizes |= {"mar_base": 208, "mar_large": 479, "mar_huge": 943, "maskgit_imagenet256": 172.5}
    for name, expected in sizes.items():
        family, models = base.architectures()[name]
        part = base.family(family).describe(models).parts[0]
        millions = sum(np.prod(x.shape) for x in part.shapes().values()) / 1e6
        assert millions == pytest.approx(expected, rel=5e-3), name


VAR = "--arch=var --arch_config={in}/arch.json --workdir={out}/run "
MISTAKES = [
    ("--workdir={out}/run", "one of the arguments --arch --export is required"),
    ("--arch=mar_schedules --workdir={out}/run", "--arch=mar_schedules is a piece of other networks"),
    (
        '--arch=mar_base --arch_config={{"vae":{{"ch_mult":[1,1,2,2]}}}} --weights=x --workdir={out}/run',
        "mar.vae_stride=16, vae_embed_dim=16, but the stride of vae.ch_mult=.1, 1, 2, 2. is 8",
    ),
    (
        '--arch=maskgit_imagenet256 --arch_config={{"transformer":{{"codebook_size":512}}}} --workdir={out}/run',
        "transformer.vocab_size=2025 must be codebook_size=512",
    ),
    ("--arch=vra --workdir={out}/run", "unknown value of --arch 'vra'.*did you mean 'var'"),
    ("--arch=inception --weights=x.pth --workdir={out}/run", "--arch=inception is a piece of other networks"),
    ("--arch=var_d16 --workdir={out}/run", "--weights is missing: --arch=var_d16 needs the weights of 'var'"),
    (VAR + "--weights={in}/var.safetensors", "--tokenizer is missing: --arch=var needs the weights of 'vae'"),
    (VAR + "--weights={in}/absent.pth", "absent.pth is no file"),
    (VAR + "--weights={in}/vae.safetensors --tokenizer={in}/vae.safetensors", "vae.safetensors .var. does not fit"),
    (
        "--arch=var --arch_config={golden}/var_d2.json --weights={in}/var.safetensors --tokenizer={in}/vae.safetensors "
        "--workdir={out}/run",
        "the sizes of 'vae' are missing",
    ),
    (VAR + "--arch_config={in}/none.json", "none.json' is no JSON file"),
    ("--arch=var --arch_config={in}/flat.json --workdir={out}/run", "unknown network 'depth'; known: vae, var"),
    ("--arch=var_vqvae --workdir={in}/run --weights={in}/vae.safetensors", "vae.ch is missing"),
    (
        VAR + "--weights={in}/var.safetensors --tokenizer={in}/vae.safetensors --refiner={in}/vae.safetensors",
        "--refiner=.* --arch=var has no such network; remove it",
    ),
    ("--export={out}/x.pth --workdir={in}/run", "must end in .safetensors"),
    ("--export={out}/x.safetensors --weights=x --workdir={in}/run", "--export takes --workdir"),
    ("--export={out}/x.safetensors --workdir={out}/run", "does not exist"),
]


@pytest.mark.parametrize("line, message", MISTAKES)
def test_mistakes_are_one_line(line, message, converted, tmp_path, capsys):
    folder, _ = converted
    (folder / "flat.json").write_text('{"depth": 2}')
    places = {"in": folder, "out": tmp_path, "golden": GOLDEN}
    capsys.readouterr()
    assert run(convert.command, *line.format(**places).split()) == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_a_workdir_is_never_overwritten(converted):
    folder, _ = converted
    files = {"weights": folder / "var.safetensors", "tokenizer": folder / "vae.safetensors"}
    models = json.loads((folder / "arch.json").read_text())
    with pytest.raises(ConfigError, match="holds a run already"):
        convert.convert("var", files, folder / "run", models, {})
