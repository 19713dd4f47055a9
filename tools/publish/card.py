"""README.md of a published dataset: what it holds, whose it is, how it reads, what was checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet.datasets.builder import croissant
from flexunet.datasets.built_dataset import RECORDS_NAME, REPORT_NAME, BuiltDataset
from flexunet.reporting import sources
from flexunet.tools.publish import licences
from flexunet.tools.publish.checks import Check
from flexunet.tools.publish.licences import Decision

NAME = "README.md"
_LEFT_OUT_SHOWN = 20
# A section of the description of each dataset of ours.
_CHANGED = "What was changed or left out"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_USE = """\
For research on segmentation. Nobody may try to find out who a scan shows. Labels are those of the
source: they were not read again for this copy. No diagnosis may rest on them."""


def text(
    dataset: BuiltDataset,
    prose: Mapping[str, Any],
    decision: Decision,
    checks: Sequence[Check],
    pictures: str,
) -> str:
  """Returns the card, in Markdown with the header that dataset hubs read.

  Args:
    dataset: The dataset.
    prose: As `croissant.write` takes them.
    decision: Under which licence it is passed on.
    checks: What was checked.
    pictures: File with charts and contact sheets, beside the card.
  """
  report = dataset.report
  title = f"{report['dataset']}, config {report['config']}, version {report['version']}"
  description = str(prose.get("description", ""))
  about, changed = _section(description, ""), _section(description, _CHANGED)
  parts = [
      _header(dataset, decision),
      f"# {title}",
      *([about] if about else []),
      f"![Charts, and slices with their labels]({pictures})",
      "## Use",
      _USE,
      "## Licence",
      _licence(decision, prose),
      "## Citation",
      _citation(prose),
      "## Classes and splits",
      _classes(dataset),
      _splits(dataset),
      "Splits are by subject: nobody stands in two of them"
      + (" but where the source put them." if _published(dataset) else ".")
      + " Pixels are those of all labelled records.",
      "## Records",
      _records(dataset),
      "## Reading them",
      _reading(report),
      "## What was checked",
      _table([("check", "outcome"), *((check.name, check.said) for check in checks)]),
      f"## {_CHANGED}",
      *([changed] if changed else []),
      _left_out(report),
  ]
  return "\n\n".join(parts) + "\n"


def _header(dataset: BuiltDataset, decision: Decision) -> str:
  count = len(dataset.rows)
  size = next((name for most, name in _SIZES if count < most), "n>1M")
  lines = [
      "---",
      "license:",
      *(f"- {terms.name.lower()}" for terms in decision.terms),
      "task_categories:",
      "- image-segmentation",
      "tags:",
      "- medical",
      "- brain",
      f"pretty_name: {dataset.report['dataset']}",
      "size_categories:",
      f"- {size}",
      "---",
  ]
  return "\n".join(lines)


def _section(description: str, heading: str) -> str:
  """Returns the text under a heading of a description in Markdown; "": what stands before all."""
  start, *others = re.split(r"^## ", description, flags=re.MULTILINE)
  if not heading:
    return re.sub(r"\A\s*# .*\n", "", start).strip()
  return next((text.partition("\n")[2].strip() for text in others
               if text.partition("\n")[0].strip() == heading), "")  # fmt: skip


def _licence(decision: Decision, prose: Mapping[str, Any]) -> str:
  lines = [f"- {terms.name}" + (f": {terms.url}" if terms.url else "") for terms in decision.terms]
  lines.append(f"- Conditions: {licences.in_words(decision.conditions)}.")
  if address := prose.get("url"):
    lines.append(f"- Source of the scans: {address}")
  return "\n".join(lines)


def _citation(prose: Mapping[str, Any]) -> str:
  cited = str(prose.get("citeAs", "")).strip()
  if not cited:
    return "The source states no citation: name its address."
  listed = "\n".join(f"- {line}" for line in sources.references(cited))
  return "\n\n".join(part for part in (listed, f"```bibtex\n{cited}\n```") if part)


def _classes(dataset: BuiltDataset) -> str:
  scheme, splits = dataset.scheme, dataset.splits
  pixels = {
      name: sum(entry["pixels"].get(name, 0)
                for split, entry in splits.items() if split != "unlabeled")
      for name in scheme.names
  }  # fmt: skip
  total = sum(pixels.values()) or 1
  rows = [("id", "class", "pixels", "share")]
  rows += [
      (str(number), name, f"{pixels[name]:,}", f"{100 * pixels[name] / total:.3g} %")
      for number, name in enumerate(scheme.names)
  ]
  return _table(rows)


def _splits(dataset: BuiltDataset) -> str:
  titles = ("split", "subjects", "volumes", "records", "records with foreground")
  rows: list[tuple[str, ...]] = [titles]
  rows += [
      (name, *(f"{entry[key]:,}" for key in
               ("num_subjects", "num_volumes", "num_records", "num_foreground_records")))
      for name, entry in dataset.splits.items()
  ]  # fmt: skip
  return _table(rows)


def _published(dataset: BuiltDataset) -> bool:
  seen: dict[str, str] = {}
  return any(seen.setdefault(row["subject"], row["split"]) != row["split"] for row in dataset.rows)


def _records(dataset: BuiltDataset) -> str:
  report = dataset.report
  what = "one slice" if report["form"] == "slices" else "one whole volume"
  features = ", ".join(f"`{name}`" for name in dataset.info.features)
  lines = [
      f"A record is {what} of {', '.join(dataset.channel_names)}; its features are {features}.",
      f"Container: {report['file_format']}.",
  ]
  if plan := report.get("slice_plan"):
    lines.append(f"Slices are {plan['plane']}; volumes lie {plan['axes']}.")
  if (intensity := report.get("intensity")) and intensity.get("kind") != "none":
    lines.append(
        f"Intensities: {intensity['kind']}, {intensity['low']:g} to {intensity['high']:g}."
    )
  lines.append(
      f"`{RECORDS_NAME}` has a row per record, `{REPORT_NAME}` says how it was built, and"
      f" `{croissant.NAME}` describes both to any Croissant reader."
  )
  return "\n".join(lines)


def _reading(report: Mapping[str, Any]) -> str:
  name, config = report["dataset"], report["config"]
  return "\n".join([
      "```",
      "sha256sum -c SHA256SUMS",
      "flexunet verify .",
      f"flexunet train --dataset={name}/{config} --data_dir=DATA --run_dir=RUN",
      "```",
      "",
      "In Python, where `.` is this folder:",
      "",
      "```python",
      "import tensorflow_datasets as tfds",
      'builder = tfds.builder_from_directory(".")',
      "```",
  ])


def _left_out(report: Mapping[str, Any]) -> str:
  entries = report.get("left_out", ())
  lines = [f"- {entry['file']}: {entry['reason']}" for entry in entries[:_LEFT_OUT_SHOWN]]
  if len(entries) > _LEFT_OUT_SHOWN:
    lines.append(f"- and {len(entries) - _LEFT_OUT_SHOWN} more, in `{REPORT_NAME}`")
  lines += [f"- {line}" for line in report.get("warnings", ())]
  lines.append(f"- Built and published by FlexUNet {flexunet.__version__}.")
  return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
  head, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                   for row in rows)  # fmt: skip
  return "\n".join([head, "|" + "---|" * len(rows[0]), *others])
