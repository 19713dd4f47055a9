"""The report's part on the run itself: data, classes, curves, knobs with reasons, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import charts, overlay
from flexunet.reporting import html_parts as page

# Where files lie on one machine tells a reader nothing and may tell too much.
_LOCAL_KNOBS = ("data_dir", "cache_dir", "init_from")
# The column of history.csv by which the trainer picks the best epoch.
VALIDATION_SCORE = "val_foreground_dice"
_TITLES = {
    "model": "Network", "data": "Data", "training": "Training", "augmentation": "Augmentation"
}  # fmt: skip


def data_section(
    config: Mapping[str, Any],
    split_counts: Mapping[str, Mapping[str, int]],
    scheme: LabelScheme,
) -> str:
  """Returns what was trained on: dataset, splits by subject, classes.

  Args:
    config: `config.json`.
    split_counts: Split -> {"subjects", "volumes", "slices"}; empty where unknown.
    scheme: Classes.
  """
  facts = config["dataset_facts"]
  entries = [("Dataset", page.text(facts["name"]))]
  entries.append(("Fingerprint", f"<code>{page.text(facts['fingerprint'] or 'none')}</code>"))
  if plan := facts["slice_plan"]:
    entries.append(
        ("Slices", f"{page.text(plan['plane'])}, of volumes stored as {page.text(plan['axes'])}")
    )
  if facts["intensity"]:
    entries.append(("Intensities", _intensity(facts["intensity"])))
  if facts["spacing_mm"]:
    spacing = " × ".join(f"{edge:.3g}" for edge in facts["spacing_mm"])
    entries.append(("Pixel size", f"{spacing} mm (rows × columns, median)"))
  shown = overlay.display_palette(scheme.palette)
  classes = " ".join(
      f'<span class="item">{page.swatch(shown[index]) if index else ""}{index}'
      f" {page.text(name)}</span>"
      for index, name in enumerate(scheme.names)
  )
  entries.append(("Classes", f'<span class="legend">{classes}</span>'))
  parts = [page.definitions(entries)]
  if split_counts:
    roles = {
        config["data"]["train_split"]: "weights are fitted to it",
        config["data"]["validation_split"]: "chooses the best checkpoint",
    }
    rows = [
        [
            page.text(split),
            *(page.number(counts.get(unit)) for unit in ("subjects", "volumes", "slices")),
            roles.get(split, "not seen in training"),
        ]
        for split, counts in split_counts.items()
    ]
    headers = ["Split", "subjects", "volumes", "slices", "use"]
    parts.append(page.table(headers, rows, texts=(0, 4)))
    parts.append('<p class="note">Splits are by subject where the dataset states subjects.</p>')
  return "".join(parts)


def _intensity(intensity: Mapping[str, Any]) -> str:
  low, high = f"{intensity['low']:g}", f"{intensity['high']:g}"
  texts = {
      "percentile": f"percentiles {low} to {high} of each volume become 0 to 255",
      "window": f"{low} to {high} become 0 to 255",
  }
  return texts.get(intensity["kind"], "8 bits, as stored")


def curves_section(
    history: Sequence[Mapping[str, float]],
    training: Mapping[str, Any] | None = None,
    validated: Mapping[str, Any] | None = None,
) -> str:
  """Returns the charts of loss, Dice and learning rate; nothing without a history.

  Args:
    history: Rows of history.csv.
    training: Of `config.json`; what picks the best model.
    validated: What manifest.json says of a validation on a part of the slices; None: on all.
  """
  if not history:
    return ""
  best = kept_epoch(history, training or {})

  def line(caption: str, name: str):
    # Epochs without a validation are no gaps: the line runs on to the next one.
    rows = [row for row in history if name in row]
    return caption, [row["epoch"] for row in rows], [row[name] for row in rows]

  per_class = [
      name for name in history[0]
      if name.startswith("dice_") and name != "dice_coef_multiclass"
  ]  # fmt: skip
  drawn = [
      ("Loss", [line("training", "loss"), line("validation", "val_loss")], None),
      (
          "Foreground Dice",
          [line("training", "foreground_dice"), line("validation", VALIDATION_SCORE)],
          (0.0, 1.0),
      ),
      ("Learning rate", [line("learning rate", "learning_rate")], None),
  ]
  if len(per_class) > 1:
    shown = [line(name.removeprefix("dice_"), f"val_{name}") for name in per_class[:7]]
    drawn.insert(2, ("Validation Dice per class", shown, (0.0, 1.0)))
  drawn = [
      charts.line_chart(
          [entry for entry in series if any(math.isfinite(value) for value in entry[2])],
          title=title,
          x_label="epoch",
          y_range=y_range,
          mark_x=best,
      )
      for title, series, y_range in drawn
  ]
  mark = f" The dashed line marks epoch {best}, whose weights were kept." if best else ""
  minutes = history[-1].get("seconds", math.nan) / 60
  took = f" in {minutes:.1f} minutes" if math.isfinite(minutes) else ""
  part = ""
  if validated:
    part = (
        f" Validated on {validated['slices']} of {validated['of']} held-out slices:"
        f" {validated['reason']}."
    )
  return (
      f'<p class="note">{len(history)} epochs{took}.{mark} Scores while training are of slices at'
      f" the network's size, not of volumes.{page.text(part)}</p>"
      f'<div class="charts">{"".join(f"<div>{chart}</div>" for chart in drawn if chart)}</div>'
  )


def kept_epoch(
    history: Sequence[Mapping[str, float]], training: Mapping[str, Any]
) -> int | None:
  """Returns the epoch whose weights are in model.keras; None when nothing was validated.

  Args:
    history: Rows of history.csv.
    training: Of `config.json`; what picks the best model.
  """
  by_loss = training.get("monitor") == "loss"
  name = "val_loss" if by_loss else VALIDATION_SCORE
  scored = [row for row in history if math.isfinite(row.get(name, math.nan))]
  if not scored:
    return None
  if not training.get("save_best", True):
    return int(scored[-1]["epoch"])
  # Of equals the later one, as the trainer keeps it.
  best = max(reversed(scored), key=lambda row: -row[name] if by_loss else row[name])
  return int(best["epoch"])


def knobs_section(config: Mapping[str, Any]) -> str:
  """Returns every knob of the run with the reason for its value."""
  reasons = config["reasons"]
  parts = []
  for group, title in _TITLES.items():
    rows = [
        [f"<code>{page.text(name)}</code>", _value(value), page.text(reasons.get(name, "default"))]
        for name, value in config.get(group, {}).items()
        if name not in _LOCAL_KNOBS and (group != "augmentation" or _is_on(name, value))
    ]
    parts.append(f"<h3>{title}</h3>" + page.table(["Knob", "value", "why"], rows, texts=(0, 1, 2)))
  return "".join(parts)


def _is_on(name: str, value: Any) -> bool:
  """Leaves out of the many settings of the augmentation those of what never happens."""
  return name == "augmentation" or (name.endswith("_probability") and bool(value))


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
  """Returns versions, devices and hashes: what it takes to tell and to repeat the run."""
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
