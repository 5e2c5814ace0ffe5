"""Seeds: distinct for every use, epoch, index and run, and unrelated though they are neighbours."""

import itertools

import numpy as np
import tensorflow as tf

from effnetv2_jax.data.order import Use, for_use, make_seed

RUNS = (-1, 0, 1, 2, 42, 10**6, 2**31 - 1)


def test_seeds_differ_by_run_epoch_index_and_use():
    seeds = [
        tuple(for_use(make_seed(run, tf.constant(epoch, tf.int64), index), use).numpy().tolist())
        for run, epoch, index, use in itertools.product(RUNS, (0, 1, 350), (0, 1, 1281166), Use)
    ]
    assert len(set(seeds)) == len(seeds) == len(RUNS) * 3 * 3 * len(Use)


def test_runs_stay_apart_for_more_epochs_than_anyone_trains():
    firsts = sorted(int(make_seed(run, tf.constant(0, tf.int64), 0)[0]) for run in range(1000))
    gaps = np.diff(np.array(firsts, object))
    assert min(gaps) > 10**12 * len(Use)
    assert firsts[0] + 2**64 - firsts[-1] > 10**12 * len(Use)


def test_neighbouring_seeds_give_unrelated_numbers():
    epoch = tf.constant(3, tf.int64)

    @tf.function
    def drawn(index):
        by_index = tf.random.stateless_uniform([], make_seed(0, epoch, index))
        by_epoch = tf.random.stateless_uniform([], make_seed(0, epoch + index, 0))
        uses = [for_use(make_seed(0, epoch, index), use) for use in (Use.CROP, Use.FLIP)]
        return tf.stack(
            [by_index, by_epoch, *[tf.random.stateless_uniform([], seed) for seed in uses]]
        )

    count = 2000
    numbers = np.array([drawn(tf.constant(i, tf.int64)).numpy() for i in range(count)]).T
    limit = 5 / count**0.5  # five standard deviations of a correlation of independent numbers
    for column in numbers[:2]:
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < limit
        # Uniform: of each tenth as many, within five standard deviations.
        assert (
            abs(np.histogram(column, 10, (0, 1))[0] - count / 10).max() < 5 * (count * 0.09) ** 0.5
        )
    assert abs(np.corrcoef(numbers)[np.triu_indices(4, 1)]).max() < limit
