"""VAR-d36 with shared adaLN (2.3 billion parameters) on ImageNet 512x512, ten scales of a 4096-code VQ, 2,240 tokens.

    python -m jaxar.train --config=configs/next_scale_imagenet512.py --workdir=out/next_scale_imagenet512 \\
        --config.data.root=IMAGENET

Needs a tokenizer in out/multiscale_vq_imagenet512. The recipe is that of configs/next_scale_imagenet256.py; the
published one of this size is not known. Official weights: VAR's var_d36.pth with vae_ch160v4096z32.pth. To judge them:

    python -m jaxar.convert --arch=var_d36_s --weights=var_d36.pth --tokenizer=vae_ch160v4096z32.pth --workdir=DIR
    python -m jaxar.evaluate --workdir=DIR --reference=REFERENCE.npz --inception=WEIGHTS --num=50000

Published FID-50K: 2.63 (not repeated here).
"""

import next_scale_imagenet256
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = next_scale_imagenet256.get_config(arg)
    config.tokenizer = {"from_": "out/multiscale_vq_imagenet512"}
    config.model.shared_adaln = True
    if arg != "smoke":
        config.data.image_size = 512
        config.model.update({"num_layers": 36, "width": 36 * 64, "num_heads": 36, "gate_init": 1e-5})
        config.model.update({"drop_path": 0.1 * 36 / 24, "remat": "full"})
        config.optim.learning_rate = 2.4e-4
    return config
