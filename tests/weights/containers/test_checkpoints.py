"""Official TensorFlow checkpoints of both kinds, written here by TensorFlow under their names."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from effnetv2_jax.models import get_spec
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, read_weights
from tests.weights import official
from tests.weights.server import Page, serve

# As the official configs write them: repeats, op, kernel, stride, expansion, filters, SE.
TINY = [
    (1, "fused", 3, 1, 1, 8, False),
    (1, "fused", 3, 2, 4, 16, False),
    (2, "mbconv", 3, 2, 4, 24, True),
]
B0 = [
    (1, "mbconv", 3, 1, 1, 16, True),
    (2, "mbconv", 3, 2, 6, 24, True),
    (2, "mbconv", 5, 2, 6, 40, True),
    (3, "mbconv", 3, 2, 6, 80, True),
    (3, "mbconv", 5, 1, 6, 112, True),
    (4, "mbconv", 5, 2, 6, 192, True),
    (1, "mbconv", 3, 1, 6, 320, True),
]
NETWORKS = {
    "efficientnetv2-tiny": (TINY, 8, 64, 10),
    "efficientnet-b0": (B0, 32, 1280, 1000),
}


def compute(network, name):
    blocks, stem, head, classes = NETWORKS[name]
    return network(official.IMAGE, blocks, stem, head, classes)


@pytest.fixture(scope="module")
def graph():
    """(variables, logits) of a small network with the names of TensorFlow 1."""
    network = official.Network("efficientnetv2-tiny")
    logits = compute(network, "efficientnetv2-tiny")
    return network.variables, logits


@pytest.fixture(scope="module")
def objects():
    network = official.Network("efficientnetv2-tiny", objects=True)
    logits = compute(network, "efficientnetv2-tiny")
    return network.variables, logits


def others(variables):
    """Returns other numbers under the same names."""
    return {name: 1 + x[..., ::-1] for name, x in variables.items()}


def with_slots(variables):
    """Adds the averages and the optimiser's slots of a TensorFlow 1 graph."""
    return {
        "global_step": np.int64(5),
        **others(variables),
        **{f"{name}/ExponentialMovingAverage": x for name, x in variables.items()},
        **{f"{name}/RMSProp": x * 2 for name, x in variables.items() if "moving" not in name},
        **{f"{name}/RMSProp_1": x * 3 for name, x in variables.items() if "moving" not in name},
    }


def check(logits, expected):
    assert np.std(expected) > 0.1
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_names_are_the_published_ones(graph, objects):
    """A few names that the official code is known to give."""
    assert {
        "efficientnetv2-tiny/stem/conv2d/kernel",
        "efficientnetv2-tiny/stem/tpu_batch_normalization/gamma",
        "efficientnetv2-tiny/blocks_0/conv2d/kernel",
        "efficientnetv2-tiny/blocks_1/conv2d_1/kernel",
        "efficientnetv2-tiny/blocks_3/conv2d_1/kernel",
        "efficientnetv2-tiny/blocks_3/depthwise_conv2d/depthwise_kernel",
        "efficientnetv2-tiny/blocks_3/tpu_batch_normalization_2/gamma",
        "efficientnetv2-tiny/blocks_3/se/conv2d/bias",
        "efficientnetv2-tiny/head/dense/kernel",
    } < graph[0].keys()
    assert {"_blocks/1/_norm0/beta", "_blocks/0/_norm1/gamma", "_fc/bias"} < objects[0].keys()


@pytest.mark.parametrize("root", ["efficientnetv2-tiny/", "efficientnetv2-tiny/model/", ""])
def test_a_graph_without_averages(graph, tmp_path, forward, root):
    variables = {
        root + name.removeprefix("efficientnetv2-tiny/"): x for name, x in graph[0].items()
    }
    official.save_graph(tmp_path / "model", variables | {"global_step": np.int64(7)})
    for path in (tmp_path, tmp_path / "model"):
        model, loaded = load_model(str(path))
        check(forward(model, official.IMAGE), graph[1])
    assert loaded.spec == get_spec("efficientnetv2-tiny")
    assert "(TensorFlow 1 (official))" in str(loaded)


@pytest.mark.parametrize("ema", [True, False])
def test_a_graph_with_averages_and_slots(graph, tmp_path, forward, ema):
    variables = with_slots(graph[0])
    official.save_graph(tmp_path / "model.ckpt-5", variables)
    model, _ = load_model(str(tmp_path), ema=ema)
    stem = graph[0]["efficientnetv2-tiny/stem/conv2d/kernel"]
    if ema:
        check(forward(model, official.IMAGE), graph[1])
    else:
        stem = others({"": stem})[""]
    np.testing.assert_array_equal(model.stem.conv.kernel[...], stem)


def test_a_graph_of_only_averages(graph, tmp_path, forward):
    official.save_graph(
        tmp_path / "model", {f"{name}/ExponentialMovingAverage": x for name, x in graph[0].items()}
    )
    for ema in (True, False):
        model, _ = load_model(str(tmp_path), ema=ema)
        check(forward(model, official.IMAGE), graph[1])


@pytest.mark.parametrize("root", ["", "model/"])
def test_an_object_graph(objects, tmp_path, forward, root):
    variables = {root + name: x for name, x in objects[0].items()}
    official.save_objects(tmp_path / "ckpt-1", variables, epoch=tf.Variable(1))
    model, loaded = load_model(str(tmp_path))
    check(forward(model, official.IMAGE), objects[1])
    assert "(TensorFlow 2 (official))" in str(loaded)


