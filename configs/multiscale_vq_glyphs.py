"""Multi-scale tokenizer of 32x32 colour glyphs: 130 tokens on scales 1 to 8 out of 1024 codes.

Command: python -m jaxar.train --config=configs/multiscale_vq_glyphs.py --workdir=out/multiscale_vq_glyphs
Cost: 20,000 steps of 64 images; not timed.
Expected: not measured.
"""

import vq_glyphs


def get_config(arg: str = ""):
    config = vq_glyphs.get_config(arg)
    config.tokenizer.name = "multiscale_vq"
    del config.tokenizer["latent_channels"]
    config.tokenizer.scales = (1, 2, 3, 4, 6, 8)
    config.tokenizer.quantizer.update({"name": "vq", "channels": 16})
    return config
