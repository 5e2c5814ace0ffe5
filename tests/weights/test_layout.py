"""The tensors that are read off a module under a trace are those of a model that is built."""

import jax
import pytest
from flax import nnx

from effnetv2_jax.models import abstract_model, get_spec
from effnetv2_jax.weights import layout


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("efficientnetv2-tiny", 3),
        ("efficientnetv2-tiny", 0),
        ("efficientnet-b3", 3),
        ("deit-ti", 3),
    ],
)
def test_shapes_are_those_of_the_model(name, num_classes):
    model = abstract_model(name, num_classes=num_classes)
    shapes = {name: leaf.shape for name, leaf in layout.variables(model).items()}
    tensors = layout.tensors(get_spec(name), num_classes)
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


def test_roles_and_the_order_from_the_image_to_the_classifier():
    tensors = layout.tensors(get_spec("efficientnetv2-tiny"), 3)
    norm = (("scale", "scale"), ("bias", "shift"), ("mean", "mean"), ("var", "var"))
    assert [(name, tensor.role) for name, tensor in tensors.items() if "blocks.2" in name] == [
        (f"blocks.2.{name}", role)
        for layer, kernel in (("expand", "conv"), ("depthwise", "depthwise"))
        for name, role in (
            (f"{layer}.conv.kernel", kernel),
            *((f"{layer}.norm.{part}", role) for part, role in norm),
        )
    ] + [
        ("blocks.2.se.reduce.kernel", "conv"),
        ("blocks.2.se.reduce.bias", "bias"),
        ("blocks.2.se.expand.kernel", "conv"),
        ("blocks.2.se.expand.bias", "bias"),
        ("blocks.2.project.conv.kernel", "conv"),
        *((f"blocks.2.project.norm.{part}", role) for part, role in norm),
    ]
    assert next(iter(tensors)) == "stem.conv.kernel"
    assert list(tensors.items())[-2][1] == layout.Tensor((64, 3), "dense")


def test_variables_are_the_models(tiny_model):
    variables = layout.variables(tiny_model)
    found = variables["blocks.1.expand.norm.var"][...]
    assert found is tiny_model.blocks[1].expand.norm.var[...]
    leaves = jax.tree.leaves(nnx.state(tiny_model, (nnx.Param, nnx.BatchStat)))
    assert len(variables) == len(leaves)
