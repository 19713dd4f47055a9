"""From a built dataset to batches: the two streams that training and evaluation read.

A batch is a dict: `image` uint8 [B, h, w, channels], `label` uint8 [B, h, w], `record` int64 [B]
(row in the RecordTable), `valid` bool [B] (False for what only fills the last batch).
Casting, scaling and one-hot happen later, on the device: few bytes travel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.cache import ExampleCache
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.order import EpochOrder
from flexunet.pipelines.patches import PatchSampler
from flexunet.pipelines.readers import (
  ExampleLoader,
  ExampleSpec,
  Loader,
  VolumeSliceLoader,
)
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.resizing import Resizing, to_channels

_BATCHES_AHEAD = 2
_STEPS_AT_ONCE = 64  # Steps ordered per call; few enough that a start costs no time.
# (image uint8 [h, w, C], label uint8 [h, w], seed int32 [2]) -> (image, label)
Augment = Callable[..., tuple]
_BATCHES_ON_DEVICE = 2


@dataclasses.dataclass(frozen=True)
class Host:
  """Which part of each global batch this process reads: places index * B/count onwards."""

  index: int = 0
  count: int = 1

  def __post_init__(self):
    if not 0 <= self.index < self.count:
      raise ValueError(f"index must lie in 0..{self.count - 1}. Got: {self.index}.")


def open_loader(source: DatasetSource, table: RecordTable, spec: ExampleSpec) -> Loader:
  """Returns what reads the rows of a table of `source`, whatever the form of the dataset."""
  if table.decoded is not None:
    return VolumeSliceLoader(table, table.decoded, spec)
  return ExampleLoader(source, table, spec)


def training_batches(
    loader: Loader,
    order: EpochOrder,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    cache: ExampleCache | None = None,
    augment: Augment | None = None,
    patches: PatchSampler | None = None,
    host: Host = Host(),
    threads: int = 0,
) -> tf.data.Dataset:
  """Returns the batches of the endless training stream from `start_step` on.

  Starting anywhere costs nothing: positions are numbers, and nothing before them is read. The
  batches are the same with any number of threads, with and without a cache, and those of several
  hosts put together are those of one.

  Args:
    loader: Reads the examples.
    order: Which example stands where.
    start_step: Step of the whole run, from 0.
    num_steps: Length of the stream; its cardinality is known. Default: one epoch.
    cache: Decoded examples of the loader's rows.
    augment: Changes one example by a seed that is a function of (run seed, epoch, position).
    patches: Draws a patch of each example, augmenting it by itself; excludes `augment`.
    host: Which part of each batch this process reads.
    threads: Parallel reads and decodes; 0 takes `tf_data.default_threads`.

  Returns:
    Batches as in the module's docstring, `host`'s part of each.
  """
  if order.num_records != loader.num_rows:
    raise ValueError(f"order is of {order.num_records} records, the table of {loader.num_rows}.")
  if order.batch_size % host.count:
    raise ValueError(f"batch_size {order.batch_size} must be a multiple of {host.count} hosts.")
  if patches is not None and augment is not None:
    raise ValueError("Patches are augmented by their sampler: pass no `augment` beside it.")
  num_steps = order.steps_per_epoch if num_steps is None else num_steps
  part = order.batch_size // host.count
  calls = threads or tf_data.default_threads()
  entries = step_entries(order, host, start_step, num_steps, patches)
  augments = augment is not None or (patches is not None and patches.augmentation is not None)
  if cache is not None and not augments:
    # One thread: copying is bound by the memory, and several threads get in each other's way.
    return tf_data.untuned(entries.map(_gather(loader, cache, patches)).prefetch(_BATCHES_AHEAD))
  example = _example_of(loader, cache, augment, patches)
  return _batched(entries.unbatch(), example, part, calls).apply(
      tf.data.experimental.assert_cardinality(num_steps)  # `unbatch` loses the count.
  )


def batches_of_steps(
    loader: Loader,
    order: EpochOrder,
    steps: tf.data.Dataset,
    *,
    augment: Augment | None = None,
    patches: PatchSampler | None = None,
    host: Host = Host(),
) -> tf.data.Dataset:
  """Returns the batch of each step in a dataset of step numbers, whatever order these stand in.

  As `training_batches` without a cache; the batches also hold `step` int64 [B], the number that
  each of their examples is of. Nothing outside of its graph is needed, so that it may be computed
  in another process. Threads are as many as the process has.
  """
  part = order.batch_size // host.count
  places = tf.cast(tf.range(part) + host.index * part, tf.int64)

  @tf_data.plain_graph
  def of_step(step):
    entries = _entries_at(order, step * order.batch_size + places, patches)
    return {**entries, "step": tf.fill([part], step)}

  finished = _example_of(loader, None, augment, patches)
  return _batched(
      steps.map(of_step).unbatch(),
      lambda entry: {**finished(entry), "step": entry["step"]},
      part,
      tf.data.AUTOTUNE,
  )


def _example_of(
    loader: Loader,
    cache: ExampleCache | None,
    augment: Augment | None,
    patches: PatchSampler | None,
) -> Callable[[dict], dict]:
  """Returns what makes an example of a batch, as in the module's docstring, of a step's entry."""
  load = _gather_one(cache) if cache is not None else loader

  @tf_data.plain_graph
  def example(entry):
    loaded = load(entry["row"])
    image, label = loaded["image"], loaded["label"]
    if augment is not None:
      image, label = augment(image, label, entry["seed"])
    if patches is not None:
      image, label = patches.example(image, label, entry)
    return _finished(loader, image, label, entry["row"], tf.constant(True))

  return example


def step_entries(
    order: EpochOrder,
    host: Host,
    start_step: int,
    num_steps: int,
    patches: PatchSampler | None = None,
) -> tf.data.Dataset:
  """Returns what each step reads: {"row": int64 [b], "seed": int32 [b, 2]}.

  With patches also {"target": int32 [b], "content": int32 [b, 4]}, which their sampler takes.

  Many steps at once: the order is some fifty small operations, and each costs microseconds
  however many positions it is given.
  """
  part = order.batch_size // host.count
  places = tf.range(_STEPS_AT_ONCE)[:, None] * order.batch_size + tf.range(part) + host.index * part
  places = tf.cast(places, tf.int64)

  @tf_data.plain_graph
  def block(first_step):
    positions = tf.reshape(first_step * order.batch_size + places, [-1])
    entries = _entries_at(order, positions, patches)
    return {
        name: tf.reshape(one, [_STEPS_AT_ONCE, part, *one.shape[1:]])
        for name, one in entries.items()
    }

  firsts = tf.data.Dataset.range(start_step, start_step + num_steps, _STEPS_AT_ONCE)
  return (
      firsts.map(block)
      .unbatch()
      .take(num_steps)
      .apply(tf.data.experimental.assert_cardinality(num_steps))  # `unbatch` loses the count.
  )


def _entries_at(
    order: EpochOrder, positions: tf.Tensor, patches: PatchSampler | None
) -> dict[str, tf.Tensor]:
  """Positions int64 [n] -> what `step_entries` gives of each."""
  rows, epochs, in_epoch = order.records_at(positions)
  entries = {"row": rows, "seed": order.example_seeds(epochs, in_epoch)}
  if patches is not None:
    entries["target"] = order.targets_at(positions)
    entries["content"] = tf.gather(tf.constant(patches.content, tf.int32), rows)
  return entries


def evaluation_batches(
    loader: Loader,
    batch_size: int,
    *,
    cache: ExampleCache | None = None,
    rows: np.ndarray | None = None,
    host: Host = Host(),
    threads: int = 0,
) -> tf.data.Dataset:
  """Returns every record once, in file order; the last batch is filled up and marked invalid.

  Args:
    loader: Reads the examples.
    batch_size: Examples per batch.
    cache: Decoded examples of the loader's rows.
    rows: int64 [N], only these, in this order.
    host: Which part of each batch this process reads; all processes have as many batches.
    threads: Parallel reads and decodes; 0 takes `tf_data.default_threads`.

  Returns:
    Batches as in the module's docstring, `host`'s part of each.
  """
  if batch_size % host.count:
    raise ValueError(f"batch_size {batch_size} must be a multiple of {host.count} hosts.")
  count = loader.num_rows if rows is None else len(rows)
  load = _gather_one(cache) if cache is not None else loader

  @tf_data.plain_graph
  def example(position):
    row = tf.minimum(position, count - 1)
    if rows is not None:
      row = tf.constant(rows, tf.int64)[row]
    loaded = load(row)
    return _finished(loader, loaded["image"], loaded["label"], row, position < count)

  filled = -(-count // batch_size) * batch_size
  part = batch_size // host.count

  @tf_data.plain_graph
  def position_of(place):
    return place // part * batch_size + host.index * part + place % part

  positions = tf.data.Dataset.range(filled // host.count).map(position_of)
  return _batched(positions, example, part, threads or tf_data.default_threads())


def check_sizes(table: RecordTable, resizing: Resizing) -> None:
  """Refuses records that do not fit the input size, before anything trains."""
  if len(table) and table.height.max() > 0:
    for row in (int(np.argmax(table.height)), int(np.argmax(table.width))):
      resizing.check(int(table.height[row]), int(table.width[row]), table.describe(row))


@tf_data.plain_graph
def _finished(loader: Loader, image, label, row, valid) -> dict:
  image = to_channels(image, loader.spec.image_channels)
  return {"image": image, "label": label, "record": row, "valid": valid}


def _gather(loader: Loader, cache: ExampleCache, patches: PatchSampler | None):
  """Returns what copies a whole batch, or a patch of each example, out of the cache."""
  images, labels = cache.tensors()

  @tf_data.plain_graph
  def gather(entry):
    rows = entry["row"]
    image, label = tf.gather(images, rows), tf.gather(labels, rows)
    if patches is not None:
      image, label = patches(image, label, entry)
    return _finished(loader, image, label, rows, tf.ones_like(rows, tf.bool))

  return gather


def _gather_one(cache: ExampleCache):
  images, labels = cache.tensors()

  @tf_data.plain_graph
  def gather_one(row):
    return {"image": images[row], "label": labels[row]}

  return gather_one


def _batched(entries: tf.data.Dataset, example, batch_size: int, calls: int) -> tf.data.Dataset:
  return tf_data.untuned(
      entries.map(example, num_parallel_calls=calls, deterministic=True)
      .batch(batch_size, drop_remainder=True)  # The length is a multiple: nothing is dropped.
      .prefetch(_BATCHES_AHEAD)
  )


def prefetch_to_device(batches: tf.data.Dataset) -> tf.data.Dataset:
  """Copies batches ahead to the GPU when there is exactly one; elsewhere returns them as they are.

  With several GPUs the distribution strategy of the trainer places each replica's part itself,
  and on a CPU the batches are where they are needed already. tf.data forgets how many batches
  there are when it copies to a device, and Keras then runs one step too many per epoch: the
  number is put back.
  """
  gpus = tf.config.list_logical_devices("GPU")
  if len(gpus) != 1:
    return batches
  count = batches.cardinality()
  if count == tf.data.UNKNOWN_CARDINALITY:
    raise ValueError("The number of batches must be known before they are sent to a device.")
  prefetched = tf.data.experimental.prefetch_to_device(gpus[0].name, _BATCHES_ON_DEVICE)
  on_device = batches.apply(prefetched)
  return on_device.apply(tf.data.experimental.assert_cardinality(count))
