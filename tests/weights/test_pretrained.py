"""Models by the names of their weights, and folders for the Hub, which timm loads."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from effnetv2_jax import create_model, load_model, load_weights, save_pretrained
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import layout, read_weights, save_weights
from effnetv2_jax.weights.dialects.dialect import get_dialect
from effnetv2_jax.weights.pretrained import _crop
from effnetv2_jax.weights.published import PUBLISHED, Published
from tests.golden import drawn
from tests.weights.conftest import arrays, make_tiny, same_bits
from tests.weights.server import Page, serve

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "efficientnetv2-tiny/imagenet"


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serve() as running:
        monkeypatch.setenv("EFFNETV2_JAX_MIRROR", running.url)
        monkeypatch.setenv("EFFNETV2_JAX_WEIGHTS", str(tmp_path / "weights"))
        monkeypatch.setenv("no_proxy", "*")
        yield running


@pytest.fixture
def original(server, tmp_path, monkeypatch):
    """A network trained as in PyTorch, whose weights are published as ``NAME``."""
    model = make_tiny(
        padding="symmetric", bn_epsilon=1e-5, eval_size=40, preprocessing="torch,crop=0.9"
    )
    save_weights(model, tmp_path / "made.safetensors")
    url = "https://there.example/tiny.safetensors"
    monkeypatch.setitem(PUBLISHED, NAME, Published("efficientnetv2-tiny", url))
    server.pages["/there.example/tiny.safetensors"] = Page(
        (tmp_path / "made.safetensors").read_bytes()
    )
    return model


def test_a_model_with_its_weights(original):
    model = create_model("efficientnetv2-tiny", pretrained="imagenet")
    assert same_bits(arrays(model), arrays(original))
    assert model.spec == original.spec
    images = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    assert np.array_equal(model(images), original(images))


def test_arguments_beside_weights(original):
    model = create_model(
        "efficientnetv2-tiny",
        pretrained=NAME,
        num_classes=3,
        survival_prob=0.5,
        eval_size=64,
        preprocessing="torch",
        dtype="bfloat16",
    )
    assert (model.spec.survival_prob, model.spec.eval_size) == (0.5, 64)
    assert (model.spec.preprocessing, model.spec.padding) == ("torch", "symmetric")
    assert model.classifier.kernel.shape[-1] == 3
    assert model.stem.conv.kernel[...].tobytes() == original.stem.conv.kernel[...].tobytes()
    assert create_model("efficientnetv2-tiny", pretrained=NAME, num_classes=0).classifier is None
    with pytest.raises(UsageError, match=r"padding must be 'symmetric', as .* were trained, got '"):
        create_model("efficientnetv2-tiny", pretrained=NAME, padding="same")
    with pytest.raises(
        UsageError, match=r"unknown argument of create_model.* 'num_clases': did you"
    ):
        create_model("efficientnetv2-tiny", pretrained=NAME, num_clases=3)
    with pytest.raises(UsageError, match="does not fit efficientnet-b0"):
        create_model("efficientnet-b0", pretrained=NAME)


def test_without_weights_it_is_fresh():
    assert create_model("efficientnetv2-tiny").classifier.kernel.shape[-1] == 1000
    assert create_model("efficientnetv2-tiny", num_classes=2).classifier.kernel.shape[-1] == 2


def test_a_name_wherever_weights_are_asked_for(original):
    assert same_bits(arrays(load_model(NAME)[0]), arrays(original))
    model = make_tiny(seed=1)
    load_weights(model, NAME)
    assert same_bits(arrays(model), arrays(original))


def test_a_program_fetches_them_and_says_one_sentence_if_it_cannot(original, server, tmp_path):
    url = "https://there.example/tiny.safetensors"
    convert = [sys.executable, "-m", "effnetv2_jax.convert", f"--to={tmp_path / 'a.safetensors'}"]
    result = subprocess.run([*convert, f"--from={url}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"fetching {server.url}/there.example/tiny.safetensors to " in result.stderr
    server.pages["/there.example/tiny.safetensors"] = Page(b"<!doctype html>\n<p>Log in")
    result = subprocess.run([*convert, f"--from={url}?2"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")


def make(name: str, **arguments):
    """A network with ``drawn``'s weights, with which deep networks stay healthy."""
    model = create_model(name, **arguments)
    places = get_dialect(family_of(model.spec), "timm").places(
        model.spec, 0 if model.classifier is None else model.classifier.kernel.shape[-1]
    )
    for ours, variable in layout.variables(model).items():
        place = places[ours]
        variable[...] = place.to_ours(drawn.draw(place.name, place.shape))
    return model


