"""ONNX, by ``jax2onnx``."""

import json
import logging
import pathlib

import jax

from effnetv2_jax.exporting.program import LABELS_FILE, Program

OPSET = 21


def write(program: Program, path: pathlib.Path) -> None:
    """Writes the program. The model's metadata has the class names as a JSON list."""
    # It says at every import which of its own examples it cannot import.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    import onnx
    from jax2onnx import to_onnx

    batch_size = "batch" if program.batch_size is None else program.batch_size
    model = to_onnx(
        program.logits,
        inputs=[jax.ShapeDtypeStruct((batch_size, *program.shape[1:]), program.dtype)],
        model_name="effnetv2_jax",
        opset=OPSET,
        input_names=["images"],
        output_names=["logits"],
    )
    onnx.helper.set_model_props(model, {LABELS_FILE: json.dumps(program.class_names)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
