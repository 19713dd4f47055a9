"""One self-contained page about a built dataset, and the same as one picture.

    python -m flexunet.tools.dataset_report DIR [--output=FILE.html]

DIR is the folder of one built dataset. FILE.html holds everything inside; FILE.png beside it shows
the charts and the contact sheet. Without --output they go into DIR as dataset_report.html/.png.
"""

from __future__ import annotations

import html
import pathlib
import string
from typing import Any

import numpy as np

from flexunet.core.errors import InputError
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import html_parts, overlay
from flexunet.tools.dataset_report import charts, statistics
from flexunet.tools.dataset_report.statistics import Statistics

_TEMPLATE = pathlib.Path(__file__).with_name("template.html")
_LINES_SHOWN = 200


def write_report(dataset: BuiltDataset, output: pathlib.Path, progress: bool = False) -> None:
  """Reads the dataset once and writes `output` (.html) and its picture (.png)."""
  if output.suffix.lower() != ".html":
    raise InputError(f"--output must end in .html. Got: {output}.")
  if not output.parent.is_dir():
    raise InputError(f"--output {output}: the folder {output.parent} does not exist. Create it.")
  figures = statistics.gather(dataset, progress)
  drawn = charts.charts(dataset, figures)
  sheets = {
      name: charts.contact_sheet(dataset, samples)
      for name, samples in figures.samples.items()
  }
  body = "\n".join([
      _facts(dataset),
      _warnings(dataset),
      "<h2>Splits and classes</h2>", _split_table(dataset), _class_table(dataset, figures),
      "<h2>Balance, intensity, size</h2>", html_parts.picture(drawn, "Charts of the dataset"),
      _size_note(figures),
      "<h2>Contact sheet</h2>",
      '<p class="note">The slices with most of each class, of different subjects; below them the'
      " same with the label drawn in.</p>",
      *(_sheet(name, picture, dataset) for name, picture in sheets.items()),
      "<h2>What the source held</h2>", _mask_values(dataset), _left_out(dataset),
      _volume_facts(dataset),
  ])  # fmt: skip
  template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
  page = template.substitute(title=html.escape(dataset.name), body=body)
  picture = overlay.encode_png(
      charts.stack({dataset.name: drawn, **{_title(n): s for n, s in sheets.items()}})
  )
  # The page last: where it is, both are.
  output.with_suffix(".png").write_bytes(picture)
  output.write_text(page, encoding="utf-8")


def _facts(dataset: BuiltDataset) -> str:
  report = dataset.report
  entries = [("Fingerprint", f"<code>{html_parts.text(report['fingerprint'])}</code>")]
  for name in ("slice_plan", "intensity"):
    if value := report.get(name):
      plain = ", ".join(f"{key} {value[key]}" for key in value)
      entries.append((name.replace("_", " ").capitalize(), html_parts.text(plain)))
  total = len(dataset.rows)
  subjects = {row["subject"] for row in dataset.rows}
  volumes = {row["volume"] for row in dataset.rows}
  entries.insert(0, ("Holds", f"{len(subjects)} subjects, {len(volumes)} volumes, {total} records"))
  size = sum(shard["bytes"] for shard in report["shards"]) / 1e6
  entries.append(("On disk", f"{size:.1f} MB in {len(report['shards'])} shards"))
  shares = [facts["off_palette_share"] for facts in report["volume_facts"].values()
            if "off_palette_share" in facts]  # fmt: skip
  if shares:
    text = f"mean {100 * np.mean(shares):.2f} % per volume, at most {100 * max(shares):.2f} %"
    entries.append(("Pixels off the palette", text))
  return html_parts.definitions(entries)


def _warnings(dataset: BuiltDataset) -> str:
  warnings = dataset.report["warnings"]
  if not warnings:
    return ""
  lines = "".join(f"<li>{html_parts.text(line)}</li>" for line in warnings[:_LINES_SHOWN])
  return f'<div class="warnings"><b>Warnings of the build</b><ul>{lines}</ul></div>'


def _split_table(dataset: BuiltDataset) -> str:
  rows = []
  for name, entry in dataset.splits.items():
    unlabelled = name == "unlabeled"
    foreground = entry["num_foreground_records"]
    share = f"{100 * foreground / max(entry['num_records'], 1):.1f} %"
    rows.append([
        name, str(entry["num_subjects"]), str(entry["num_volumes"]), str(entry["num_records"]),
        html_parts.DASH if unlabelled else str(foreground),
        html_parts.DASH if unlabelled else share,
    ])  # fmt: skip
  headers = ["Split", "Subjects", "Volumes", "Records", "With foreground", "Share"]
  return html_parts.table(headers, rows)


