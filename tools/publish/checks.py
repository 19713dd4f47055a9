"""The checks of a dataset before it is passed on: each says what holds, or what to do."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flexunet.core import progress
from flexunet.datasets import catalog
from flexunet.datasets.builder import croissant, subject_names
from flexunet.datasets.built_dataset import RECORDS_NAME, REPORT_NAME, BuiltDataset
from flexunet.tools import privacy_scan, verify_records
from flexunet.tools.publish import faces
from flexunet.tools.publish.contents import Contents
from flexunet.tools.publish.licences import Decision

_SHOWN = 5
_PSEUDONYM = re.compile(r"subject_[0-9a-f]{12}")
# Entries of the build report that words of the raw folder may have come into.
_FROM_RAW = ("warnings", "left_out", "choices", "decided", "volume_facts", "slices_left_out")
_RECORDS_TRIED = 5


@dataclasses.dataclass(frozen=True)
class Check:
  """The outcome of one check.

  Attributes:
    name: What was checked.
    passed: Whether the dataset may be passed on as far as this goes.
    said: What was found, in words.
    problems: What is in the way, one line each; none where it passed.
    remedy: What to do about them.
  """

  name: str
  passed: bool
  said: str
  problems: tuple[str, ...] = ()
  remedy: str = ""


def of_licence(decision: Decision) -> Check:
  """Returns the check of the licence."""
  passed = not decision.remedy
  problems = () if passed else (decision.reason,)
  return Check("licence", passed, decision.reason, problems, decision.remedy)


def of_records(dataset: BuiltDataset, show_progress: bool = False) -> Check:
  """Reads every record against report, table and checksums, as `flexunet verify` does."""
  found = verify_records.verify(dataset, show_progress)
  size = f"{found.records:,} records in {progress.count(found.shards, 'shard')}"
  if not found.problems:
    return Check("records", True, f"{size}, {found.bytes / 1e6:.1f} MB, as built")
  return Check(
      "records", False, f"{len(found.problems)} problems in {size}", tuple(found.problems),
      "Build the dataset again, or copy it again.",
  )  # fmt: skip


def of_faces(contents: Contents, statement: str = "") -> Check:
  """Returns the check of faces.

  Args:
    contents: What the records showed.
    statement: What the user says was done to the faces; "": nothing.
  """
  counts = {word: len(contents.faces[word]) for word in contents.faces}
  said = ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "no scan"
  in_the_way = {word: names for word, names in contents.faces.items() if word not in faces.ALLOWED}
  if not in_the_way:
    return Check("faces", True, said)
  if statement:
    return Check("faces", True, f"{said}; stated: {statement}")
  problems = tuple(f"{word}: {_some(names)}" for word, names in sorted(in_the_way.items()))
  return Check(
      "faces", False, said, problems,
      "Strip the skulls or remove the faces from the raw scans, and build again. Where that was"
      " done, or no face can be seen, look at every scan and say so: --faces=\"what was done\".",
  )  # fmt: skip


def of_privacy(
    dataset: BuiltDataset,
    contents: Contents,
    key_file: pathlib.Path | None = None,
    manual_dir: pathlib.Path | None = None,
) -> Check:
  """Looks for names, dates and free text in records, table, report and all other files.

  Args:
    dataset: The dataset.
    contents: What the records showed.
    key_file: Key of pseudonyms, whose names must not occur.
    manual_dir: Raw folder, whose names must not occur unless they are codes.

  Raises:
    InputError: One of the last two cannot be read.
  """
  sought = privacy_scan.Sought(key_file, manual_dir)
  found = privacy_scan.scan(dataset.path, sought)
  problems = [f"{one.where}: {one.what}: {one.text}" for one in found.findings]
  if named := _named(dataset):
    problems.append(f"{RECORDS_NAME}: no code or pseudonym: {_some(named)}")
  problems += [f"{RECORDS_NAME}: a date: {text}" for text in _dates(_names_of(dataset))]
  problems += [
      f"{REPORT_NAME}, {key}: a date: {text}"
      for key in _FROM_RAW
      for text in _dates(_texts(dataset.report.get(key)))
  ]
  problems += [
      f"records, {feature}: free text: {text[:60]!r}"
      for feature, text in sorted(contents.free_text.items())
  ]
  if not problems:
    number = len({row["subject"] for row in dataset.rows})
    kinds = ", ".join(sought.kinds)
    return Check("privacy", True, f"{number} subjects by code or pseudonym; none of {kinds}")
  return Check(
      "privacy", False, progress.count(len(problems), "finding"), tuple(problems),
      "Build again with --subject_names=pseudonym and without what names people; flexunet verify"
      " --privacy shows where it stands.",
  )  # fmt: skip


def of_splits(dataset: BuiltDataset) -> Check:
  """Returns the check of what users of a published split rely on."""
  said = ", ".join(
      f"{name} {entry['num_subjects']:,}" for name, entry in dataset.splits.items()
  )  # fmt: skip
  problems = [] if dataset.rows else ["the dataset has no record"]
  if all(name == "unlabeled" for name in dataset.splits):
    problems.append("no record has a label")
  remedy = "Build it from labelled scans."
  return Check("splits", not problems, f"subjects in {said}", tuple(problems), remedy)


def of_croissant(dataset: BuiltDataset, prose: Mapping[str, Any]) -> Check:
  """Writes the Croissant metadata aside, validates and reads them with the reference reader.

  Args:
    dataset: The dataset.
    prose: Description, licence, citation and address, as `croissant.write` takes them.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    shutil.copyfile(dataset.path / RECORDS_NAME, folder / RECORDS_NAME)
    croissant.write(folder, dataset.report, dict(prose))
    problems, warnings = _croissant_problems(dataset, folder)
  remedy = "Build the dataset again; its table and report do not make a Croissant file."
  if problems:
    return Check("croissant", False, "refused by mlcroissant", tuple(problems), remedy)
  noted = f", {progress.count(warnings, 'recommendation')} open" if warnings else ""
  return Check("croissant", True, f"valid, and its table of records reads{noted}")


