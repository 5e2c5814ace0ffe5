"""Rows of records equal what tf.data reads from the files' beginning, whatever the files are."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from effnetv2_jax.data.sources import tfrecords
from effnetv2_jax.runtime.errors import UsageError

# Files without records at every place, and files smaller than a row.
RECORDS_IN_FILES = (0, 5, 1, 0, 0, 3, 1, 7, 0)
NUM_RECORDS = sum(RECORDS_IN_FILES)


def record(number):
    return f"record {number} ".encode() * (number % 4)  # some have no bytes


def write(file, numbers):
    with tf.io.TFRecordWriter(str(file)) as writer:
        for number in numbers:
            writer.write(record(number))
    return str(file)


@pytest.fixture
def files(tmp_path):
    ends = np.cumsum(RECORDS_IN_FILES)
    return [
        write(tmp_path / f"part-{i}", range(end - size, end))
        for i, (size, end) in enumerate(zip(RECORDS_IN_FILES, ends, strict=True))
    ]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "effnetv2_jax"


def parse(text):
    return {"image": text, "label": tf.constant(0, tf.int64)}


def images(dataset):
    return [example["image"] for example in dataset.as_numpy_iterator()]


def test_every_row_equals_what_tf_data_reads(files):
    split = tfrecords.open_split(files, parse)
    expected = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    assert split.size == len(expected) == NUM_RECORDS
    assert not split.random_access
    rows = [(f, c) for f in range(NUM_RECORDS + 1) for c in range(NUM_RECORDS + 1 - f)]
    # One graph for all rows: first and count are known only when it runs.
    dataset = tf.data.Dataset.from_tensor_slices(np.array(rows, np.int64)).flat_map(
        lambda row: split.read(row[0], row[1])
    )
    assert images(dataset) == [text for f, c in rows for text in expected[f : f + c]]


def test_records_are_known_by_their_sizes_wherever_they_lie(files, tmp_path):
    def identity(files, **part):
        return tfrecords.open_split(files, parse, **part).identity()

    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(file, tmp_path / "moved") for file in files]
    assert identity(moved) == identity(files)
    assert identity(files, start=1, stop=5) != identity(files, start=2, stop=6)


def test_rows_may_be_read_in_parallel(files):
    split = tfrecords.open_split(files, parse)
    expected = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    dataset = tf.data.Dataset.range(0, NUM_RECORDS - 3, 2).interleave(
        lambda first: split.read(first, tf.constant(4, tf.int64)),
        cycle_length=3,
        block_length=4,
        num_parallel_calls=3,
        deterministic=True,
    )
    rows = np.array(images(dataset)).reshape(-1, 4).tolist()
    assert sorted(rows) == sorted(expected[f : f + 4] for f in range(0, NUM_RECORDS - 3, 2))


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 4), (4, 9), (6, None), (16, 17)])
def test_a_part_of_the_records(files, start, stop):
    split = tfrecords.open_split(files, parse, start=start, stop=stop)
    expected = list(tf.data.TFRecordDataset(files).as_numpy_iterator())[start:stop]
    assert split.size == len(expected)
    for first in range(split.size):
        count = split.size - first
        row = split.read(tf.constant(first, tf.int64), tf.constant(count, tf.int64))
        assert images(row) == expected[first:]


def test_an_empty_part_has_no_examples(files):
    split = tfrecords.open_split(files, parse, start=17, stop=17)
    assert split.size == 0
    assert images(split.read(tf.constant(0, tf.int64), tf.constant(0, tf.int64))) == []


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4), (0, 18), (18, None)])
def test_a_part_that_does_not_exist(files, start, stop):
    with pytest.raises(UsageError, match=r"do not exist: 9 files \(.*part-0 … .*-8\) have 17"):
        tfrecords.open_split(files, parse, start=start, stop=stop)


def test_examples_are_described_by_file_and_number_in_it(files):
    split = tfrecords.open_split(files, parse)
    expected = [
        f"{file}, record {i}"
        for file, size in zip(files, RECORDS_IN_FILES, strict=True)
        for i in range(size)
    ]
    assert [split.describe(i) for i in range(split.size)] == expected
    part = tfrecords.open_split(files, parse, start=6)
    assert part.describe(0) == expected[6]


def test_a_large_row_passes_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "_MAX_BUFFER_BYTES", 8)
    file = write(tmp_path / "part", range(50))
    split = tfrecords.open_split([file], parse)
    row = split.read(tf.constant(7, tf.int64), tf.constant(40, tf.int64))
    assert images(row) == [record(i) for i in range(7, 47)]


@pytest.fixture
def headers_read(monkeypatch):
    """The names of the files whose headers were read."""
    read = []
    record_starts = tfrecords._record_starts

    def spy(file, size):
        read.append(file)
        return record_starts(file, size)

    monkeypatch.setattr(tfrecords, "_record_starts", spy)
    return read


def test_the_index_is_read_once(files, cache_dir, headers_read):
    first = tfrecords.build_index(files)
    assert sorted(headers_read) == sorted(files)  # by several threads
    second = tfrecords.build_index(files)
    assert sorted(headers_read) == sorted(files)  # by several threads
    np.testing.assert_array_equal(first.positions, second.positions)
    assert len(os.listdir(cache_dir)) == 1


def test_the_index_is_read_again_when_a_file_changes(files, headers_read):
    tfrecords.build_index(files)
    write(files[2], range(3))
    assert tfrecords.build_index(files).positions.size == NUM_RECORDS + 3
    # The same size as before, other records. TensorFlow tells times to the second.
    size, seconds = os.path.getsize(files[2]), os.path.getmtime(files[2])
    write(files[2], [2, 0, 1])
    assert os.path.getsize(files[2]) == size
    os.utime(files[2], (seconds + 2, seconds + 2))
    split = tfrecords.open_split(files, parse)
    row = split.read(tf.constant(6, tf.int64), tf.constant(2, tf.int64))
    assert images(row) == [record(0), record(1)]
    assert len(headers_read) == 3 * len(files)


def test_other_files_have_another_index(files):
    forward = tfrecords.open_split(files, parse)
    backward = tfrecords.open_split(files[::-1], parse)
    zero, size = tf.constant(0, tf.int64), tf.constant(NUM_RECORDS, tf.int64)
    assert sorted(images(forward.read(zero, size))) == sorted(images(backward.read(zero, size)))
    assert images(backward.read(zero, size)) == list(
        tf.data.TFRecordDataset(files[::-1]).as_numpy_iterator()
    )


def no_zip(file):
    with open(file, "wb") as stream:
        stream.write(b"no zip")


def cut(file):
    os.truncate(file, os.path.getsize(file) // 2)


def empty(file):
    os.truncate(file, 0)


def other_array(file):
    np.savez(file, offsets=np.zeros(3, np.int64))


def pickled(file):
    np.savez(file, positions=np.array([{}], object))


def floats(file):
    np.savez(file, positions=np.zeros(3))


def other_end(file):
    np.savez(file, positions=np.zeros(3, np.int64))


@pytest.mark.parametrize("damage", [no_zip, cut, empty, other_array, pickled, floats, other_end])
def test_a_broken_index_is_made_again(files, cache_dir, headers_read, damage):
    expected = tfrecords.build_index(files)
    [cache] = os.listdir(cache_dir)
    damage(os.path.join(cache_dir, cache))
    again = tfrecords.build_index(files)
    np.testing.assert_array_equal(again.positions, expected.positions)
    assert len(headers_read) == 2 * len(files)
    tfrecords.build_index(files)
    assert len(headers_read) == 2 * len(files)


def test_a_cache_that_cannot_be_written_is_done_without(files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "folder"))
    index = tfrecords.build_index(files)
    assert index.positions.size == NUM_RECORDS + 1
    assert "cannot be kept for the next time" in warnings[-1]


def test_a_write_that_fails_leaves_nothing_behind(files, cache_dir, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    assert tfrecords.build_index(files).positions.size == NUM_RECORDS + 1
    assert os.listdir(cache_dir) == []


@pytest.mark.parametrize(
    ("environment", "folder"),
    [({"XDG_CACHE_HOME": "xdg", "HOME": "home"}, "xdg"), ({"HOME": "home"}, "home/.cache")],
)
def test_the_default_cache(files, tmp_path, monkeypatch, environment, folder):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    tfrecords.build_index(files)
    assert len(list((tmp_path / folder / "effnetv2_jax").iterdir())) == 1


def test_files_in_an_object_store(files, monkeypatch):
    """They are opened through GFile, as is everything with a scheme."""
    urls = [f"file://{file}" for file in files]
    index = tfrecords.build_index(urls)
    np.testing.assert_array_equal(index.positions, tfrecords.build_index(files).positions)
    split = tfrecords.open_split(urls, parse)
    row = split.read(tf.constant(3, tf.int64), tf.constant(5, tf.int64))
    assert images(row) == [record(i) for i in range(3, 8)]


def test_a_bar_on_a_terminal(files, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert tfrecords.build_index(files).positions.size == NUM_RECORDS + 1
    assert "indexing files" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [-1, -20, 5])
def test_a_file_that_is_cut_off(files, kept):
    size = os.path.getsize(files[5])
    os.truncate(files[5], kept if kept > 0 else size + kept)
    with pytest.raises(UsageError, match=r"part-5 is cut off: its record \d .* copy it again"):
        tfrecords.open_split(files, parse)


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "text").write_text("This is not a TFRecord file at all.")
    with pytest.raises(UsageError, match="text is cut off: its record 0 would end at byte"):
        tfrecords.open_split([str(tmp_path / "text")], parse)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(UsageError, match=r"missing cannot be read: .*No such file"):
        tfrecords.open_split([str(tmp_path / "missing")], parse)
    with pytest.raises(UsageError, match="is a folder, not a TFRecord file: move it elsewhere"):
        tfrecords.open_split([str(tmp_path)], parse)
    with pytest.raises(UsageError, match="no TFRecord files given: name at least one"):
        tfrecords.open_split([], parse)


def test_files_without_records(files):
    with pytest.raises(UsageError, match=r"no records in .*part-0: copy them again"):
        tfrecords.open_split(files[:1], parse)
    with pytest.raises(
        UsageError, match=r"without any records: .*-0, .*-3, .*-4 and 1 more; copy them again"
    ):
        tfrecords.open_split(files, parse, allow_empty_files=False)
    full = [file for file, size in zip(files, RECORDS_IN_FILES, strict=True) if size]
    tfrecords.open_split(full, parse, allow_empty_files=False)


@pytest.mark.parametrize("byte", [0, 9, 14, -2])
def test_a_wrong_checksum_is_an_error(tmp_path, byte):
    """In the length, its checksum, the data and the data's checksum."""
    file = write(tmp_path / "part", range(10))
    split = tfrecords.open_split([file], parse)
    index = tfrecords.build_index([file])
    begin, end = index.positions[6:8]
    with open(file, "r+b") as stream:
        stream.seek(begin + byte if byte >= 0 else end + byte)
        old = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([old ^ 1]))

    def row(first, count):
        dataset = tf.data.Dataset.from_tensors((first, count)).map(
            lambda f, c: (tf.cast(f, tf.int64), tf.cast(c, tf.int64))
        )
        return images(dataset.flat_map(split.read))

    for first, count in ((6, 1), (5, 2), (0, 10)):
        with pytest.raises(tf.errors.DataLossError):
            row(first, count)
    assert row(0, 6) == [record(i) for i in range(6)]
    assert row(7, 3) == [record(i) for i in range(7, 10)]


def test_a_file_that_loses_records_after_it_was_indexed(files):
    split = tfrecords.open_split(files, parse)
    write(files[7], range(2))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 9 elements"):
        images(split.read(tf.constant(8, tf.int64), tf.constant(9, tf.int64)))
