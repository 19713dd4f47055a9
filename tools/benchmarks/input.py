"""Measures the input pipeline on a built dataset and prints one JSON object.

  flexunet benchmark_input --dataset=image_mask/full_head_t1w --data_dir=DATA

Everything is measured in turns within one run, because machines are noisy: read the ratios. Rates
are images per second, the best of --rounds. Progress goes to standard error.

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
"""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, flags, machine, progress
from flexunet.pipelines import dataset_source

_PROGRAM = flags.Program(__doc__)
_DATASET = _PROGRAM.string("dataset", None, "Built dataset, name/config, below --data_dir.")
_DATA_DIR = _PROGRAM.string("data_dir", None, "Folder of built datasets.", required=True)
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
  command_line.no_words(argv)
  dataset_source.check_folder(_DATASET.value, _DATA_DIR.value, [_SPLIT.value])
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


@functools.cache
def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  # Heavy: --help and a wrong flag are answered without them.
  import keras
  import tensorflow as tf

  # So are these.
  from flexunet.network import model
  from flexunet.objectives import losses
  from flexunet.pipelines import batches, cache, order, readers, resizing
  from flexunet.pipelines.augmentation import augment
  from flexunet.pipelines.augmentation import config as augmentation
  from flexunet.training import device_step, devices, input_pipeline

  return types.SimpleNamespace(
      keras=keras, tf=tf, model=model, losses=losses, batches=batches, cache=cache, order=order,
      readers=readers, resizing=resizing, augment=augment, augmentation=augmentation,
      device_step=device_step, devices=devices, input_pipeline=input_pipeline,
  )  # fmt: skip


def open_loader(count: int) -> Any:
  """Returns a loader of `count` rows of the split, repeated where it has fewer."""
  lib = libraries()
  source = dataset_source.open_dataset(_DATASET.value, _DATA_DIR.value)
  table = lib.readers.slice_table(source, _SPLIT.value)
  table = table.take(np.resize(np.arange(len(table)), count))
  edge = (_SIZE.value, _SIZE.value)
  fits = 0 < table.height.max() <= edge[0] and table.width.max() <= edge[1]
  resizing = lib.resizing.Resizing(edge, "pad" if fits else "fit")
  return lib.batches.open_loader(source, table, lib.readers.ExampleSpec(resizing=resizing))


def make_order(loader: Any) -> Any:
  """Returns the `EpochOrder` of the loader's rows."""
  return libraries().order.EpochOrder(loader.num_rows, _BATCH.value, seed=1)


def make_stream(loader: Any, **options: Any) -> Any:
  """Returns the training batches of one epoch; `options` as in `batches.training_batches`."""
  return libraries().batches.training_batches(
      loader, make_order(loader), threads=_THREADS.value, **options
  )