def _croissant_problems(dataset: BuiltDataset, folder: pathlib.Path) -> tuple[list[str], int]:
  """Returns (problems, number of warnings) of the reference reader."""
  # Its import takes seconds, which wrong flags must not wait for.
  import mlcroissant

  try:
    read = mlcroissant.Dataset(jsonld=str(folder / croissant.NAME))
    problems = sorted(read.metadata.issues.errors)
    records = iter(read.records("records"))
    for row in dataset.rows[:_RECORDS_TRIED]:
      found = next(records)["records/key"]
      key = found.decode() if isinstance(found, bytes) else str(found)
      if key != row["key"]:
        problems.append(f"{croissant.NAME}: reads the key {key} where the table has {row['key']}")
    return problems, len(read.metadata.issues.warnings)
  except Exception as error:  # The reader raises many kinds, of its own and of pandas.
    return [f"{croissant.NAME}: {str(error).splitlines()[0] if str(error) else error!r}"], 0


def _names_of(dataset: BuiltDataset) -> list[str]:
  return sorted({name for row in dataset.rows for name in (row["subject"], row["volume"])})


def _named(dataset: BuiltDataset) -> list[str]:
  """Returns the subjects that are neither pseudonyms nor codes of the publisher or of a series."""
  published = ""
  if dataset.report["dataset"] in catalog.NAMES:
    published = catalog.builder_class(dataset.report["dataset"]).PUBLISHED_SUBJECTS
  subjects = {row["subject"] for row in dataset.rows}
  others = {
      name
      for name in subjects
      if not _PSEUDONYM.fullmatch(name) and not (published and re.fullmatch(published, name))
  }
  return sorted(subject_names.no_codes(others))


def _texts(value: Any) -> list[str]:
  """Returns all texts in a JSON value, names of entries too."""
  if isinstance(value, str):
    return [value]
  if isinstance(value, Mapping):
    return [text for key, entry in value.items() for text in (str(key), *_texts(entry))]
  if isinstance(value, Sequence):
    return [text for entry in value for text in _texts(entry)]
  return []


def _dates(texts: Iterable[str]) -> list[str]:
  return [text[:80] for text in texts if subject_names.has_date(text)]


def _some(names: Sequence[str]) -> str:
  shown = ", ".join(names[:_SHOWN])
  return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)})"
