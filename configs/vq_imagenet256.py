"""VQ tokenizer of ImageNet at 256 pixels, LlamaGen's stride-16 recipe: 256 tokens out of 16,384 codes, 72M parameters.

Command: python -m jaxar.train --config=configs/vq_imagenet256.py --workdir=DIR --config.data.root=IMAGENET
  The published recipe also has a perceptual loss, whose weights must be at hand:
  --config.method.perceptual.weight=1.0 --config.method.perceptual.weights=LPIPS_VGG16.safetensors
Cost: 40 epochs of ImageNet; not timed.
Expected: with the perceptual loss, rFID 2.19 on the validation images (published; not repeated here).
"""

from common import base, check_argument


def get_config(arg: str = ""):
    check_argument(arg, "smoke")
    config = base()
    config.data = {"name": "imagenet", "image_size": 256, "crop": "random"}
    config.tokenizer = {"name": "vq", "dtype": "bfloat16"}
    config.method = {"name": "autoencoder", "l2": 1.0, "adversarial": {"weight": 0.5, "start": 20_000}}
    config.optim = {
        "learning_rate": 1e-4,
        "schedule": {"name": "constant"},
        "b2": 0.95,
        "weight_decay": 0.0,
        "ema": (0.9999,),
    }
    config.train = {"num_steps": 400_000, "batch_size": 128, "checkpoint_every": 5_000}  # 40 epochs
    config.eval = {"every": 10_000, "max_batches": 40, "batch_size": 128, "sample_every": 10_000, "ema": "0.9999"}
    if arg == "smoke":
        config.data = {"name": "glyphs", "image_size": 32, "train_size": 64, "test_size": 16}
        config.tokenizer.update({"quantizer": {"name": "l2_vq", "vocab_size": 16}, "latent_channels": 8})
        config.tokenizer.stack = {"channels": 8, "multipliers": (1, 1, 2), "num_res_blocks": 1, "groups": 4}
        config.model = {"channels": 8, "num_layers": 2, "groups": 4}
        config.method.adversarial.start = 1
        config.train.update({"num_steps": 2, "batch_size": 8})
        config.eval.update({"every": 2, "sample_every": 2, "max_batches": 1, "batch_size": 8, "grid": 8})
    return config
