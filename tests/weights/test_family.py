"""A third family of networks needs its module, its record and nothing else."""

import dataclasses
import itertools
import re

import jax.numpy as jnp
import pytest
from flax import nnx

from effnetv2_jax.models import create_model, model_info, registry
from effnetv2_jax.models.family import CLASSIFIER, Family, Feature, Names, Network, dropout_rngs
from effnetv2_jax.models.layers import POOLINGS, Conv
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import description, load_model, load_weights, read, save_weights
from effnetv2_jax.weights.dialects import dialect
from effnetv2_jax.weights.dialects.conventions import CONVENTIONS
from tests.weights.conftest import arrays, make_tiny, same_bits


@dataclasses.dataclass(frozen=True)
class ToySpec:
    name: str
    width: int
    depth: int
    padding: str = "same"
    train_size: int = 8
    eval_size: int = 8
    dropout_rate: float = 0.0
    survival_prob: float = 1.0
    preprocessing: str = "v1"
    in_channels: int = 3
    pooling: str = "avg"


class Toy(Network):
    poolings = POOLINGS

    def __init__(self, spec, *, num_classes=1000, dtype=jnp.float32, remat="none", rngs):
        super().__init__(spec, num_classes, remat)
        sizes = [spec.in_channels, *[spec.width] * spec.depth]
        self.layers = nnx.List(
            [
                Conv(a, b, kernel_size=3, padding=spec.padding, use_bias=True, rngs=rngs)
                for a, b in itertools.pairwise(sizes)
            ]
        )
        self.classifier = self.new_classifier(num_classes, rngs) if num_classes else None
        self.rngs = dropout_rngs(rngs)

    def new_classifier(self, num_classes, rngs):
        return nnx.Linear(self.spec.width, num_classes, rngs=rngs)

    @property
    def feature_info(self):
        return tuple(Feature(f"layer_{i + 1}", self.spec.width, 1) for i in range(self.spec.depth))

    def maps(self, images, train, rngs, index, count):
        maps = [images]
        for layer in self.layers[:count]:
            maps.append(layer(maps[-1]))
        return maps[1:]

    def pooled(self, images, train, rngs, index):
        return POOLINGS[self.spec.pooling](self.maps(images, train, rngs, index, None)[-1])


TOY = Family(
    name="toy",
    title="Toy",
    spec=ToySpec,
    module=Toy,
    specs={spec.name: spec for spec in (ToySpec("toy-2", 4, 2), ToySpec("toy-3", 4, 3))},
    read_spec=lambda fields: ToySpec(**fields),
    as_trained={"padding": ((Conv, "padding"),)},
    also_adopted=("preprocessing",),
    compared=(),
    input_kernel="layers.0.kernel",
    names=(
        Names(
            library="effnetv2_jax",
            convention="effnetv2_jax",
            anchor="layers.0.kernel",
            layers=None,
            territory=re.compile(rf"(layers|{CLASSIFIER})\..*"),
            trained=lambda model, architecture: {},
        ),
        Names(
            library="timm",
            convention="pytorch",
            anchor="body.0.weight",
            layers=lambda spec: {
                CLASSIFIER: "fc",
                **{f"layers.{i}": f"body.{i}" for i in range(spec.depth)},
            },
            territory=re.compile(r"(body|fc)\..*"),
            trained=lambda model, architecture: {"padding": "symmetric", "preprocessing": "torch"},
        ),
    ),
    lacks=frozenset({"axis_name", "bn_group_size", "scan_blocks"}),
)


@pytest.fixture(autouse=True)
def third_family(monkeypatch):
    """Makes the line in ``registry.FAMILIES``, and the tables that Python derives from it."""
    families = (*registry.FAMILIES, TOY)
    dialects = tuple(
        dialect.Dialect(family, names, CONVENTIONS[names.convention])
        for family in families
        for names in family.names
    )
    for module in (registry, description, read):
        monkeypatch.setattr(module, "FAMILIES", families)
    for module in (dialect, read):
        monkeypatch.setattr(module, "DIALECTS", dialects)
    for name, spec in TOY.specs.items():
        monkeypatch.setitem(registry.SPECS, name, spec)


def test_it_is_built_and_counted():
    model = create_model("toy-2", num_classes=5, bn_group_size=8)
    assert model(jnp.ones((1, 8, 8, 3))).shape == (1, 5)
    assert model_info("toy-2", num_classes=5).parameters == 27 * 4 + 4 + 36 * 4 + 4 + 4 * 5 + 5
    with pytest.raises(UsageError, match="scan_blocks must be False for toy-2: no Toy can"):
        create_model("toy-2", scan_blocks=True)


@pytest.mark.parametrize(
    ("file", "naming"),
    [("x.safetensors", "effnetv2_jax"), ("x.safetensors", "timm"), ("folder", "effnetv2_jax")],
)
def test_its_weights_make_a_round_trip(tmp_path, file, naming):
    model = create_model("toy-3", num_classes=5, padding="symmetric")
    save_weights(model, tmp_path / file, naming=naming)
    again, loaded = load_model(str(tmp_path / file))
    assert again.spec == model.spec
    assert same_bits(arrays(again), arrays(model))
    assert loaded.changes == {"padding": "symmetric"}


def test_it_is_recognised_by_its_names_and_brings_its_padding(tmp_path):
    import safetensors.numpy

    model = create_model("toy-3", num_classes=5)
    save_weights(model, tmp_path / "described.safetensors", naming="timm")
    tensors = safetensors.numpy.load_file(tmp_path / "described.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    again, loaded = load_model(str(tmp_path / "x.safetensors"))
    assert loaded.changes == {"padding": "symmetric", "preprocessing": "torch"}
    assert again.layers[0].padding == "symmetric"
    with pytest.raises(UsageError, match=r"is missing|has no place.* it looks like toy-3"):
        load_model(str(tmp_path / "x.safetensors"), "toy-2")
    with pytest.raises(UsageError, match="another kind of network; it looks like toy-3"):
        load_weights(make_tiny(), str(tmp_path / "x.safetensors"))
