"""KL autoencoder of ImageNet at 256 pixels, MAR's stride-16 sizes: 256 tokens of 16 values, 66.5M parameters.

Command: python -m jaxar.train --config=configs/kl_imagenet256.py --workdir=out/kl_imagenet256 \\
      --config.data.root=IMAGENET
  The published recipe also has a perceptual loss, whose weights must be at hand:
  --config.method.perceptual.weight=1.0 --config.method.perceptual.weights=LPIPS_VGG16.safetensors
Cost: 40 epochs of ImageNet; time not measured, no accelerator was at hand.
Expected: not known for this recipe. With the official weights, which are not shipped, `latent_scale` is 0.2325; train
  with another scale if the metric `latent_std` is far from 4.3.
"""

from common import base, check_argument
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "image_size": 256, "crop": "random"}
    config.tokenizer = {"name": "kl", "dtype": "bfloat16"}
    config.method = {"name": "autoencoder", "l1": 1.0, "l2": 0.0, "adversarial": {"weight": 0.5, "start": 50_000}}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant"},
        "b1": 0.5,
        "b2": 0.9,
        "weight_decay": 0.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 400_000, "batch_size": 128, "checkpoint_every": 5_000}  # 40 epochs
    config.eval = {"every": 10_000, "max_batches": 40, "batch_size": 128, "sample_every": 10_000, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs", "image_size": 32, "train_size": 64, "test_size": 16}
        config.tokenizer.latent_channels = 4
        config.tokenizer.stack = {"channels": 8, "multipliers": (1, 1, 2), "num_res_blocks": 1, "groups": 4}
        config.model = {"channels": 8, "num_layers": 2, "groups": 4}
        config.method.adversarial.start = 1
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1, "batch_size": 8, "grid": 8})
    return config
