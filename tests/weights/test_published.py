"""Names of published weights."""

import hashlib

import pytest

from effnetv2_jax.models import get_spec
from effnetv2_jax.preprocessing import get_preprocessing
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.weights import published
from effnetv2_jax.weights.published import PUBLISHED, Published, resolve


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


def test_a_missing_file_says_where_to_fetch_and_where_to_put_it(folder):
    with pytest.raises(UsageError) as error:
        resolve("efficientnetv2-s/torchvision")
    name = "efficientnet_v2_s-dd5fe13b.pth"
    assert str(error.value) == (
        "the weights 'efficientnetv2-s/torchvision' are not here: fetch "
        f"https://download.pytorch.org/models/{name} and put it at "
        f"{folder}/efficientnetv2-s/torchvision/{name}"
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
