"""Every recipe builds: its stages, model, optimizer and evaluations; and S takes real steps."""

import dataclasses
import functools
import re

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import common, digits, efficientnetv2, folder
from effnetv2_jax.data.sources import Source, registry
from effnetv2_jax.data.sources.synthetic import synthetic_source
from effnetv2_jax.models import abstract_model, count_parameters
from effnetv2_jax.runtime.config import (
    NUMBERS,
    build,
    build_scorer,
    make_evaluations,
    make_optimizer,
    make_stages,
    training_arguments,
)
from effnetv2_jax.runtime.errors import Number, UsageError, check_numbers
from effnetv2_jax.runtime.recipe import flatten
from effnetv2_jax.training.build import resolve_dtype
from effnetv2_jax.training.evaluation import Evaluation
from effnetv2_jax.training.mesh import abstract, abstract_batch, shard_batch, shard_state
from effnetv2_jax.training.step import stage_scalars

IMAGENET_TRAIN = 1_281_167
ARGUMENTS = [
    variant + kind for variant in ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")
    for kind in ("", ",official")
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_each_recipe_builds(argument):
    config = efficientnetv2.get_config(argument)
    stages = make_stages(config, IMAGENET_TRAIN)
    assert stages[-1].end_step == int(350 * IMAGENET_TRAIN / 4096)
    assert stages[-1].image_size == config.schedule.image_size[1]
    model = abstract_model(config.model.name, bn_momentum=config.model.bn_momentum)
    assert count_parameters(model) > 7e6
    optimizer, learning_rate = make_optimizer(training_arguments(config, IMAGENET_TRAIN))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.eval_shape(optimizer.init, params)
    # Section 5.1: up to 0.256 over 5 epochs (by then twice × 0.97), × 0.97 every 2.4 epochs.
    epoch = IMAGENET_TRAIN / 4096
    assert float(learning_rate(0)) == 0
    assert float(learning_rate(int(2.5 * epoch))) == pytest.approx(0.128, rel=1e-2)
    assert float(learning_rate(int(5 * epoch) + 1)) == pytest.approx(0.256 * 0.97**2)
    assert float(learning_rate(int(25 * epoch))) == pytest.approx(0.256 * 0.97**10)


def test_the_papers_recipes_are_table_6s():
    sizes = {
        variant: [s.image_size for s in make_stages(config, IMAGENET_TRAIN)]
        for variant in "sml"
        for config in [efficientnetv2.get_config(variant)]
    }
    assert sizes == {
        "s": [128, 185, 243, 300],
        "m": [128, 212, 296, 380],
        "l": [128, 212, 296, 380],
    }


def test_the_official_recipe_of_s_has_the_official_stages():
    config = efficientnetv2.get_config("s,official")
    stages = make_stages(config, IMAGENET_TRAIN)
    assert [stage.image_size for stage in stages] == [171, 214, 257, 300]
    assert [stage.dropout_rate for stage in stages] == [0.2] * 4
    assert [stage.randaugment_magnitude for stage in stages] == pytest.approx(
        [5, 20 / 3, 25 / 3, 10]
    )


@pytest.mark.parametrize("kind", efficientnetv2.RECIPES)
def test_only_b0_to_b3_have_autoaugment(kind):
    names = {
        variant: efficientnetv2.get_config(
            ",".join(filter(None, (variant, kind)))
        ).data.augmentation
        for variant in efficientnetv2.PAPER
    }
    expected = dict.fromkeys(["s", "m", "l", "xl"], "randaugment")
    assert names == expected | dict.fromkeys(["b0", "b1", "b2", "b3"], "autoaugment")


@pytest.mark.parametrize("argument", ["q", "s,offical", ""])
def test_an_unknown_variant_is_named(argument):
    with pytest.raises(ValueError, match="s, m, l, xl, b0, b1, b2, b3"):
        efficientnetv2.get_config(argument)


@pytest.mark.slow
def test_s_takes_two_steps_on_synthetic_data():
    """The real network and the real recipe, at the smallest size and batch."""
    config = efficientnetv2.get_config("s")
    config.batch_size = 8
    config.eval_batch_size = 8
    config.epochs = 4 * 2 * 8 / 8192
    config.schedule.image_size = (32, 35)
    run = build(config)
    state = run.first_state()
    stage = run.stages[0]
    batches = run.train_batches(stage, 0)
    scalars = stage_scalars(stage.dropout_rate)
    losses = []
    for batch in batches:
        state, sums = run.training.train_step(state, batch, scalars)
        losses.append(float(sums["loss"] / sums["count"]))
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    assert int(state.step) == 2


def small_config(**fields):
    config = common.get_config()
    config.update_from_flattened_dict(
        {
            "model.name": "efficientnetv2-tiny",
            "batch_size": 16,
            "eval_batch_size": 16,
            "epochs": 4 * 16 / 8192,
            "schedule.image_size": (16, 16),
        }
        | fields
    )
    return config


def test_the_fields_for_many_devices_reach_the_step():
    config = small_config(
        **{
            "fsdp": 2,
            "accumulation_steps": 2,
            "reduce_dtype": "bfloat16",
            "model.remat": "blocks",
            "model.bn_group_size": 4,
        }
    )
    run = build(config)
    assert dict(run.training.mesh.shape) == {"data": 4, "fsdp": 2}
    stage = run.stages[0]
    state = shard_state(run.first_state(), run.training.mesh)
    batch = shard_batch(next(run.train_batches(stage, 0)), run.training.mesh)
    scalars = stage_scalars()
    program = str(
        run.training.train_step.gradients.trace(
            state.params, state.batch_stats, state.step, batch, scalars
        ).jaxpr
    )
    assert "axis_index_groups=((0, 1, 2, 3), (4, 5, 6, 7))" in program
    assert "length=2" in program  # of the scan over parts
    assert "bf16" in program
    assert "checkpoint" in program or "remat" in program


def test_a_stages_batches_are_known_before_they_are_there():
    run = build(small_config())
    stage = run.stages[0]
    batch = shard_batch(next(run.train_batches(stage, 0)), run.training.mesh)
    assert run.batch_shapes(stage) == abstract(batch)


def test_a_vit_is_made_for_the_images_of_evaluation():
    """A model takes those fields of the config that its spec has."""
    fields = {"model.name": "deit-ti", "eval_image_size": 32, "model.survival_prob": 0.7}
    run = build(small_config(**fields))
    state = run.training.shapes
    assert state.params["embed"]["positions"].shape == (1, 1 + 2 * 2, 192)
    assert state.batch_stats == {}
    batch = next(run.eval_batches(run.evaluations[0]))
    sums = run.training.eval_step.eval_shape(state.params, state.batch_stats, batch)
    assert sums["top1"].shape == ()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fsdp", 3, r"fsdp must divide the number of devices \(8\), got 3"),
        ("accumulation_steps", 0, "accumulation_steps must be at least 1, got 0"),
        ("accumulation_steps", 3, r"batch_size must be a multiple .* 3 accumulation steps"),
        ("reduce_dtype", "float16", "unknown reduce_dtype 'float16'"),
        ("model.remat", "block", "unknown remat 'block': did you mean blocks"),
        ("model.bn_group_size", 3, r"bn_group_size must divide the number of devices \(8\), got 3"),
    ],
)
def test_what_devices_cannot_do_is_one_sentence(field, value, message):
    with pytest.raises(UsageError, match=message):
        build(small_config(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "digit", "unknown data set 'digit': did you mean digits"),
        (
            "data.augmentation",
            "randaug",
            "unknown augmentation 'randaug': did you mean randaugment",
        ),
        ("schedule.name", "papr", "unknown schedule 'papr': did you mean paper"),
        ("schedule.image_size", (16, 28, 0, 28), "got (16, 28, 0, 28)"),
        ("eval_image_size", 0, "eval_image_size must be at least 1 and at most 10000, got 0"),
        ("epochs", 0.0, "epochs must be above 0, got 0"),
        (
            "batch_size",
            8192,
            "0.0078125 epochs of 8192 examples in batches of batch_size 8192 are 0 steps, and each "
            "of the 4 stages (schedule.num_stages) needs at least one: choose more epochs, or a "
            "batch_size of at most 16",
        ),
        ("epochs", 1e30, "are 5.12e+32 steps, at most 2147483647 are allowed: choose fewer epochs"),
        (
            "optimizer.warmup_epochs",
            1e30,
            "optimizer.warmup_epochs must be at most 2147483647 steps",
        ),
        ("data.train_split", "nope", "data.train_split: unknown split"),
        ("data.eval_split", "nope", "data.eval_split: unknown split"),
        ("model.dtype", "float16", "unknown model.dtype 'float16': did you mean bfloat16"),
        ("log_every_steps", 0, "log_every_steps must be at least 1, got 0"),
        ("max_bad_steps", 0, "max_bad_steps must be at least 1, got 0"),
        ("checkpoint.keep_newest", 0, "checkpoint.keep_newest must be at least 1, got 0"),
        ("checkpoint.keep_best", -1, "checkpoint.keep_best must be at least 0, got -1"),
        ("checkpoint.every_seconds", 0.0, "checkpoint.every_seconds must be above 0 and at most"),
        ("stall_seconds", -1.0, "stall_seconds must be above 0 and at most 1000000000, got -1"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(field, value, message):
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        build(small_config(**{field: value}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("evals", "message"),
    [
        ({"a": {"spilt": "test"}}, "unknown field of evals.a 'spilt': did you mean split"),
        ({"a": {"data": "digit"}}, "evals.a: unknown data set 'digit': did you mean digits"),
        ({"a": {"split": "valid"}}, "evals.a.split: unknown split of synthetic 'valid'"),
        ({"a": {"split": 3}}, "evals.a.split must be text, got 3"),
        ({"a": {"data": "digits"}}, "evals.a.data must have the 1000 classes of synthetic"),
        ({"a": {"image_size": 0}}, "evals.a.image_size must be at least 1 and at most 10000, got"),
        ({"a": {"image_size": 16.0}}, "evals.a.image_size must be a whole number of at least 1"),
        ({"a": {"batch_size": 12}}, "evals.a.batch_size must be a multiple of the number of"),
        ({"a": {"weights": "em"}}, "unknown evals.a.weights 'em': did you mean ema"),
        ({"a": {"every_steps": -1}}, "evals.a.every_steps must be at least 0, got -1"),
        ({"a": "test"}, "evals.a must be a dictionary of fields, got 'test'"),
        ({"train": {}}, "the name of an evaluation must be letters, digits and underscores"),
        ({"a/b": {}}, "the name of an evaluation must be letters, digits and underscores"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_training(evals, message):
    config = small_config()
    config.evals = evals
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        build(config)
    assert "\n" not in str(raised.value)


def test_folders_of_evaluations_have_the_labels_of_the_training(tmp_path):
    """By their names, in training and when the run is built only for an evaluation."""
    for place in ("a/train/cat", "a/train/dog", "b/train/ant", "b/test/dog", "c/test/eel"):
        for i in range(20):
            path = tmp_path / place / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2)).save(path)
    config = small_config()
    config.data.name, config.data.eval_split = f"folder:{tmp_path}/a", "val"
    config.evals = {"eval": {}, "other": {"data": f"folder:{tmp_path}/b", "split": "test"}}
    config.epochs = 4.0
    run = build(config)
    batches = run.eval_batches(run.evaluations[1])
    assert [label for x in batches for label in x["label"][x["mask"] > 0]] == [1] * 20
    (tmp_path / "a" / "train").rename(tmp_path / "away")
    only = run.evaluations[1]
    alone = build_scorer(config, only, run.source.class_names)
    assert list(alone.sources) == [only.data]
    for part in only.parts:
        ours, runs = (getattr(x.training.shapes, part) for x in (alone, run))
        assert abstract(ours) == abstract(runs)
    only = dataclasses.replace(only, data=f"folder:{tmp_path}/c")
    with pytest.raises(UsageError, match=r"evals.other.split: .* trained on, but it adds 'eel'"):
        build_scorer(config, only, run.source.class_names)


def test_a_single_class_is_refused(monkeypatch):
    one = Source("one", ("a",), synthetic_source().split)
    monkeypatch.setitem(registry.SOURCES, "one", lambda data_dir: one)
    with pytest.raises(UsageError, match="one has a single class, 'a': there is nothing to learn"):
        build(small_config(**{"data.name": "one"}))


def test_a_network_of_one_size_refuses_an_evaluation_at_another():
    config = small_config(**{"model.name": "deit-ti", "eval_image_size": 32})
    config.evals.larger = {"image_size": 48}
    with pytest.raises(UsageError, match="got 48 × 48"):
        build(config)


def test_fields_that_an_evaluation_leaves_out_are_the_configs():
    config = small_config()
    config.evals = {"a": {"weights": "raw", "every_steps": 5}, "eval": {}, "b": {"image_size": 8}}
    common_fields = {"data": "synthetic", "split": "test", "image_size": 384, "batch_size": 16}
    assert make_evaluations(config) == (
        Evaluation("eval", **common_fields),
        Evaluation("a", **common_fields, weights="raw", every_steps=5),
        Evaluation("b", **common_fields | {"image_size": 8}),
    )


def test_the_options_of_the_optimizer_reach_it():
    config = small_config(**{"optimizer.name": "adamw"})
    config.optimizer.options = {"b2": 0.9, "nesterov": True}
    optimizer, _ = make_optimizer(training_arguments(config, 16_000))
    params = {"kernel": np.ones(2, np.float32)}
    _, state = optimizer.update({"kernel": np.ones(2, np.float32)}, optimizer.init(params), params)
    second = next(x.nu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu")))
    np.testing.assert_allclose(second["kernel"], 0.1, rtol=1e-6)
    config.optimizer.options = {"b3": 0.9}
    with pytest.raises(UsageError, match="unknown option of optimizer adamw 'b3': did you mean"):
        build(config)


RECIPES = {
    "common": common.get_config(),
    "digits": digits.get_config(),
    "folder": folder.get_config(),
    **{argument: efficientnetv2.get_config(argument) for argument in ARGUMENTS},
}
NAN, INF = float("nan"), float("inf")
ODD = (NAN, INF, -INF, -1, -1e-30, 0, 1e30, 1e300, 10**12, 10**400, "three", True, None, [], (0.5,))


def with_field(config, field, value):
    """The config as it comes out of a workdir: without types."""
    config = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
    *sections, name = field.split(".")
    section = functools.reduce(getattr, sections, config)
    section[name] = value
    return config


def assert_one_sentence(error, field, value):
    sentence = str(error)
    assert sentence.startswith(f"{field} ")
    assert " must be " in sentence
    shown = tuple(value) if isinstance(value, list) else value
    assert sentence.endswith((f", got {value!r}", f", got {shown!r}"))
    assert "\n" not in sentence


def test_every_number_of_the_base_config_has_a_rule_and_nothing_else_has():
    config = common.get_config()

    def is_number(field, value):
        *sections, name = field.split(".")
        kind = functools.reduce(getattr, sections, config).get_type(name)
        return kind in (int, float, tuple) or isinstance(value, list)

    fields = {
        field for field, value in flatten(config.to_dict()).items() if is_number(field, value)
    }
    assert fields == set(NUMBERS)


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_in_any_field_is_allowed_or_one_sentence(name):
    values = flatten(RECIPES[name].to_dict())
    check_numbers(NUMBERS, values)
    for field, rule in NUMBERS.items():
        for odd in (*ODD, *((x, x) for x in ODD), *((0.5, x) for x in ODD)):
            try:
                check_numbers(NUMBERS, {field: odd})
            except UsageError as error:
                assert_one_sentence(error, field, odd)
            else:
                numbers = odd if isinstance(odd, tuple | list) else (odd,)
                assert all(x is None or abs(x) < INF for x in numbers)
                assert bool(rule.names) == isinstance(odd, tuple | list) or odd is None


@pytest.mark.parametrize("field", NUMBERS)
def test_a_run_is_built_or_one_sentence_names_the_field(field):
    for odd in (NAN, -1, 0, 1e30, 10**40):
        value = (odd, odd) if NUMBERS[field].names else odd
        try:
            run = build(with_field(small_config(), field, value))
            assert np.isfinite(run.learning_rate(1))
        except UsageError as error:
            assert "\n" not in str(error)
            assert field in str(error)
            assert any(text in str(error) for text in (str(odd), f"{odd:g}")), (odd, str(error))


def test_the_bounds_themselves_are_allowed_or_not_as_the_rule_says():
    half_open = Number(least=0, below=1)
    half_open.check("x", 0)
    half_open.check("x", np.float32(0.5))
    with pytest.raises(UsageError, match="x must be at least 0 and below 1, got 1"):
        half_open.check("x", 1)
    Number(above=0, most=1).check("x", 1)
    with pytest.raises(UsageError, match="x must be above 0 and at most 1, got 0"):
        Number(above=0, most=1).check("x", 0)
    with pytest.raises(
        UsageError, match="x must be at least 0 and at most 2147483647, got 4294967"
    ):
        Number(whole=True).check("x", 2**32)
    with pytest.raises(UsageError, match="x must be a whole number of at least 0, got"):
        Number(whole=True).check("x", 1.0)


def test_dtype_auto_is_the_devices_dtype():
    assert resolve_dtype("auto", "cpu") == "float32"
    assert resolve_dtype("auto", "gpu") == resolve_dtype("auto", "tpu") == "bfloat16"
    assert resolve_dtype("bfloat16", "cpu") == "bfloat16"
    assert {config.model.dtype for config in RECIPES.values()} == {"auto"}
    programs = [
        run.training.eval_step.trace(
            run.training.shapes.params,
            run.training.shapes.batch_stats,
            abstract_batch(16, 16, (), run.training.mesh),
        ).jaxpr
        for run in (build(small_config(**{"model.dtype": x})) for x in ("auto", "float32"))
    ]
    assert str(programs[0]) == str(programs[1])
    assert "bf16" not in str(programs[0])


def test_digits_and_common_share_their_fields():
    def fields(config):
        return set(flatten(config.to_dict()))

    assert fields(digits.get_config()) == fields(common.get_config())
    assert fields(efficientnetv2.get_config("m")) == fields(common.get_config())
