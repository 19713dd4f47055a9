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

from flexunet import run_folder
from flexunet.core import files, private_paths, service_address

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
