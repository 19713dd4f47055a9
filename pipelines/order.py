"""Which record stands at which position: a pure function of (seed, epoch, position).

No buffer, no state: a stream starts anywhere by arithmetic, and any number of threads or hosts
sees the same order. The permutation is computed element by element by `index_shuffle`
(a stateless bijection of 0..n-1), so its memory does not grow with the dataset.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  import tensorflow as tf

# Different uses of one seed must not share random numbers.
_UNIFORM_SALT = 0x5EED
_POOL_SALT = 0xF06


@dataclasses.dataclass(frozen=True)
class EpochOrder:
  """The order of one training run.

  A batch has `batch_size - drawn` uniform places, which together cover every record once an epoch
  (the last batch is filled from the beginning of another permutation), and `drawn` places that
  cycle through permutations of the pools, one pool after the other.

  Attributes:
    num_records: Records of the split.
    batch_size: Places of a (global) batch.
    seed: Of the run.
    drawn: Places of each batch that are drawn from the pools.
    pools: int64 arrays of record rows, none empty; e.g. the slices with foreground.
  """

  num_records: int
  batch_size: int
  seed: int
  drawn: int = 0
  pools: tuple[np.ndarray, ...] = ()

  def __post_init__(self):
    if not 0 <= self.drawn < self.batch_size:
      raise ValueError(
          f"Each batch needs a uniform place: drawn must be below batch_size {self.batch_size}."
          f" Got: {self.drawn}."
      )
    if self.drawn and not (self.pools and all(len(pool) for pool in self.pools)):
      raise ValueError("drawn > 0 needs pools that hold records.")

  @property
  def steps_per_epoch(self) -> int:
    return -(-self.num_records // (self.batch_size - self.drawn))

  def record_at(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns what stands at a position of the endless stream of examples.

    Args:
      position: int64 scalar; step * batch_size + place in the batch.

    Returns:
      (record row int64, epoch int64, position in the epoch int64).
    """
    import tensorflow as tf

    step, place = position // self.batch_size, position % self.batch_size
    epoch, step = step // self.steps_per_epoch, step % self.steps_per_epoch
    uniform_places = self.batch_size - self.drawn
    number = step * uniform_places + place - self.drawn
    row = self._shuffled(tf.maximum(number, 0), self.num_records, epoch, _UNIFORM_SALT)
    if self.drawn:
      drawn_number = (epoch * self.steps_per_epoch + step) * self.drawn + place
      row = tf.where(place < self.drawn, self._from_pool(drawn_number), row)
    return row, epoch, position % (self.steps_per_epoch * self.batch_size)

  def _from_pool(self, number: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    starts = np.cumsum([0, *(len(pool) for pool in self.pools[:-1])])
    members = tf.constant(np.concatenate(self.pools), tf.int64)
    pool = number % len(self.pools)
    size = tf.gather(tf.constant([len(p) for p in self.pools], tf.int64), pool)
    # Pools run through permutation after permutation, independent of the epochs, so that a pool
    # smaller than an epoch's draws repeats evenly and a larger one is covered over epochs.
    local = self._shuffled(number // len(self.pools), size, pool, _POOL_SALT)
    return tf.gather(members, tf.gather(tf.constant(starts, tf.int64), pool) + local)

  def _shuffled(self, number: tf.Tensor, size, stream, salt: int) -> tf.Tensor:
    import tensorflow as tf

    size = tf.cast(size, tf.int64)
    cycle, index = number // size, number % size
    seed = tf.random.experimental.stateless_fold_in(
        tf.constant([self.seed & 0x7FFFFFFF, salt], tf.int32), tf.cast(stream, tf.int32)
    )
    seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(cycle, tf.int32))
    return tf.random.experimental.index_shuffle(index, seed=seed, max_index=size - 1)
