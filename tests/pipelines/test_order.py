"""Properties of the order of records."""

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.order import EpochOrder


def rows_of(order: EpochOrder, first: int, count: int) -> list[int]:
  positions = tf.range(first, first + count, dtype=tf.int64)
  return [int(row) for row in order.records_at(positions)[0]]


@pytest.mark.parametrize("num_records, batch_size", [(10, 5), (1, 1), (7, 3), (64, 8)])
def test_an_epoch_covers_every_record_once(num_records, batch_size):
  order = EpochOrder(num_records, batch_size, seed=3)
  rows = rows_of(order, 0, order.steps_per_epoch * batch_size)
  assert sorted(rows[:num_records]) == list(range(num_records))
  assert len(rows) - num_records < batch_size  # Only the last batch is filled up.


def test_an_epoch_of_several_passes_covers_every_record_so_often_each_time_in_another_order():
  order = EpochOrder(7, 3, seed=3, passes=3)
  assert order.steps_per_epoch == 7  # 21 places in batches of 3.
  rows = rows_of(order, 0, 21)
  passes = [rows[:7], rows[7:14], rows[14:]]
  assert all(sorted(one) == list(range(7)) for one in passes)
  assert len({tuple(one) for one in passes}) == 3


def test_epochs_and_seeds_differ():
  order, other = EpochOrder(50, 10, seed=3), EpochOrder(50, 10, seed=4)
  first, second = rows_of(order, 0, 50), rows_of(order, 50, 50)
  assert first != second
  assert first != rows_of(other, 0, 50)
  assert first != sorted(first)


def test_a_stream_started_anywhere_continues_as_the_whole_one():
  order = EpochOrder(11, 4, seed=5, drawn=2, pools=(np.array([2, 9]),))
  whole = rows_of(order, 0, 60)
  for start in (1, 4, 23, 24, 59):
    assert rows_of(order, start, 60 - start) == whole[start:]


def test_drawn_places_hold_the_pool_and_uniform_places_cover_the_epoch():
  pool = np.array([1, 4, 6])
  order = EpochOrder(20, 4, seed=1, drawn=1, pools=(pool,))
  assert order.steps_per_epoch == 7  # 20 records at 3 uniform places a batch.
  batches = np.array(rows_of(order, 0, 28)).reshape(7, 4)
  assert set(batches[:, 0]) == set(pool)
  assert set(batches[:, 1:].ravel()[:20]) == set(range(20))
  # Two rounds of three: each member of the pool once a round.
  assert sorted(batches[:3, 0]) == sorted(batches[3:6, 0]) == [1, 4, 6]


def test_several_pools_take_turns():
  order = EpochOrder(10, 4, seed=1, drawn=2, pools=(np.array([0]), np.array([7, 8])))
  drawn = np.array(rows_of(order, 0, 20)).reshape(5, 4)[:, :2]
  assert set(drawn[:, 0]) == {0}
  assert set(drawn[:, 1]) == {7, 8}


def test_a_batch_of_draws_only_is_refused():
  with pytest.raises(ValueError, match="uniform place"):
    EpochOrder(10, 4, seed=1, drawn=4, pools=(np.array([0]),))


def test_seeds_of_examples_differ_and_repeat():
  order = EpochOrder(1000, 8, seed=1)
  positions = tf.range(4000, dtype=tf.int64)
  _, epochs, places = order.records_at(positions)
  seeds = order.example_seeds(epochs, places).numpy()
  assert seeds.shape == (4000, 2) and len({tuple(seed) for seed in seeds}) == 4000
  np.testing.assert_array_equal(seeds, order.example_seeds(epochs, places))
  # Bits are balanced: neighbouring counters must not give neighbouring seeds.
  ones = np.unpackbits(seeds.view(np.uint8)).mean()
  assert 0.48 < ones < 0.52


def test_positions_can_be_asked_in_any_grouping_also_inside_a_graph():
  order = EpochOrder(13, 4, seed=2, drawn=1, pools=(np.array([3, 5, 8]),))
  whole = rows_of(order, 0, 40)
  graph = tf.data.Dataset.range(40).batch(7).map(lambda p: order.records_at(p)[0])
  assert [int(row) for rows in graph for row in rows] == whole
