"""JAX's transformations and debugging flags, and NNX's modes and tables, on the tiny network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from effnetv2_jax.models import EfficientNet, create_model, fold_batch_norm, get_spec
from effnetv2_jax.models.layers import BatchNorm
from effnetv2_jax.training import mesh as meshes
from effnetv2_jax.training.optimizers import make_optimizer
from effnetv2_jax.training.state import create_state, functional
from effnetv2_jax.training.step import make_train_step, stage_scalars

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


def new_model(**arguments):
    return create_model("efficientnetv2-tiny", num_classes=3, **arguments)


@functools.cache
def network():
    """Returns the pure function, parameters and statistics of one network for all tests."""
    return functional(new_model())


def loss(params, images=IMAGES):
    apply, _, batch_stats = network()
    logits, _ = apply(params, batch_stats, images, train=True, key=jax.random.key(1))
    return jnp.square(logits).mean()


@functools.cache
def gradient():
    return jax.jit(jax.grad(loss))


def parameters():
    return network()[1]


def direction():
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), parameters())


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_trees_close(ours, expected, tolerance=1e-5):
    """Compares norms: gradients of a bias before a batch norm are nothing but rounding."""
    difference = jax.tree.map(jnp.subtract, ours, expected)
    assert dot(difference, difference) ** 0.5 < tolerance * dot(expected, expected) ** 0.5


# --- Derivatives ---


def test_forward_mode_is_the_gradient_along_a_direction():
    @jax.jit
    def forward(params, along):
        _, derivative = jax.jvp(loss, (params,), (along,))
        return derivative, jax.linearize(loss, params)[1](along)

    expected = dot(gradient()(parameters()), direction())
    np.testing.assert_allclose(forward(parameters(), direction()), expected, rtol=1e-4)


def test_a_hessian_vector_product_is_the_difference_of_gradients():
    @jax.jit
    def product(params, along):
        return jax.jvp(jax.grad(loss), (params,), (along,))[1]

    size = 1e-4
    steps = jax.tree.map(lambda v: size * v, direction())
    there, back = (
        gradient()(jax.tree.map(move, parameters(), steps)) for move in (jnp.add, jnp.subtract)
    )
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * size), there, back)
    found = product(parameters(), direction())
    assert_trees_close(found, expected, 1e-2)


def test_jacobians_by_both_modes_are_equal():
    apply, params, batch_stats = network()

    def logits(scale):
        norm = params["stem"]["norm"] | {"scale": scale}
        changed = params | {"stem": params["stem"] | {"norm": norm}}
        return apply(changed, batch_stats, IMAGES[:1], train=False)[0]

    scale = params["stem"]["norm"]["scale"]
    ours, expected = jax.jit(lambda x: (jax.jacfwd(logits)(x), jax.jacrev(logits)(x)))(scale)
    assert_trees_close(ours, expected)


def test_checkpoint_and_the_gradient_of_a_batched_loss_are_the_gradient():
    @jax.jit
    def gradients(params):
        batched = jax.vmap(loss, (None, 0))
        return (
            jax.grad(jax.checkpoint(loss))(params),
            jax.grad(lambda params: batched(params, IMAGES[None]).sum())(params),
        )

    for ours in gradients(parameters()):
        assert_trees_close(ours, gradient()(parameters()), 1e-4)


# --- Batches of images, steps and networks ---


def test_vmap_and_scan_are_a_loop_over_batches():
    apply, params, batch_stats = network()
    batches = np.stack([IMAGES, IMAGES[::-1]])

    def logits(images):
        return apply(params, batch_stats, images, train=False)[0]

    @jax.jit
    def both(batches):
        _, scanned = lax.scan(lambda _, images: (None, logits(images)), None, batches)
        return jax.vmap(logits)(batches), scanned

    expected = np.stack([jax.jit(logits)(images) for images in batches])
    for ours in both(batches):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_an_ensemble_is_its_networks():
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs):
        return new_model(rngs=rngs)

    ensemble = make(nnx.Rngs(0))
    logits = nnx.jit(nnx.vmap(lambda model, images: model(images), in_axes=(0, None)))
    found = logits(ensemble, IMAGES)
    graphdef, state = nnx.split(ensemble)
    for number, ours in enumerate(found):
        alone = nnx.merge(graphdef, jax.tree.map(lambda x, n=number: x[n], state))
        np.testing.assert_allclose(ours, nnx.jit(type(alone).__call__)(alone, IMAGES), atol=1e-6)
    assert not np.array_equal(*found)


# --- Flags of JAX ---


def trace_training(optimizer, **arguments):
    """Traces a whole training step and an evaluation, without compiling them."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    apply, params, batch_stats = functional(new_model(axis_name=meshes.AXES, **arguments))
    optimizer = make_optimizer(
        optimizer, optax.constant_schedule(0.1), weight_decay=1e-5, clip_norm=1.0
    )
    state = jax.eval_shape(lambda *trees: create_state(*trees, optimizer), params, batch_stats)
    normalized = {"mean": (128.0,) * 3, "std": (128.0,) * 3}
    step = make_train_step(
        apply, optimizer, mesh=mesh, num_classes=3, label_smoothing=0.1, mixing=True, **normalized
    )
    batch = {
        "image": jax.ShapeDtypeStruct(IMAGES.shape, np.uint8),
        "label": jax.ShapeDtypeStruct((4, 2), np.int32),
        "mask": jax.ShapeDtypeStruct((4,), np.float32),
    }
    step.lower_gradients(state, batch, stage_scalars())
    finite = jax.ShapeDtypeStruct((), jnp.float32)
    new_state = step.update.trace(state, state.params, state.batch_stats, finite).out_info
    jax.eval_shape(lambda x: apply(params, batch_stats, x, train=False), IMAGES)
    return state, new_state


