"""Multi-scale tokenizer of 8x8 digits: 30 tokens on scales 1, 2, 3 and 4 out of 256 codes.

Command: python -m jaxar.train --config=configs/multiscale_vq_digits.py --workdir=out/multiscale_vq_digits
Cost: two minutes on one CPU core.
Expected: 25.0 dB PSNR and rfd_digits 0.61 on the test images.

An argument chooses another quantizer, as in configs/vq_digits.py.
"""

import vq_digits


def get_config(arg: str = ""):
    config = vq_digits.get_config(arg)
    config.tokenizer.name = "multiscale_vq"
    if config.tokenizer.quantizer.name == "l2_vq":
        config.tokenizer.quantizer.name = "vq"
    if arg == "fsq":  # without this loss nothing ties the sum of the maps to the features
        config.tokenizer.quantizer.beta = 0.25
    del config.tokenizer["latent_channels"]
    config.tokenizer.scales = (1, 2, 3, 4)
    return config
