"""``keras.applications`` as a contender, on TensorFlow or JAX; run by ``worker``."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

CLASSES = 1000
BACKEND = keras.backend.backend()

# Variables stay float32 in training, as ours do.
POLICIES = {
    "float32": {"training": "float32", "inference": "float32"},
    "bfloat16": {"training": "mixed_bfloat16", "inference": "bfloat16"},
}

Steps = Callable[[int], None]


def facts() -> dict[str, Any]:
    """Returns the platform, the device and the versions."""
    versions = {"keras": keras.__version__}
    if BACKEND == "jax":
        import jax

        device = jax.devices()[0]
        platform, kind = device.platform, device.device_kind
        versions["jax"] = jax.__version__
    else:
        import tensorflow as tf

        accelerators = [d for d in tf.config.list_logical_devices() if d.device_type != "CPU"]
        platform = accelerators[0].device_type.lower() if accelerators else "cpu"
        kind = platform
        versions["tensorflow"] = tf.__version__
    return {"platform": platform, "device": kind, "versions": versions}


def prepare(
    what: str, *, model: str, image_size: int, batch_size: int, dtype: str, threads: int
) -> dict[str, Callable[[], Steps]]:
    """Returns the ways of running it: functions that make a function that runs some steps.

    They share one network, which the first builds and compiles.
    """
    keras.config.set_dtype_policy(POLICIES[dtype][what])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, image_size, image_size, 3), np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, batch_size)]
    network = functools.cache(lambda: _network(model, image_size))
    if what == "training":
        return {
            "train_on_batch": lambda: _repeat(network().train_on_batch, images, labels),
            "fit": lambda: _fit(network(), images, labels),
        }
    call = {"jax": ("jax.jit", _jax_call), "tensorflow": ("tf.function", _tensorflow_call)}
    name, make = call[BACKEND]
    return {
        name: lambda: make(network(), images),
        "predict_on_batch": lambda: _repeat(network().predict_on_batch, images),
    }


def _network(model: str, image_size: int):
    build = getattr(keras.applications, model)
    # The first generation always begins with its preprocessing.
    has_switch = "include_preprocessing" in inspect.signature(build).parameters
    network = build(
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
        input_shape=(image_size, image_size, 3),
        **({"include_preprocessing": False} if has_switch else {}),
    )
    network.compile(
        optimizer=keras.optimizers.RMSprop(
            1e-4, rho=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    return network


def _repeat(method: Callable, *arguments: np.ndarray) -> Steps:
    """Makes the steps of a method that returns NumPy arrays, and so waits for them."""

    def steps(number: int) -> None:
        for _ in range(number):
            method(*arguments)

    return steps


def _fit(network, images: np.ndarray, labels: np.ndarray) -> Steps:
    if BACKEND == "tensorflow":
        import tensorflow as tf

        forever = tf.data.Dataset.from_tensors((images, labels)).repeat()
        return lambda number: network.fit(forever, steps_per_epoch=number, verbose=0)

    class Batches(keras.utils.PyDataset):
        def __init__(self, number: int):
            super().__init__()
            self.number = number

        def __len__(self) -> int:
            return self.number

        def __getitem__(self, index: int):
            return images, labels

    return lambda number: network.fit(Batches(number), verbose=0)


def _tensorflow_call(network, images: np.ndarray) -> Steps:
    import tensorflow as tf

    infer = tf.function(lambda images: network(images, training=False))
    batch = tf.constant(images)

    def steps(number: int) -> None:
        for _ in range(number):
            logits = infer(batch)
        logits.numpy()

    return steps


def _jax_call(network, images: np.ndarray) -> Steps:
    import jax

    @jax.jit
    def infer(trainable, rest, images):
        return network.stateless_call(trainable, rest, images, training=False)[0]

    batch = jax.device_put(images)

    def steps(number: int) -> None:
        # Read again, as predict_on_batch puts other arrays in their place.
        kinds = (network.trainable_variables, network.non_trainable_variables)
        state = [[variable.value for variable in variables] for variables in kinds]
        for _ in range(number):
            logits = infer(*state, batch)
        jax.block_until_ready(logits)

    return steps