def _class_table(dataset: BuiltDataset, statistics: Statistics) -> str:
  scheme = dataset.scheme
  splits = [name for name in dataset.splits if name != "unlabeled"]
  totals = {n: max(sum(dataset.splits[n]["pixels"].values()), 1) for n in splits}
  records = {name: sum(int(row[f"pixels_{name}"]) > 0 for row in dataset.rows
                       if row["split"] != "unlabeled") for name in scheme.names}  # fmt: skip
  rows = []
  for index, label_class in enumerate(scheme.classes):
    name = label_class.name
    counts = statistics.intensities[index]
    mean = float(counts @ np.arange(256) / counts.sum()) if counts.sum() else float("nan")
    shares = [dataset.splits[split]["pixels"][name] / totals[split] for split in splits]
    rows.append([
        str(index), html_parts.swatch(label_class.color) + html_parts.text(name),
        ", ".join(map(str, label_class.color)), str(records[name]),
        *(f"{100 * share:.3f} %" for share in shares), html_parts.number(mean, 1),
    ])  # fmt: skip
  shares = [f"Pixels, {split}" for split in splits]
  headers = ["Id", "Class", "Colour", "Records", *shares, "Mean intensity"]
  return html_parts.table(headers, rows, texts=(1, 2))


def _size_note(statistics: Statistics) -> str:
  sizes = sorted(statistics.sizes.items(), key=lambda entry: -entry[1])
  shown = ", ".join(f"{height} x {width} ({count})" for (height, width), count in sizes[:12])
  more = f" and {len(sizes) - 12} more" if len(sizes) > 12 else ""
  mm = statistics.spacing_mm
  known = np.isfinite(mm)
  names = ("row", "column", "slice")
  spans = [
      f"{name} {mm[known[:, axis], axis].min():.3g} to {mm[known[:, axis], axis].max():.3g} mm"
      for axis, name in enumerate(names[: mm.shape[1]]) if known[:, axis].any()
  ]  # fmt: skip
  spacing = ", ".join(spans) if spans else "not stated by the source"
  return f'<p class="note">Sizes: {shown}{more}. Spacing: {spacing}.</p>'


def _title(name: str) -> str:
  titles = {"negative": "Slices without foreground", "unlabeled": "Scans without labels"}
  return titles.get(name, name)


def _sheet(name: str, picture: np.ndarray, dataset: BuiltDataset) -> str:
  title = html_parts.text(_title(name))
  if name in dataset.scheme.names:
    # The colour as drawn: dull palette colours are replaced on the sheet.
    colors = overlay.display_palette(dataset.scheme.palette)
    title = html_parts.swatch(colors[dataset.scheme.names.index(name)]) + title
  return f"<h3>{title}</h3>{html_parts.picture(picture, f'Slices: {name}')}"


def _mask_values(dataset: BuiltDataset) -> str:
  parts = []
  for kind, histogram in dataset.report["mask_values"].items():
    entries = list(histogram.items())
    rows = [[html_parts.text(value), f"{count:,}"] for value, count in entries[:_LINES_SHOWN]]
    table = html_parts.table(["Stored value", "Pixels"], rows)
    title = f"Values stored in mask files: {html_parts.text(kind)} ({len(entries)})"
    parts.append(f"<details><summary>{title}</summary>{table}</details>")
  return "\n".join(parts)


def _left_out(dataset: BuiltDataset) -> str:
  entries: list[dict[str, str]] = dataset.report["left_out"]
  if not entries:
    return "<p>Nothing was left out.</p>"
  rows = [[html_parts.text(e["file"]), html_parts.text(e["reason"])] for e in entries]
  table = html_parts.table(["File", "Reason"], rows[:_LINES_SHOWN], texts=(0, 1))
  return f"<details open><summary>{len(entries)} files left out</summary>{table}</details>"


def _volume_facts(dataset: BuiltDataset) -> str:
  facts: dict[str, dict[str, Any]] = dataset.report["volume_facts"]
  if not facts:
    return ""
  columns = sorted({name for entry in facts.values() for name in entry})
  rows = [
      [html_parts.text(volume), *(_plain(entry.get(name)) for name in columns)]
      for volume, entry in list(facts.items())[:_LINES_SHOWN]
  ]
  table = html_parts.table(["Volume", *map(html_parts.text, columns)], rows)
  return f"<details><summary>Facts of {len(facts)} volumes</summary>{table}</details>"


def _plain(value: Any) -> str:
  if isinstance(value, dict):
    return html_parts.text(", ".join(f"{key} {value[key]}" for key in value))
  return html_parts.number(value) if isinstance(value, (int, float)) else html_parts.text(value)
