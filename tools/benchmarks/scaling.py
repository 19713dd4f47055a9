"""Measures how build, tables, readers and evaluation grow with the data; prints JSON.

  flexunet benchmark_scaling > scaling.json

Phantoms of --size are built with --cases, trained on for a moment and evaluated. Straight lines
through the figures say what a case, a record and a volume cost beyond what every start costs;
"computed" holds what follows from them for --factor times the largest build. Nothing but phantoms
is read, and everything lies in a temporary folder.

  build       seconds of one worker, highest memory, bytes on disk, per case
  table       records.csv: seconds and memory per record; order of the
              examples: a batch at the start and where a run resumes, its
              memory (no file is read)
  readers     images a second of `flexunet.records`, by the number of processes
  evaluation  seconds per volume
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np

import flexunet
from flexunet.core import command_line, flags, machine, progress
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, dataset_folders
from flexunet.tools.benchmarks import build as build_benchmark
from flexunet.tools.phantom import layouts

_PROGRAM = flags.Program(__doc__)
_CASES = _PROGRAM.list("cases", "5,20,80,320", "Cases of each build.")
_SIZE = _PROGRAM.list("size", "96,40,96", "Voxels of a phantom per stored axis.")
_RECORDS = _PROGRAM.list(
    "records", "1000,10000,100000,1000000,10000000", "Records of the orders that are measured."
)
_MOST_LISTED = _PROGRAM.integer(
    "most_listed", 1_000_000, "Records of the longest records.csv that is written and read.",
    lower_bound=100,
)  # fmt: skip
_PROCESSES = _PROGRAM.list("processes", "1,2,4", "Numbers of processes of the readers.")
_IMAGES = _PROGRAM.integer("images", 4000, "Images that the readers read together.", lower_bound=4)
_MINUTES = _PROGRAM.float(
    "train_minutes", 0.3, "Length of the training that is evaluated.", lower_bound=0.01
)
_FACTOR = _PROGRAM.integer("factor", 1000, "How many times the data is computed.", lower_bound=2)
_PHANTOMS = 5
_FEWEST = 12  # Cases whose splits have more than one volume each.
_NOISE = 0.03  # Of the highest value: copies must be other images, or they count as one subject.
_BATCH = 16
_DAY = 86400.0
# A process of its own: its highest memory is that of the table.
_READ_LISTING = """
import json, pathlib, resource, sys, time
from flexunet.pipelines import record_table
listing, shard = map(pathlib.Path, sys.argv[1:])
# Of the shard only the size is looked at: it is as long as the rows say, and empty.
began = time.perf_counter()
table = record_table.read(listing, "train", [str(shard)])
seconds = time.perf_counter() - began
held = sum(getattr(table, name).nbytes for name in ("shard", "offset", "subject", "volume",
           "slice_index", "fold", "height", "width", "pixels"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"records": len(table), "seconds": seconds, "table_mb": held / 1e6,
                  "peak_mb": peak / 1e3}))
