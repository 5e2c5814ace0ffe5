"""Names of published weights."""

import hashlib
import os

import pytest

from effnetv2_jax.models import get_spec, list_models
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import load_model, published, save_weights
from effnetv2_jax.weights.published import (
    PUBLISHED,
    Published,
    find_pretrained,
    list_pretrained,
    resolve,
)
from tests.weights.conftest import make_tiny
from tests.weights.server import Page, serve


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFNETV2_JAX_WEIGHTS", str(tmp_path))
    return tmp_path


def test_every_name_is_of_a_model_with_a_file_of_its_own():
    for name, entry in PUBLISHED.items():
        spec = get_spec(entry.model)
        assert name.startswith(entry.model)
        assert entry.url.startswith("https://")
        assert set(entry.changes) <= set(vars(spec))
    assert len({entry.url for entry in PUBLISHED.values()}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("efficientnetv2-s/imagenet", "/v2/efficientnetv2-s.tgz"),
        ("efficientnetv2-xl/imagenet21k", "/v2/efficientnetv2-xl-21k.tgz"),
        ("efficientnetv2-b3/imagenet21k-ft1k", "/v2/efficientnetv2-b3-21k-ft1k.tgz"),
        ("efficientnet-b8/advprop", "/advprop/efficientnet-b8.tar.gz"),
        ("efficientnet-b7/noisy-student", "/noisystudent/noisy_student_efficientnet-b7.tar.gz"),
        (
            "efficientnet-l2_475/noisy-student",
            "/noisystudent/noisy_student_efficientnet-l2_475.tar.gz",
        ),
        ("efficientnet-b0/autoaugment", "/ckptsaug/efficientnet-b0.tar.gz"),
        ("efficientnet-lite4/imagenet", "/lite/efficientnet-lite4.tar.gz"),
    ],
)
def test_the_official_files(name, ending):
    google = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
    assert PUBLISHED[name].url == google + ending


def test_xl_has_no_weights_of_imagenet_alone():
    with pytest.raises(UsageError, match="unknown weights 'efficientnetv2-xl/imagenet': did you"):
        resolve("efficientnetv2-xl/imagenet")


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "efficientnetv2-s" / "imagenet"
    path.mkdir(parents=True)
    assert resolve("efficientnetv2-s/imagenet")[1] is None


def test_offline_a_missing_file_says_where_to_fetch_and_where_to_put_it(folder, monkeypatch):
    monkeypatch.setenv("EFFNETV2_JAX_OFFLINE", "1")
    with pytest.raises(UsageError) as error:
        resolve("efficientnetv2-s/torchvision")
    name = "efficientnet_v2_s-dd5fe13b.pth"
    assert str(error.value) == (
        f"'{folder}/efficientnetv2-s/torchvision/{name}' is not here and EFFNETV2_JAX_OFFLINE is "
        f"set: fetch https://download.pytorch.org/models/{name} elsewhere and put it there"
    )


def test_a_tilde_before_nobodys_name_is_a_name():
    with pytest.raises(UsageError, match="'~nobody-has-this-name/x' are neither a file or folder"):
        resolve("~nobody-has-this-name/x")


