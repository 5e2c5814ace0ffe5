"""ImageNet's tar files, small ones, as TFDS's files: those that TFDS itself makes of them."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids
from effnetv2_jax.data.sources.tfds import open_tfds
from effnetv2_jax.runtime.errors import UsageError
from launch.prepare_imagenet import prepare as imagenet
from launch.prepare_imagenet import tars as imagenet_tar
from launch.prepare_imagenet.prepare import prepare

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHARDS = 4
DIRECTORY, SYMLINK, HARD_LINK = "5", "2", "1"


def picture(seed, mode="RGB", kind="JPEG"):
    shape = (8 + seed % 5, 9, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind)
    return buffer.getvalue()


def tar(members, times=1):
    """Of {name: its bytes, or the type of what is no file}, all of them so many times."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in [*members.items()] * times:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content.encode(), "elsewhere"
                archive.addfile(member)
    return buffer.getvalue()


# Of TFDS's lists, one image that is in CMYK and the one PNG; of the rest, more classes than shards.
TRAIN = {
    f"{label}.tar": tar({f"{label}_{i}.JPEG": picture(100 * c + i) for i in range(1, 8)})
    for c, label in enumerate(imagenet_ids()[::200])
} | {
    "n01739381.tar": tar({"n01739381_1309.JPEG": picture(1, "CMYK")}),
    "n02105855.tar": tar({"n02105855_2933.JPEG": picture(2, kind="PNG")}),
}
VALIDATION = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(i) for i in (3, 1, 2, 5, 4, 6)}


def write_tars(folder, train=None, validation=None):
    folder.mkdir(exist_ok=True)
    for name, content in (("train", train or tar(TRAIN)), ("val", validation or tar(VALIDATION))):
        (folder / f"ILSVRC2012_img_{name}.tar").write_bytes(content)
    return str(folder)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"))


def files(data_dir):
    """Their contents by name, but for the one that TFDS does not have."""
    (folder,) = pathlib.Path(data_dir, "imagenet2012").iterdir()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.pop(imagenet.SOURCES)
    return found


def records(content):
    """The examples of a TFRecord file."""
    examples = []
    while content:
        length = int.from_bytes(content[:8], "little")
        examples.append(tf.train.Example.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return examples


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare(tars, str(data_dir), partial=True, num_shards=SHARDS)
    return str(data_dir)


def test_the_files_are_those_of_tfds(tars, prepared, tmp_path):
    builder = tfds.builder("imagenet2012", data_dir=tmp_path)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tars, num_shards=SHARDS)
    )
    expected = {path.name: path.read_bytes() for path in builder.data_path.iterdir()}
    found = files(prepared)
    assert found.keys() == expected.keys()
    shards = {name for name in found if ".tfrecord-" in name}
    assert len(shards) == 2 * SHARDS
    assert [name for name in found.keys() - shards if found[name] != expected[name]] == []
    for name in shards:
        # The order of an example's features is another one in every process of TFDS's.
        assert records(found[name]) == records(expected[name])
        assert len(found[name]) == len(expected[name])


def test_tfds_and_our_source_read_it(prepared):
    examples = list(tfds.as_numpy(tfds.load("imagenet2012", split="train", data_dir=prepared)))
    assert len(examples) == 37
    for example in examples:
        assert imagenet_ids()[example["label"]] == example["file_name"].decode().split("_")[0]
        assert example["image"].shape[-1] == 3
    source = open_tfds("imagenet2012", prepared)
    split = source.split("eval")
    assert split.size == 6
    labels = [int(split.parse(tf.constant(i, tf.int64))["label"]) for i in range(6)]
    # As https://github.com/tensorflow/datasets has them for the first six of the 50,000.
    assert sorted(source.class_names[label] for label in labels) == sorted(
        ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729", "n01735189"]
    )


