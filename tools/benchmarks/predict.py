"""Measures prediction from files to files, against a loop that predicts slice by slice.

  flexunet benchmark_predict --run_dir=RUN --input=FILE_OR_FOLDER

Two ways take turns in one process, with the same network, on the same volumes; both write labels,
none writes overlays:

  predict   what `flexunet predict` does
  slices    each volume read and cut, `model.predict` on one slice after the other, label written

Prints one JSON object: volumes a minute (median over the rounds), seconds of a volume, the ratio of
both ways by the clock and by the CPU time they take, the share of the time of `predict` that the
network takes, resizing included, and the memory at its peak above what is held once the network is
read. Apart from these the start: imports, the network, the first batch. Nothing is kept.
"""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet import config, run_folder
from flexunet.core import command_line, flags, machine
from flexunet.core.errors import InputError
from flexunet.imaging import scan_files
from flexunet.prediction import scans
from flexunet.prediction.outputs import Outputs
from flexunet.prediction.scans import Scan

_PROGRAM = flags.Program(__doc__, first=("run_dir", "input"))
_RUN_DIR = _PROGRAM.string("run_dir", None, "Folder of the run.", required=True)
_INPUT = _PROGRAM.string("input", None, "Volume, or folder of volumes.", required=True)
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step of predict.", lower_bound=1)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns of each way.", lower_bound=1)
_MOST = _PROGRAM.integer("volumes", 4, "Volumes at most.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  run = run_folder.RunFolder.open(_RUN_DIR.value)
  run.check_trained()
  run_config = run.read_config()
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    found = scans.find(
        pathlib.Path(_INPUT.value).expanduser(),
        folder,
        volumes_first=True,
        channel_names=run_config.dataset_facts.channel_names,
    )
    volumes = [one for one in found.scans if one.kind == "volume" and not one.others]
    if not volumes or run_config.dataset_facts.recipe is None:
      raise InputError(
          "--input must hold volumes of one channel, and --run_dir be a run trained on such. Got:"
          f" {len(volumes)} volumes, a run on {run_config.dataset_facts.name}."
      )
    print(json.dumps(measure(run, run_config, volumes[: _MOST.value], folder), indent=2))


@functools.cache
def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  command_line.load_tensorflow()
  # Heavy: --help and a wrong flag are answered without them.
  import tensorflow as tf

  # So are these.
  from flexunet.pipelines.resizing import Resizing
  from flexunet.prediction import files, predictor

  return types.SimpleNamespace(tf=tf, Resizing=Resizing, files=files, predictor=predictor)


def measure(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    volumes: Sequence[Scan],
    folder: pathlib.Path,
) -> dict[str, Any]:
  """Returns the figures of both ways.

  Args:
    run: A trained run.
    run_config: Its config.
    volumes: At least one.
    folder: For the labels.
  """
  clock = Laps()
  lib = libraries()
  clock.lap("imports")
  model = lib.predictor.load_model(run)
  held_mib = machine.resident_mib()
  segmenter = timed_predictor(model, run_config)
  clock.lap("network")
  height, width = run_config.model.image_size or (0, 0)
  segmenter.labels([np.zeros((height, width), np.uint8)] * _BATCH_SIZE.value)
  clock.lap("first_batch")
  outputs = Outputs(folder=folder, overlay=False, overwrite=True)
  ways: dict[str, Callable[[], object]] = {
      "predict": lambda: lib.files.predict_all(
          volumes, segmenter, run_config, outputs, show_progress=False
      ),
      "slices": lambda: slice_by_slice(volumes, model, run_config, folder),
  }
  ways["predict"]()  # The first turn of each way compiles.
  peak_mib = machine.peak_mib() - held_mib
  ways["slices"]()
  turns = _take_turns(ways, segmenter)
  seconds, cpu_seconds = (
      {name: statistics.median(values) for name, values in one.items()} for one in turns[:2]
  )
  a_minute = {name: 60 * len(volumes) / seconds[name] for name in ways}
  return {
      "volumes": len(volumes),
      "batch_size": _BATCH_SIZE.value,
      "image_size": list(run_config.model.image_size or ()),
      "start_s": {name: round(value, 2) for name, value in clock.seconds.items()},
      "volumes_a_minute": {name: round(value, 2) for name, value in a_minute.items()},
      "seconds_of_a_volume": _rounded(seconds, len(volumes)),
      "cpu_seconds_of_a_volume": _rounded(cpu_seconds, len(volumes)),
      "share_in_network": round(statistics.median(turns[2]), 3),
      "predict_to_slices": round(seconds["slices"] / seconds["predict"], 3),
      "predict_to_slices_by_cpu": round(cpu_seconds["slices"] / cpu_seconds["predict"], 3),
      "peak_mib_above_network": round(peak_mib),
      "seconds_of_each_turn": {
          name: [round(value, 2) for value in values] for name, values in turns[0].items()
      },
  }


class Laps:
  """Seconds between calls, by name."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    """Keeps the seconds since the call before, or since the beginning."""
    now = time.perf_counter()
    self.seconds[name], self._last = now - self._last, now


def _take_turns(
    ways: dict[str, Callable[[], object]], segmenter: Any
) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float]]:
  """Returns seconds and CPU seconds of each way and turn, and shares of time in the network."""
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
  shares: list[float] = []
  for turn in range(_ROUNDS.value):
    # The order is reversed each time, so that no way always follows the other.
    for name in list(ways)[:: 1 if turn % 2 else -1]:
      segmenter.network_s, start, cpu = 0.0, time.perf_counter(), time.process_time()
      ways[name]()
      seconds[name].append(time.perf_counter() - start)
      cpu_seconds[name].append(time.process_time() - cpu)
      if name == "predict":
        shares.append(segmenter.network_s / seconds[name][-1])
  return seconds, cpu_seconds, shares


def _rounded(seconds: dict[str, float], volumes: int) -> dict[str, float]:
  return {name: round(value / volumes, 3) for name, value in seconds.items()}


def timed_predictor(model: Any, run_config: config.RunConfig) -> Any:
  """Returns a `Predictor` whose `network_s` adds up the seconds until its answers are there."""

  base: Any = libraries().predictor.Predictor  # Known only when TensorFlow is loaded.

  class TimedPredictor(base):
    network_s = 0.0

    def answer(self, given: Any) -> Iterator[np.ndarray]:
      answers = super().answer(given)
      for _ in given.slices:
        start = time.perf_counter()
        one = next(answers)
        self.network_s += time.perf_counter() - start
        yield one

  return TimedPredictor(model, run_config, batch_size=_BATCH_SIZE.value)


def slice_by_slice(
    volumes: Sequence[Scan], model: Any, run_config: config.RunConfig, folder: pathlib.Path
) -> None:
  """Predicts each volume as a short script would, and writes its label."""
  lib, facts = libraries(), run_config.dataset_facts
  recipe, frame = facts.recipe, run_config.model.image_size
  if recipe is None or frame is None:
    raise ValueError("A run on volumes has a recipe and an image_size.")
  channels = run_config.model.image_channels
  for scan in volumes:
    stored, slope, inter = scan_files.read_stored(scan.path)
    pixels = recipe.cut(stored, slope, inter, name=scan.path.name).slices.pixels
    holds = all(edge <= size for edge, size in zip(pixels.shape, frame, strict=False))
    resizing = lib.Resizing(frame, run_config.data.resize_mode if holds else "fit")
    label = np.empty(pixels.shape, np.uint8)
    for index in range(pixels.shape[-1]):
      image = np.repeat(pixels[None, ..., index, None], channels, axis=-1)
      answer = model.predict(resizing.apply_image(lib.tf.constant(image)), verbose=0)
      answer = answer[0] if isinstance(answer, list) else answer
      probability = np.asarray(resizing.invert(answer, pixels.shape[:2]))[0]
      label[..., index] = lib.predictor.to_label(probability)
    target = scan.label_path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    scan_files.write_label_like(
        scan.path, recipe.restore(label, stored), target, facts.label_scheme.names
    )


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
