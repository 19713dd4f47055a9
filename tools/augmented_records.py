"""Writes a built dataset again with augmented copies in its training split, as TFRecords.

A copy is the record of its source with another image and label: subject, fold and all else stay,
so that splits and folds by subject keep copies where their sources are. Its volume is a name of
its own (<volume>_aug01): no volume gets a slice twice.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from flexunet.datasets import build_report, case_records, shard_writer, subject_splits, tfrecord
from flexunet.datasets.build_report import BuiltSplit
from flexunet.datasets.case_records import RecordRow
from flexunet.datasets.cases import Case, Notes
from flexunet.datasets.shard_writer import PlacedRecord, Shard
from flexunet.tools.augmented_copies import Copy
from flexunet.tools.built_datasets import BuiltDataset

TRAIN = "train"


def write(
    dataset: BuiltDataset,
    copies: Iterator[Copy],
    folder: pathlib.Path,
    config_name: str,
    settings: Mapping[str, Any],
) -> int:
  """Writes the dataset with the copies into `folder`, an empty one; returns the number of copies.

  Args:
    dataset: The source; of slices, in TFRecords.
    copies: Of records of its training split.
    folder: Version folder of the new dataset.
    config_name: Of the new dataset.
    settings: What the build report says of the copies.
  """
  splits: dict[str, BuiltSplit] = {}
  count = 0
  for name in dataset.splits:
    records = _records_of(dataset, name)
    if name == TRAIN:
      work_file = folder / "copies.part"
      made = _write_copies(dataset, copies, records, work_file)
      count = len(made)
      splits[name] = _write_train(dataset, [*records.values(), *made], folder)
      work_file.unlink()
    else:
      splits[name] = _copy_split(dataset, name, records, folder)
  old = dataset.report
  about = {key: value for key, value in old.items() if key not in _WRITTEN_ANEW}
  about.update(config=config_name, augmentation={**settings, "source": old.get("fingerprint")})
  notes = {volume: Notes(facts=facts) for volume, facts in old.get("volume_facts", {}).items()}
  notes[""] = Notes(histograms=old.get("mask_values", {}))
  left_out = {entry["file"]: entry["reason"] for entry in old.get("left_out", [])}
  build_report.write(
      folder, about, dataset.scheme, splits, notes, left_out, old.get("warnings", [])
  )
  _write_info(dataset, folder, config_name, splits[TRAIN])
  return count


# What `build_report.write` makes itself.
_WRITTEN_ANEW = (
    "label_scheme", "splits", "split_realised", "mask_values", "volume_facts", "left_out",
    "warnings", "shards", "fingerprint",
)  # fmt: skip


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
        ),
        work_file=dataset.path / row["shard"],
        shard=row["shard"],
        record=int(row["record"]),
        offset=int(row["offset"]),
    )
  return records


def _write_copies(
    dataset: BuiltDataset,
    copies: Iterator[Copy],
    records: Mapping[str, PlacedRecord],
    work_file: pathlib.Path,
) -> list[PlacedRecord]:
  """Writes the payloads of the copies one after the other; returns where each lies."""
  made = []
  start = 0
  with open(work_file, "wb") as stream:
    for copy in copies:
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
  import tensorflow as tf

  example = tf.train.Example.FromString(copy.payload)
  image = copy.image[..., 0] if copy.image.shape[-1] == 1 else copy.image
  values = {
      "image": case_records.encode_png(image),
      "label": case_records.encode_png(copy.label),
      "volume": volume.encode(),
  }
  for name, value in values.items():
    example.features.feature[name].bytes_list.value[:] = [value]
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
  info = json.loads((dataset.path / "dataset_info.json").read_text(encoding="utf-8"))
  info["configName"] = config_name
  for split in info["splits"]:
    if split["name"] == TRAIN:
      split["shardLengths"] = [str(shard.records) for shard in train.shards]
      split["numBytes"] = str(sum(record.row.length for record in train.records))
  text = json.dumps(info, indent=2, sort_keys=True)
  (folder / "dataset_info.json").write_text(text + "\n", encoding="utf-8")