def test_tfds_chooses_as_many_files():
    def shards(count, total):
        image = imagenet_tar.TarImage("", "", 0, total // count)
        return imagenet.number_of_shards([image] * count)

    assert shards(1_281_167, 146 * 10**9) == 1024
    assert shards(50_000, 67 * 10**8) == 64


def test_killed_and_started_again(tars, prepared, tmp_path):
    """What was whole stays as it was; what comes out is what would have come out."""
    killed_at_an_image = """
import os, signal, sys
from launch.prepare_imagenet import prepare as imagenet, tars as imagenet_tar
count = 0
def read(path, image):
    global count
    count += 1
    if count == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return imagenet_tar.read_image(path, image)
imagenet.read_image = read
imagenet.prepare(*sys.argv[1:], partial=True, num_shards=4, threads=1)
"""
    command = [sys.executable, "-c", killed_at_an_image, tars, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    (folder,) = (tmp_path / "imagenet2012").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tfrecord-*")}
    # Two that are whole, and a part of the third.
    assert sorted(name.rpartition("-train.tfrecord-")[2] for name in before) == [
        "00000-of-00004",
        "00001-of-00004",
        "00002-of-00004.tmp",
    ]
    with pytest.raises(UsageError):
        open_tfds("imagenet2012", str(tmp_path)).split("train")

    prepare(tars, str(tmp_path), partial=True, num_shards=SHARDS)
    assert files(tmp_path) == files(prepared)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name, time in before.items() if after.get(name) == time} == {
        name for name in before if not name.endswith(".tmp")
    }


def test_what_is_prepared_is_left_alone(tars, prepared, capsys):
    before = files(prepared)
    prepare(str(pathlib.Path(tars, "nowhere")), prepared)
    assert "is prepared already" in capsys.readouterr().out
    assert files(prepared) == before


def test_other_tar_files_are_refused(tars, tmp_path):
    begun = tmp_path / "data"
    prepare(tars, str(begun), partial=True, num_shards=SHARDS)
    (folder,) = (begun / "imagenet2012").iterdir()
    (folder / "dataset_info.json").unlink()
    others = write_tars(tmp_path / "others", validation=tar({next(iter(VALIDATION)): picture(9)}))
    with pytest.raises(UsageError, match="was begun with other tar files"):
        prepare(others, str(begun), partial=True, num_shards=SHARDS)
    prepare(tars, str(begun), partial=True, num_shards=SHARDS)
    assert (folder / "dataset_info.json").exists()


IMAGE = {"n01440764_1.JPEG": b"jpeg"}


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        ({"../n01440764.tar": tar(IMAGE)}, r"has '\.\./n01440764\.tar', but ImageNet's has"),
        ({"n00000001.tar": tar(IMAGE)}, "has 'n00000001.tar', but"),
        ({"n01440764": tar(IMAGE)}, "has 'n01440764', but"),
        ({"n01440764": DIRECTORY}, "has 'n01440764', but ImageNet's has only plain"),
        ({"n01440764.tar": SYMLINK}, "has 'n01440764.tar', but .* only plain files"),
        ({"n01440764.tar": tar({"/n01440764_1.JPEG": b""})}, "n01440764.tar in .* has '/n01"),
        ({"n01440764.tar": tar({"n01443537_1.JPEG": b""})}, "has 'n01443537_1.JPEG', but"),
        ({"n01440764.tar": tar({"n01440764_1.JPEG": HARD_LINK})}, "only plain files"),
        ({"n01440764.tar": tar({"n01440764_1.jpg": b""})}, "names such as n01440764_1.JPEG"),
        # Which goes on with what follows in the outer one, as if it were its own.
        ({"n01440764.tar": tar(IMAGE)[:512]}, "n01440764.tar in .* cut off"),
        ({"n01440764.tar": tar(IMAGE)[:1024]}, "n01440764.tar in .* cut off"),
        ({"n01440764.tar": b"<html>" * 200}, "n01440764.tar in .* is not a tar file"),
        ({}, "has 0 images"),
    ],
)
def test_anything_else_in_a_tar_file_is_refused(train, reason, tmp_path):
    tars = write_tars(tmp_path, train=tar(train))
    with pytest.raises(UsageError, match=reason):
        prepare(tars, str(tmp_path / "data"), partial=True)
    assert not (tmp_path / "data").exists()


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    tars = write_tars(tmp_path, train=tar({"n01440764.tar": tar(IMAGE, times=2)}))
    with pytest.raises(UsageError, match=r"has n01440764_1.JPEG twice"):
        prepare(tars, str(tmp_path / "data"), partial=True)


def test_a_validation_image_that_imagenet_does_not_have_is_refused(tmp_path):
    tars = write_tars(tmp_path, validation=tar({"ILSVRC2012_val_00050001.JPEG": b"jpeg"}))
    with pytest.raises(UsageError, match=r"has 'ILSVRC2012_val_00050001.JPEG', but"):
        prepare(tars, str(tmp_path / "data"), partial=True)


@pytest.mark.parametrize("split", imagenet_tar.ARCHIVES)
def test_a_tar_file_that_is_cut_off_anywhere_is_refused(split, tmp_path):
    archive = imagenet_tar.ARCHIVES[split]
    whole = tar(TRAIN if split == "train" else VALIDATION)
    path = tmp_path / archive.file
    path.write_bytes(whole)
    images = list(archive.images(str(path)))
    end = images[-1].offset + images[-1].size
    # Between members, in headers, in images, and in the marks of the end.
    cuts = [*range(0, end, 512), *range(1, end, 997), end]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="is not a tar file, or cut off") as error:
            list(archive.images(str(path)))
        assert "\n" not in str(error.value)


def test_a_tar_file_that_becomes_shorter_is_noticed(tars, tmp_path):
    path = pathlib.Path(write_tars(tmp_path), "ILSVRC2012_img_val.tar")
    image = list(imagenet_tar.validation_images(str(path)))[-1]
    os.truncate(path, image.offset + 1)
    with pytest.raises(UsageError, match="has become shorter"):
        imagenet_tar.read_image(str(path), image)


def test_a_missing_tar_file_is_named_once(tmp_path):
    with pytest.raises(UsageError) as error:
        prepare(str(tmp_path), str(tmp_path / "data"))
    path = tmp_path / "ILSVRC2012_img_train.tar"
    assert str(error.value) == f"{path} cannot be read: [Errno 2] No such file or directory"


def test_fewer_images_than_there_are_have_to_be_wanted(tars, tmp_path):
    with pytest.raises(UsageError, match=r"37 images, but ImageNet's has 1,281,167: .* --partial"):
        prepare(tars, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tars, tmp_path):
    (tmp_path / "file").touch()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "launch.prepare_imagenet", "--partial"),
            *(f"--tar_dir={tars}", f"--data_dir={tmp_path}/file"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: data_dir '{tmp_path}/file' cannot be written (")
    assert result.stderr.count("\n") == 1
