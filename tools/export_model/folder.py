"""The folder of an export: files of each format, export.json, the card, the example, hashes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_calibration, run_folder
from flexunet.core import command_line, files
from flexunet.network import export, standalone, weights
from flexunet.network.standalone import Surroundings
from flexunet.tools import examples
from flexunet.tools.export_model import check, description, model_card

OUTPUTS = ("labels", "probabilities", "network")
# Copied, not imported: it needs a package of the extra `export`.
EXAMPLE = pathlib.Path(examples.__file__).with_name("predict_onnx.py")


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is exported, and how.

  Attributes:
    model_file: The .keras file.
    run: Where it comes from; None: it is a file alone.
    formats: Names of `export.FORMATS`.
    output: One of `OUTPUTS`.
    size: (height, width) of the images that go in; None: any, or the network's own.
    licence: Of the network, for the card; "": not stated.
  """

  model_file: pathlib.Path
  run: run_folder.RunFolder | None
  formats: Sequence[str]
  output: str
  size: tuple[int, int] | None = None
  licence: str = ""


def write(wanted: Wanted, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Writes an export into a new folder and returns the entries of its export.json.

  After a failure there is no folder.
  """
  run_config = None if wanted.run is None else wanted.run.read_config()
  for name in wanted.formats:
    export.check_format(name)
  with _new_folder(folder) as partial, command_line.noise_aside():
    network = weights.read_model(wanted.model_file)
    if run_config is None or wanted.output == "network":
      entries = _bare(network, wanted, partial)
      size = list(wanted.size or network.input_shape[1:3])
      exported = description.of_network(run_config, size)
      exported["image_channels"] = network.input_shape[-1]
    else:
      entries, exported = _alone(network, wanted, run_config, partial)
      recipe = run_config.dataset_facts.recipe
      if "onnx" in wanted.formats and recipe is not None and wanted.output == "labels":
        shutil.copyfile(EXAMPLE, partial / EXAMPLE.name)
    exported["exports"] = entries
    if run_config is not None and wanted.run is not None:
      model_card.write(partial, wanted.run, run_config, exported, wanted.licence)
    exported["model_sha256"] = files.sha256_of(wanted.model_file)
    exported["sha256"] = _hashes(partial)
    files.write_json(partial / "export.json", exported)
  return entries


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a folder that takes its place when the block has succeeded, and is removed if not."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
  try:
    yield partial
    partial.chmod(0o755)  # mkdtemp makes it private.
    os.replace(partial, folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _bare(
    network: keras.Model, wanted: Wanted, folder: pathlib.Path
) -> list[dict[str, Any]]:
  done = export.export(network, list(wanted.formats), folder, wanted.size)
  return [
      {**dataclasses.asdict(entry), "path": entry.path.name, "bytes": _bytes(entry.path)}
      for entry in done
  ]


def _alone(
    network: keras.Model, wanted: Wanted, run_config: config.RunConfig, folder: pathlib.Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Returns the entries of graphs that stand alone, and what export.json says of them."""
  temperature = _temperature(wanted)
  around = Surroundings.of_run(
      run_config, temperature=temperature, probabilities=wanted.output == "probabilities",
      native_size=wanted.size,
  )  # fmt: skip
  entries = []
  known: dict[Surroundings, _Reference] = {}
  for name in wanted.formats:
    if name == "weights":  # Numbers alone hold no graph.
      entries += _bare(network, dataclasses.replace(wanted, formats=[name], size=None), folder)
      continue
    own, real = around, tf.float64
    if name == "litert":
      size = wanted.size or check.usual_size(run_config)
      own = dataclasses.replace(around, native_size=size).at_fixed_size()
      real = tf.float32
    if own not in known:
      known[own] = _reference(network, run_config, own)
    graph = standalone.of_network(network, own, real)
    path = export.write_graph(name, graph.function(1 if name == "litert" else None), graph, folder)
    entries.append({
        "format": name, "path": path.name, "bytes": _bytes(path),
        "image_size": list(own.native_size or (None, None)),
        **_checked(known[own], own, name, path, real.as_numpy_dtype),
    })  # fmt: skip
  graph = standalone.of_network(network, around)
  exported = description.of_graph(run_config, graph, around, max(2, network.output_shape[-1]))
  if "litert" in wanted.formats:
    exported["limits"] += description.fixed_size_limits(around)
  return entries, exported


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
  """What exported graphs are compared with.

  Attributes:
    samples: Slices.
    probabilities: Of each question, by `Predictor` in float32.
  """

  samples: check.Samples
  probabilities: list[np.ndarray]


def _reference(
    network: keras.Model, run_config: config.RunConfig, around: Surroundings
) -> _Reference:
  given = check.samples(run_config, around)
  twin = export.float32_twin(network)
  return _Reference(
      given, check.predicted(twin, run_config, given.questions, around.temperature)
  )


def _checked(
    reference: _Reference,
    around: Surroundings,
    name: str,
    path: pathlib.Path,
    real: type[np.floating],
) -> dict[str, Any]:
  """Returns how far an exported file is from prediction."""
  inputs = [one.inputs(around, real) for one in reference.samples.questions]
  found = check.compare(check.answers(name, path, inputs), reference.probabilities, path)
  return {"checked_on": reference.samples.description, **dataclasses.asdict(found)}


def _files_below(path: pathlib.Path) -> list[pathlib.Path]:
  return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _bytes(path: pathlib.Path) -> int:
  return sum(each.stat().st_size for each in _files_below(path))


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  """Returns the path of each file below a folder -> its sha256."""
  return {
      path.relative_to(folder).as_posix(): files.sha256_of(path) for path in _files_below(folder)
  }


def _temperature(wanted: Wanted) -> float:
  """Returns the temperature that the run has learnt; 1 where it has none, or changes no answer."""
  if wanted.run is None or wanted.output != "probabilities":
    return 1.0
  return run_calibration.temperature_of(wanted.run)