@pytest.mark.parametrize("arguments", [{}, {"dtype": jnp.bfloat16, "remat": "stages"}])
def test_nothing_relies_on_rank_promotion(arguments):
    with jax.numpy_rank_promotion("raise"):
        trace_training("rmsprop", **arguments)
        nnx.eval_shape(lambda: fold_batch_norm(new_model())(jnp.asarray(IMAGES)))
        vit = create_model("deit-ti", eval_size=16, depth=1, num_classes=3)
        nnx.eval_shape(lambda vit: vit(jnp.asarray(IMAGES)), vit)


def test_no_tracer_leaks():
    with jax.checking_leaks():
        jax.make_jaxpr(loss)(parameters())


def test_64_bits_leave_the_dtypes_and_what_is_drawn_alone():
    expected = new_model(rngs=nnx.Rngs(0)).stem.conv.kernel[...]
    with jax.enable_x64(True):
        state, new_state = trace_training("adamw")
        found = new_model(rngs=nnx.Rngs(0)).stem.conv.kernel[...]
    dtypes = {x.dtype for x in jax.tree.leaves((state, new_state))}
    assert dtypes == {np.dtype(np.int32), np.dtype(np.float32)}
    np.testing.assert_array_equal(found, expected)


def test_without_jit_it_computes_the_same():
    model = new_model()
    expected = nnx.jit(type(model).__call__)(model, IMAGES[:1])
    with jax.disable_jit():
        found = model(jnp.asarray(IMAGES[:1]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_debugging_of_nans_finds_those_of_the_images_and_no_others():
    with jax.debug_nans(True):
        gradient()(parameters())
        with pytest.raises(FloatingPointError):
            jax.jit(loss)(parameters(), np.full_like(IMAGES, np.nan))


# --- Modes and tables of NNX ---


def moving(model, **arguments) -> set[str]:
    """Returns the parts of a model whose statistics one call in training moves."""
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @nnx.jit
    def train(model, images):
        model(images, **arguments)

    train(model, IMAGES)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    return {
        name
        for name in before
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, before[name], after[name])))
    }


class Plain(nnx.Module):
    """A network of Flax's own layers with parts of the same names."""

    def __init__(self):
        for name in ("stem", "blocks", "head"):
            setattr(self, name, nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0)))

    def __call__(self, x, train=None):
        mode = None if train is None else not train
        for layer in (self.stem, self.blocks, self.head):
            x = layer(x, use_running_average=mode)
        return x


FREEZE = {
    "nothing": lambda model, norm: None,
    "the stem": lambda model, norm: model.stem.eval(),
    "every batch norm": lambda model, norm: [
        part.eval() for _, part in nnx.iter_modules(model) if isinstance(part, norm)
    ],
    "by attribute": lambda model, norm: model.set_attributes(norm, use_running_average=True),
}


