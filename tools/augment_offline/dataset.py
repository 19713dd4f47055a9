"""Writes a built dataset again with augmented copies in its training split.

As TFRecords or as images. A copy is the record of its source with another image and label: subject,
fold and all else stay, so that splits and folds by subject keep copies where their sources are. Its
volume is a name of its own (<volume>_aug01): no volume gets a slice twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import (
  build_report,
  case_records,
  croissant,
  native_labels,
  shard_writer,
  tfrecord,
)
from flexunet.datasets.builder.build_report import BuiltSplit
from flexunet.datasets.builder.case_records import RecordRow
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.builder.shard_writer import PlacedRecord, Shard
from flexunet.datasets.built_dataset import INFO_NAME, BuiltDataset
from flexunet.tools import export_images
from flexunet.tools.augment_offline import copies
from flexunet.tools.augment_offline.copies import TRAIN, Copy, Plan


def write_records(
    dataset: BuiltDataset, plan: Plan, out: pathlib.Path, show_progress: bool = False
) -> tuple[pathlib.Path, int]:
  """Writes the dataset with its copies below the data_dir `out`.

  Returns:
    (version folder, number of copies). An interrupted call leaves nothing there.
  """
  rows = copies.choose(dataset, plan)
  report = dataset.report
  config_name = f"{report['config']}_augmented"
  target = out / report["dataset"] / config_name / report["version"]
  if target.exists():
    raise InputError(f"{target}: exists already. Remove it, or name another --output_dir.")
  with _whole_or_nothing(target) as work:
    made = _copies(dataset, rows, plan, show_progress)
    count = write(dataset, made, work, config_name, plan.settings())
  return target, count


def write_images(
    dataset: BuiltDataset, plan: Plan, out: pathlib.Path, show_progress: bool = False
) -> int:
  """Writes all splits as images to `out`, with the copies among those of the training split.

  Returns:
    The number of copies. An interrupted call leaves nothing at `out`.
  """
  rows = copies.choose(dataset, plan)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise InputError(f"{out}: images go into a new or an empty folder. Name another one.")
  count = 0
  with _whole_or_nothing(out.absolute()) as work:
    export_images.export(dataset, work, show_progress=show_progress)
    folder = work / TRAIN
    for copy in _copies(dataset, rows, plan, show_progress):
      name = re.sub(r"[^\w.+-]", "_", copy.key) + ".png"
      pixels = copy.image[..., 0] if copy.image.shape[-1] == 1 else copy.image
      Image.fromarray(pixels).convert("RGB").save(folder / "images" / name)
      Image.fromarray(dataset.scheme.colorize(copy.label)).save(folder / "masks" / name)
      count += 1
  return count


@contextlib.contextmanager
def _whole_or_nothing(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder to write into, which becomes `target` at the end; a failure leaves nothing."""
  made = [folder for folder in target.parents if not folder.exists()]
  target.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(tempfile.mkdtemp(prefix="incomplete.", dir=target.parent))
  try:
    yield work
    work.chmod(0o755)  # Temporary folders are closed to others.
    if target.exists():
      target.rmdir()  # It was empty.
    work.rename(target)
  except BaseException:
    shutil.rmtree(work, ignore_errors=True)
    for folder in made:
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise


def _copies(
    dataset: BuiltDataset, rows: list[dict[str, str]], plan: Plan, show_progress: bool
) -> Iterator[Copy]:
  made = copies.make(dataset, rows, plan)
  total = len(rows) * plan.copies
  yield from bar(made, total=total, unit=" copy", disable=not show_progress, leave=False)


def write(
    dataset: BuiltDataset,
    found: Iterator[Copy],
    folder: pathlib.Path,
    config_name: str,
    settings: Mapping[str, Any],
) -> int:
  """Writes the dataset with the copies into `folder`, an empty one; returns the number of copies.

  Args:
    dataset: The source; of slices, in TFRecords.
    found: Copies of records of its training split.
    folder: Version folder of the new dataset.
    config_name: Config of the new dataset.
    settings: What the build report says of the copies.
  """
  splits: dict[str, BuiltSplit] = {}
  count = 0
  for name in dataset.splits:
    records = _records_of(dataset, name)
    if name == TRAIN:
      work_file = folder / "copies.part"
      made = _write_copies(dataset, found, records, work_file)
      count = len(made)
      splits[name] = _write_train(dataset, [*records.values(), *made], folder)
      work_file.unlink()
    else:
      splits[name] = _copy_split(dataset, name, records, folder)
  old = dataset.report
  # What does not follow from the records stays as it is in the source's report.
  about = {
      **old,
      "config": config_name,
      "augmentation": {**settings, "source": old.get("fingerprint")},
  }
  report = build_report.write(folder, about, dataset.scheme, splits)
  croissant.write(folder, report, croissant.read_prose(dataset.path))
  _write_info(dataset, folder, config_name, splits[TRAIN])
  built_dataset.write_checksums(folder)
  return count


