"""MODEL_CARD.md of an export: what the network was trained on, how well it does, what it is for."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet import config, run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.datasets.builder import croissant
from flexunet.evaluation import summary
from flexunet.network import cost

_SCORES = (
    ("dice", "Dice"), ("hd95_mm", "HD95 (mm)"), ("assd_mm", "ASSD (mm)"),
    ("volume_error_relative", "relative volume error"), ("lesion_f1", "lesion F1"),
)  # fmt: skip
_USE = """\
For research: outlining {classes} on scans like those of its training, by people who look at the
result. It is no medical device and was not tested as one.

**Not for diagnosis.** Do not use it to diagnose, to decide on a treatment, or to measure a single
patient's disease. Nobody has tested it on scanners, protocols, ages and diseases that its training
set does not hold."""


def write(
    folder: pathlib.Path,
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    exported: Mapping[str, Any],
    licence: str,
) -> None:
  """Writes MODEL_CARD.md.

  Args:
    folder: Of the export.
    run: The run, whose evaluation is quoted.
    run_config: Its config.
    exported: What export.json says.
    licence: That of the network, in the words of who hands it out; "": not stated.
  """
  facts = run_config.dataset_facts
  classes = facts.label_scheme.names
  evaluated = _evaluation(run)
  prose = _prose(run_config)
  parts = [
      f"# {', '.join(classes[1:])}: a FlexUNet trained on {facts.name}",
      "## Use",
      _USE.format(classes=", ".join(classes[1:])),
      "## Network",
      _network(run_config, exported),
      "## Data",
      _data(run, run_config, evaluated, prose),
      "## Scores",
      *_scores(evaluated, classes[1:]),
      "## Limits",
      _list([*_caveats(evaluated), *exported.get("limits", ())]),
      "## Licence",
      _licences(prose, licence),
      "## Citation",
      _citation(prose),
      "",
  ]
  files.write_bytes(folder / "MODEL_CARD.md", "\n\n".join(parts).encode())


def _evaluation(run: run_folder.RunFolder) -> dict[str, Any]:
  """Returns split -> its entry in metrics.json; empty where the run was not evaluated."""
  if not run.metrics_json.is_file():
    return {}
  entries = files.read_json(run.metrics_json)
  if not isinstance(entries, dict):
    raise InputError(f"{run.metrics_json} must be as evaluate wrote it. Evaluate the run again.")
  return {split: entry for split, entry in entries.items() if summary.is_current(entry)}


def _prose(run_config: config.RunConfig) -> dict[str, Any]:
  """Returns description, citation, licence and address of the dataset; empty where it is gone."""
  data = run_config.data
  try:
    folder = dataset_folders.locate(data.dataset, pathlib.Path(data.data_dir))
    return croissant.read_prose(folder)
  except InputError:
    return {}


def _network(run_config: config.RunConfig, exported: Mapping[str, Any]) -> str:
  model = run_config.model
  numbers = cost.count_parameters(model)
  inputs = ", ".join(str(entry["name"]) for entry in exported["inputs"])
  height, width = model.image_size or ("any", "any")
  names = run_config.dataset_facts.label_scheme.names
  return _list([
      f"FlexUNet {flexunet.__version__}: {numbers:,} parameters, {model.num_layers} stages from"
      f" {model.base_filters} filters, kernel {model.base_kernels}, input {height} x {width}",
      f"trained {run_config.training.epochs} epochs with {run_config.training.loss}, in"
      f" {run_config.training.precision}",
      f"what goes in: {inputs}; what comes out: {exported['output']} (`export.json` says how)",
      "classes: " + ", ".join(f"{number} {name}" for number, name in enumerate(names)),
  ])


def _data(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    evaluated: Mapping[str, Any],
    prose: Mapping[str, Any],
) -> str:
  facts = run_config.dataset_facts
  splits = run_folder.read_manifest(run.manifest_json).get("splits", {})
  for entry in evaluated.values():
    splits = entry["evaluated"].get("dataset_splits", splits)
  parts = ("subjects", "volumes", "slices")
  rows = [("split", *parts)]
  rows += [(name, *(str(own.get(part, "")) for part in parts)) for name, own in splits.items()]
  title = str(prose.get("description", "")).lstrip("# ").split("\n")[0]
  lines = [f"{facts.name}" + (f": {title}" if title else "") + "."]
  if address := prose.get("url"):
    lines.append(f"Source: {address}")
  lines.append(f"Fingerprint of its records: `{facts.fingerprint}`." if facts.fingerprint else "")
  if run_config.data.fold >= 0:
    lines.append(f"Fold {run_config.data.fold} of the training subjects was held out.")
  return "\n".join(line for line in lines if line) + "\n\n" + (
      _table(rows) if len(rows) > 1 else "The numbers of subjects are not known."
  )


def _scores(evaluated: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
  if not evaluated:
    return ["Not evaluated yet: `flexunet evaluate --run_dir=RUN --split=test`."]
  parts = []
  for split, entry in evaluated.items():
    known = [
        (name, title) for name, title in _SCORES
        if any(entry["per_class"].get(each, {}).get(name) for each in classes)
    ]  # fmt: skip
    rows = [("class", *(title for _, title in known))]
    rows += [
        (each, *(_figure(entry["per_class"][each].get(name)) for name, _ in known))
        for each in classes if each in entry["per_class"]
    ]  # fmt: skip
    counts = entry["evaluated"]
    parts += [
        f"Split {split}: {counts['subjects']} subjects, {counts['volumes']} volumes. Mean"
        " [95 % interval over new subjects] (volumes); no interval with fewer than"
        f" {summary.MIN_SUBJECTS} subjects.",
        _table(rows),
    ]
  return parts


def _figure(entry: Mapping[str, Any] | None) -> str:
  if not entry or entry.get("mean") is None or math.isnan(entry["mean"]):
    return "-"
  interval = entry.get("ci95")
  between = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval else ""
  return f"{entry['mean']:.3f}{between} ({entry['n']})"


def _caveats(evaluated: Mapping[str, Any]) -> list[str]:
  lines = []
  for split, entry in evaluated.items():
    counts = entry["evaluated"]
    lines += [f"{split}: {line}" for line in counts.get("warnings", ())]
    if shared := counts.get("subjects_also_trained_on"):
      lines.append(f"{split}: the network was trained on {len(shared)} of these subjects too.")
  return lines


def _licences(prose: Mapping[str, Any], licence: str) -> str:
  own = licence or (
      "not stated. Who hands the network out states it; the licence of the data may bind it."
  )
  stated = prose.get("license")
  named = ", ".join(stated) if isinstance(stated, list) else stated
  return _list([f"network: {own}", f"data: {named or 'not known here'}"])


def _citation(prose: Mapping[str, Any]) -> str:
  cited = prose.get("citeAs")
  if not cited:
    return "The data: no citation is known here."
  return f"The data:\n\n```bibtex\n{cited}\n```"


def _list(lines: Sequence[str]) -> str:
  return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
  head, *others = ("| " + " | ".join(row) + " |" for row in rows)
  return "\n".join([head, "|" + "---|" * len(rows[0]), *others])
