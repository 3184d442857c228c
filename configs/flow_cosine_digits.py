"""Flow matching over the pixels of 8x8 digits on the path of constant variance, the teacher of configs/scm_digits.py.

    python -m jaxar.train --config=configs/flow_cosine_digits.py --workdir=out/flow_cosine_digits

As configs/flow_digits.py.

Cost: about seven minutes on one CPU core that other work shares.
Expected: fd_digits 2.7 (floor 0.86), class consistency 99 %.
"""

import flow_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = flow_digits.get_config(arg)
    config.method.path = "cosine"
    return config
