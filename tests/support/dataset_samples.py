"""A small built dataset made up for tests: blobs on a dark ground, labelled by brightness."""

import csv
import json
import pathlib
import shutil

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet.datasets.builder import shard_writer, tfrecord
from flexunet.datasets.records import shards
from flexunet.pipelines import record_table

NAMES = ["background", "dim", "bright"]
FINGERPRINT = "f" * 16


def blob_slice(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (image, label) uint8 [H, W]: 10 is background, 120 the class dim, 240 bright."""
  generator = np.random.default_rng(seed)
  label = np.zeros((height, width), np.uint8)
  for class_id in (1, 2):
    top, left = generator.integers(0, (height - 6, width - 6))
    label[top : top + 5, left : left + 5] = class_id
  return np.array([10, 120, 240], np.uint8)[label], label


def write_dataset(folder: pathlib.Path, splits: dict[str, list[dict]]) -> pathlib.Path:
  """Writes a dataset as the builders do and returns its version folder.

  Args:
    folder: Its data_dir.
    splits: Split -> records: dicts of image, label [H, W], subject, volume, slice_index and,
      where known, fold, spacing_mm and slice_spacing_mm.
  """
  features = tfds.features.FeaturesDict({
      "image": tfds.features.Image(shape=(None, None, 1)),
      "label": tfds.features.LabeledImage(labels=NAMES, shape=(None, None, 1)),
      "subject": tfds.features.Text(),
      "volume": tfds.features.Text(),
      "slice_index": tf.int32,
      "spacing_mm": tfds.features.Tensor(shape=(2,), dtype=tf.float32),
      "slice_spacing_mm": tf.float32,
  })

  def as_dataset(records):
    def generate():
      for record in records:
        yield {
            "image": record["image"][..., None],
            "label": record["label"][..., None],
            "subject": record["subject"],
            "volume": record["volume"],
            "slice_index": record["slice_index"],
            "spacing_mm": np.array(record.get("spacing_mm", (np.nan, np.nan)), np.float32),
            "slice_spacing_mm": np.float32(record.get("slice_spacing_mm", np.nan)),
        }

    signature = {
        "image": tf.TensorSpec((None, None, 1), tf.uint8),
        "label": tf.TensorSpec((None, None, 1), tf.uint8),
        "subject": tf.TensorSpec((), tf.string),
        "volume": tf.TensorSpec((), tf.string),
        "slice_index": tf.TensorSpec((), tf.int32),
        "spacing_mm": tf.TensorSpec((2,), tf.float32),
        "slice_spacing_mm": tf.TensorSpec((), tf.float32),
    }
    return tf.data.Dataset.from_generator(generate, output_signature=signature)

  builder = tfds.dataset_builders.store_as_tfds_dataset(
      name="blobs",
      version="1.0.0",
      config="slices",
      data_dir=folder,
      features=features,
      split_datasets={name: as_dataset(records) for name, records in splits.items()},
      disable_shuffling=True,
  )
  version = pathlib.Path(builder.data_dir)
  report = {
      "fingerprint": FINGERPRINT,
      "label_scheme": [
          {"name": name, "color": [90 * index, 200, 40]} for index, name in enumerate(NAMES)
      ],
      "slice_plan": {"axes": "LAS", "plane": "axial"},
      "intensity": {"kind": "none", "low": 0.0, "high": 255.0},
  }
  (version / "build_report.json").write_text(json.dumps(report))
  _write_listing(version, builder.info.splits, splits)
  return version


def _write_listing(version: pathlib.Path, infos, splits: dict[str, list[dict]]) -> None:
  columns = ["split", "shard", "record", "offset", "length", "subject", "volume", "slice_index",
             "fold", "height", "width", *(f"pixels_{name}" for name in NAMES)]  # fmt: skip
  with open(version / "records.csv", "w", newline="") as stream:
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    for split, records in splits.items():
      places = record_table.scan([str(path) for path in infos[split].filepaths])
      for number, record in enumerate(records):
        counts = np.bincount(record["label"].ravel(), minlength=len(NAMES))
        writer.writerow({
            "split": split,
            "shard": pathlib.Path(places.files[places.shard[number]]).name,
            "record": number,
            "offset": int(places.offset[number]),
            "length": _payload_length(places, number),
            **{key: record[key] for key in ("subject", "volume", "slice_index")},
            "fold": record.get("fold", 0),
            "height": record["label"].shape[0],
            "width": record["label"].shape[1],
            **{f"pixels_{name}": int(count) for name, count in zip(NAMES, counts, strict=True)},
        })


def as_array_record(version: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """Writes what `write_dataset` wrote in the other container; returns its version folder."""
  shutil.copytree(version, out)
  write = shard_writer.writer_of("array_record")
  for shard in sorted(out.glob("*.tfrecord-*")):
    payloads = [bytes(payload) for payload in shards.payloads(str(shard))]
    write(out / shard.name.replace("tfrecord", "array_record"), ((one, 0) for one in payloads))
    shard.unlink()
  info = out / "dataset_info.json"
  text = info.read_text().replace('"fileFormat": "tfrecord"', '"fileFormat": "array_record"')
  info.write_text(text)
  with open(out / "records.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  number: dict[str, int] = {}
  with open(out / "records.csv", "w", newline="") as stream:
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    for row in rows:
      place = number[row["shard"]] = number.get(row["shard"], -1) + 1
      shard = row["shard"].replace("tfrecord", "array_record")
      writer.writerow({**row, "shard": shard, "record": place, "offset": -1})
  return out


def _payload_length(places: record_table.RecordTable, row: int) -> int:
  with open(places.files[places.shard[row]], "rb") as stream:
    stream.seek(int(places.offset[row]))
    return tfrecord.payload_length(stream.read(tfrecord.HEADER_BYTES))