def measure_rates(loader: Any, scratch: pathlib.Path) -> dict[str, Any]:
  """Returns images per second of every way to feed a step, and their ratios.

  Args:
    loader: Reads the examples.
    scratch: Folder of the disk cache.
  """
  lib = libraries()
  cache, devices = lib.cache, lib.devices
  ram = cache.fill(loader, cache.Choice("ram", ""), scratch, "ram")
  disk = cache.fill(loader, cache.Choice("disk", ""), scratch, "disk")
  settings = lib.augmentation.AugmentationConfig(augmentation="default").resolve()

  def augmented(image: Any, label: Any, seed: Any) -> Any:
    return lib.augment.augment_example(settings, image, label, seed)

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
      progress.say(f"turn {turn} {name}: {rate:.0f} images/s")
      if turn:  # The first turn traces and warms up.
        best[name] = max(best[name], rate)
  device = {"device": devices.device_names()[0]} if with_device else {}
  return {
      **device,
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
  """Returns how the result calls the dataset."""
  return _DATASET.value or pathlib.Path(_DATA_DIR.value).name


def decode_limit(loader: Any) -> Any:
  """Returns serialized examples in memory, decoded as the stream does, in file order."""
  tf = libraries().tf
  serialized = [loader.serialized(row).numpy() for row in range(loader.num_rows)]
  return (
      tf.data.Dataset.from_tensor_slices(serialized)
      .map(loader.example, num_parallel_calls=_THREADS.value or tf.data.AUTOTUNE)
      .batch(_BATCH.value, drop_remainder=True)
      .prefetch(tf.data.AUTOTUNE)
  )


def sliced(cache: Any, count: int) -> Iterator[Any]:
  """Yields batches as anybody makes them of arrays: a permutation, indexing, tensors."""
  tensor = libraries().tf.convert_to_tensor
  order = np.random.default_rng(0).permutation(count)
  for start in range(0, count - _BATCH.value + 1, _BATCH.value):
    rows = order[start : start + _BATCH.value]
    yield tensor(cache.images[rows]), tensor(cache.labels[rows])


def measure_start() -> dict[str, float]:
  """Returns seconds to the first batch at 90 % of an epoch of 4,000 records, and of the epoch."""
  batches = libraries().batches
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
  """Returns the peak memory of reading an epoch without cache, and one of 8 times the records."""
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


def measure_trainer(loader: Any) -> dict[str, float]:
  """Returns the step time of the default network on the stream, and on one constant batch."""
  lib = libraries()
  classes = max(2, int(max(batch["label"].numpy().max() for batch in make_stream(loader))) + 1)
  network = lib.model.build_model(
      image_size=loader.spec.resizing.image_size, image_channels=1, num_classes=classes,
      base_filters=16, base_kernels=3, num_layers=5, normalization="batch",
  )  # fmt: skip
  network.compile("adam", lib.losses.make("dice_cross_entropy", classes))

  def pairs(stream: Any) -> Any:
    return stream.map(lambda batch: (batch["image"], batch["label"]))

  steps = _STEPS.value
  live = pairs(make_stream(loader, num_steps=10**6))
  constant = pairs(make_stream(loader).take(1).cache()).repeat(10**6)
  ends: list[float] = []
  # The end of a step to the end of the next: waiting for data counts.
  clock = lib.keras.callbacks.LambdaCallback(
      on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
  )
  seconds: dict[str, list[float]] = {"constant": [], "stream": []}
  for turn in range(_ROUNDS.value + 1):
    for name, data in (("constant", constant), ("stream", live)):
      ends.clear()
      network.fit(
          data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False, callbacks=[clock]
      )
      durations = np.diff(ends)
      if turn:
        seconds[name] += durations[1:].tolist()
      progress.say(f"turn {turn} step on {name}: {np.median(durations):.3f} s")
  medians = {name: float(np.median(values)) for name, values in seconds.items()}
  return {
      "constant_step_s": round(medians["constant"], 4),
      "stream_step_s": round(medians["stream"], 4),
      "starvation: stream / constant": round(medians["stream"] / medians["constant"], 4),
  }


def device_runs(
    loader: Any, order: Any, ram: Any, augmentation: Any
) -> dict[str, Callable[[], Iterator[Any]]]:
  """Returns name -> what goes through one epoch, every batch finished on the device.

  Args:
    loader: Reads the examples.
    order: Their `EpochOrder`.
    ram: Their `ExampleCache` in main memory.
    augmentation: A resolved config.
  """
  cache = libraries().cache
  kept = cache.fill_on_device(loader, cache.device_name())
  return {
      "device_cache": _epoch(loader, order, None, kept, None),
      "device_cache_augmented": _epoch(loader, order, None, kept, augmentation),
      "device_augmented_ram": _epoch(loader, order, ram, None, augmentation),
  }


def _epoch(
    loader: Any, order: Any, ram: Any, kept: Any, augmentation: Any
) -> Callable[[], Iterator[Any]]:
  lib = libraries()
  finish = lib.device_step.DeviceInput(
      loader.spec.image_channels, augmentation, kept, compiled=lib.devices.has_gpu()
  )
  batches = lib.input_pipeline.Streams(
      train=loader, train_cache=ram, held_out=loader, held_out_cache=None,
      held_out_volumes=np.zeros(0, np.int32),  # Nothing is validated.
      held_out_batch_size=order.batch_size, cache_choice=lib.cache.Choice("", ""),
      device_input=finish,
  ).training(order, 0, order.steps_per_epoch)  # fmt: skip
  step = lib.tf.function(finish, autograph=False)

  def epoch() -> Iterator[Any]:
    image = None
    for batch in batches:
      image, _, _ = step(batch)
      yield image
    if image is not None:
      image.numpy()  # A device works on while Python goes ahead: the last one ends all.

  return epoch


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