def test_an_object_graph_with_an_optimisers_slots(objects, tmp_path, forward):
    """Keras' optimisers of TensorFlow 2.4 wrote averages into TensorFlow's own slots."""
    variables, logits = objects
    names = [name for name in variables if "moving" not in name]
    stored = {f"{name}/.ATTRIBUTES/VARIABLE_VALUE": x for name, x in others(variables).items()}
    for slot, scale in (("average", 1), ("rms", 2), ("momentum", 3)):
        for name in names:
            key = f"{name}/.OPTIMIZER_SLOT/optimizer/{slot}/.ATTRIBUTES/VARIABLE_VALUE"
            stored[key] = scale * variables[name]
    for name in variables.keys() - set(names):
        stored[f"{name}/.ATTRIBUTES/VARIABLE_VALUE"] = variables[name]
    stored["optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE"] = np.int64(3)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt-1"),
        tensor_names=list(stored),
        shape_and_slices=[""] * len(stored),
        tensors=list(stored.values()),
    )
    model, _ = load_model(str(tmp_path / "ckpt-1"))
    check(forward(model, official.IMAGE), logits)
    raw, _ = load_model(str(tmp_path / "ckpt-1"), ema=False)
    expected = others(variables)["_stem/_conv_stem/kernel"]
    np.testing.assert_array_equal(raw.stem.conv.kernel[...], expected)


def pack(folder, path, root="efficientnet-b0"):
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{root}/{file.name}")


def test_a_published_archive_is_fetched_by_name(tmp_path, monkeypatch, forward):
    """AdvProp's B0: first cut short on the way, then whole."""
    monkeypatch.setenv("EFFNETV2_JAX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("no_proxy", "*")
    network = official.Network("efficientnet-b0")
    expected = compute(network, "efficientnet-b0")
    (tmp_path / "checkpoint").mkdir()
    official.save_graph(tmp_path / "checkpoint" / "model.ckpt", network.variables)
    pack(tmp_path / "checkpoint", tmp_path / "packed.tgz")
    archive = (tmp_path / "packed.tgz").read_bytes()
    at = "/storage.googleapis.com/cloud-tpu-checkpoints/efficientnet/advprop/efficientnet-b0.tar.gz"
    with serve() as server:
        monkeypatch.setenv("EFFNETV2_JAX_MIRROR", server.url)
        server.pages[at] = Page(archive[: len(archive) // 2])
        with pytest.raises(
            UsageError, match=r"is no whole file of its kind: .* cannot be unpacked"
        ):
            load_model("efficientnet-b0/advprop")
        server.pages[at] = Page(archive)
        model, loaded = load_model("efficientnet-b0/advprop")
    assert loaded.spec.preprocessing == "advprop"
    check(forward(model, official.IMAGE), expected)


@pytest.fixture(scope="module")
def checkpoint(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    official.save_graph(folder / "model", graph[0])
    return folder


@pytest.mark.parametrize("ending", [".tgz", ".tar.gz", ".tar"])
def test_an_archive_is_read_whatever_it_is_called(checkpoint, graph, tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    with tarfile.open(path, "w" if ending == ".tar" else "w:gz") as archive:
        archive.add(checkpoint, "some/folder")
    weights = read_weights(str(path))
    kernel = graph[0]["efficientnetv2-tiny/stem/conv2d/kernel"]
    np.testing.assert_array_equal(weights.tensors["stem.conv.kernel"], kernel)


def member(name, data=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil.index"),
        member("a/../../evil.index"),
        member("evil.index", b"", tarfile.SYMTYPE, "/etc/passwd"),
        member("evil.index", b"", tarfile.LNKTYPE, "../../etc/passwd"),
        member("evil.index", b"", tarfile.CHRTYPE),
    ],
)
def test_an_archive_that_leads_elsewhere_is_refused(checkpoint, tmp_path, evil):
    path = tmp_path / "x" / "weights.tgz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        archive.add(checkpoint, "folder")
        info, data = evil
        archive.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"weights.tgz' cannot be unpacked"):
        read_weights(str(path))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_broken_is_named(checkpoint, tmp_path):
    for name, keep in (("model.index", 100), ("model.data-00000-of-00001", 3000)):
        folder = tmp_path / name
        folder.mkdir()
        for file in checkpoint.iterdir():
            data = file.read_bytes()
            (folder / file.name).write_bytes(data[:keep] if file.name == name else data)
        with pytest.raises(UsageError, match=r"the checkpoint .*model' cannot be read"):
            read_weights(str(folder))
        whole = tmp_path / f"{name}.tgz"
        pack(checkpoint, whole)
        whole.write_bytes(whole.read_bytes()[:-100])
        with pytest.raises(UsageError, match="cannot be unpacked"):
            read_weights(str(whole))
    empty = tmp_path / "empty.tgz"
    with tarfile.open(empty, "w:gz"):
        pass
    with pytest.raises(UsageError, match="holds no TensorFlow checkpoint"):
        read_weights(str(empty))


def test_of_several_checkpoints_the_named_one_is_taken(graph, tmp_path):
    official.save_graph(tmp_path / "model-1", others(graph[0]))
    official.save_graph(tmp_path / "model-2", graph[0])
    expected = graph[0]["efficientnetv2-tiny/stem/conv2d/kernel"]
    found = read_weights(str(tmp_path)).tensors["stem.conv.kernel"]
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(UsageError, match="several checkpoints, name one of model-1, model-2"):
        read_weights(str(tmp_path))
    found = read_weights(str(tmp_path / "model-1")).tensors["stem.conv.kernel"]
    assert not np.array_equal(found, expected)


def test_the_model_is_told_by_its_tensors(checkpoint):
    with pytest.raises(
        UsageError,
        match=r"does not fit efficientnetv2-s: tensor stem/conv2d/kernel has shape \(3, 3, 3, 8\) "
        r"there and \(3, 3, 3, 24\) in the model; it looks like efficientnetv2-tiny",
    ):
        load_model(str(checkpoint), "efficientnetv2-s")