"""


@dataclasses.dataclass(frozen=True)
class Line:
  """A straight line through measured figures.

  Attributes:
    per_unit: What one more of them costs.
    fixed: What is paid whatever their number.
    worst: Largest distance from the line, as a share of the figure there.
  """

  per_unit: float
  fixed: float
  worst: float

  def at(self, number: float) -> float:
    """Returns the figure for a number that was not measured; more data never costs less."""
    return self.fixed + max(self.per_unit, 0.0) * number

  def to_json(self) -> dict[str, float]:
    """Returns its fields with four digits."""
    return {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(self).items()}


def fit(numbers: Sequence[float], figures: Sequence[float]) -> Line:
  """Returns the line of least relative squares; a single figure is shared out.

  Relative, because the figures grow a hundredfold: else the largest alone would decide.
  """
  x, y = np.asarray(numbers, float), np.asarray(figures, float)
  if len(x) < 2:
    return Line(float(y[0] / x[0]), 0.0, 0.0)
  slope, fixed = np.polyfit(x, y, 1, w=1 / np.maximum(np.abs(y), 1e-12))
  distance = np.abs(slope * x + fixed - y) / np.maximum(np.abs(y), 1e-12)
  return Line(float(slope), float(fixed), float(distance.max()))


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  cases = _numbers(_CASES.value, "cases", least=5)
  size = _numbers(_SIZE.value, "size", least=8)
  if len(size) != 3:
    raise InputError(f"--size must be three numbers such as 96,40,96. Got: {len(size)}.")
  records = _numbers(_RECORDS.value, "records", least=100)
  processes = _numbers(_PROCESSES.value, "processes", least=1)
  if sys.platform != "linux":
    raise InputError("benchmark_scaling reads memory from /proc: it needs Linux.")
  began = time.perf_counter()
  with tempfile.TemporaryDirectory(prefix="benchmark_scaling_") as scratch:
    folder = pathlib.Path(scratch)
    raws = write_cases(folder / "raw", cases, size)
    build = measure_builds(raws, cases)
    dataset = build_dataset(raws[-1], folder / "data")
    # Of the largest, evaluation would take longer than all the rest.
    few = -2 if len(cases) > 1 and cases[-2] >= _FEWEST else -1
    scored = build_dataset(raws[few], folder / "scored")
    found = {
        "cpus": machine.available_cpus(),
        "size": size,
        "build": build,
        "table": {
            "listing": measure_listings(folder, [n for n in records if n <= _MOST_LISTED.value]),
            "order": measure_orders(records),
        },
        "readers": measure_readers(dataset, processes),
        "evaluation": measure_evaluation(scored, folder),
    }
  found["computed"] = computed(found, cases[-1], _FACTOR.value)
  found["seconds"] = round(time.perf_counter() - began, 1)
  print(json.dumps(found, indent=1))


def _numbers(words: Sequence[str], flag: str, least: int) -> list[int]:
  """Returns whole numbers that grow."""
  if not all(word.isdecimal() and int(word) >= least for word in words) or not words:
    raise InputError(f"--{flag} must be numbers from {least} on. Got: {','.join(words)}.")
  found = [int(word) for word in words]
  if flag != "size" and found != sorted(set(found)):
    raise InputError(f"--{flag} must grow. Got: {','.join(words)}.")
  return found


def write_cases(
    folder: pathlib.Path, cases: Sequence[int], size: Sequence[int]
) -> list[pathlib.Path]:
  """Writes a raw folder for each number of cases: phantoms and noisy copies, shared by links."""
  base = layouts.write("scan_label", folder / "base", subjects=_PHANTOMS, seed=0, size=size)
  scans = sorted((base / "images").iterdir())
  pool = folder / "pool"
  for name in ("images", "labels"):
    (pool / name).mkdir(parents=True)
  rng = np.random.default_rng(0)
  with progress.bar(range(cases[-1]), desc="Phantoms", disable=None, leave=False) as numbers:
    for number in numbers:
      scan = scans[number % len(scans)]
      image = nibabel.Nifti1Image.from_filename(scan)
      voxels = np.asarray(image.dataobj, np.float32)
      voxels += rng.normal(0, _NOISE * voxels.max(), voxels.shape)
      changed = nibabel.Nifti1Image(voxels.round().astype(np.int16), image.affine)
      nibabel.save(changed, pool / "images" / f"case_{number:05}.nii")
      os.link(base / "labels" / scan.name, pool / "labels" / f"case_{number:05}.nii")
  raws = []
  for count in cases:
    raws.append(folder / f"cases_{count}")
    for name in ("images", "labels"):
      (raws[-1] / name).mkdir(parents=True)
      for path in sorted((pool / name).iterdir())[:count]:
        os.link(path, raws[-1] / name / path.name)
  return raws


def measure_builds(raws: Sequence[pathlib.Path], cases: Sequence[int]) -> dict[str, Any]:
  """Builds with one worker, and the most cases once more with all CPUs.

  The memory is watched in the same run, which holds a build up by a few per cent.
  """
  runs: list[dict[str, float]] = []
  for raw, count in zip(raws, cases, strict=True):
    progress.say(f"Building {count} cases ...")
    built = build_benchmark.measure("scan_label", raw, 1, count, look=True)
    runs.append({
        "cases": count, "records": built["records"], "seconds": round(built["seconds"], 2),
        "peak_mb": round(built["peak_mb"], 1), "disk_mb": round(built["bytes"] / 1e6, 3),
    })  # fmt: skip
  workers = machine.available_cpus()
  parallel = build_benchmark.measure("scan_label", raws[-1], workers, cases[-1], look=True)
  raw_bytes = sum(path.stat().st_size for path in raws[-1].rglob("*") if path.is_file())
  lines = {
      name: fit(cases, [run[name] for run in runs]) for name in ("seconds", "peak_mb", "disk_mb")
  }
  return {
      "runs": runs,
      "raw_mb_per_case": round(raw_bytes / 1e6 / cases[-1], 4),
      "records_per_case": runs[-1]["records"] / cases[-1],
      "workers": workers,
      "speedup_of_workers": round(runs[-1]["seconds"] / parallel["seconds"], 3),
      "per_case": {name: line.to_json() for name, line in lines.items()},
  }


def build_dataset(raw: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
  """Builds what readers and evaluation read; returns its version folder."""
  _flexunet("build", "scan_label", f"--manual_dir={raw}", f"--data_dir={data_dir}")
  return dataset_folders.find_one(data_dir).path


def _flexunet(*words: str) -> float:
  """Runs a command of this package; returns how many seconds it took."""
  root = pathlib.Path(flexunet.__file__).parent.parent
  variables = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
  began = time.perf_counter()
  result = subprocess.run(
      [sys.executable, "-m", "flexunet", *words], env=variables, capture_output=True, text=True
  )
  if result.returncode:
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    raise InputError(f"flexunet {words[0]} must succeed to be measured, but said: {last}")
  return time.perf_counter() - began


def measure_listings(folder: pathlib.Path, records: Sequence[int]) -> dict[str, Any]:
  """Reads records.csv of made-up records, each in a process of its own."""
  runs = []
  for count in records or [1000]:
    progress.say(f"Reading a table of {count} records ...")
    shard, listing = folder / "train.tfrecord", folder / "records.csv"
    _write_listing(listing, shard, count)
    words = [sys.executable, "-c", _READ_LISTING, str(listing), str(shard)]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    runs.append(json.loads(found.splitlines()[-1]))
    listing.unlink()
  lines = {
      name: fit([run["records"] for run in runs], [run[name] for run in runs])
      for name in ("seconds", "table_mb", "peak_mb")
  }
  return {
      "runs": [{name: round(value, 4) for name, value in run.items()} for run in runs],
      "per_record": {name: line.to_json() for name, line in lines.items()},
  }


def _write_listing(listing: pathlib.Path, shard: pathlib.Path, count: int) -> None:
  """Writes the rows of `count` records of 4 kB, and a file without blocks that is as long."""
  length, frame = 4096, 16
  with open(listing, "w", newline="") as stream:
    rows = csv.writer(stream)
    rows.writerow([
        "split", "shard", "record", "offset", "length", "key", "subject", "volume", "slice_index",
        "fold", "height", "width", "pixels_background", "pixels_structure",
    ])  # fmt: skip
    for number in range(count):
      subject = f"case_{number // 100:06}"
      rows.writerow([
          "train", shard.name, number, number * (length + frame), length,
          f"{subject}_{number % 100:04}", subject, subject, number % 100, number % 5, 96, 96,
          9000, 216 * (number % 2),
      ])  # fmt: skip
  with open(shard, "wb") as empty:
    empty.truncate(count * (length + frame))


def measure_orders(records: Sequence[int]) -> list[dict[str, float]]:
  """Times the order of examples: its set-up, a batch at the start, a batch where a run resumes."""
  command_line.load_tensorflow()
  # Heavy, and of this part alone: a wrong flag is answered without them.
  import tensorflow as tf

  from flexunet.pipelines import order

  found = []
  for count in records:
    with_foreground = np.arange(0, count, 2)
    began = time.perf_counter()
    epochs = order.EpochOrder(
        num_records=count, batch_size=_BATCH, seed=1, drawn=5, pools=(with_foreground,)
    )
    batch = tf.function(epochs.records_at)
    places = tf.range(_BATCH, dtype=tf.int64)
    batch(places)
    first = time.perf_counter() - began
    # The tenth epoch, half way: nothing before it is passed through.
    middle = places + (10 * epochs.steps_per_epoch + epochs.steps_per_epoch // 2) * _BATCH
    found.append({
        "records": count,
        "start_s": round(first, 4),
        "batch_us": round(_fastest(batch, places) * 1e6, 1),
        "resumed_batch_us": round(_fastest(batch, middle) * 1e6, 1),
        "order_mb": with_foreground.nbytes / 1e6,
    })
  return found


def _fastest(function: Any, value: Any, repeats: int = 30) -> float:
  best = float("inf")
  for _ in range(repeats):
    began = time.perf_counter()
    function(value)
    best = min(best, time.perf_counter() - began)
  return best


def measure_readers(dataset: pathlib.Path, processes: Sequence[int]) -> list[dict[str, float]]:
  """Reads the training split by `flexunet.records` in 1, 2, ... processes at once."""
  root = pathlib.Path(flexunet.__file__).parent.parent
  variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
  words = [sys.executable, "-m", "flexunet.tools.benchmarks.reader_rates", "records"]
  found = []
  for count in processes:
    progress.say(f"Reading records in {count} processes ...")
    started = [
        subprocess.Popen(
            [*words, str(dataset), "train", str(share), str(count), str(_IMAGES.value)],
            env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for share in range(count)
    ]  # fmt: skip
    try:
      for process in started:
        _line_of(process)  # "ready"
      for process in started:
        print(file=process.stdin, flush=True)
      answers = [json.loads(_line_of(process))["records"] for process in started]
    finally:
      for process in started:
        process.kill()
        process.communicate()
    images = sum(answer["images"] for answer in answers)
    found.append({
        "processes": count,
        "images_per_second": round(images / max(answer["seconds"] for answer in answers), 1),
        "images_per_cpu_second": round(images / sum(answer["cpu_s"] for answer in answers), 1),
    })
  return found


def _line_of(process: subprocess.Popen) -> str:
  line = process.stdout.readline() if process.stdout else ""
  if not line:
    raise InputError("A process must read the records, but it ended: its error stands above.")
  return line


def measure_evaluation(dataset: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
  """Trains for a moment, and scores the smallest and the largest split."""
  report = built_dataset.read_report(dataset)["splits"]
  volumes = {name: report[name]["num_volumes"] for name in ("test", "train")}
  run = folder / "run"
  progress.say("Training for a moment ...")
  training = _flexunet(
      "train", f"--data_dir={dataset}", f"--run_dir={run}", f"--max_minutes={_MINUTES.value}",
      "--num_layers=4", "--base_filters=8", "--previews=0",
  )  # fmt: skip
  runs = []
  for split, count in volumes.items():
    progress.say(f"Evaluating {count} volumes ...")
    seconds = _flexunet("evaluate", f"--run_dir={run}", f"--split={split}")
    runs.append({"volumes": count, "seconds": round(seconds, 2)})
  line = fit([one["volumes"] for one in runs], [one["seconds"] for one in runs])
  return {
      "runs": runs, "training_s": round(training, 1), "per_volume": line.to_json()
  }  # fmt: skip


def computed(found: Mapping[str, Any], cases: int, factor: int) -> dict[str, Any]:
  """Returns what the lines say of `factor` times the largest build.

  Args:
    found: What was measured.
    cases: Of the largest build.
    factor: How many times as many.
  """
  many = cases * factor
  build, evaluation = found["build"], Line(**found["evaluation"]["per_volume"])
  lines = {name: Line(**line) for name, line in build["per_case"].items()}
  listing = {
      name: Line(**line) for name, line in found["table"]["listing"]["per_record"].items()
  }
  records = many * build["records_per_case"]
  rate = max(one["images_per_second"] for one in found["readers"])
  core_days = lines["seconds"].at(many) / _DAY
  return {
      "cases": many,
      "records": round(records),
      "build_core_days": round(core_days, 2),
      "build_workers_for_one_day": int(np.ceil(core_days)),
      "build_memory_gb": round(lines["peak_mb"].at(many) / 1e3, 2),
      "raw_tb": round(build["raw_mb_per_case"] * many / 1e6, 3),
      "records_tb": round(lines["disk_mb"].at(many) / 1e6, 3),
      "table_read_s": round(listing["seconds"].at(records), 1),
      "table_read_peak_gb": round(listing["peak_mb"].at(records) / 1e3, 2),
      "table_gb": round(listing["table_mb"].at(records) / 1e3, 2),
      "epoch_of_input_hours": round(records / rate / 3600, 2),
      "evaluation_hours_of_15_percent": round(evaluation.at(0.15 * many) / 3600, 2),
  }


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
