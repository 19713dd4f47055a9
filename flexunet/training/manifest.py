"""`manifest.json`: what is needed to repeat a run and to distinguish two runs."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from flexunet import config, run_folder, seen_subjects
from flexunet.core import files, private_paths, progress, service_address
from flexunet.pipelines import dataset_source
from flexunet.training import input_pipeline, run_setup

_PACKAGES = (
    "flexunet", "tensorflow", "keras", "tensorflow-datasets", "numpy", "nibabel", "pillow", "scipy",
    "jax", "torch",
)
# Settings of the environment that change results in the last bits.
_SETTINGS = (
    "KERAS_BACKEND", "XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS",
    "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS",
)


def collect(argv: Sequence[str], fingerprint: str | None, devices: Sequence[str]) -> dict[str, Any]:
  """Returns versions, data fingerprint, revision of the code, command and devices.

  Nothing of it names the user or the machine.
  """
  return {
      "command": [
          "flexunet.train",
          *map(private_paths.without_folders, map(service_address.without_address, argv[1:])),
      ],
      "data_fingerprint": fingerprint,
      "revision": _revision(),
      "versions": {name: version for name in _PACKAGES if (version := _version(name))},
      "python": platform.python_version(),
      "platform": f"{platform.system()} {platform.machine()}",
      "keras_backend": keras.config.backend(),
      "devices": list(devices),
      "byte_order": sys.byteorder,
      "processors": os.cpu_count(),
      "environment": {
          name: " ".join(map(private_paths.without_folders, os.environ[name].split()))
          for name in _SETTINGS
          if name in os.environ
      },
      "gpu_libraries": _gpu_libraries(),
  }


def _gpu_libraries() -> dict[str, str]:
  """Returns the CUDA versions TensorFlow was built with; empty for a CPU build."""
  built = tf.sysconfig.get_build_info()
  return {
      name: str(built[name]) for name in ("cuda_version", "cudnn_version") if built.get(name)
  }


def write(path: pathlib.Path, entry: dict[str, Any], started: bool) -> None:
  """Writes the manifest of a new run; a resumed one adds its entry under "resumed"."""
  # It is not there yet where the run was killed before it was written.
  before = {} if started else run_folder.read_manifest(path)
  if not before:
    files.write_json(path, entry)
    return
  before["resumed"] = [*before.get("resumed", []), entry]
  files.write_json(path, before)


def write_start(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    opened: input_pipeline.TrainingData,
    entry: dict[str, Any],
    started: bool,
) -> None:
  """Writes what is known before the first step, and says what the user should know of the data.

  Args:
    run: Where it goes.
    run_config: Complete.
    opened: Without the records that were left out.
    entry: From `collect`, with "left_out" and what else the trainer adds.
    started: Whether the run is new; otherwise this is where it is resumed.
  """
  data = run_config.data
  entry["splits"] = dataset_source.split_counts(
      opened.source, data.train_split, data.validation_split, data.fold
  )
  if not run_folder.read_manifest(run.manifest_json):
    entry |= run_folder.started_with(run_config)
    entry[seen_subjects.KEY] = _subjects_seen(run_config, opened)
    entry["label_warnings"] = run_setup.label_warnings(run_config, opened)
    for line in entry["label_warnings"]:
      progress.say(f"Warning: {line}")
  write(run.manifest_json, entry, started)
  for record in entry["left_out"]:
    progress.say(f"Left out, because it cannot be read: {record}.")


def _subjects_seen(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData
) -> list[dict[str, Any]]:
  """Returns whom the run sees, and warns where its start was trained on the validation split."""
  tables = (opened.train, opened.validation)
  name = run_config.dataset_facts.name
  own = seen_subjects.SubjectsSeen(name, *(seen_subjects.names_of(one.subject) for one in tables))
  before = seen_subjects.of_start(run_config.training.init_from)
  if known := seen_subjects.overlap(own.validation, name, before).trained:
    progress.say(
        f"Warning: --init_from was trained on {len(known)} of the {len(own.validation)} subjects"
        " of the validation split: its scores are too good for new people."
    )
  return [one.to_json() for one in (own, *before)]


def note(path: pathlib.Path, name: str, value: Any) -> None:
  """Adds an entry to the manifest of a run under way."""
  files.write_json(path, {**run_folder.read_manifest(path), name: value})


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _revision() -> str | None:
  """Returns the commit of a checkout, with `+changes` when files differ; None for a wheel."""
  root = pathlib.Path(__file__).resolve().parents[2]
  if not (root / ".git").exists():
    return None
  try:
    commit = _git(root, "rev-parse", "HEAD").strip()
    return commit + ("+changes" if _git(root, "status", "--porcelain", "-uno").strip() else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _git(root: pathlib.Path, *words: str) -> str:
  return subprocess.run(
      ["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=20
  ).stdout
