"""One build: look, read the cases into work files, assemble the shards, report.

The work folder survives an interrupted build, so that the next one continues after the finished
cases. It is named by everything that decides what a case becomes, and removed at success.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from flexunet.core import errors, files, machine
from flexunet.datasets import subject_splits
from flexunet.datasets.builder import build_report, case_records, croissant, shard_writer, workers
from flexunet.datasets.builder.case_records import CaseReader, CaseTask, RecordRow
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.shard_writer import PlacedRecord
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

# Part of the work folder's name: work files of an older form are not picked up.
_WORK_FORM = 2
_SPLITS = ("train", "validation", "test", subject_splits.UNLABELED)


class RunBuilder(CaseReader, Protocol):
  """What a build needs of a dataset builder: see `SegmentationBuilder`, which is one."""

  name: str
  version: Any
  data_dir: str
  data_path: Any
  SPLIT_SALT: str
  num_workers: int | None
  release: str
  voxel_dtype: np.dtype

  @property
  def builder_config(self) -> Any:
    """The `RecordConfig`."""

  @property
  def builder_configs(self) -> Mapping[str, Any]:
    """The configs of the class by name."""

  def inspect_source(self, root: str | os.PathLike) -> Findings:
    """Looks through a raw folder."""

  def voxel_dtype_of(self, findings: Findings) -> np.dtype:
    """Returns the dtype that holds the voxels of all cases without loss."""

  def set_source(self, release: str, voxel_dtype: np.dtype) -> None:
    """Takes what the raw folder decides."""

  def split_subjects(self, strata: Mapping[str, str]) -> dict[str, str]:
    """Returns {subject: split}."""

  def reason_to_drop(self, key: str, pixels: Sequence[int]) -> str:
    """Returns why a slice is left out of the training split; "" keeps it."""

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""

  def licenses(self) -> Sequence[croissant.License]:
    """Returns the licences of the source."""

  def active_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut."""

  def active_intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""


def build(builder: RunBuilder, root: pathlib.Path, download_config: Any) -> None:
  """Writes shards, report and table into the builder's (temporary) folder, and sets its splits.

  Args:
    builder: That of the dataset.
    root: The raw folder.
    download_config: A `tfds.download.DownloadConfig`, for its limits on shards and examples.

  Raises:
    InputError: All problems of the raw folder; nothing is left behind then.
  """
  findings = builder.inspect_source(root)
  builder.set_source(findings.release, builder.voxel_dtype_of(findings))
  folder = pathlib.Path(builder.data_dir)
  with _work_folder(builder, folder) as work:
    folds = _folds(builder, findings.cases)
    tasks = []
    for case in findings.cases:
      fold = folds[case.subject]
      name = hashlib.sha256(f"{case.state(findings.root)}:{fold}".encode()).hexdigest()[:24]
      tasks.append(CaseTask(case, fold, work / name))
    missing = [task for task in tasks if not case_records.is_finished(task.stem)]
    # The longest first, so that no worker is left alone with one at the end.
    missing.sort(key=lambda task: task.case.num_bytes, reverse=True)
    num_workers = builder.num_workers or machine.available_cpus()
    if problems := workers.read_cases(
        builder, address_of(builder), missing, num_workers, done=len(tasks) - len(missing)
    ):
      raise errors.from_problems(problems, "Nothing was built.")
    _assemble(builder, folder, findings, tasks, download_config)


def address_of(builder: RunBuilder) -> workers.BuilderAddress:
  """Returns how a worker process gets the same builder."""
  config = builder.builder_config
  known = builder.builder_configs.get(config.name) is config
  module = type(builder).__module__
  source = pathlib.Path(inspect.getfile(type(builder))).resolve()
  return workers.BuilderAddress(
      module=module,
      class_name=type(builder).__name__,
      module_root=os.fspath(source.parents[module.count(".")]),
      config=config.name
      if known
      else {"name": config.name, **dataclasses.asdict(config.options)},
      release=builder.release,
      voxel_dtype=builder.voxel_dtype.str,
  )


