"""The table of formats. A new one is a file with ``write`` and a line here."""

import dataclasses
from collections.abc import Callable

from effnetv2_jax.exporting import onnx, savedmodel, stablehlo, tflite

NONE = "none"
QUANTIZATIONS = (NONE, "float16", "int8")
"""The numbers of a quantised artefact; ``none`` is float32."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that networks are exported to.

    Attributes:
        file: The artefact's name in its folder.
        write: Writes a ``Program`` to a path. If the format can be quantised, it takes
            ``quantize`` and ``calibration`` too, see ``tflite.write``.
        modules: The modules that writing and checking it takes, beside ``[train]``.
        runtime: The package that runs it, as ``pip`` names it.
        neutral: Traces ``kernels.platforms.neutral_platform``, whose plain operations converters
            know. The others keep the operations that are fast on each platform.
        any_batch: Takes any number of images per call.
        quantizations: The names in ``QUANTIZATIONS`` that it can be written with.
        appended: The file ends with a ZIP of what lies beside it, which its readers pass over.
    """

    file: str
    write: Callable[..., None]
    modules: tuple[str, ...]
    runtime: str
    neutral: bool
    any_batch: bool = True
    quantizations: tuple[str, ...] = (NONE,)
    appended: bool = False


FORMATS = {
    "stablehlo": Format(
        "model.stablehlo", stablehlo.write, (), "jax", neutral=False, appended=True
    ),
    "onnx": Format(
        "model.onnx",
        onnx.write,
        ("onnx", "onnx_ir", "onnxruntime", "equinox", "einops", "jax2onnx"),
        "onnxruntime",
        neutral=True,
    ),
    "tflite": Format(
        "model.tflite",
        tflite.write,
        ("tensorflow", "ai_edge_litert"),
        "ai-edge-litert",
        neutral=True,
        any_batch=False,
        quantizations=QUANTIZATIONS,
        appended=True,
    ),
    "savedmodel": Format(
        "saved_model", savedmodel.write, ("tensorflow",), "tensorflow-cpu", neutral=False
    ),
}
"""All formats by name."""
