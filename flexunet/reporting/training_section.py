"""The report's part on the run itself: data, curves, settings with their reasons, provenance."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import config
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.pipelines.augmentation.config import PROBABILITIES
from flexunet.reporting import charts, colors
from flexunet.reporting import html_parts as page

# Where files lie on one machine helps no reader, and may be private.
_LOCAL_SETTINGS = ("data_dir", "cache_dir", "init_from")
# The column of history.csv by which the trainer picks the best epoch.
VALIDATION_SCORE = "val_foreground_dice"
_HELD_OUT_SHOWN = 200
_TITLES = {
    "model": "Network", "data": "Data", "training": "Training", "augmentation": "Augmentation"
}  # fmt: skip


def data_section(
    run: Mapping[str, Any],
    split_counts: Mapping[str, Mapping[str, int]],
    scheme: LabelScheme,
    held_out: Sequence[str] = (),
) -> str:
  """Returns what was trained on as HTML: dataset, splits by subject, classes.

  Args:
    run: `config.json`.
    split_counts: Split -> {"subjects", "volumes", "slices"}; empty where unknown.
    scheme: Classes.
    held_out: Subjects that a run on a fold was not trained on, by name.
  """
  facts = run["dataset_facts"]
  entries = [("Dataset", page.text(facts["name"]))]
  entries.append(("Fingerprint", f"<code>{page.text(facts['fingerprint'] or 'none')}</code>"))
  if plan := facts["slice_plan"]:
    entries.append(("Slices", page.slice_plan(plan)))
  if facts["intensity"]:
    entries.append(("Intensities", page.intensity(facts["intensity"])))
  if facts["spacing_mm"]:
    spacing = " × ".join(f"{edge:.3g}" for edge in facts["spacing_mm"])
    entries.append(("Pixel size", f"{spacing} mm (rows × columns, median)"))
  entries.append(("Classes", _classes(scheme)))
  splits = _split_table(run["data"], split_counts) if split_counts else ""
  return page.definitions(entries) + splits + _fold_note(run["data"], held_out)


def _fold_note(data: Mapping[str, Any], held_out: Sequence[str]) -> str:
  """Returns whom a run on a fold held out; nothing for other runs."""
  if data["fold"] < 0:
    return ""
  shown = ", ".join(page.text(name) for name in held_out[:_HELD_OUT_SHOWN])
  more = len(held_out) - _HELD_OUT_SHOWN
  named = f": {shown}" + (f" and {more} more, in manifest.json" if more > 0 else "")
  validation = page.text(data["validation_split"])
  return (
      f'<p class="note">Fold {data["fold"]} of a cross-validation: {page.text(data["train_split"])}'
      f" and {validation} of the dataset were joined and divided again. {validation} above is the"
      f" {page.count(len(held_out), 'subject')} that this fold held out{named if shown else ''}."
      f" All other subjects of the two were trained on; other splits of the dataset were not"
      " touched.</p>"
  )


def _classes(scheme: LabelScheme) -> str:
  shown = colors.display_palette(scheme.palette)
  items = "".join(
      f'<span class="item">{page.swatch(shown[index]) if index else ""}{index}:'
      f" {page.words(name)}</span> "
      for index, name in enumerate(scheme.names)
  )
  return f'<span class="legend">{items}</span>'


def _split_table(
    data: Mapping[str, Any], split_counts: Mapping[str, Mapping[str, int]]
) -> str:
  of_fold = f", held out as fold {data['fold']}" if data["fold"] >= 0 else ""
  uses = {
      data["train_split"]: "the weights are fitted to it",
      data["validation_split"]: f"chooses the best checkpoint{of_fold}",
  }
  rows = [
      [
          page.text(split),
          *(page.number(counts.get(unit)) for unit in ("subjects", "volumes", "slices")),
          uses.get(split, "not seen in training"),
      ]
      for split, counts in split_counts.items()
  ]
  headers = ["Split", "Subjects", "Volumes", "Slices", "Use"]
  return (
      page.table(headers, rows, texts=(0, 4))
      + '<p class="note">Splits are by subject where the dataset names its subjects.</p>'
  )


def curves_section(
    history: Sequence[Mapping[str, float]],
    training: config.TrainingConfig,
    validated: Mapping[str, Any] | None = None,
) -> str:
  """Returns the charts of loss, Dice and learning rate as HTML; nothing without a history.

  Args:
    history: Rows of history.csv.
    training: Settings of the training; they decide which epoch's weights were kept.
    validated: What manifest.json says of a validation on a part of the slices; None: on all.
  """
  if not history:
    return ""
  kept = kept_epoch(history, training)
  epochs = page.count(int(history[-1]["epoch"]), "epoch")
  sentences = [f"{epochs}{_duration(history)}."]
  if kept:
    sentences.append(f"The dashed line marks epoch {kept:g}, whose weights were kept.")
  sentences.append(
      "Validation scores are means over the held-out volumes at the network's size. Training scores"
      " count the pixels of all slices of an epoch together, where large structures outweigh small"
      " ones; that of the validation counted in this way stands beside them."
  )
  if validated:
    sentences.append(
        f"Validated on {validated['slices']} of {validated['of']} held-out slices:"
        f" {validated['reason']}. Volumes are scored by these slices."
    )
  drawn = [charts.svg(chart) for chart in history_charts(history, kept)]
  return (
      f'<p class="note">{page.text(" ".join(sentences))}</p>'
      f"{page.chart_grid(drawn)}"
  )


def history_charts(
    history: Sequence[Mapping[str, float]], kept: float | None = None
) -> list[charts.LineChart]:
  """Returns the charts of a history: those of the report and of curves.png.

  Args:
    history: Rows of history.csv, at least one.
    kept: Epoch to be marked.
  """

  def line(caption: str, column: str) -> charts.Line:
    # Epochs without a validation are no gaps: the line continues to the next one.
    rows = [row for row in history if column in row]
    return charts.Line(caption, [row["epoch"] for row in rows], [row[column] for row in rows])

  def chart(title: str, *lines: charts.Line, dice: bool = False) -> charts.LineChart:
    return charts.LineChart(
        title=title,
        lines=lines,
        x_label="epoch",
        x_range=(history[0]["epoch"], history[-1]["epoch"]),
        y_range=(0.0, 1.0) if dice else None,
        mark_x=kept,
    )

  per_class = [
      column.removeprefix("dice_") for column in history[0]
      if column.startswith("dice_") and column != "dice_coef_multiclass"
  ]  # fmt: skip
  drawn = [
      chart("Loss", line("training", "loss"), line("validation", "val_loss")),
      chart(
          "Foreground Dice",
          line("training, pooled", "foreground_dice"),
          line("validation", VALIDATION_SCORE),
          line("validation, pooled", "val_pooled_foreground_dice"),
          dice=True,
      ),
  ]
  if len(per_class) > 1:
    lines = [line(name.replace("_", " "), f"val_dice_{name}") for name in per_class]
    drawn.append(chart("Validation Dice per class", *lines, dice=True))
  return [*drawn, chart("Learning rate", line("learning rate", "learning_rate"))]


def _duration(history: Sequence[Mapping[str, float]]) -> str:
  minutes = history[-1].get("seconds", math.nan) / 60
  return f" in {minutes:.1f} minutes" if math.isfinite(minutes) else ""


def kept_epoch(
    history: Sequence[Mapping[str, float]], training: config.TrainingConfig
) -> float | None:
  """Returns the epoch whose weights are in model.keras; None when nothing was validated.

  Args:
    history: Rows of history.csv.
    training: Settings of the training; they decide which epoch's weights were kept.
  """
  by_loss = training.monitor == "loss"
  name = "val_loss" if by_loss else VALIDATION_SCORE
  scored = [row for row in history if math.isfinite(row.get(name, math.nan))]
  if not scored:
    return None
  if not training.save_best:
    return scored[-1]["epoch"]
  # Among equals the later one, as the trainer keeps it.
  best = max(reversed(scored), key=lambda row: -row[name] if by_loss else row[name])
  return best["epoch"]


def settings_section(run_config: config.RunConfig) -> str:
  """Returns every setting of the run with the reason for its value, as HTML."""
  stored = _as_stored(run_config.to_json())
  parts = []
  for group, title in _TITLES.items():
    fields = dataclasses.fields(getattr(run_config, group))
    defaults = _as_stored({
        field.name: field.default for field in fields if field.default is not dataclasses.MISSING
    })
    rows = [
        [f"<code>{page.text(name)}</code>", _value(value), page.text(why)]
        for name, value in stored[group].items()
        if name not in _LOCAL_SETTINGS and (group != "augmentation" or _is_on(name, value))
        for why in [run_config.reasons.get(name) or _source(group, value == defaults.get(name))]
    ]
    table = page.table(["Setting", "Value", "Reason"], rows, texts=(0, 1, 2))
    parts.append(f"<h3>{title}</h3>{table}")
  return "".join(parts)


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
  """Returns values as config.json holds them, where tuples are lists."""
  return json.loads(json.dumps(values))


def _source(group: str, is_default: bool) -> str:
  """Returns where a value is from that planning has not chosen."""
  if group == "augmentation":
    return "of the preset, or given"
  return "default" if is_default else "given"


def _is_on(name: str, value: Any) -> bool:
  """Returns whether a setting of the augmentation is shown: those that never act are not."""
  return name == "augmentation" or (name in PROBABILITIES and bool(value))


def _value(value: Any) -> str:
  if value is None or value == []:
    return page.DASH
  if isinstance(value, (list, tuple)):
    between = ", " if isinstance(value[0], str) else " × "
    return page.text(between.join(str(part) for part in value))
  if isinstance(value, bool):
    return "yes" if value else "no"
  return page.text(f"{value:g}" if isinstance(value, float) else value)


def provenance_section(manifest: Mapping[str, Any], model_sha256: str | None) -> str:
  """Returns versions, devices and hashes as HTML: what identifies the run and repeats it.

  Args:
    manifest: `manifest.json`; empty where there is none.
    model_sha256: Hash of model.keras; None where there is none.
  """
  entries = []
  if model_sha256:
    entries.append(("model.keras", f"<code>sha256 {page.text(model_sha256)}</code>"))
  if revision := manifest.get("revision"):
    entries.append(("Code", f"<code>{page.text(revision)}</code>"))
  if versions := manifest.get("versions"):
    entries.append(
        ("Versions", page.text(", ".join(f"{name} {v}" for name, v in versions.items())))
    )
  if devices := manifest.get("devices"):
    entries.append(("Devices", page.text(", ".join(devices))))
  entries += [
      (title, page.text(manifest[key]))
      for key, title in (("python", "Python"), ("platform", "Platform"))
      if manifest.get(key)
  ]
  return page.definitions(entries) if entries else ""
