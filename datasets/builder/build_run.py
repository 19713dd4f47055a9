"""One build: look, read the cases into work files, assemble the shards, report.

The work folder survives an interrupted build, so that the next one goes on from the finished
cases. It is named by all that decides what a case becomes, and removed at success.
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
from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds
from absl import logging

from flexunet.core import errors, machine
from flexunet.datasets import subject_splits
from flexunet.datasets.builder import build_report, case_records, croissant, shard_writer, workers
from flexunet.datasets.builder.raw_folder import Case, Notes
from flexunet.datasets.builder.shard_writer import PlacedRecord

# Part of the work folder's name: work files of an older form are not picked up.
_WORK_FORM = 1
_SPLITS = ("train", "validation", "test", subject_splits.UNLABELED)


def build(builder, root: pathlib.Path, download_config) -> None:
  """Writes shards, report and table into the builder's (temporary) folder, and sets its splits.

  Raises:
    InputError: All problems of the raw folder; nothing is left behind then.
  """
  findings = builder.inspect_source(root)
  builder.set_voxel_dtype(builder.voxel_dtype_of(findings))
  folder = pathlib.Path(builder.data_dir)
  with _work_folder(builder, folder) as work:
    folds = _folds(builder, findings.cases)
    tasks = []
    for case in findings.cases:
      fold = folds[case.subject]
      name = hashlib.sha256(f"{case.state(findings.root)}:{fold}".encode()).hexdigest()[:24]
      tasks.append(case_records.CaseTask(case, fold, work / name))
    missing = [task for task in tasks if not case_records.is_finished(task.stem)]
    # The longest first, so that no worker is left alone with one at the end.
    missing.sort(key=lambda task: task.case.num_bytes, reverse=True)
    num_workers = builder.num_workers or machine.available_cpus()
    if problems := workers.read_cases(
        builder, address_of(builder), missing, num_workers, done=len(tasks) - len(missing)
    ):
      raise errors.from_problems(problems, "Nothing was built.")
    _assemble(builder, folder, findings, tasks, download_config)


def address_of(builder) -> workers.BuilderAddress:
  """Returns how a worker process makes the same builder."""
  config = builder.builder_config
  known = builder.builder_configs.get(config.name) is config
  module = type(builder).__module__
  source = pathlib.Path(inspect.getfile(type(builder))).resolve()
  return workers.BuilderAddress(
      module=module,
      class_name=type(builder).__name__,
      module_root=os.fspath(source.parents[module.count(".")]),
      config=config.name if known else dataclasses.asdict(config),
      voxel_dtype=builder.voxel_dtype.str,
  )


@contextlib.contextmanager
def _work_folder(builder, folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Locks and gives the work folder of this build; removes it when all went well."""
  identity = json.dumps(_about(builder), sort_keys=True) + f"{_WORK_FORM}{builder.voxel_dtype.str}"
  digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
  work = folder.parent / f".work-{builder.version}-{digest}"
  work.mkdir(parents=True, exist_ok=True)
  with open(work / "lock", "w") as lock:
    try:
      _lock(lock)
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
      _lock(lock)
      shutil.rmtree(work)


def _lock(stream) -> None:
  """Takes a lock that ends with this process; raises OSError where another one holds it."""
  try:
    import fcntl
  except ImportError:
    return  # Windows: two builds of one dataset at once are not kept apart there.
  fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _folds(builder, cases: list[Case]) -> dict[str, int]:
  """Returns {subject: fold}: the publisher's where there is one."""
  strata = {case.subject: case.stratum for case in cases if case.labelled}
  folds = subject_splits.folds(strata, builder.SPLIT_SALT)
  # Unlabelled scans take no part in cross-validation.
  folds.update({case.subject: -1 for case in cases if not case.labelled})
  folds.update({case.subject: case.fold for case in cases if case.fold is not None})
  return folds


def _assemble(builder, folder, findings, tasks, download_config) -> None:
  records: dict[str, list[PlacedRecord]] = {name: [] for name in _SPLITS}
  notes: dict[str, Notes] = {}
  labelled = [case for case in findings.cases if case.labelled]
  sides = builder.split_subjects({case.subject: case.stratum for case in labelled})
  for task in tasks:
    rows, notes[task.case.key] = case_records.read_index(task.stem)
    side = subject_splits.UNLABELED
    if task.case.labelled:
      side = task.case.side or sides[task.case.subject]
    work_file = task.stem.with_suffix(".records")
    records[side].extend(PlacedRecord(task.case, task.fold, row, work_file) for row in rows)
  for name in _SPLITS[:3]:
    if labelled and not records[name]:
      findings.warn(f"Split {name} is empty: none of the {len(sides)} subjects here falls to it.")
  splits, infos = {}, []
  for name, found in records.items():
    if found:
      splits[name] = _write_split(builder, name, found, download_config)
      infos.append(_split_info(builder, name, splits[name]))
  if not infos:
    raise errors.InputError("The options leave no slice to write. Loosen them.")
  report = build_report.write(
      folder, _about(builder), builder.label_scheme(), splits, notes, findings.left_out,
      findings.warnings,
  )
  croissant.write(folder, report, builder.info)
  for line in report["warnings"]:
    logging.warning("%s", line)
  builder.info.set_splits(tfds.core.SplitDict(infos))


def _write_split(builder, name, records, download_config) -> build_report.BuiltSplit:
  """Orders the records by a salted hash of their keys and writes them."""
  salt = f"{builder.SPLIT_SALT}:order"
  records.sort(key=lambda record: subject_splits.salted_hash(salt, record.row.key))
  if most := download_config.max_examples_per_split:
    records = records[:most]
  count = shard_writer.num_shards(
      sum(record.row.length for record in records),
      len(records),
      getattr(download_config, "num_shards", None),
      getattr(download_config, "max_shard_size", None),
  )
  template = builder._get_filename_template(name)
  paths = [
      pathlib.Path(template.sharded_filepath(shard_index=index, num_shards=count))
      for index in range(count)
  ]
  placed, shards = shard_writer.write_split(records, paths, builder.info.file_format.value)
  return build_report.BuiltSplit(placed, shards)


def _split_info(builder, name: str, split: build_report.BuiltSplit) -> tfds.core.SplitInfo:
  return tfds.core.SplitInfo(
      name=name,
      shard_lengths=[shard.records for shard in split.shards],
      num_bytes=sum(record.row.length for record in split.records),
      filename_template=builder._get_filename_template(name),
  )


def _about(builder) -> Mapping[str, object]:
  """Returns what the report says of the build itself; it also names the work folder."""
  plan = builder.active_plan()
  return {
      "dataset": builder.name,
      "config": builder.builder_config.name,
      "version": str(builder.version),
      "form": builder.builder_config.form,
      "options": builder.builder_config.options(),
      "slice_plan": dataclasses.asdict(plan) if plan else None,
      "intensity": dataclasses.asdict(builder.active_intensity()),
      "file_format": builder.info.file_format.value,
      "split_asked": dict(subject_splits.RATIOS),
      "split_salt": builder.SPLIT_SALT,
  }
