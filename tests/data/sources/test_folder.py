"""Your own images: labels from folders, a held-out share that stays put, and errors that help."""

import os
import pathlib
import shutil
import unicodedata

import pytest
import tensorflow as tf
from PIL import Image

from effnetv2_jax.data.decoding import IMAGE_ENDINGS
from effnetv2_jax.data.sources.folder import folder_source
from effnetv2_jax.runtime.errors import UsageError


def make_image(path, color=0):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (color, 0, 0)).save(path, format="PNG")


def make_class(folder, count, first=0):
    for i in range(first, first + count):
        make_image(folder / f"{i:03}.png", i)


@pytest.fixture
def root(tmp_path):
    """Two classes, 20 and 5 images, made in an order that is not theirs."""
    make_class(tmp_path / "train" / "dog", 5)
    make_class(tmp_path / "train" / "cat", 20)
    return tmp_path


def paths(source, split):
    split = source.split(split)
    return [split.describe(i) for i in range(split.size)]


def names(source, split):
    """CLASS/FILE of every example."""
    return ["/".join(path.split("/")[-2:]) for path in paths(source, split)]


def labels(source, split):
    split = source.split(split)
    dataset = split.read(tf.constant(0, tf.int64), tf.constant(split.size, tf.int64))
    return [int(example["label"]) for example in dataset]


def test_the_path_of_the_folder_need_not_be_text(root):
    odd = root.rename(root.with_name(os.fsdecode(b"caf\xe9")))
    assert labels(folder_source(str(odd)), "trainval") == [0] * 20 + [1] * 5


def test_class_folders_in_the_order_of_their_names_are_the_labels(root):
    source = folder_source(str(root))
    assert source.name == f"folder:{root}"
    assert source.class_names == ("cat", "dog")
    assert source.num_classes == 2
    assert labels(source, "trainval") == [0] * 20 + [1] * 5
    assert paths(source, "trainval") == sorted(map(str, root.glob("train/*/*.png")))


def test_one_example_and_a_row_of_them_are_the_bytes_of_the_files(root):
    split = folder_source(str(root)).split("trainval")
    dataset = split.read(tf.constant(18, tf.int64), tf.constant(4, tf.int64))
    row = list(dataset.as_numpy_iterator())
    assert len(row) == 4
    for index, example in enumerate(row, start=18):
        alone = split.parse(tf.constant(index, tf.int64))
        assert set(alone) == {"image", "label"}
        assert alone["label"].dtype == tf.int64
        assert alone["label"].shape == ()
        assert example["label"] == alone["label"] == int(index >= 20)
        content = pathlib.Path(split.describe(index)).read_bytes()
        assert example["image"] == alone["image"].numpy() == content


def test_reading_inside_another_dataset(root):
    """As the pipeline does: there the index is a symbol."""
    split = folder_source(str(root)).split("trainval")
    dataset = tf.data.Dataset.range(0, 24, 8).interleave(
        lambda first: split.read(first, tf.constant(2, tf.int64)), cycle_length=1
    )
    contents = [example["image"].numpy() for example in dataset]
    assert contents == [pathlib.Path(split.describe(i)).read_bytes() for i in (0, 1, 8, 9, 16, 17)]


def test_endings_count_in_any_case_at_any_depth_and_hidden_files_do_not(root):
    for ending in IMAGE_ENDINGS:
        make_image(root / "train" / "cat" / f"lower{ending}")
        make_image(root / "train" / "cat" / "deep" / "er" / f"UPPER{ending.upper()}")
    added = set(paths(folder_source(str(root)), "trainval"))
    assert len(added) == 25 + 2 * len(IMAGE_ENDINGS)
    make_image(root / "train" / "cat" / "._000.png")
    make_image(root / "train" / "cat" / ".thumbnails" / "000.png")
    make_image(root / "train" / ".cache" / "000.png")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / "folder.png").mkdir()
    source = folder_source(str(root))
    assert set(paths(source, "trainval")) == added
    assert source.class_names == ("cat", "dog")


