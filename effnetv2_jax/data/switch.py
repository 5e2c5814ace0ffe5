"""A choice between functions that costs only the one that is chosen."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def switch(
    index: tf.Tensor, branches: Sequence[Callable[..., tf.Tensor]], *operands: tf.Tensor
) -> tf.Tensor:
    """Calls ``branches[index]`` with the operands.

    ``tf.switch_case`` takes the branches apart into the graph around them, whose executor then
    visits every operation of every branch for every image, if only to find that it is dead.

    Args:
        index: int32 []; the last branch is taken where it is out of range.
        branches: stateless functions of the operands alone, with results of one dtype and rank.
        operands: tensors.

    Returns:
        The branch's result; its static shape is what all branches agree on.
    """
    if tf.executing_eagerly():
        number = int(index)
        return branches[number if 0 <= number < len(branches) else -1](*operands)
    signature = [tf.TensorSpec(operand.shape, operand.dtype) for operand in operands]
    functions = [
        tf.function(branch, autograph=False).get_concrete_function(*signature)
        for branch in branches
    ]
    shape = functions[0].outputs[0].shape
    for function in functions[1:]:
        shape = shape.most_specific_compatible_shape(function.outputs[0].shape)
    (result,) = tf.raw_ops.StatelessCase(
        branch_index=index,
        input=list(operands),
        Tout=[functions[0].outputs[0].dtype],
        branches=functions,
        output_shapes=[shape],
    )
    return tf.ensure_shape(result, shape)
