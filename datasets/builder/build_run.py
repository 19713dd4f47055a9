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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from flexunet.core import errors, files, machine
from flexunet.datasets import subject_splits
from flexunet.datasets.builder import (
    build_report,
    case_records,
    croissant,
    identical_images,
    shard_writer,
    splits_file,
    workers,
)
from flexunet.datasets.builder.case_records import CaseReader, CaseTask, RecordRow
from flexunet.datasets.builder.case_splits import CaseSplits
from flexunet.datasets.builder.identical_images import CaseImages, IdenticalImages
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.record_options import SplitOptions
from flexunet.datasets.builder.shard_writer import PlacedRecord
from flexunet.datasets.builder.subject_names import SubjectNames
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

# Part of the work folder's name: work files of an older form are not picked up.
_WORK_FORM = 2
_SPLITS = (*subject_splits.SPLITS, subject_splits.UNLABELED)


class RunBuilder(CaseReader, Protocol):
  """What a build needs of a dataset builder: see `SegmentationBuilder`, which is one."""

  name: str
  version: Any
  data_dir: str
  data_path: Any
  SPLIT_SALT: str
  HAS_LESIONS: bool
  num_workers: int | None
  split_options: SplitOptions | None
  release: str
  voxel_dtype: np.dtype
  decided: Mapping[str, Any]

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

  def decide(self, findings: Findings) -> dict[str, Any]:
    """Returns what the raw folder decides for all cases."""

  def set_source(
      self, release: str, voxel_dtype: np.dtype, decided: Mapping[str, Any]
  ) -> None:
    """Takes what the raw folder decides."""

  def assign_splits(
      self,
      cases: Sequence[Case],
      joined: Iterable[Collection[str]] = (),
      loads: Mapping[str, float] | None = None,
  ) -> CaseSplits:
    """Returns which split and fold each case gets; groups of subjects stand on one side."""

  def subject_in_records(self, subject: str) -> str:
    """Returns the name by which what is written calls a subject."""

  def reason_to_drop(self, key: str, pixels: Sequence[int]) -> str:
    """Returns why a slice is left out of the training split; "" keeps it."""

  def name_subjects(self, findings: Findings) -> SubjectNames:
    """Decides how records and report call the subjects and files of a raw folder."""

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""

  def licenses(self) -> Sequence[croissant.License]:
    """Returns the licences of the source."""

  def channel_names(self) -> tuple[str, ...]:
    """Returns the channels of a scan."""

  def other_intensities(self) -> tuple[IntensityWindow, ...]:
    """Returns how the intensities of the other channels become 8 bits."""

  def in_plane_mm(self) -> tuple[float, float] | None:
    """Returns the spacing to which slices are brought."""

  def active_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut."""

  def active_intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""


@dataclasses.dataclass(frozen=True)
class ReadCase:
  """A case after a worker read it: its rows, and its notes."""

  task: CaseTask
  rows: Sequence[RecordRow]
  notes: Notes

  @property
  def images(self) -> CaseImages:
    """What its records hold."""
    return CaseImages(self.task.case, [row.content for row in self.rows])


def build(builder: RunBuilder, root: pathlib.Path, download_config: Any) -> None:
  """Writes shards, report and table into the builder's (temporary) folder, and sets its splits.

  Args:
    builder: That of the dataset.
    root: The raw folder.
    download_config: A `tfds.download.DownloadConfig`, for its limits on shards and examples.

  Raises:
    InputError: All problems of the raw folder; nothing is left behind then.
  """
  # Workers elsewhere stand in another folder.
  findings = builder.inspect_source(root.absolute())
  folder = pathlib.Path(builder.data_dir).absolute()
  # Splits are decided by the names of the raw folder; everything written has these.
  names = builder.name_subjects(findings)
  decided = builder.decide(findings)
  builder.set_source(findings.release, builder.voxel_dtype_of(findings), decided)
  names.save(builder.info.full_name)
  with _work_folder(builder, folder) as work:
    assigned = builder.assign_splits(findings.cases)
    for line in assigned.notices:
      logging.warning("%s", line)
    tasks = []
    for case in findings.cases:
      fold, written = assigned.fold_of(case), names.written(case)
      state = f"{case.state(findings.root)}:{fold}:{written.key}:{written.subject}:{written.volume}"
      name = hashlib.sha256(state.encode()).hexdigest()[:24]
      tasks.append(CaseTask(case, fold, work / name, written))
    missing = [task for task in tasks if not case_records.is_finished(task.stem)]
    # The longest first, so that no worker is left alone with one at the end.
    missing.sort(key=lambda task: task.case.num_bytes, reverse=True)
    done = len(tasks) - len(missing)
    if problems := _read_cases(builder, missing, done, findings.root, download_config):
      raise errors.from_problems(problems, "Nothing was built.")
    read = [ReadCase(task, *case_records.read_index(task.stem)) for task in tasks]
    _assemble(builder, folder, findings, read, assigned, names, download_config)


def _read_cases(
    builder: RunBuilder,
    tasks: list[CaseTask],
    done: int,
    root: pathlib.Path,
    download_config: Any,
) -> list[str]:
  """Writes the work files of tasks here or on Beam; returns the messages of bad input."""
  address = address_of(builder)
  options, runner = download_config.beam_options, download_config.beam_runner
  if options is None and runner is None:
    num_workers = builder.num_workers or machine.available_cpus()
    return workers.read_cases(builder, address, tasks, num_workers, done)
  # Builds on this machine alone need no Beam, whose import takes seconds.
  from flexunet.datasets.builder import beam_cases

  options = beam_cases.options_of("") if options is None else options
  return beam_cases.read_cases(address, tasks, options, root, runner, done)


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
      else {"name": config.name, **config.options.of_records()},
      release=builder.release,
      voxel_dtype=builder.voxel_dtype.str,
      decided=dict(builder.decided),
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
    except errors.UnfinishedError:  # The next start continues with what is there.
      raise
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


def _assemble(
    builder: RunBuilder,
    folder: pathlib.Path,
    findings: Findings,
    read: Sequence[ReadCase],
    assigned: CaseSplits,
    names: SubjectNames,
    download_config: Any,
) -> None:
  identical = identical_images.find(case.images for case in read)
  loads = _loads(read) if _split_options(builder).stratify == "foreground" else None
  if identical.joined or loads is not None:
    # Known only now. Payloads whose fold changed by it are mended where they are written.
    assigned = builder.assign_splits(findings.cases, identical.joined, loads)
  records = _placed(builder, findings, read, assigned, identical)
  if "train" in assigned.splits.values() and not records["train"]:
    raise errors.InputError("The options leave no slice to train on. Loosen them.")
  splits, infos = {}, []
  for name, found in records.items():
    if found:
      splits[name] = _write_split(builder, name, found, download_config)
      infos.append(_split_info(builder, name, splits[name]))
  licenses = builder.licenses()
  if not licenses:
    findings.warn("The builder states no licence of the source (LICENSES): none is claimed.")
  source = build_report.of_source(
      {case.task.written.key: case.notes for case in read},
      findings.left_out,
      [
          *findings.warnings,
          *assigned.warnings,
          *identical.warnings(assigned, builder.subject_in_records),
      ],
      names,
  )
  names.save(builder.info.full_name)
  about = {
      **_about(builder),
      **_about_splits(builder, assigned),
      "identical_images": identical.report(assigned, builder.subject_in_records),
      **source,
      "choices": {choice: names.text(line) for choice, line in findings.choices.items()},
  }
  report = build_report.write(folder, about, builder.label_scheme(), splits)
  splits_file.write(
      folder, assigned.settings, assigned.entries(builder.subject_in_records), assigned.absent
  )
  info = builder.info
  croissant.write(
      folder, report,
      croissant.prose_of(info.description, info.citation, info.homepage, licenses),
  )  # fmt: skip
  for line in report["warnings"]:
    logging.warning("%s", line)
  info.set_splits(tfds.core.SplitDict(infos))


def _loads(read: Sequence[ReadCase]) -> dict[str, float]:
  """Returns {labelled subject: share of its pixels that is labelled}."""
  pixels: dict[str, list[int]] = {}
  for one in read:
    if one.task.case.labelled:
      counts = pixels.setdefault(one.task.case.subject, [0, 0])
      for row in one.rows:
        counts[0] += sum(row.pixels[1:])
        counts[1] += sum(row.pixels)
  return {subject: labelled / max(total, 1) for subject, (labelled, total) in pixels.items()}


def _split_options(builder: RunBuilder) -> SplitOptions:
  """Returns what the build was asked for: by the caller, or by its config."""
  return builder.split_options or builder.builder_config.options


def _placed(
    builder: RunBuilder,
    findings: Findings,
    read: Sequence[ReadCase],
    assigned: CaseSplits,
    identical: IdenticalImages,
) -> dict[str, list[PlacedRecord]]:
  """Returns the records of each split without copies and what options drop; warns of empty ones."""
  records: dict[str, list[PlacedRecord]] = {name: [] for name in _SPLITS}
  copies = identical.copies([case.images for case in read], assigned)
  for one in read:
    case, work_file = one.task.case, one.task.stem.with_suffix(".records")
    split, fold = assigned.split_of(case), assigned.fold_of(case)
    left_out = copies.get(case.key, {})
    for number, row in enumerate(one.rows):
      reason = ""
      if number in left_out:
        reason = f"copy in {split} of what stands in {left_out[number]}"
      elif split == "train":  # The others keep all slices: scores are of whole volumes.
        reason = builder.reason_to_drop(row.key, row.pixels)
      if not reason:
        records[split].append(PlacedRecord(one.task.written, fold, row, work_file))
        continue
      counts = one.notes.slices_left_out
      counts[reason] = counts.get(reason, 0) + 1
  for name in subject_splits.SPLITS:
    if assigned.splits and not records[name] and (line := assigned.why_empty(name)):
      findings.warn(line)
  return records


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
      "channel_names": list(builder.channel_names()),
      "other_intensities": [dataclasses.asdict(one) for one in builder.other_intensities()],
      "in_plane_mm": builder.in_plane_mm(),
      "decided": dict(builder.decided),
      "file_format": builder.info.file_format.value,
      "split_salt": builder.SPLIT_SALT,
      "has_lesions": builder.HAS_LESIONS,
  }


def _about_splits(builder: RunBuilder, assigned: CaseSplits) -> dict[str, Any]:
  """Returns what the report says of how the splits were decided."""
  return {
      "split_asked": assigned.settings["shares"],
      "split_options": _split_options(builder).asked(),
      "split_by": assigned.counts(),
  }