def test_links_are_followed_and_names_need_not_be_text(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    make_class(elsewhere, 3)
    (root / "train" / "ant").symlink_to(elsewhere)
    os.rename(elsewhere / "000.png", os.fsencode(elsewhere) + b"/\xff.png")
    split = folder_source(str(root)).split("trainval")
    assert split.size == 28
    assert "ant" in split.describe(2)
    assert split.parse(tf.constant(2, tf.int64))["image"].numpy().startswith(b"\x89PNG")


def test_the_holdout_takes_its_share_of_every_class(root):
    source = folder_source(str(root), holdout=0.2)
    assert labels(source, "val") == [0] * 4 + [1]
    assert labels(source, "train") == [0] * 16 + [1] * 4
    train, val = paths(source, "train"), paths(source, "val")
    assert not set(train) & set(val)
    assert sorted(train + val) == paths(source, "trainval")
    assert train == sorted(train) and val == sorted(val)


@pytest.mark.parametrize(
    ("count", "holdout", "held"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (9, 0.99, 8)]
)
def test_the_holdout_takes_one_and_leaves_one(root, count, holdout, held):
    make_class(root / "train" / "ant", count)
    source = folder_source(str(root), holdout=holdout)
    assert labels(source, "val").count(0) == held
    assert labels(source, "train").count(0) == count - held


def test_the_holdout_depends_only_on_the_names(root, tmp_path_factory):
    held = names(folder_source(str(root)), "val")
    assert names(folder_source(str(root)), "val") == held
    other = tmp_path_factory.mktemp("other")
    make_class(other / "train" / "cat", 10, first=10)
    make_class(other / "train" / "cat", 10)
    make_class(other / "train" / "dog", 5)
    assert names(folder_source(str(other)), "val") == held
    assert names(folder_source(str(other) + "/"), "val") == held
    # What it was when this was written: a resumed run must find the same.
    assert held == ["cat/008.png", "cat/010.png", "dog/000.png"]


def test_the_holdout_of_a_class_knows_nothing_of_the_others(root):
    held = names(folder_source(str(root)), "val")
    make_class(root / "train" / "dog", 50, first=100)
    make_class(root / "train" / "bee", 10)
    changed = names(folder_source(str(root)), "val")
    assert [n for n in changed if n.startswith("cat/")] == held[:2]


def test_a_val_folder_is_val_and_leaves_train_whole(root):
    make_class(root / "val" / "cat", 2)
    make_class(root / "val" / "dog", 1)
    make_class(root / "test" / "cat", 1)
    make_class(root / "test" / "dog", 2)
    source = folder_source(str(root))
    assert names(source, "val") == ["cat/000.png", "cat/001.png", "dog/000.png"]
    assert labels(source, "test") == [0, 1, 1]
    assert paths(source, "train") == paths(source, "trainval")
    assert source.split("train").size == 25
    assert paths(source, "val")[0] == str(root / "val" / "cat" / "000.png")


def test_a_folder_is_known_by_its_names_and_sizes_wherever_it_lies(root, tmp_path_factory):
    def identity(folder=root, split="train"):
        return folder_source(str(folder)).split(split).identity()

    first = identity()
    assert first["examples"] == 22
    moved = tmp_path_factory.mktemp("moved") / "images"
    shutil.copytree(root, moved)
    assert identity(moved) == first
    # Mended files have the same names, and other sizes.
    Image.new("RGB", (9, 9)).save(root / "train" / "dog" / "004.png")
    mended = identity()
    assert (mended["names"], mended["sizes"] != first["sizes"]) == (first["names"], True)
    (moved / "train" / "dog" / "004.png").rename(moved / "train" / "cat" / "004b.png")
    assert identity(moved, "trainval")["examples"] == 25
    assert identity(moved, "trainval")["names"] != identity(root, "trainval")["names"]


def test_a_remote_folder_reads_like_a_local_one(root):
    """TensorFlow's file system in memory stands in for a bucket."""
    remote = f"ram://{root.name}-images"
    for path in sorted(root.glob("train/*/*.png")):
        target = f"{remote}/{path.relative_to(root)}".replace("dog/", "dog/deep/")
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(str(path), target)
    with tf.io.gfile.GFile(f"{remote}/train/cat/notes.txt", "w") as file:
        file.write("no image")
    source = folder_source(remote)
    assert source.class_names == ("cat", "dog")
    assert source.split("val").identity()["sizes"]
    assert names(source, "val")[:2] == names(folder_source(str(root)), "val")[:2]
    split = source.split("trainval")
    assert split.size == 25
    assert split.describe(24) == f"{remote}/train/dog/deep/004.png"
    content = (root / "train" / "dog" / "004.png").read_bytes()
    assert split.parse(tf.constant(24, tf.int64))["image"].numpy() == content


def test_a_listing_with_slashes_is_understood(monkeypatch):
    """Buckets mark folders with a slash at the end; an isdir for each file would be a request."""
    listing = {
        "gs://b": ["", "train/"],
        "gs://b/train": ["", "cat/", "dog/"],
        "gs://b/train/cat": ["0.jpg", "more/"],
        "gs://b/train/cat/more": ["1.jpg"],
        "gs://b/train/dog": ["2.jpg"],
    }
    asked = []

    def isdir(path):
        asked.append(os.fsdecode(path))
        return asked[-1].rstrip("/") == "gs://b"

    monkeypatch.setattr(tf.io.gfile, "isdir", isdir)
    monkeypatch.setattr(tf.io.gfile, "listdir", listing.__getitem__)
    expected = ["cat/0.jpg", "cat/more/1.jpg", "dog/2.jpg"]
    found = paths(folder_source("gs://b/"), "trainval")
    assert found == [f"gs://b/train/{name}" for name in expected]
    assert not [path for path in asked if path.endswith("jpg")]


def message(path, **arguments):
    with pytest.raises(UsageError) as error:
        folder_source(str(path), **arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_holdout_that_is_no_share(root, holdout):
    text = message(root, holdout=holdout)
    assert str(holdout) in text
    assert "above 0 and below 1" in text


def test_a_path_that_is_no_folder(root):
    text = message(root / "nowhere")
    assert repr(str(root / "nowhere")) in text
    assert "does not exist" in text
    assert "does not exist" in message(root / "train" / "cat" / "000.png")
    assert "does not exist" in message("")


def test_no_train_folder(tmp_path):
    make_class(tmp_path / "val" / "cat", 2)
    make_class(tmp_path / "other" / "cat", 2)
    text = message(tmp_path)
    assert "no folder train/" in text and f"only '{tmp_path}/val'" in text
    assert f"{tmp_path}/train/CLASS/" in text


def test_a_single_class_is_refused(tmp_path):
    make_class(tmp_path / "cat", 2)
    text = message(tmp_path)
    assert "no folder train/" in text and "only one class folder, 'cat'" in text
    make_class(tmp_path / "train" / "cat", 2)
    text = message(tmp_path)
    assert "train has only one class folder, 'cat': put the images in" in text
    assert f"{tmp_path}/train/CLASS/" in text


def test_folders_are_the_classes_if_there_is_no_train(tmp_path, caplog):
    make_class(tmp_path / "dog", 20)
    make_class(tmp_path / "cat", 200)
    with caplog.at_level("INFO"):
        source = folder_source(str(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert "has no train/: its 2 folders are the classes, and about 10 %" in caplog.text
    held, stay = names(source, "val"), names(source, "train")
    assert 10 <= len(held) <= 35 and {name.split("/")[0] for name in held} == {"cat", "dog"}
    assert sorted(held + stay) == names(source, "trainval") == sorted(set(held + stay))
    # No image moves between the splits when others are added, as the ranks of a share would.
    make_class(tmp_path / "cat", 100, first=1000)
    source = folder_source(str(tmp_path))
    assert set(held) <= set(names(source, "val")) and set(stay) <= set(names(source, "train"))
    with pytest.raises(UsageError, match=r"unknown split .* allowed are train, trainval, val"):
        source.split("test")


def test_class_folders_that_hold_splits_are_refused(tmp_path):
    make_class(tmp_path / "flowers" / "train" / "rose", 2)
    make_class(tmp_path / "pets" / "train" / "cat", 2)
    assert f"no folder train/ in '{tmp_path}', but {tmp_path}/flowers/ has train/" in message(
        tmp_path
    )


def test_litter_is_no_class_and_not_counted(root, caplog):
    make_class(root / "train" / "__MACOSX" / "cat", 2)
    make_class(root / "train" / ".ipynb_checkpoints", 2)
    make_class(root / "train" / "cat" / "@eaDir", 2)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "train" / "cat" / name).write_text("litter")
    source = folder_source(str(root))
    assert source.class_names == ("cat", "dog")
    assert source.split("trainval").size == 25
    assert caplog.text == ""


def test_files_that_are_left_out_are_counted_in_one_line(root, caplog):
    for name in ("cat/a.heic", "dog/b.HEIC", "dog/deep/c.heic", "cat/notes.txt", "cat/README"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_text("no image")
    make_class(root / "train", 2)
    folder_source(str(root))
    outside, record = caplog.records
    assert outside.getMessage() == (
        f"{root}/train has 2 images outside of class folders, which are left out"
    )
    assert record.getMessage() == (
        f"{root}/train has 5 files that are left out: 3 × .heic, 1 × .txt, 1 × no ending; convert "
        "those that are images, such as HEIC, to JPEG or PNG"
    )


@pytest.mark.parametrize("folders", [("valid", "TEST"), ("validation", "testing"), ("Val", "test")])
def test_other_names_of_splits(root, folders):
    for folder in folders:
        make_class(root / folder / "cat", 2)
        make_class(root / folder / "dog", 1)
    (root / "train").rename(root / "Training")
    source = folder_source(str(root))
    assert (source.split("train").size, source.split("trainval").size) == (25, 25)
    assert paths(source, "val")[0] == f"{root}/{folders[0]}/cat/000.png"
    assert paths(source, "test")[0] == f"{root}/{folders[1]}/cat/000.png"


def test_two_folders_for_a_split_and_one_for_none(root, caplog):
    make_class(root / "held-out" / "cat", 1)
    folder_source(str(root))
    assert f"'held-out' is no split of {root} and is not read" in caplog.text
    make_class(root / "val" / "cat", 1)
    make_class(root / "valid" / "cat", 1)
    assert "has 'val', 'valid' for the split val: keep one of them" in message(root)


def test_composed_and_decomposed_names_are_the_same_class(root):
    """macOS decomposes names. The labels and the held-out images must not depend on it."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_class(root / "train" / composed, 20)
    make_class(root / "train" / "caff", 1)  # between both: é is after f, e is before it
    make_class(root / "test" / decomposed, 2)
    source = folder_source(str(root))
    assert source.class_names == ("caff", composed, "cat", "dog")
    stay = labels(source, "train")
    assert labels(source, "test") == [source.class_names.index(composed)] * 2
    held = [name.split("/")[1] for name in names(source, "val") if name.startswith(composed)]
    (root / "train" / composed).rename(root / "train" / decomposed)
    moved = folder_source(str(root))
    assert moved.class_names == source.class_names
    assert [n.split("/")[1] for n in names(moved, "val") if n.startswith(decomposed)] == held
    assert labels(moved, "train") == stay
    make_class(root / "train" / composed, 3, first=100)
    both = folder_source(str(root))
    assert both.class_names == source.class_names and both.split("trainval").size == 49


@pytest.mark.parametrize("letter", ["\n", "\r", "\x85", "\u2028"])
def test_a_line_break_in_the_name_of_a_class_is_refused(root, letter):
    make_class(root / "train" / f"a{letter}b", 1)
    text = message(root)
    assert f"the class {f'a{letter}b'!r} of folder:" in text and "rename it" in text


def test_known_classes_need_no_train_folder(tmp_path):
    make_class(tmp_path / "test" / "dog", 2)
    make_class(tmp_path / "test" / "bee", 1)
    source = folder_source(str(tmp_path), class_names=("dog", "cat", "bee"))
    assert source.class_names == ("dog", "cat", "bee")
    assert names(source, "test") == ["dog/000.png", "dog/001.png", "bee/000.png"]
    assert labels(source, "test") == [0, 0, 2]
    with pytest.raises(UsageError, match=r"no folder train/ in .*, only '.*/test'"):
        source.split("val")
    with pytest.raises(UsageError, match=r"no other class folders .* it adds 'bee'"):
        folder_source(str(tmp_path), class_names=("dog", "cat")).split("test")


def test_no_class_folders(tmp_path):
    (tmp_path / "train").mkdir()
    text = message(tmp_path)
    assert "train has no class folders" in text
    assert f"{tmp_path}/train/CLASS/" in text
    make_image(tmp_path / "train" / "000.JPG")
    assert "train has images but no class folders" in message(tmp_path)


def test_class_folders_without_an_image(root):
    (root / "train" / "bee").mkdir()
    (root / "train" / "bee" / "000.txt").write_bytes(b"of another kind")
    text = message(root)
    assert "no image for the class 'bee': delete the folder or put images in" in text
    assert all(ending in text for ending in IMAGE_ENDINGS)
    for i in range(6):
        (root / "train" / f"ant {i}").mkdir()
    text = message(root)
    assert "'ant 4' and 2 more" in text
    assert "'ant 5'" not in text


@pytest.mark.parametrize("name", ["val", "test"])
def test_other_splits_may_lack_classes_of_train_but_add_none(root, name, caplog):
    make_class(root / name / "cat", 1)
    (root / name / "dog").mkdir()
    assert labels(folder_source(str(root)), name) == [0]
    assert f"{root}/{name} has no image of 'dog'" in caplog.text
    for i in range(7):
        make_class(root / name / f"x{i}", 1)
    source = folder_source(str(root))
    with pytest.raises(UsageError) as error:
        source.split(name)
    assert str(error.value) == (
        f"{root}/{name} must have no other class folders than were trained on, but it adds "
        "'x0', 'x1', 'x2', 'x3', 'x4' and 2 more"
    )


@pytest.mark.parametrize("files", [["0.png"], ["cat/notes.txt"], []])
def test_a_test_folder_that_cannot_be_used_matters_only_when_it_is(root, files):
    (root / "test").mkdir()
    for file in files:
        make_image(root / "test" / file)
    source = folder_source(str(root))
    assert source.split("train").size == 22
    with pytest.raises(UsageError, match=f"{root}/test has (images but )?no (class|image)"):
        source.split("test")


def test_a_folder_that_cannot_be_read(root, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "cannot be read: [Errno 13] Permission denied" in message(root)


def test_links_in_a_circle(root):
    for link, target in [("train/again", root), ("train/cat/up", root / "train")]:
        (root / link).symlink_to(target)
        text = message(root)
        assert text == (
            f"the folder '{root}/{link}' cannot be read: it is a link to {str(target)!r}, which "
            "holds it; remove the link"
        )
        (root / link).unlink()
    # Through each other.
    (root / "train" / "cat" / "dog").symlink_to(root / "train" / "dog")
    (root / "train" / "dog" / "cat").symlink_to("../cat")
    assert "which holds it; remove the link" in message(root)


def test_an_unknown_split(root):
    with pytest.raises(
        UsageError, match=r"unknown split of folder:.* 'tset'.* train, trainval, val"
    ):
        folder_source(str(root)).split("tset")


def test_nothing_to_hold_out(tmp_path):
    make_class(tmp_path / "train" / "cat", 1)
    make_class(tmp_path / "train" / "dog", 1)
    source = folder_source(str(tmp_path))
    assert source.split("train").size == 2
    with pytest.raises(
        UsageError, match="each class has just one: add images or make a folder val/"
    ):
        source.split("val")


def test_labels_are_int64_and_images_strings_in_the_spec(root):
    split = folder_source(str(root)).split("train")
    spec = split.read(tf.constant(0, tf.int64), tf.constant(1, tf.int64)).element_spec
    assert spec == {"image": tf.TensorSpec([], tf.string), "label": tf.TensorSpec([], tf.int64)}
