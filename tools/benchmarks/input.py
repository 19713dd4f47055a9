"""Measures the input pipeline on a built dataset and prints one JSON object.

    python -m flexunet.tools.benchmarks.input --dataset=image_mask/full_head_t1w --data_dir=DATA

Everything is measured in turns within one run, because machines are noisy: read the ratios. Rates
are images a second, the best of --rounds. Progress goes to standard error.

  decode_limit   PNG images and labels in memory, decoded in parallel and batched: what no stream
                 that decodes can beat
  stream         records read in the random order of training, decoded, brought to the size
  stream_ram     the same out of the RAM cache
  slicing        rows of a NumPy array in random order, handed over as tensors
  stream_disk    the same out of the disk cache
  augmented      the stream with the default augmentation
  augmented_ram  the same out of the RAM cache

With a GPU, or --device, also batches finished on the device as the training step does it:
  device_cache            slices kept on the device, looked up by row number
  device_cache_augmented  the same, augmented there
  device_augmented_ram    slices out of the RAM cache, augmented on the device

What `benchmark_input` measures on the device: batches finished as the training step does it.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, flags, machine
from flexunet.core.errors import InputError

_PROGRAM = flags.Program(__doc__)
_DATASET = _PROGRAM.string("dataset", None, "Built dataset, name/config, below --data_dir.")
_DATA_DIR = _PROGRAM.string("data_dir", None, "Folder of built datasets.")
_SPLIT = _PROGRAM.string("split", "train", "Split to read.")
_SIZE = _PROGRAM.integer("image_size", 512, "Edge of the batches.", lower_bound=16)
_BATCH = _PROGRAM.integer("batch_size", 8, "Images per batch.", lower_bound=1)
_RECORDS = _PROGRAM.integer(
    "records", 1000, "Records of the measured epoch; a smaller split is repeated.", lower_bound=16
)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns; the best of each counts.", lower_bound=1)
_THREADS = _PROGRAM.integer("threads", 0, "Parallel calls; 0 takes the default of each.")
_DEVICE = _PROGRAM.boolean(
    "device", None, "Also measure the cache and the augmentation on the device. Default: on a GPU."
)
_TRAINER = _PROGRAM.boolean("trainer", False, "Also measure the starvation of a training step.")
_STEPS = _PROGRAM.integer("trainer_steps", 20, "Training steps of each measurement.")
_MEMORY_ONLY = _PROGRAM.boolean("memory_only", False, "Read one epoch and print the peak memory.")


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"Unexpected arguments: {argv[1:]}.")
  command_line.load_tensorflow()
  loader = open_loader(_RECORDS.value)
  if _MEMORY_ONLY.value:
    for _ in make_stream(loader):
      pass
    print(json.dumps({"peak_mib": machine.peak_mib()}))
    return
  with tempfile.TemporaryDirectory() as scratch:
    figures = measure_rates(loader, pathlib.Path(scratch))
  figures["start"] = measure_start()
  figures["memory"] = measure_memory()
  if _TRAINER.value:
    figures["trainer"] = measure_trainer(loader)
  print(json.dumps(figures, indent=2))


def open_loader(count: int):
  """Returns a loader over `count` rows of the split, repeated where it has fewer."""
  from flexunet.pipelines import batches, readers, resizing
  from flexunet.pipelines.dataset_source import open_dataset

  if _DATA_DIR.value is None:
    raise InputError("--data_dir is missing: the folder of built datasets.")
  source = open_dataset(_DATASET.value, _DATA_DIR.value)
  table = readers.slice_table(source, _SPLIT.value)
  table = table.take(np.resize(np.arange(len(table)), count))
  edge = (_SIZE.value, _SIZE.value)
  fits = 0 < table.height.max() <= edge[0] and table.width.max() <= edge[1]
  spec = readers.ExampleSpec(resizing=resizing.Resizing(edge, "pad" if fits else "fit"))
  return batches.open_loader(source, table, spec)


def make_order(loader):
  from flexunet.pipelines.order import EpochOrder

  return EpochOrder(loader.num_rows, _BATCH.value, seed=1)


def make_stream(loader, **options):
  from flexunet.pipelines import batches

  return batches.training_batches(loader, make_order(loader), threads=_THREADS.value, **options)


def measure_rates(loader, scratch: pathlib.Path) -> dict[str, Any]:
  from flexunet.pipelines import cache
  from flexunet.pipelines.augmentation import augment
  from flexunet.pipelines.augmentation.config import AugmentationConfig
  from flexunet.training import devices

  ram = cache.fill(loader, cache.Choice("ram", ""), scratch, "ram")
  disk = cache.fill(loader, cache.Choice("disk", ""), scratch, "disk")
  settings = AugmentationConfig(augmentation="default").resolve()

  def augmented(image, label, seed):
    return augment.augment_example(settings, image, label, seed)

  timed: dict[str, Callable[[], Any]] = {
      "decode_limit": decode_limit(loader).__iter__,
      "stream": make_stream(loader).__iter__,
      "slicing": lambda: sliced(ram, loader.num_rows),
      "stream_ram": make_stream(loader, cache=ram).__iter__,
      "stream_disk": make_stream(loader, cache=disk).__iter__,
      "augmented": make_stream(loader, augment=augmented).__iter__,
      "augmented_ram": make_stream(loader, cache=ram, augment=augmented).__iter__,
  }
  with_device = devices.has_gpu() if _DEVICE.value is None else _DEVICE.value
  if with_device:
    timed |= device_runs(loader, make_order(loader), ram, settings)
  best = dict.fromkeys(timed, 0.0)
  for turn in range(_ROUNDS.value + 1):
    for name, start in timed.items():
      began = time.perf_counter()
      count = sum(1 for _ in start())
      rate = count * _BATCH.value / (time.perf_counter() - began)
      print(f"turn {turn} {name}: {rate:.0f} images/s", file=sys.stderr)
      if turn:  # The first turn traces and warms up.
        best[name] = max(best[name], rate)
  told = {"device": devices.device_names()[0]} if with_device else {}
  return {
      **told,
      "dataset": loader_name(),
      "image_size": _SIZE.value,
      "batch_size": _BATCH.value,
      "records": loader.num_rows,
      "images_per_second": {name: round(rate, 1) for name, rate in best.items()},
      "ratios": {
          "stream / decode_limit": round(best["stream"] / best["decode_limit"], 3),
          "stream_ram / slicing": round(best["stream_ram"] / best["slicing"], 3),
          "stream_disk / slicing": round(best["stream_disk"] / best["slicing"], 3),
          "augmented / stream": round(best["augmented"] / best["stream"], 3),
          **{
              f"{name} / augmented_ram": round(best[name] / best["augmented_ram"], 3)
              for name in ("device_cache_augmented", "device_augmented_ram")
              if with_device
          },
      },
  }


def loader_name() -> str:
  return _DATASET.value or pathlib.Path(_DATA_DIR.value or "").name


def decode_limit(loader):
  """Serialized examples in memory, decoded as the stream does, in file order."""
  import tensorflow as tf

  serialized = [loader.serialized(row).numpy() for row in range(loader.num_rows)]
  return (
      tf.data.Dataset.from_tensor_slices(serialized)
      .map(loader.example, num_parallel_calls=_THREADS.value or tf.data.AUTOTUNE)
      .batch(_BATCH.value, drop_remainder=True)
      .prefetch(tf.data.AUTOTUNE)
  )


def sliced(cache, count: int):
  """Batches as anybody makes them of arrays in memory: a permutation, indexing, tensors."""
  import tensorflow as tf

  order = np.random.default_rng(0).permutation(count)
  for start in range(0, count - _BATCH.value + 1, _BATCH.value):
    rows = order[start : start + _BATCH.value]
    yield tf.convert_to_tensor(cache.images[rows]), tf.convert_to_tensor(cache.labels[rows])


def measure_start() -> dict[str, float]:
  """Seconds to the first batch at 90 % of an epoch of 4,000 records, beside reading the epoch."""
  from flexunet.pipelines import batches

  loader = open_loader(4000)
  order = make_order(loader)
  steps = order.steps_per_epoch

  def seconds(start: int, take: int) -> float:
    stream = batches.training_batches(loader, order, start_step=start, num_steps=steps - start)
    began = time.perf_counter()
    for _ in stream.take(take):
      pass
    return time.perf_counter() - began

  seconds(0, 1)
  at_90, at_0 = (min(seconds(start, 1) for _ in range(3)) for start in (int(0.9 * steps), 0))
  epoch = seconds(0, steps)
  return {
      "first_batch_at_0_s": round(at_0, 4),
      "first_batch_at_90_percent_s": round(at_90, 4),
      "epoch_s": round(epoch, 3),
      "at_90_percent / epoch": round(at_90 / epoch, 4),
  }


def measure_memory() -> dict[str, float]:
  """Peak memory of a process that reads an epoch without cache, and one of 8 times the records."""
  peaks = {}
  for factor in (1, 8):
    words = [sys.executable, "-m", "flexunet.tools.benchmarks.input", "--memory_only"]
    words += [f"--{name}={_PROGRAM.values[name].value}" for name in
              ("data_dir", "split", "image_size", "batch_size", "threads")]  # fmt: skip
    words += [f"--dataset={_DATASET.value}"] if _DATASET.value else []
    words += [f"--records={factor * _RECORDS.value}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    peaks[factor] = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
  return {
      "peak_mib": round(peaks[1], 1),
      "peak_mib_8x": round(peaks[8], 1),
      "8x / 1x": round(peaks[8] / peaks[1], 3),
  }


def measure_trainer(loader) -> dict[str, float]:
  """Step time of the default network on the stream, and on one constant batch, in turns."""
  from flexunet.network.model import build_model
  from flexunet.objectives import losses

  classes = max(2, int(max(batch["label"].numpy().max() for batch in make_stream(loader))) + 1)
  network = build_model(
      image_size=loader.spec.resizing.image_size, image_channels=1, num_classes=classes,
      base_filters=16, base_kernels=3, num_layers=5, normalization="batch",
  )  # fmt: skip
  network.compile("adam", losses.make("dice_cross_entropy", classes))

  def pairs(stream):
    return stream.map(lambda batch: (batch["image"], batch["label"]))

  steps = _STEPS.value
  live = pairs(make_stream(loader, num_steps=10**6))
  constant = pairs(make_stream(loader).take(1).cache()).repeat(10**6)
  clock = _step_clock()
  seconds: dict[str, list[float]] = {"constant": [], "stream": []}
  for turn in range(_ROUNDS.value + 1):
    for name, data in (("constant", constant), ("stream", live)):
      network.fit(
          data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[clock]
      )
      if turn:
        seconds[name] += clock.steps[2:]
      print(f"turn {turn} step on {name}: {np.median(clock.steps):.3f} s", file=sys.stderr)
  medians = {name: float(np.median(values)) for name, values in seconds.items()}
  return {
      "constant_step_s": round(medians["constant"], 4),
      "stream_step_s": round(medians["stream"], 4),
      "starvation: stream / constant": round(medians["stream"] / medians["constant"], 4),
  }


def _step_clock():
  import keras

  class StepClock(keras.callbacks.Callback):
    """Seconds from the end of one step to the end of the next: waiting for data counts."""

    def on_train_begin(self, logs=None):
      self.steps: list[float] = []
      self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
      now = time.perf_counter()
      self.steps.append(now - self._last)
      self._last = now

  return StepClock()


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()


def device_runs(loader, order, ram, augmentation) -> dict[str, Callable[[], Iterator[Any]]]:
  """Returns name -> what goes through one epoch, every batch finished on the device.

  Args:
    loader: Of the examples.
    order: Their `EpochOrder`.
    ram: Their `ExampleCache` in main memory.
    augmentation: A resolved config.
  """
  from flexunet.pipelines import cache

  kept = cache.fill_on_device(loader, cache.device_name())
  return {
      "device_cache": _epoch(loader, order, None, kept, None),
      "device_cache_augmented": _epoch(loader, order, None, kept, augmentation),
      "device_augmented_ram": _epoch(loader, order, ram, None, augmentation),
  }


def _epoch(loader, order, ram, kept, augmentation) -> Callable[[], Iterator[Any]]:
  import tensorflow as tf

  from flexunet.pipelines import cache
  from flexunet.training import device_step, devices, input_pipeline

  finish = device_step.DeviceInput(
      loader.spec.image_channels, augmentation, kept, compiled=devices.has_gpu()
  )
  batches = input_pipeline.Streams(
      train=loader, train_cache=ram, held_out=loader, held_out_cache=None,
      batch_size=order.batch_size, cache_choice=cache.Choice("", ""), device_input=finish,
  ).training(order, 0, order.steps_per_epoch)  # fmt: skip
  step = tf.function(finish, autograph=False)

  def epoch() -> Iterator[Any]:
    image = None
    for batch in batches:
      image, _, _ = step(batch)
      yield image
    if image is not None:
      image.numpy()  # A device works on while Python goes ahead: the last one ends all.

  return epoch
