"""Who is in a dataset: subjects by split and fold, and what each has."""

from __future__ import annotations

import collections
import dataclasses

from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import html_parts

_SHOWN = 500


@dataclasses.dataclass
class _Subject:
  """What a subject has in one split."""

  fold: str
  volumes: set[str] = dataclasses.field(default_factory=set)
  records: int = 0
  with_foreground: int = 0
  foreground: int = 0


def section(dataset: BuiltDataset) -> str:
  """Returns a table of the subjects as HTML, after how many volumes they have."""
  found = _subjects(dataset)
  per_subject = collections.Counter(len(one.volumes) for one in found.values())
  spread = ", ".join(
      f"{html_parts.count(subjects, 'subject')} with {html_parts.count(volumes, 'volume')}"
      for volumes, subjects in sorted(per_subject.items())
  )
  rows = [
      [
          html_parts.text(name), html_parts.text(split),
          html_parts.text(one.fold) if one.fold not in ("", "-1") else html_parts.DASH,
          html_parts.number(len(one.volumes)), html_parts.number(one.records),
          *([html_parts.DASH] * 2 if split == "unlabeled" else
            [html_parts.number(one.with_foreground), html_parts.number(one.foreground)]),
      ]
      for (split, name), one in list(found.items())[:_SHOWN]
  ]  # fmt: skip
  headers = ["Subject", "Split", "Fold", "Volumes", "Records", "With foreground",
             "Foreground pixels"]  # fmt: skip
  more = len(found) - len(rows)
  rest = f'<p class="note">And {more:,} more in records.csv.</p>' if more else ""
  table = html_parts.table(headers, rows, texts=(0, 1))
  return (
      f"<p>{html_parts.text(spread)}. Names are those of the records, codes or pseudonyms."
      f"</p><details{' open' if len(rows) <= 30 else ''}><summary>All subjects</summary>{table}"
      f"{rest}</details>"
  )


def in_several_splits(dataset: BuiltDataset) -> list[str]:
  """Returns the subjects that stand in more than one split."""
  splits: dict[str, set[str]] = {}
  for split, name in _subjects(dataset):
    splits.setdefault(name, set()).add(split)
  return sorted(name for name, those in splits.items() if len(those) > 1)


def _subjects(dataset: BuiltDataset) -> dict[tuple[str, str], _Subject]:
  """Returns (split, subject) -> what it has, in the order of splits and names."""
  classes = dataset.scheme.names[1:]
  found: dict[tuple[str, str], _Subject] = {}
  for row in dataset.rows:
    one = found.setdefault((row["split"], row["subject"]), _Subject(row["fold"]))
    pixels = sum(int(row[f"pixels_{name}"]) for name in classes)
    one.volumes.add(row["volume"])
    one.records += 1
    one.with_foreground += pixels > 0
    one.foreground += pixels
  ranks = {split: rank for rank, split in enumerate(dataset.splits)}
  order = sorted(found, key=lambda key: (ranks.get(key[0], len(ranks)), key[1]))
  return {key: found[key] for key in order}
