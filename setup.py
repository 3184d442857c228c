"""Install requirements and extras; the package itself holds no build logic."""

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "tensorflow-datasets>=4.9.10",
    "ml-collections>=1.1.0",
    "dm-pix>=0.4.4",
    "array-record>=0.8.3",
    "grain>=0.2.18",
    "jaxtyping>=0.3.2",
    "numpy>=2.1",
    "pillow>=11",
    "rich>=14",
    "safetensors>=0.6",
    "scikit-learn>=1.6",
    "scipy>=1.14",
    "tensorboardX>=2.6.4",
]
NOTEBOOKS = ["ipykernel>=6.29", "jupytext>=1.16", "matplotlib>=3.10", "nbclient>=0.10"]

setup(
    name="jaxar",
    version="0.1.0",
    description="Autoregressive, masked-AR and distilled image generation in JAX",
    license="Apache-2.0",
    packages=find_packages(include=["jaxar", "jaxar.*"]),
    package_data={"jaxar": ["metrics/weights/*"]},
    python_requires=">=3.11",
    install_requires=[*CORE, "matplotlib>=3.10"],
    extras_require={
        "gpu": ["jax[cuda12]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "notebooks": NOTEBOOKS,
        "test": [*NOTEBOOKS, "beartype>=0.20", "pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.9"],
    },
)
