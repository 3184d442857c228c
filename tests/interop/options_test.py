"""Official options that no fixture has: every array goes to ours and back, bit for bit."""

import numpy as np
import pytest

from jaxar.config import ConfigError
from jaxar.interop import base

TINY = {"input_size": 4, "hidden_size": 8, "depth": 2, "num_heads": 2, "num_classes": 3, "in_channels": 4}
DECODER = {"ddconfig": {"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "resolution": 8}}
CASES = {
    "dit without null class, with the autoencoder": (
        "dit",
        {"dit": TINY | {"class_dropout_prob": 0.0}, "vae": {"ch": 4, "num_res_blocks": 1, "group_norm_groups": 2}},
    ),
    "sit without variances": (
        "sit",
        {"sit": TINY | {"learn_sigma": False, "patch_size": 1}},
    ),
    "simvq": ("simvq", {"vq": {**DECODER, "quantconfig": {"n_e": 5, "e_dim": 3}, "group_norm_groups": 2}}),
}


@pytest.mark.parametrize("family, models", CASES.values(), ids=CASES)
def test_official_arrays_come_back_bit_for_bit(family, models):
    rng = np.random.default_rng(0)
    official = base.family(family).describe(models)
    assert [part.model for part in official.parts] == list(models)
    for part in official.parts:
        shapes = {path: x.shape for path, x in part.shapes().items()}
        names = {name: s for entry in part.table.entries for name, s in entry.official_shapes(shapes).items()}
        arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
        back = part.to_official(part.to_variables(arrays, "arrays"))
        assert back.keys() == arrays.keys()
        assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_the_legacy_losses_of_simvq_are_the_weights_swapped():
    _, models = CASES["simvq"]
    assert _weights(models) == (0.25, 1.0)
    models["vq"]["quantconfig"] = {"n_e": 5, "e_dim": 3, "beta": 0.5, "legacy": False}
    assert _weights(models) == (1.0, 0.5)


def _weights(models):
    quantizer = base.family("simvq").describe(models).ours.config.quantizer
    return quantizer.codebook_weight, quantizer.beta


def test_options_that_contradict_each_other_are_named():
    with pytest.raises(ConfigError, match=r"vq.ddconfig.z_channels=3 and quantconfig.e_dim=4 must agree"):
        base.family("simvq").describe({"vq": {**DECODER, "quantconfig": {"n_e": 5, "e_dim": 4}}})
    with pytest.raises(ConfigError, match="dit.in_channels=3, but the latents of 'vae' have 4"):
        base.family("dit").describe({"dit": TINY | {"in_channels": 3}, "vae": {}})
