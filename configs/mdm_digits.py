"""Masked diffusion over the tokens of 8x8 digits: 0.48M parameters, sixteen network calls per image.

    python -m jaxar.train --config=configs/mdm_digits.py --workdir=out/mdm_digits

Needs the tokenizer of configs/vq_digits.py in out/vq_digits.
Cost: about eight minutes on one CPU core that other work shares.
Expected: fd_digits 2.9 (floor 0.86), class consistency 99 %.
"""

import maskgit_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = maskgit_digits.get_config(arg)
    config.method = {"name": "mdm"}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.9}
    return config
