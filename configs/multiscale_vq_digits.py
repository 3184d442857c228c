"""Multi-scale tokenizer of 8x8 digits: 21 tokens on scales 1, 2 and 4 out of 256 codes.

Command: python -m jaxar.train --config=configs/multiscale_vq_digits.py --workdir=out/multiscale_vq_digits
Cost: TODO
Expected: TODO
"""

import vq_digits


def get_config(arg: str = ""):
    config = vq_digits.get_config(arg)
    config.tokenizer.name = "multiscale_vq"
    del config.tokenizer["latent_channels"]
    config.tokenizer.scales = (1, 2, 4)
    config.tokenizer.num_phi = 3
    return config
