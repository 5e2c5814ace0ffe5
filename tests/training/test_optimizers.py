"""The optimizers and learning-rate schedules against TensorFlow's, and their options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.optimizers import make_learning_rate, make_optimizer

STEPS = 50


def problem(seed=0):
    """Some variables and the gradients of 50 steps."""
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=(4,))}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    scale = 10.0 ** rng.uniform(-3, 1, STEPS)
    gradients = [
        {name: (s * rng.normal(size=v.shape)).astype(np.float32) for name, v in params.items()}
        for s in scale
    ]
    return params, gradients


def run_ours(optimizer, params, gradients):
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def run_tf1(make, params, gradients, rates, weight_decay=0.0, clip_norm=0.0):
    """The same in a TF1 graph, with the loss, clipping and variables as the official code."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.get_variable(name, initializer=value, use_resource=True)
            for name, value in params.items()
        }
        rate = tf.compat.v1.placeholder(tf.float32, ())
        fed = {name: tf.compat.v1.placeholder(tf.float32, v.shape) for name, v in params.items()}
        loss = tf.add_n([tf.reduce_sum(fed[name] * variables[name]) for name in params])
        loss += weight_decay * tf.nn.l2_loss(variables["kernel"])
        optimizer = make(rate)
        pairs = optimizer.compute_gradients(loss, list(variables.values()))
        if clip_norm:
            clipped = [tf.clip_by_norm(gradient, clip_norm) for gradient, _ in pairs]
            clipped, _ = tf.clip_by_global_norm(clipped, clip_norm)
            pairs = list(zip(clipped, (v for _, v in pairs), strict=True))
        train = optimizer.apply_gradients(pairs)
        session.run(tf.compat.v1.global_variables_initializer())
        for gradient, value in zip(gradients, rates, strict=True):
            session.run(train, {fed[name]: gradient[name] for name in fed} | {rate: value})
        return session.run(variables)


def tf1_rmsprop(rate):
    return tf.compat.v1.train.RMSPropOptimizer(rate, 0.9, 0.9, 1e-3)


def assert_close(ours, theirs):
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("weight_decay", "clip_norm"), [(0.0, 0.0), (1e-2, 0.0), (1e-2, 0.5)])
def test_rmsprop_is_tf1s_over_50_steps_of_a_changing_rate(weight_decay, clip_norm):
    params, gradients = problem()
    rate = make_learning_rate(
        "exponential", peak=0.05, total_steps=STEPS, warmup_steps=10, decay_steps=7.2
    )
    ours = run_ours(
        make_optimizer("rmsprop", rate, weight_decay=weight_decay, clip_norm=clip_norm),
        params,
        gradients,
    )
    rates = [float(rate(step)) for step in range(STEPS)]
    theirs = run_tf1(tf1_rmsprop, params, gradients, rates, weight_decay, clip_norm)
    assert_close(ours, theirs)


def test_momentum_is_tf1s():
    params, gradients = problem(1)
    ours = run_ours(make_optimizer("momentum", lambda step: 0.01), params, gradients)
    theirs = run_tf1(
        lambda rate: tf.compat.v1.train.MomentumOptimizer(rate, 0.9),
        params,
        gradients,
        [0.01] * STEPS,
    )
    assert_close(ours, theirs)