def test_without_the_variable_the_users_cache_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("EFFNETV2_JAX_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert published.weights_folder() == tmp_path / "effnetv2_jax" / "weights"


def test_a_file_of_a_published_name_is_known_under_another_path(tmp_path):
    """torchvision's two weights of B1 are evaluated differently."""
    path = tmp_path / "efficientnet_b1-c27df63c.pth"
    path.write_bytes(b"")
    known = resolve(str(path))[1]
    assert known is PUBLISHED["efficientnet-b1/torchvision-v2"]
    family = get_preprocessing(known.changes["preprocessing"])
    assert (family.interpolation, *family.evaluation(240)) == ("bilinear", "center", 255)


def test_another_file_than_the_published_one_is_refused(folder, monkeypatch):
    path = folder / "efficientnetv2-s" / "torchvision" / "efficientnet_v2_s-dd5fe13b.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="not the file that was published: its SHA-256 is "):
        resolve("efficientnetv2-s/torchvision")
    good = hashlib.sha256(b"something else").hexdigest()
    entry = Published("efficientnetv2-s", PUBLISHED["efficientnetv2-s/torchvision"].url, good[:8])
    monkeypatch.setitem(PUBLISHED, "efficientnetv2-s/torchvision", entry)
    assert resolve("efficientnetv2-s/torchvision") == (path, entry)


@pytest.fixture
def server(monkeypatch):
    with serve() as running:
        monkeypatch.setenv("EFFNETV2_JAX_MIRROR", running.url)
        monkeypatch.setenv("no_proxy", "*")
        yield running


@pytest.fixture
def weights_file(tmp_path):
    """Bytes of a file of weights: B0's names are timm's, the network's are of none."""
    path = tmp_path / "made" / "tiny.safetensors"
    save_weights(make_tiny(), path)
    return path.read_bytes()


def test_a_published_name_is_fetched_once(server, folder, monkeypatch, weights_file):
    name = "efficientnetv2-s/torchvision"
    entry = Published("efficientnetv2-s", "https://there.example/x-1.pth")
    monkeypatch.setitem(PUBLISHED, name, entry)
    server.pages["/there.example/x-1.pth"] = Page(weights_file)
    assert resolve(name) == (folder / name / "x-1.pth", entry)
    resolve(name)
    assert len(server.requests) == 1


def test_an_address_is_fetched_and_its_file_keeps_its_name(server, folder, weights_file):
    url = "https://there.example/some%20folder/mine%2B1.safetensors?version=2#top"
    server.pages["/there.example/some%20folder/mine%2B1.safetensors?version=2"] = Page(weights_file)
    path, known = resolve(url)
    assert path.name == "mine+1.safetensors"
    assert path.is_relative_to(folder / "https" / "there.example")
    assert known is None
    assert load_model(url)[1].spec.name == "efficientnetv2-tiny"
    server.pages["/there.example/cut.safetensors"] = Page(weights_file[:-1])
    with pytest.raises(UsageError, match=r"cut\.safetensors is no whole file of its kind"):
        resolve("https://there.example/cut.safetensors")


def test_the_address_of_a_published_file_is_its_name(folder, monkeypatch):
    monkeypatch.setenv("EFFNETV2_JAX_OFFLINE", "1")
    with pytest.raises(UsageError, match=f"{folder}/efficientnet-b0/torchvision/effic"):
        resolve(PUBLISHED["efficientnet-b0/torchvision"].url)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("timm/tf_efficientnetv2_s.in1k", "timm/tf_efficientnetv2_s.in1k main"),
        ("timm/tf_efficientnetv2_s", "timm/tf_efficientnetv2_s.in21k_ft_in1k main"),
        ("hf://me/mine@v1", "me/mine v1"),
    ],
)
def test_a_repository_of_the_hub_becomes_a_folder(server, folder, weights_file, name, places):
    repository, revision = places.split()
    at = f"/huggingface.co/{repository}/resolve/{revision}"
    server.pages[f"{at}/config.json"] = Page(b'{"architecture": "efficientnetv2_tiny"}')
    server.pages[f"{at}/model.safetensors"] = Page(weights_file)
    path, known = resolve(name)
    owner, _, last = repository.partition("/")
    assert (path, known) == (folder / "hf" / owner / revision / last, None)
    files = {"config.json", "model.safetensors"}
    assert files <= set(os.listdir(path))
    assert {x for x, _ in server.requests} == {f"{at}/{file}" for file in files}
    resolve(name)
    assert len(server.requests) == 2


