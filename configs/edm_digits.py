"""EDM over the pixels of 8x8 digits: a U-Net with attention over the 4x4 maps, 0.8M parameters.

    python -m jaxar.train --config=configs/edm_digits.py --workdir=out/edm_digits

The argument `dit` trains the transformer of configs/flow_digits.py in its place.

Cost: about 16 minutes on one CPU core that other work shares.
Expected: fd_digits 1.6 (floor 0.86), class consistency 100 %.
"""

import flow_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke", "dit")
    config = flow_digits.get_config("" if arg == "dit" else "unet")
    config.method = {"name": "edm"}
    config.sample = {"num_steps": 18, "guidance_scale": 1.5}
    if arg == "smoke":
        config.model.update({"channels": 16, "num_heads": 2})
        config.sample.num_steps = 3
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval = {}
    return config