def official_rate(decay, step, peak, total_steps, warmup_steps, decay_steps):
    """TensorFlow's decays, counted from step 0 and overridden by the warm-up."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    schedules = tf.keras.optimizers.schedules
    if decay == "exponential":
        return float(schedules.ExponentialDecay(peak, decay_steps, 0.97, staircase=True)(step))
    if decay == "cooldown":
        fall = schedules.PolynomialDecay(peak, int(decay_steps), end_learning_rate=0.0)
        return float(fall(max(0, step - (total_steps - int(decay_steps)))))
    if decay == "cosine":
        return float(schedules.CosineDecay(peak, total_steps)(step))
    return peak


@pytest.mark.parametrize("decay", ["exponential", "cosine", "constant", "cooldown"])
def test_schedules_are_tensorflows(decay):
    total_steps, warmup_steps, decay_steps = 1000, 71, 34.3
    ours = make_learning_rate(
        decay,
        peak=0.256,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
    )
    for step in (0, 1, 35, 70, 71, 72, 102, 103, 500, 999, 1000):
        expected = official_rate(decay, step, 0.256, total_steps, warmup_steps, decay_steps)
        assert float(ours(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_a_cooldown_longer_than_the_run_falls_all_the_way():
    rate = make_learning_rate("cooldown", peak=1.0, total_steps=10, decay_steps=50)
    assert [float(rate(step)) for step in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])


def test_only_kernels_decay():
    params = {"conv": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for name in ("rmsprop", "adamw"):
        moved = run_ours(make_optimizer(name, lambda step: 0.1, weight_decay=0.1), params, [zeros])
        assert np.all(moved["conv"]["kernel"] < 1)
        assert np.all(moved["conv"]["bias"] == 1)
        assert np.all(moved["norm"]["scale"] == 1)


def test_bad_values_are_named():
    with pytest.raises(UsageError, match="did you mean rmsprop"):
        make_optimizer("rmsprp", lambda step: 0.1)
    with pytest.raises(UsageError, match="weight_decay must be at least 0, got -1"):
        make_optimizer("sgd", lambda step: 0.1, weight_decay=-1)
    with pytest.raises(UsageError, match="learning_rate must be at least 0, got"):
        make_optimizer("sgd", -0.1)
    with pytest.raises(UsageError, match="learning_rate must be a finite number of at"):
        make_learning_rate("cosine", peak=float("inf"), total_steps=10)
    with pytest.raises(UsageError, match="did you mean cosine"):
        make_learning_rate("cosin", peak=1.0, total_steps=10)
    with pytest.raises(UsageError, match="warmup_steps must be at least 0, got -1"):
        make_learning_rate("cosine", peak=1.0, total_steps=10, warmup_steps=-1)


def test_options_replace_the_defaults():
    params, gradients = problem(2)
    options = {"momentum": 0.5, "decay": 0.8, "eps": 1e-2}
    ours = run_ours(make_optimizer("rmsprop", 0.01, options=options), params, gradients)
    theirs = run_tf1(
        lambda rate: tf.compat.v1.train.RMSPropOptimizer(rate, 0.8, 0.5, 1e-2),
        params,
        gradients,
        [0.01] * STEPS,
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "adamw",
            {"beta2": 0.9},
            "unknown option of .* adamw 'beta2': .*allowed are b1, b2",
        ),
        ("sgd", {"b1": 0.9}, "allowed are accumulator_dtype, momentum, nesterov"),
        (
            "adam",
            {"b2": "high"},
            "b2 must be a finite number of at least 0 and below 1, got 'high'",
        ),
        ("adam", {"b2": None}, "optimizer.options.b2 must be a finite number .*, got None"),
        ("adam", {"eps": -1e-8}, "optimizer.options.eps must be at least 0, got -1e-08"),
        ("adam", {"b1": float("nan")}, "optimizer.options.b1 must be a finite number .*, got nan"),
        ("adam", {"b2": 1.0}, "optimizer.options.b2 must be at least 0 and below 1, got 1.0"),
        ("sgd", {"nesterov": 1}, "optimizer.options.nesterov must be True or False, got 1"),
        (
            "sgd",
            {"momentum": True},
            "momentum must be a finite number .*, or None, got True",
        ),
        ("adam", {"mu_dtype": "int8"}, "must be bfloat16 or float32, got 'int8'"),
        ("adamw", {"weight_decay": 0.1}, "weight_decay is set by optimizer.weight_decay"),
        ("sgd", {"learning_rate": 0.1}, "learning_rate is set by optimizer.learning_rate and"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_sentence(name, options, message):
    with pytest.raises(UsageError, match=message) as raised:
        make_optimizer(name, 0.1, options=options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum"])
def test_the_moments_may_be_of_half_precision(name):
    option = "mu_dtype" if name.startswith("adam") else "accumulator_dtype"
    optimizer = make_optimizer(
        name, 0.1, options={option: "bfloat16", **({"momentum": 0.9} if name == "sgd" else {})}
    )
    state = optimizer.init({"kernel": jnp.ones(2)})
    assert jnp.bfloat16 in [x.dtype for x in jax.tree.leaves(state)]
