"""Names and shapes from a spec are those of the model that is built from it."""

import jax
import pytest
from flax import nnx

from effnetv2_jax.models import create_model, get_spec
from effnetv2_jax.weights import layout

# Every kind of network and block: with and without expansion, SE, fusion; scaled and not.
MODELS = [
    "efficientnetv2-tiny",
    "efficientnetv2-b2",
    "efficientnet-b3",
    "efficientnet-lite1",
    "efficientnet-b4-fused-1-5",
    "efficientnetv2-rw-t",
    "deit-ti",
    "vit-b-32",
]


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_the_model(name, num_classes=3):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=num_classes))
    shapes = {name: leaf.shape for name, leaf in layout.variables(model).items()}
    assert layout.shapes(get_spec(name), num_classes) == shapes


def test_without_a_classifier():
    test_shapes_are_those_of_the_model("efficientnetv2-tiny", num_classes=0)


def test_tensors_are_the_models(tiny_model):
    tensors = layout.tensors(tiny_model)
    assert tensors["blocks.1.expand.norm.var"] is tiny_model.blocks[1].expand.norm.var[...]
    leaves = jax.tree.leaves(nnx.state(tiny_model, (nnx.Param, nnx.BatchStat)))
    assert len(tensors) == len(leaves)
