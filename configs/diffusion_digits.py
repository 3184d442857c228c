"""DiT's denoising diffusion over the pixels of 8x8 digits: a transformer over 16 patches, 0.7M parameters.

python -m jaxar.train --config=configs/diffusion_digits.py --workdir=out/diffusion_digits

Cost: about 8 minutes on one CPU core that other work shares.
Expected: fd_digits 3.3 in 20 calls (floor 0.86), class consistency 98 %.
"""

import flow_digits
from common import check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = flow_digits.get_config(arg)
    config.method = {"name": "diffusion"}
    config.sample = {"solver": "dpm_solver", "respacing": "20", "guidance_scale": 1.5, "clip": True}
    if arg == "smoke":
        config.sample.respacing = "5"
    return config