@contextlib.contextmanager
def _work_folder(builder: RunBuilder, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Locks and yields the work folder of this build; removes it when all went well."""
  identity = json.dumps(_about(builder), sort_keys=True) + f"{_WORK_FORM}{builder.voxel_dtype.str}"
  digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
  work = folder.parent / f".work-{builder.version}-{digest}"
  work.mkdir(parents=True, exist_ok=True)
  with open(work / "lock", "w") as lock:
    try:
      files.lock_stream(lock)
    except OSError as error:
      raise errors.InputError(
          f"{folder.parent}: another process is building {builder.info.full_name} there. Wait for"
          " it, or pass another --data_dir."
      ) from error
    # With the lock held, what an interrupted build of TFDS left behind is nobody's.
    for stale in folder.parent.glob(f"incomplete.*_{builder.version}"):
      if stale != folder:
        shutil.rmtree(stale, ignore_errors=True)
    try:
      yield work
    except errors.InputError:
      shutil.rmtree(work)  # Bad input leaves nothing half-written.
      raise
    shutil.rmtree(work)
    _remove_abandoned(folder.parent, f".work-{builder.version}-*")


def _remove_abandoned(folder: pathlib.Path, pattern: str) -> None:
  """Removes work folders of builds that were given up, but none that is in use."""
  for work in folder.glob(pattern):
    with contextlib.suppress(OSError), open(work / "lock", "w") as lock:
      files.lock_stream(lock)
      shutil.rmtree(work)


def _folds(builder: RunBuilder, cases: list[Case]) -> dict[str, int]:
  """Returns {subject: fold}: the publisher's where there is one."""
  strata = {case.subject: case.stratum for case in cases if case.labelled}
  folds = subject_splits.folds(strata, builder.SPLIT_SALT)
  # Unlabelled scans take no part in cross-validation.
  folds.update({case.subject: -1 for case in cases if not case.labelled})
  folds.update({case.subject: case.fold for case in cases if case.fold is not None})
  return folds


def _assemble(
    builder: RunBuilder,
    folder: pathlib.Path,
    findings: Findings,
    tasks: Sequence[CaseTask],
    download_config: Any,
) -> None:
  records, notes = _placed(builder, findings, tasks)
  splits, infos = {}, []
  for name, found in records.items():
    if found:
      splits[name] = _write_split(builder, name, found, download_config)
      infos.append(_split_info(builder, name, splits[name]))
  if not infos:
    raise errors.InputError("The options leave no slice to write. Loosen them.")
  licenses = builder.licenses()
  if not licenses:
    findings.warn("The builder states no licence of the source (LICENSES): none is claimed.")
  source = build_report.of_source(notes, findings.left_out, findings.warnings)
  report = build_report.write(
      folder, {**_about(builder), **source}, builder.label_scheme(), splits
  )
  info = builder.info
  croissant.write(
      folder, report,
      croissant.prose_of(info.description, info.citation, info.homepage, licenses),
  )  # fmt: skip
  for line in report["warnings"]:
    logging.warning("%s", line)
  info.set_splits(tfds.core.SplitDict(infos))


def _placed(
    builder: RunBuilder, findings: Findings, tasks: Sequence[CaseTask]
) -> tuple[dict[str, list[PlacedRecord]], dict[str, Notes]]:
  """Returns the records of each split, and {volume: notes}; warns of empty splits."""
  records: dict[str, list[PlacedRecord]] = {name: [] for name in _SPLITS}
  notes: dict[str, Notes] = {}
  labelled = [case for case in findings.cases if case.labelled]
  split_of = builder.split_subjects({case.subject: case.stratum for case in labelled})
  for task in tasks:
    rows, notes[task.case.key] = case_records.read_index(task.stem)
    split = subject_splits.UNLABELED
    if task.case.labelled:
      split = task.case.split or split_of[task.case.subject]
    if split == "train":  # The others keep all slices: scores are of whole volumes.
      rows = _without_dropped(builder, rows, notes[task.case.key])
    work_file = task.stem.with_suffix(".records")
    records[split].extend(PlacedRecord(task.case, task.fold, row, work_file) for row in rows)
  if not records["train"] and any(note.slices_left_out for note in notes.values()):
    raise errors.InputError("The options leave no slice of the training split. Loosen them.")
  for name in _SPLITS[:3]:
    if labelled and not records[name]:
      findings.warn(
          f"Split {name} is empty: none of the {len(split_of)} subjects here falls to it."
      )
  return records, notes


def _without_dropped(
    builder: RunBuilder, rows: Sequence[RecordRow], notes: Notes
) -> list[RecordRow]:
  """Returns the records that the options keep, and notes how many they leave out, and why."""
  kept = []
  for row in rows:
    if reason := builder.reason_to_drop(row.key, row.pixels):
      notes.slices_left_out[reason] = notes.slices_left_out.get(reason, 0) + 1
    else:
      kept.append(row)
  return kept


def _write_split(
    builder: RunBuilder, name: str, records: list[PlacedRecord], download_config: Any
) -> build_report.BuiltSplit:
  """Orders the records by a salted hash of their keys and writes them."""
  salt = f"{builder.SPLIT_SALT}:order"
  records.sort(key=lambda record: subject_splits.salted_hash(salt, record.row.key))
  if most := download_config.max_examples_per_split:
    records = records[:most]
  count = shard_writer.num_shards(
      sum(record.row.length for record in records),
      len(records),
      download_config.num_shards,
      download_config.max_shard_size,
  )
  template = _template(builder, name)
  paths = [
      pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=count))
      for index in range(count)
  ]
  placed, shards = shard_writer.write_split(records, paths, builder.info.file_format.value)
  return build_report.BuiltSplit(placed, shards)


def _split_info(
    builder: RunBuilder, name: str, split: build_report.BuiltSplit
) -> tfds.core.SplitInfo:
  return tfds.core.SplitInfo(
      name=name,
      shard_lengths=[shard.records for shard in split.shards],
      num_bytes=sum(record.row.length for record in split.records),
      filename_template=_template(builder, name),
  )


def _template(builder: RunBuilder, split: str) -> tfds.core.ShardedFileTemplate:
  """Returns how TFDS names the shards of a split."""
  return tfds.core.ShardedFileTemplate(
      dataset_name=builder.name,
      data_dir=builder.data_path,
      split=split,
      filetype_suffix=builder.info.file_format.file_suffix,
  )


def _about(builder: RunBuilder) -> dict[str, Any]:
  """Returns what the report says of the build itself; it also names the work folder."""
  plan = builder.active_plan()
  config = builder.builder_config
  return {
      "dataset": builder.name,
      "config": config.name,
      "version": str(builder.version),
      "form": config.options.changed().get("form", "slices"),
      "options": config.options.changed(),
      "slice_plan": dataclasses.asdict(plan) if plan else None,
      "intensity": dataclasses.asdict(builder.active_intensity()),
      "file_format": builder.info.file_format.value,
      "split_asked": dict(subject_splits.RATIOS),
      "split_salt": builder.SPLIT_SALT,
  }
