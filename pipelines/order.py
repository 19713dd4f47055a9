"""Which record stands at which position: a pure function of (seed, epoch, position).

No buffer, no state: a stream starts anywhere by arithmetic, and any number of threads or hosts
sees the same order. The permutation is computed element by element by `index_shuffle`
(a stateless bijection of 0..n-1), so its memory does not grow with the dataset.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.pipelines.record_table import RecordTable

# Different uses of one seed must not share random numbers.
_UNIFORM_SALT = 0x5EED
_POOL_SALT = 0xF06
_EXAMPLE_SALT = 0xE8A
# What a patch is centred around, beside the ids of the classes: any of them, or nothing.
ANY_CLASS = 0
ANYWHERE = -1
_MIX = (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0xFF51AFD7ED558CCD)


@dataclasses.dataclass(frozen=True)
class EpochOrder:
  """The order of one training run.

  A batch has `batch_size - drawn` uniform places, which together cover every record `passes` times
  an epoch (the last batch is filled from the beginning of another permutation), and `drawn` places
  that cycle through permutations of the pools, one pool after the other.

  Attributes:
    num_records: Records of the split.
    batch_size: Places of a (global) batch.
    seed: The run's own.
    drawn: Places of each batch that are drawn from the pools.
    pools: int64 arrays of record rows, none empty; e.g. the slices with foreground.
    passes: Over the records, each in an order of its own, that make an epoch.
    centered: First places of each batch whose patch, where patches are drawn, lies around
      foreground.
    pool_classes: Class that each pool is drawn for; empty: any, for all of them.
  """

  num_records: int
  batch_size: int
  seed: int
  drawn: int = 0
  pools: tuple[np.ndarray, ...] = ()
  passes: int = 1
  centered: int = 0
  pool_classes: tuple[int, ...] = ()

  def __post_init__(self):
    if not 0 <= self.drawn < self.batch_size:
      raise ValueError(
          f"Each batch needs a uniform place: drawn must be below batch_size {self.batch_size}."
          f" Got: {self.drawn}."
      )
    if self.drawn and not (self.pools and all(len(pool) for pool in self.pools)):
      raise ValueError("drawn > 0 needs pools that hold records.")
    if not 0 <= self.centered <= self.batch_size:
      raise ValueError(
          f"centered must lie in 0..{self.batch_size}, the places of a batch. Got: {self.centered}."
      )
    if self.pool_classes and len(self.pool_classes) != len(self.pools):
      raise ValueError(
          f"pool_classes must be one for each of {len(self.pools)} pools. Got: {self.pool_classes}."
      )

  @property
  def steps_per_epoch(self) -> int:
    """Steps until every record has been seen `passes` times."""
    return -(-self.passes * self.num_records // (self.batch_size - self.drawn))

  def records_at(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns what stands at positions of the endless stream of examples.

    Args:
      positions: int64 [n]; a position is step * batch_size + place in the batch.

    Returns:
      (record rows, epochs, positions in their epochs), each int64 [n].
    """
    step, place = positions // self.batch_size, positions % self.batch_size
    epoch, step = step // self.steps_per_epoch, step % self.steps_per_epoch
    number = step * (self.batch_size - self.drawn) + place - self.drawn
    rows = self._shuffled(tf.maximum(number, 0), self.num_records, epoch, _UNIFORM_SALT)
    if self.drawn:
      drawn_number = (epoch * self.steps_per_epoch + step) * self.drawn + place
      rows = tf.where(place < self.drawn, self._from_pools(drawn_number), rows)
    return rows, epoch, positions % (self.steps_per_epoch * self.batch_size)

  def targets_at(self, positions: tf.Tensor) -> tf.Tensor:
    """Returns what patches are centred around, int32 [n]: a class, `ANY_CLASS` or `ANYWHERE`.

    A patch of a slice that was drawn for a class is centred around that class, so that the classes
    take turns as the slices do.

    Args:
      positions: int64 [n], as of `records_at`.
    """
    step, place = positions // self.batch_size, positions % self.batch_size
    targets = tf.fill(tf.shape(positions), tf.constant(ANY_CLASS, tf.int32))
    if self.drawn and self.pool_classes:
      pool = (step * self.drawn + place) % len(self.pools)
      of_pool = tf.gather(tf.constant(self.pool_classes, tf.int32), pool)
      targets = tf.where(place < self.drawn, of_pool, targets)
    return tf.where(place < self.centered, targets, tf.fill(tf.shape(positions), ANYWHERE))

  def example_seeds(self, epochs: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Returns one augmentation seed per example, int32 [n, 2], from what `records_at` gives."""
    return self._seeds(epochs, positions, _EXAMPLE_SALT)

  def _from_pools(self, number: tf.Tensor) -> tf.Tensor:
    starts = np.cumsum([0, *(len(pool) for pool in self.pools[:-1])])
    members = tf.constant(np.concatenate(self.pools), tf.int64)
    pool = number % len(self.pools)
    size = tf.gather(tf.constant([len(p) for p in self.pools], tf.int64), pool)
    # Pools run through permutation after permutation, independent of the epochs, so that a pool
    # smaller than an epoch's draws repeats evenly and a larger one is covered over epochs.
    local = self._shuffled(number // len(self.pools), size, pool, _POOL_SALT)
    return tf.gather(members, tf.gather(tf.constant(starts, tf.int64), pool) + local)

  def _shuffled(self, number: tf.Tensor, size, stream: tf.Tensor, salt: int) -> tf.Tensor:
    """Maps the running `number` of a stream to its place in a permutation of `size` members."""
    size = tf.broadcast_to(tf.cast(size, tf.int64), tf.shape(number))
    seeds = self._seeds(stream, number // size, salt)
    # The raw op: `tf.random.experimental.index_shuffle` refuses a seed for each element.
    return tf.raw_ops.RandomIndexShuffle(
        index=number % size,
        seed=tf.pad(tf.bitcast(seeds, tf.uint32), [[0, 0], [0, 1]], constant_values=1),
        max_index=size - 1,
        rounds=4,
    )

  def _seeds(self, first: tf.Tensor, second: tf.Tensor, salt: int) -> tf.Tensor:
    """Mixes (run seed, salt, two counters) into int32 [n, 2]; wraps around on purpose."""
    # Odd constants of the 64-bit finalizer of MurmurHash3: counters far apart in all bits.
    start = tf.constant(self.seed, tf.int64) * _MIX[0] + tf.constant(salt, tf.int64) * _MIX[1]
    mixed = tf.bitcast(start, tf.uint64)
    for counter in (first, second):
      mixed = (mixed ^ tf.bitcast(counter, tf.uint64)) * tf.constant(_MIX[2], tf.uint64)
      mixed ^= tf.bitwise.right_shift(mixed, tf.constant(29, tf.uint64))
    return tf.bitcast(mixed, tf.int32)


def pools(table: RecordTable, *, by_class: bool) -> tuple[np.ndarray, ...]:
  """Returns the row sets, int64 [n] each, that balanced places of a batch are drawn from.

  One pool of all rows with foreground, or one per foreground class, which then take turns, so
  that a rare class is seen as often as a common one. None is empty.

  Raises:
    InputError: No row has foreground, or it is unknown which have.
  """
  if table.pixels is None or not len(table.foreground):
    raise InputError(
        "--foreground_fraction needs slices with foreground in the training split; there are none"
        " or they are not listed (records.csv). Pass --foreground_fraction=0."
    )
  if not by_class:
    return (table.foreground,)
  per_class: Sequence[np.ndarray] = [
      np.flatnonzero(table.pixels[:, class_id] > 0) for class_id in range(1, table.pixels.shape[1])
  ]
  return tuple(rows for rows in per_class if len(rows))


def pool_classes(table: RecordTable, *, by_class: bool) -> tuple[int, ...]:
  """Returns the class that each of the `pools` is drawn for, `ANY_CLASS` for the one of all."""
  if not by_class or table.pixels is None:
    return (ANY_CLASS,)
  return tuple(int(one) for one in np.flatnonzero((table.pixels[:, 1:] > 0).any(axis=0)) + 1)
