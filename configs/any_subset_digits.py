"""Any-subset autoregression over the tokens of 8x8 digits: 0.50M parameters, at most sixteen network calls per image.

    python -m jaxar.train --config=configs/any_subset_digits.py --workdir=out/any_subset_digits

Needs the tokenizer of configs/vq_digits.py in out/vq_digits.

Cost: about 23 minutes on one CPU core that other work shares.
Expected: fd_digits 1.9 in 16 calls (floor 0.86), class consistency 97 %.
"""

import maskgit_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = maskgit_digits.get_config(arg)
    config.method = {"name": "any_subset"}
    config.sample = {"guidance_scale": 1.5, "temperature": 0.9}
    return config