@pytest.mark.parametrize("what", FREEZE)
def test_frozen_statistics_stay_as_in_a_network_of_flax(what):
    found = []
    for model, norm in ((new_model(), BatchNorm), (Plain(), nnx.BatchNorm)):
        model.train()
        FREEZE[what](model, norm)
        found.append(moving(model))
    assert found[0] == found[1]
    assert len(found[0]) == {"nothing": 3, "the stem": 2}.get(what, 0)


def test_the_argument_counts_more_than_the_modes():
    model = new_model()
    model.train()
    model.stem.eval()
    assert moving(model, train=True) == {"stem", "blocks", "head"}
    assert moving(model, train=False) == set()


def test_a_frozen_block_stays_in_training_steps_and_in_loops():
    """Blocks 4 and 5 are one loop, and the step's ``train=True`` leaves frozen what is frozen."""
    spec = get_spec("efficientnetv2-tiny")
    groups = tuple(dataclasses.replace(group, repeats=3) for group in spec.groups)
    found = []
    for arguments in ({}, {"remat": "stages", "scan_blocks": True}):
        spec = dataclasses.replace(spec, groups=groups)
        model = EfficientNet(spec, num_classes=3, rngs=nnx.Rngs(0), **arguments)
        model.train()
        model.blocks[5].eval()
        apply, params, batch_stats = functional(model)
        train = jax.jit(functools.partial(apply, train=True))
        logits, moved = train(params, batch_stats, IMAGES, key=jax.random.key(0))
        same = jax.tree.map(np.array_equal, batch_stats["blocks"], moved["blocks"])
        assert [all(jax.tree.leaves(same[i])) for i in range(9)] == [i == 5 for i in range(9)]
        found.append((logits, moved))
    for ours, expected in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_gradients_pass_a_frozen_batch_norm():
    x = jnp.asarray(IMAGES)
    ours, theirs = BatchNorm(3), nnx.BatchNorm(3, epsilon=1e-3, rngs=nnx.Rngs(0))
    for norm in (ours, theirs):
        norm.mean.set_value(jnp.array([0.1, 0.2, 0.3]))
        norm.var.set_value(jnp.array([0.5, 1.0, 2.0]))
        norm.train()
        norm.eval()

    def gradients(norm):
        def value(norm, x):
            return jnp.sin(jnp.asarray(norm(x))).sum()

        by_norm, by_x = nnx.grad(value, argnums=(0, 1))(norm, x)
        return by_norm["scale"][...], by_norm["bias"][...], by_x

    assert_trees_close(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("name, fields", [("efficientnetv2-tiny", {}), ("deit-ti", {"depth": 1})])
def test_tables_of_nnx(name, fields):
    model = create_model(name, num_classes=3, eval_size=16, **fields)
    table = nnx.tabulate(model, jnp.asarray(IMAGES), console_kwargs={"width": 200})
    assert "blocks/0" in table and "classifier" in table


# --- Many devices ---


def test_shardings_alone_make_jit_compute_on_many_devices():
    """Batches, statistics of batch norm and gradients are of all devices, without ``shard_map``."""
    apply, params, batch_stats = network()
    images = np.random.default_rng(2).normal(size=(16, 16, 16, 3)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(params, images):
        def loss(params):
            logits, moved = apply(
                params, batch_stats, images, train=True, dropout_rate=0.0, key=jax.random.key(1)
            )
            return jnp.square(logits).mean(), moved

        return jax.value_and_grad(loss, has_aux=True)(params)

    whole, split = (NamedSharding(mesh, spec) for spec in (P(), P("data")))
    sharded = jax.jit(step, in_shardings=(whole, split), out_shardings=whole)
    (value, moved), gradients = sharded(params, images)
    (expected, theirs), expected_gradients = jax.jit(step)(params, images)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_trees_close(moved, theirs)
    assert_trees_close(gradients, expected_gradients, 1e-4)
    compiled = sharded.lower(params, images).compile()
    assert "all-reduce" in compiled.as_text()
    assert {len(x.device_set) for x in jax.tree.leaves(compiled.output_shardings)} == {8}
