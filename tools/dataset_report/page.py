"""The page of a dataset report, and the image beside it."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import charts as drawing
from flexunet.reporting import colors, html_parts, overlay, sources
from flexunet.tools.dataset_report import brightness, charts, statistics, subjects
from flexunet.tools.dataset_report.statistics import Statistics

_LINES_SHOWN = 200
_CHART_COLUMNS = 2


def write_report(
    dataset: BuiltDataset, output: pathlib.Path, *, show_progress: bool = False
) -> None:
  """Writes the page and, beside it, the image of its charts and contact sheets.

  Args:
    dataset: Read once, every record.
    output: The .html file; its folder is created. The image has the suffix .png.
    show_progress: Draws a bar on standard error.

  Raises:
    InputError: `output` is no .html file, or a record is damaged.
  """
  if output.suffix.lower() != ".html":
    raise InputError(f"--output must end in .html. Got: {output}.")
  figures = statistics.gather(dataset, show_progress)
  drawn = charts.charts_of(dataset, figures)
  sheets = {
      name: charts.contact_sheet(dataset, samples)
      for name, samples in figures.samples.items()
  }
  image = charts.stack({
      dataset.name: drawing.image(drawn, _CHART_COLUMNS),
      **{_title(name): sheet for name, sheet in sheets.items()},
  })
  # The page last: where it is, both are.
  files.write_bytes(output.with_suffix(".png"), overlay.encode_png(image))
  files.write_bytes(output, _page(dataset, figures, drawn, sheets, output).encode("utf-8"))


def _page(
    dataset: BuiltDataset,
    figures: Statistics,
    drawn: list[drawing.Chart],
    sheets: dict[str, np.ndarray],
    output: pathlib.Path,
) -> str:
  note = (
      "The slices with most of each class, of different subjects; below them the same with the"
      " label drawn in."
  )
  contact_sheets = "".join(_sheet(name, sheet, dataset) for name, sheet in sheets.items())
  return html_parts.document(
      kind="Dataset report",
      heading=dataset.name,
      lead=_lead(dataset),
      top=_in_words(dataset) + _facts(dataset) + _warnings(dataset) + _unlike(dataset, figures),
      sections=[
          ("source", "Source and licence", sources.section(sources.of_folder(dataset.path))),
          ("splits", "Splits and classes", _split_table(dataset) + _class_table(dataset, figures)),
          ("subjects", "Subjects",
           subjects.section(dataset) + brightness.section(dataset, figures.grey_totals)),
          ("charts", "Balance, intensity, size",
           html_parts.chart_grid(map(drawing.svg, drawn)) + _size_note(figures)),
          ("slices", "Contact sheets", f'<p class="note">{note}</p>{contact_sheets}'),
          ("raw", "Source files",
           _mask_values(dataset) + _left_out(dataset) + _volume_facts(dataset)),
          ("files", "Files", _files(dataset, output)),
      ],
      footer="Written by FlexUNet from the built dataset; it holds slices of the data.",
  )  # fmt: skip


def _lead(dataset: BuiltDataset) -> str:
  subjects = len({row["subject"] for row in dataset.rows})
  volumes = len({row["volume"] for row in dataset.rows})
  counts = ((subjects, "subject"), (volumes, "volume"), (len(dataset.rows), "record"))
  return ", ".join(html_parts.count(*entry) for entry in counts) + "."


def _in_words(dataset: BuiltDataset) -> str:
  """Returns what the dataset is, in sentences."""
  scheme, labelled = dataset.scheme, [name for name in dataset.splits if name != "unlabeled"]
  classes = ", ".join(html_parts.words(name) for name in scheme.names[1:])
  parts = [
      f"Each record is {_record(dataset)} with a label of {classes} and {scheme.names[0]}."
  ]
  if len(labelled) > 1:
    shares = ", ".join(
        f"{html_parts.text(name)} {dataset.splits[name]['num_subjects']:,}" for name in labelled
    )
    parts.append(f"The labelled subjects are divided into {shares}.")
  shared = subjects.in_several_splits(dataset)
  parts.append(
      f"{html_parts.count(len(shared), 'subject')} stand in several splits, where the publisher put"
      " them." if shared else "No subject stands in two splits."
  )  # fmt: skip
  if "unlabeled" in dataset.splits:
    count = html_parts.count(dataset.splits["unlabeled"]["num_volumes"], "volume")
    parts.append(f"{count} without labels can be predicted, not scored.")
  counts = np.array([[int(row[f"pixels_{name}"]) for name in scheme.names] for row in dataset.rows
                     if row["split"] != "unlabeled"], np.int64).reshape(-1, scheme.num_classes)
  if (total := counts.sum()) and len(counts):
    parts.append(
        f"{100 * counts[:, 1:].sum() / total:.2g} % of the labelled pixels are foreground;"
        f" {100 * (counts[:, 1:].sum(axis=1) > 0).mean():.0f} % of the records have some."
    )
  absent = [html_parts.words(name) for name, count in
            zip(scheme.names[1:], counts.sum(axis=0)[1:], strict=True) if not count]
  if absent:
    parts.append(f"<b>Absent from all labels: {', '.join(absent)}.</b>")
  return f'<p class="words">{" ".join(parts)}</p>'


def _record(dataset: BuiltDataset) -> str:
  """Returns what a record is: a slice or a volume, of one channel or several."""
  channels = len(dataset.channel_names)
  several = f" of {channels} channels" if channels > 1 else ""
  whole = all(not row["slice_index"] for row in dataset.rows)
  return ("a whole volume" if whole else "one slice") + several


def _files(dataset: BuiltDataset, output: pathlib.Path) -> str:
  """Returns links to the tables beside the shards; nothing where the page lies elsewhere."""
  if output.resolve().parent != dataset.path.resolve():
    return ""
  what = {
      "build_report.json": "counts, left-out files, hashes of the shards",
      "records.csv": "a row per record",
      "splits.json": "split, fold and reason of each subject",
      "croissant.json": "the dataset in the format of MLCommons",
      "checksums.json": "hashes of these files",
  }
  folder = output.parent
  return html_parts.file_links(folder, {folder / name: text for name, text in what.items()})


def _facts(dataset: BuiltDataset) -> str:
  report = dataset.report
  entries = [("Fingerprint", f"<code>{html_parts.text(report['fingerprint'])}</code>")]
  if plan := report.get("slice_plan"):
    entries.append(("Slices", html_parts.slice_plan(plan)))
  if window := report.get("intensity"):
    entries.append(("Intensities", html_parts.intensity(window)))
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
  return f'<div class="caveats"><h3>Warnings of the build</h3><ul>{lines}</ul></div>'


def _unlike(dataset: BuiltDataset, figures: Statistics) -> str:
  """Returns a box on the subjects whose brightness no training subject has."""
  found = brightness.outside_of_training(dataset, figures.grey_totals)
  if not found:
    return ""
  lines = "".join(f"<li>{html_parts.text(line)}</li>" for line in found[:_LINES_SHOWN])
  return f'<div class="caveats"><h3>Subjects unlike those of training</h3><ul>{lines}</ul></div>'


def _split_table(dataset: BuiltDataset) -> str:
  rows = []
  for name, entry in dataset.splits.items():
    counts = [entry[f"num_{unit}"] for unit in ("subjects", "volumes", "records")]
    cells = [html_parts.number(count) for count in counts]
    if name == "unlabeled":
      rows.append([name, *cells, html_parts.DASH, html_parts.DASH])
      continue
    foreground = entry["num_foreground_records"]
    share = f"{100 * foreground / max(entry['num_records'], 1):.1f} %"
    rows.append([name, *cells, html_parts.number(foreground), share])
  headers = ["Split", "Subjects", "Volumes", "Records", "With foreground", "Share"]
  return html_parts.table(headers, rows)


def _class_table(dataset: BuiltDataset, figures: Statistics) -> str:
  scheme = dataset.scheme
  splits = [name for name in dataset.splits if name != "unlabeled"]
  totals = {n: max(sum(dataset.splits[n]["pixels"].values()), 1) for n in splits}
  records = {name: sum(int(row[f"pixels_{name}"]) > 0 for row in dataset.rows
                       if row["split"] != "unlabeled") for name in scheme.names}  # fmt: skip
  shown = colors.display_palette(scheme.palette)
  rows = []
  for index, label_class in enumerate(scheme.classes):
    name = label_class.name
    counts = figures.intensities[index]
    mean = float(counts @ np.arange(256) / counts.sum()) if counts.sum() else float("nan")
    shares = [dataset.splits[split]["pixels"][name] / totals[split] for split in splits]
    rows.append([
        str(index), html_parts.class_name(name, shown[index]) if index else html_parts.words(name),
        html_parts.swatch(label_class.color) + ",&nbsp;".join(map(str, label_class.color)),
        html_parts.number(records[name]),
        *(f"{100 * share:.3f} %" for share in shares), html_parts.number(mean, 1),
    ])  # fmt: skip
  shares = [f"Pixels, {split}" for split in splits]
  headers = ["Id", "Class, as drawn here", "Colour of masks", "Records", *shares, "Mean intensity"]
  return html_parts.table(headers, rows, texts=(1, 2))


def _size_note(figures: Statistics) -> str:
  sizes = sorted(figures.sizes.items(), key=lambda entry: -entry[1])
  shown = ", ".join(f"{height} × {width} ({count:,})" for (height, width), count in sizes[:12])
  more = f" and {len(sizes) - 12} more" if len(sizes) > 12 else ""
  mm = figures.spacing_mm
  known = np.isfinite(mm)
  names = ("row", "column", "slice")
  spans = [
      f"{name} {_span(mm[known[:, axis], axis])} mm"
      for axis, name in enumerate(names[: mm.shape[1]]) if known[:, axis].any()
  ]  # fmt: skip
  spacing = ", ".join(spans) if spans else "not stated by the source"
  return f'<p class="note">Sizes (slices): {shown}{more}. Spacing: {spacing}.</p>'


def _span(values: np.ndarray) -> str:
  low, high = f"{values.min():.3g}", f"{values.max():.3g}"
  return low if low == high else f"{low} to {high}"


def _title(name: str) -> str:
  titles = {"negative": "Slices without foreground", "unlabeled": "Scans without labels"}
  return titles.get(name, name.replace("_", " "))


def _sheet(name: str, sheet: np.ndarray, dataset: BuiltDataset) -> str:
  title = html_parts.text(_title(name))
  if name in dataset.scheme.names:
    # The colour as drawn: dull palette colours are replaced on the sheet.
    shown = colors.display_palette(dataset.scheme.palette)
    title = html_parts.swatch(shown[dataset.scheme.names.index(name)]) + title
  image = html_parts.image(sheet, f"Slices: {name}")
  return f'<h3>{title}</h3><div class="scroll sheet">{image}</div>'


def _mask_values(dataset: BuiltDataset) -> str:
  parts = []
  for kind, histogram in dataset.report["mask_values"].items():
    entries = list(histogram.items())
    rows = [[html_parts.text(value), f"{count:,}"] for value, count in entries[:_LINES_SHOWN]]
    table = html_parts.table(["Stored value", "Pixels"], rows)
    title = f"Values stored in mask files: {html_parts.words(kind)} ({len(entries)})"
    parts.append(f"<details><summary>{title}</summary>{table}</details>")
  return "\n".join(parts)


def _left_out(dataset: BuiltDataset) -> str:
  entries: list[dict[str, str]] = dataset.report["left_out"]
  if not entries:
    return "<p>Nothing was left out.</p>"
  rows = [[html_parts.text(e["file"]), html_parts.text(e["reason"])] for e in entries]
  table = html_parts.table(["File", "Reason"], rows[:_LINES_SHOWN], texts=(0, 1))
  title = f"{html_parts.count(len(entries), 'file')} left out"
  return f"<details open><summary>{title}</summary>{table}</details>"


def _volume_facts(dataset: BuiltDataset) -> str:
  facts: dict[str, dict[str, Any]] = dataset.report["volume_facts"]
  if not facts:
    return ""
  columns = sorted({name for entry in facts.values() for name in entry})
  rows = [
      [html_parts.text(volume), *(_plain(entry.get(name)) for name in columns)]
      for volume, entry in list(facts.items())[:_LINES_SHOWN]
  ]
  table = html_parts.table(["Volume", *map(html_parts.words, columns)], rows)
  title = f"Facts of {html_parts.count(len(facts), 'volume')}"
  return f"<details><summary>{title}</summary>{table}</details>"


def _plain(value: Any) -> str:
  if isinstance(value, dict):
    return html_parts.text(", ".join(f"{key} {value[key]}" for key in value))
  return html_parts.number(value) if isinstance(value, (int, float)) else html_parts.text(value)