def test_a_folder_for_the_hub(tmp_path):
    names = ("a", "b", "c")
    model = make("deit-ti", num_classes=3)
    save_pretrained(model, tmp_path / "mine", class_names=names)
    assert sorted(os.listdir(tmp_path / "mine")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["architecture"] == "deit_tiny_patch16_224"
    assert (config["num_classes"], config["num_features"]) == (3, 192)
    assert config["label_names"] == ["a", "b", "c"]
    about = config["pretrained_cfg"]
    assert about["input_size"] == [3, 224, 224]
    assert about["fixed_input_size"] is True
    assert (about["crop_pct"], about["interpolation"], about["crop_mode"]) == (
        0.9,
        "bicubic",
        "center",
    )
    assert np.allclose(about["mean"], (0.485, 0.456, 0.406))
    assert (about["first_conv"], about["classifier"]) == ("patch_embed.proj", "head")
    again, loaded = load_model(str(tmp_path / "mine"))
    assert same_bits(arrays(again), arrays(model))
    assert (loaded.spec, loaded.class_names) == (model.spec, names)
    with pytest.raises(UsageError, match="exists already"):
        save_pretrained(model, tmp_path / "mine")
    save_pretrained(read_weights(str(tmp_path / "mine")), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config


def test_a_folder_that_timm_could_not_load_is_not_written(tmp_path):
    with pytest.raises(
        UsageError, match="timm has no network that computes as efficientnetv2-tiny"
    ):
        save_pretrained(make_tiny(), tmp_path / "x")
    with pytest.raises(UsageError, match=r"exists already|cannot be written"):
        save_pretrained(make("deit-ti", num_classes=0), "/dev/null/x")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif("TORCH_PYTHON" not in os.environ, reason="TORCH_PYTHON has timm")
@pytest.mark.parametrize(
    ("name", "classes", "arguments"),
    [
        ("efficientnetv2-b0", 10, {}),
        ("efficientnetv2-s", 3, {"preprocessing": "torch,mean=127.5,std=127.5,crop=1.0"}),
        (
            "efficientnet-b0",
            10,
            {"padding": "symmetric", "bn_epsilon": 1e-5, "preprocessing": "torch,crop_mode=border"},
        ),
        ("efficientnet-lite0", 0, {}),
        ("deit-ti", 10, {}),
    ],
)
def test_timm_loads_the_folder_and_computes_the_same(server, tmp_path, name, classes, arguments):
    """As a folder, and through huggingface_hub from a server like the Hub."""
    model = make(name, num_classes=classes, **arguments)
    save_pretrained(model, tmp_path / "mine")
    size = model.spec.eval_size if name == "deit-ti" else 64
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    commit = "0" * 40
    for file in (tmp_path / "mine").iterdir():
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        server.pages[f"/me/mine/resolve/main/{file.name}"] = Page(
            file.read_bytes(), headers=headers
        )
    server.pages["/api/models/me/mine"] = Page(b"{}")
    code = tmp_path / "load.py"
    code.write_text(TIMM)
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [os.environ["TORCH_PYTHON"], code, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    config = json.loads(result.stdout.splitlines()[-1])
    ours = np.asarray(model(images))
    for source in ("folder", "hub"):
        theirs = np.load(tmp_path / f"{source}.npy")
        assert theirs.shape == ours.shape
        assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(ours).max(), source
    spec = model.spec
    family = get_preprocessing(spec.preprocessing)
    mode, resized = family.evaluation(spec.eval_size)
    assert config["crop_mode"] == mode
    assert int(np.floor(spec.eval_size / config["crop_pct"])) == resized
    assert config["interpolation"] == family.interpolation
    assert np.allclose(np.multiply(config["mean"], 255), family.mean)
    assert np.allclose(np.multiply(config["std"], 255), family.std)
    assert config["input_size"] == [3, spec.eval_size, spec.eval_size]


TIMM = """
import json, pathlib, sys
import numpy as np
from tests.golden.make_logits import import_timm
torch, timm, _ = import_timm()
folder = pathlib.Path(sys.argv[1])
images = torch.from_numpy(np.load(folder / "images.npy").transpose(0, 3, 1, 2).copy())
for source, name in (("folder", f"local-dir:{folder}/mine"), ("hub", "hf-hub:me/mine")):
    model = timm.create_model(name, pretrained=True).eval()
    with torch.no_grad():
        np.save(folder / f"{source}.npy", model(images).numpy())
config = timm.data.resolve_model_data_config(model, use_test_size=True)
print(json.dumps(config))
"""


def test_the_crops_that_timm_reads_are_exact():
    for size in range(16, 900):
        for resized in range(size, size + 70):
            assert int(np.floor(size / _crop(size, resized))) == resized
    assert (_crop(224, 256), _crop(384, 384), _crop(240, 255)) == (0.875, 1.0, 0.94)