def test_a_repository_may_have_other_weights_and_no_config(server, folder, weights_file):
    at = "/huggingface.co/me/mine/resolve/main"
    server.pages[f"{at}/pytorch_model.bin"] = Page(weights_file)
    assert (resolve("hf://me/mine")[0] / "pytorch_model.bin").is_file()
    server.requests.clear()
    resolve("hf://me/mine")
    assert server.requests == []
    server.pages[f"{at}/deep/x.pth"] = Page(weights_file)
    assert resolve("hf://me/mine/deep/x.pth")[0] == folder / "hf/me/main/mine/deep/x.pth"
    with pytest.raises(UsageError, match=r"hf://me/none at main has no model.safetensors or pytor"):
        resolve("hf://me/none")
    server.pages["/huggingface.co/me/bad/resolve/main/config.json"] = Page(b"{")
    with pytest.raises(UsageError, match="it is no JSON"):
        resolve("hf://me/bad")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnetv2-s", "published name: did you mean efficientnetv2-s/imagenet or "),
        ("efficientnetv2_s/imagenet21k-ft1k", "did you mean efficientnetv2-s/imagenet21k-ft1k"),
        ("timm/tf_efficientnetv2_s.in22k", "did you mean timm/tf_efficientnetv2_s.in21k or "),
        ("timm/resnet50.a1_in1k", "neither a file or folder nor an address nor a published name"),
        ("timm/efficientnetv2_s.untrained", "neither a file or folder"),
        ("http://there.example/x.pth", r"only https://… and hf://OWNER/REPOSITORY can be fetched"),
        ("gs://bucket/x.tgz", "only https://… and hf://OWNER/REPOSITORY can be fetched"),
        ("hf://just-one", "only https://… and hf://OWNER/REPOSITORY can be fetched"),
        ("hf://me/mine/../x", "'../x' is no file of hf://me/mine"),
        ("https://there.example/", "must be the address of a file, such as https://HOST/NAME.pth"),
        ("https://there.example/%2e%2e", "must be the address of a file"),
        ("https://there.example/a%2fb", "must be the address of a file"),
        ("https:///x.pth", "must be the address of a file"),
        ("https://[x/y.pth", "must be the address of a file"),
        ("https://there.example/x y.pth", "is no address: URL can't contain control char"),
        ("https://there.example/é.pth", "is no address: "),
    ],
)
def test_a_name_or_an_address_that_is_none(name, message):
    with pytest.raises(UsageError, match=message):
        resolve(name)


def test_the_names_are_listed():
    names = list_pretrained()
    assert set(PUBLISHED) < set(names)
    assert "timm/vit_base_patch16_224.augreg_in21k_ft_in1k" in names
    assert not [name for name in names if name.endswith("untrained")]
    assert list_pretrained("deit-b/*") == ["deit-b/imagenet"]


def test_the_weights_of_a_model():
    assert find_pretrained("efficientnetv2-s", "imagenet21k") == "efficientnetv2-s/imagenet21k"
    assert find_pretrained("efficientnetv2-s", "timm/x") == "timm/x"
    for model, name in (
        ("efficientnetv2-s", "tf_efficientnetv2_s.in21k_ft_in1k"),
        ("efficientnetv2-b0", "tf_efficientnetv2_b0.in1k"),
        ("efficientnet-b4", "tf_efficientnet_b4.ns_jft_in1k"),
        ("efficientnet-lite0", "tf_efficientnet_lite0.in1k"),
        ("efficientnetv2-rw-t", "efficientnetv2_rw_t.ra2_in1k"),
        ("vit-b-16", "vit_base_patch16_384.augreg_in21k_ft_in1k"),
        ("deit-ti", "deit_tiny_patch16_224.fb_in1k"),
        ("deit-b-384", "deit_base_patch16_384.fb_in1k"),
    ):
        assert find_pretrained(model, True) == f"timm/{name}"
    without = {
        x for x in list_models() if not x.startswith(("efficientnet-b4-f", "efficientnetv2-t"))
    }
    assert {find_pretrained(model, True) for model in without} <= set(list_pretrained())
    with pytest.raises(UsageError, match="timm has no weights of efficientnetv2-tiny"):
        find_pretrained("efficientnetv2-tiny", True)