def _records_of(dataset: BuiltDataset, split: str) -> dict[str, PlacedRecord]:
  """Returns {key: record} of a split as they lie in the source, in file order."""
  names = dataset.scheme.names
  records = {}
  for row in dataset.rows:
    if row["split"] != split:
      continue
    case = Case(key=row["key"], subject=row["subject"], volume=row["volume"], files={})
    if split == subject_splits.UNLABELED:
      case = dataclasses.replace(case, labelled=False)
    records[row["key"]] = PlacedRecord(
        case=case,
        fold=int(row["fold"]),
        row=RecordRow(
            key=row["key"],
            start=int(row["offset"]) + tfrecord.HEADER_BYTES,
            length=int(row["length"]),
            crc=-1,  # Read from the shard where the payload is written again.
            slice_index=int(row["slice_index"]),
            height=int(row["height"]),
            width=int(row["width"]),
            pixels=tuple(int(row[f"pixels_{name}"]) for name in names),
            fold=int(row["fold"]),
        ),
        work_file=dataset.path / row["shard"],
        shard=row["shard"],
        record=int(row["record"]),
        offset=int(row["offset"]),
    )
  return records


def _write_copies(
    dataset: BuiltDataset,
    found: Iterator[Copy],
    records: Mapping[str, PlacedRecord],
    work_file: pathlib.Path,
) -> list[PlacedRecord]:
  """Writes the payloads of the copies one after the other; returns where each lies."""
  made = []
  start = 0
  with open(work_file, "wb") as stream:
    for copy in found:
      source = records[copy.source_key]
      volume = f"{source.case.volume}_{copy.suffix}"
      payload = _edited(copy, volume)
      stream.write(payload)
      row = dataclasses.replace(
          source.row,
          key=copy.key,
          start=start,
          length=len(payload),
          crc=tfrecord.masked_crc(payload),
          pixels=copy.pixels(dataset.scheme.num_classes),
      )
      start += len(payload)
      case = dataclasses.replace(source.case, key=copy.key, volume=volume)
      made.append(PlacedRecord(case, source.fold, row, work_file))
  return made


def _edited(copy: Copy, volume: str) -> bytes:
  """Returns the payload of the source with the copy's image, label and volume."""
  example = tf.train.Example.FromString(copy.payload)
  image = copy.image[..., 0] if copy.image.shape[-1] == 1 else copy.image
  values = {
      "image": case_records.encode_png(image),
      "label": case_records.encode_png(copy.label),
      "volume": volume.encode(),
  }
  for name, value in values.items():
    example.features.feature[name].bytes_list.value[:] = [value]
  if native_labels.LABEL in example.features.feature:  # Those of the source fit it alone.
    del example.features.feature[native_labels.LABEL].bytes_list.value[:]
  # Without `deterministic` the fields come in another order in every process.
  return example.SerializeToString(deterministic=True)


def _write_train(
    dataset: BuiltDataset, records: list[PlacedRecord], folder: pathlib.Path
) -> BuiltSplit:
  """Mixes sources and copies by a salted hash of their keys, as a build does, and writes them."""
  salt = f"{dataset.report.get('split_salt', '')}:order"
  records = [_with_checksum(record) for record in records]
  records.sort(key=lambda record: subject_splits.salted_hash(salt, record.row.key))
  total = sum(record.row.length for record in records)
  count = shard_writer.num_shards(total, len(records), None, None)
  name = dataset.report["dataset"]
  paths = [
      folder / f"{name}-{TRAIN}.tfrecord-{index:05d}-of-{count:05d}" for index in range(count)
  ]
  return BuiltSplit(*shard_writer.write_split(records, paths, "tfrecord"))


def _with_checksum(record: PlacedRecord) -> PlacedRecord:
  """Returns the record with the checksum that stands behind its payload in the source."""
  if record.row.crc >= 0:
    return record
  with open(record.work_file, "rb") as stream:
    stream.seek(record.row.start + record.row.length)
    crc = int.from_bytes(stream.read(4), "little")
  return dataclasses.replace(record, row=dataclasses.replace(record.row, crc=crc))


def _copy_split(
    dataset: BuiltDataset, split: str, records: Mapping[str, PlacedRecord], folder: pathlib.Path
) -> BuiltSplit:
  """Copies the shards of a split byte by byte."""
  shards = []
  for entry in dataset.report["shards"]:
    if entry["split"] == split:
      shutil.copyfile(dataset.path / entry["file"], folder / entry["file"])
      shards.append(Shard(**{key: value for key, value in entry.items() if key != "split"}))
  return BuiltSplit(list(records.values()), shards)


def _write_info(
    dataset: BuiltDataset, folder: pathlib.Path, config_name: str, train: BuiltSplit
) -> None:
  """Writes the metadata by which TFDS reads the dataset."""
  for path in dataset.path.iterdir():
    if path.suffix in (".json", ".txt") and not (folder / path.name).exists():
      shutil.copyfile(path, folder / path.name)
  info = files.read_json(dataset.path / INFO_NAME)
  info["configName"] = config_name
  for split in info["splits"]:
    if split["name"] == TRAIN:
      split["shardLengths"] = [str(shard.records) for shard in train.shards]
      split["numBytes"] = str(sum(record.row.length for record in train.records))
  text = json.dumps(info, indent=2, sort_keys=True)
  (folder / INFO_NAME).write_text(text + "\n", encoding="utf-8")
