"""Datasets that others have built with TFDS: their features are found, converted and measured."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.datasets.builder import tfrecord
from flexunet.pipelines import dataset_source, foreign_dataset, readers
from flexunet.pipelines.feature_keys import FeatureKeys

IMAGE = tfds.features.Image(shape=(None, None, 1))
SIZE = (9, 12)


def tensor(dtype, *channels) -> tfds.features.Tensor:
  """Returns the feature of arrays [H, W, *channels] of any size."""
  return tfds.features.Tensor(shape=(None, None, *channels), dtype=dtype, encoding="zlib")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder, features, train, validation=None, name="pets") -> pathlib.Path:
  """Writes the records of two splits as TFDS does and returns the version folder."""

  class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return self.dataset_info_from_configs(
          features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      splits = {"train": train, "validation": validation or train}
      return {split: enumerate(records) for split, records in splits.items()}

    def _generate_examples(self):
      raise NotImplementedError

  Made.name = name
  builder = Made(data_dir=folder)
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def slice_of(seed, size=SIZE):
  """Returns (image, ids) with a row of class 1 and a pixel of class 2."""
  image = np.random.default_rng(seed).integers(0, 255, (*size, 1)).astype(np.uint8)
  ids = np.zeros(size, np.uint8)
  ids[2], ids[4, 5] = 1, 2
  return image, ids


def opened(path, **keys):
  return dataset_source.open_dataset(None, path, FeatureKeys(**keys))


def decoded(source, split="train", row=0):
  table = source.records(split)
  reader = readers.native_reader(source, table, source.keys.image, source.keys.label)
  return {name: pixels.numpy() for name, pixels in reader(tf.constant(row, tf.int64)).items()}


ONE_HOT = tensor(np.uint8, 3)
# What the label is stored as: feature, and the stored form of class ids [H, W].
LABELS = {
    "png": (IMAGE, lambda ids: ids[..., None]),
    "named": (
        tfds.features.LabeledImage(labels=["a", "b", "c"], shape=(None, None, 1)),
        lambda ids: ids[..., None],
    ),
    "mask [H, W]": (tensor(np.uint8), lambda ids: ids),
    "int64": (tensor(np.int64, 1), lambda ids: ids[..., None].astype(np.int64)),
    "float": (tensor(np.float32), lambda ids: ids.astype(np.float32)),
    "one-hot": (ONE_HOT, lambda ids: np.eye(3, dtype=np.uint8)[ids]),
    "one-hot float": (
        tfds.features.Tensor(shape=(*SIZE, 3), dtype=np.float32),
        lambda ids: np.eye(3, dtype=np.float32)[ids],
    ),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_any_form_become_class_ids(tmp_path, form):
  feature, stored = LABELS[form]
  image, ids = slice_of(1)
  path = write(tmp_path, {"image": IMAGE, "segmentation_mask": feature},
               [{"image": image, "segmentation_mask": stored(ids)}])  # fmt: skip
  source = opened(path)
  assert source.keys.label == "segmentation_mask"
  pair = decoded(source)
  assert pair["label"].dtype == np.uint8 and pair["label"].shape == (*SIZE, 1)
  np.testing.assert_array_equal(pair["label"][..., 0], ids)
  np.testing.assert_array_equal(pair["image"], image)
  names = source.label_scheme("segmentation_mask").names
  assert names == (["a", "b", "c"] if form == "named" else ["background", "class_1", "class_2"])
  table = source.records("train")
  # A row of 12 pixels of class 1, one pixel of class 2.
  assert table.pixels.tolist() == [[9 * 12 - 13, 12, 1]]
  assert (table.height[0], table.width[0]) == SIZE


def test_a_bool_mask_has_two_classes(tmp_path):
  image, ids = slice_of(1)
  feature = tensor(np.bool_)
  source = opened(write(tmp_path, {"image": IMAGE, "mask": feature},
                        [{"image": image, "mask": ids > 0}]))  # fmt: skip
  assert source.label_scheme().num_classes == 2
  np.testing.assert_array_equal(decoded(source)["label"][..., 0], ids > 0)


@pytest.mark.parametrize(
    "feature, stored",
    [
        (tensor(np.float32, 1), lambda x: x / 255),
        (tfds.features.Tensor(shape=SIZE, dtype=np.float32), lambda x: x[..., 0] / 255),
        (tensor(np.uint8), lambda x: x[..., 0]),
    ],
    ids=["float", "float of fixed size", "uint8 [H, W]"],
)
def test_images_of_any_form_become_uint8(tmp_path, feature, stored):
  image, ids = slice_of(1)
  kind = np.float32 if feature.np_dtype == np.float32 else np.uint8
  path = write(tmp_path, {"image": feature, "label": IMAGE},
               [{"image": stored(image).astype(kind), "label": ids[..., None]}])  # fmt: skip
  np.testing.assert_array_equal(decoded(opened(path))["image"], image)


BAD = {
    "images of floats must lie in 0..1. Found 0..200": (
        tfds.features.Tensor(shape=SIZE, dtype=np.float32), IMAGE,
        np.linspace(0, 200, 108).reshape(SIZE).astype(np.float32), np.zeros((*SIZE, 1), np.uint8),
    ),
    "must hold images of uint8, or of floats in 0..1. It holds uint16": (
        tfds.features.Image(shape=(None, None, 1), dtype=np.uint16), IMAGE,
        np.zeros((*SIZE, 1), np.uint16), np.zeros((*SIZE, 1), np.uint8),
    ),
    "must be one-hot, with a channel for the background": (
        IMAGE, ONE_HOT, np.zeros((*SIZE, 1), np.uint8), np.zeros((*SIZE, 3), np.uint8),
    ),
    "labels of floats must be whole class ids": (
        IMAGE, tfds.features.Tensor(shape=SIZE, dtype=np.float32),
        np.zeros((*SIZE, 1), np.uint8), np.full(SIZE, 0.5, np.float32),
    ),
    "They hold 0, 255: name the stored values .* such as --label_values=0,255": (
        IMAGE, IMAGE, np.zeros((*SIZE, 1), np.uint8),
        (255 * np.eye(*SIZE, dtype=np.uint8))[..., None],
    ),
    "holds colour images of 3 channels, no class ids": (
        IMAGE, tfds.features.Image(shape=(None, None, 3)),
        np.zeros((*SIZE, 1), np.uint8), np.zeros((*SIZE, 3), np.uint8),
    ),
    r"image and label differ in size: \(9, 12\) and \(5, 5\)": (
        IMAGE, IMAGE, np.zeros((*SIZE, 1), np.uint8), np.zeros((5, 5, 1), np.uint8),
    ),
    "labels must lie in 0..255. Found 0..300": (
        IMAGE, tfds.features.Tensor(shape=SIZE, dtype=np.int64),
        np.zeros((*SIZE, 1), np.uint8), np.linspace(0, 300, 108).astype(np.int64).reshape(SIZE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path, message):
  image_feature, label_feature, image, label = BAD[message]
  path = write(tmp_path, {"image": image_feature, "label": label_feature},
               [{"image": image, "label": label}])  # fmt: skip
  with pytest.raises(InputError, match=message) as caught:
    opened(path).records("train")
  assert "\n" not in str(caught.value)


def test_stored_values_are_named_in_the_order_of_the_classes(tmp_path):
  # As in a set of pets: 1 the animal, 2 what lies around it, 3 its outline.
  image, ids = slice_of(1)
  stored = np.array([2, 1, 3], np.uint8)[ids]
  path = write(tmp_path, {"image": IMAGE, "segmentation_mask": IMAGE},
               [{"image": image, "segmentation_mask": stored[..., None]}])  # fmt: skip
  with pytest.raises(InputError, match="They hold 1, 2, 3: name the stored values"):
    opened(path).records("train")
  source = opened(path, label_values=(2, 1, 3))
  np.testing.assert_array_equal(decoded(source)["label"][..., 0], ids)
  assert source.label_scheme().num_classes == 3
  with pytest.raises(InputError, match="must list every stored value. Found also: 3"):
    opened(path, label_values=(2, 1)).records("train")
  with pytest.raises(InputError, match="must be different values"):
    opened(path, label_values=(2, 2))


def scan_records(subjects="aab", slices=3, **names):
  """Returns records of scans: `names` are those of subject, volume, slice and spacing."""
  made = []
  for volume, subject in enumerate(subjects):
    for index in range(slices):
      image, ids = slice_of(len(made))
      values = {"subject": f"p{subject}", "volume": volume, "slice": index,
                "spacing": np.array([0.5, 0.75, 3.0], np.float32)}  # fmt: skip
      record = {"image": image, "label": ids[..., None]}
      made.append(record | {name: values[role] for role, name in names.items()})
  return made


KINDS = {
    "subject": tfds.features.Text(),
    "volume": tfds.features.Scalar(np.int64),
    "slice": tfds.features.Scalar(np.int32),
    "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
}


def scan_dataset(tmp_path, **names):
  features = {"image": IMAGE, "label": IMAGE, **{name: KINDS[r] for r, name in names.items()}}
  return write(tmp_path, features, scan_records(**names))


@pytest.mark.parametrize("named", [False, True])
def test_whose_slices_they_are_is_found_or_named(tmp_path, named):
  usual = {"subject": "patient_id", "volume": "series", "slice": "slice_idx",
           "spacing": "pixel_spacing"}  # fmt: skip
  names = {role: f"my_{role}" for role in usual} if named else usual
  source = opened(scan_dataset(tmp_path, **names), **(names if named else {}))
  table = source.records("train")
  assert table.subject.tolist() == ["pa"] * 6 + ["pb"] * 3
  assert table.volume.tolist() == [n for n in "012" for _ in range(3)]
  assert table.slice_index.tolist() == [0, 1, 2] * 3
  np.testing.assert_allclose(table.spacing_mm, [[0.5, 0.75, 3.0]] * 9)
  _, spacing_mm = readers.sampled_spacing_mm(source, table)
  np.testing.assert_allclose(spacing_mm, [[0.5, 0.75]] * 9)
  assert source.counted_by == "subject" and not source.warnings
  assert dataset_source.split_counts(source)["train"] == {
      "subjects": 2, "volumes": 3, "slices": 9}  # fmt: skip


def test_the_volumes_of_such_a_dataset_have_spacing_and_distances(tmp_path):
  from flexunet.evaluation import labelled_volumes

  source = opened(scan_dataset(tmp_path, subject="patient", volume="scan_id", slice="z",
                               spacing="spacing"))  # fmt: skip
  volumes = list(labelled_volumes.read_volumes(source, source.records("train")))
  assert [(one.subject, one.volume, one.distances) for one in volumes] == [
      ("pa", "0", "3d"), ("pa", "1", "3d"), ("pb", "2", "3d")]  # fmt: skip
  assert volumes[0].spacing_mm == (0.5, 0.75) and volumes[0].slice_spacing_mm == 3.0


@pytest.mark.parametrize(
    "names, counted_by, warning",
    [
        ({}, "slice", "every slice counts as a subject"),
        ({"volume": "volume"}, "volume", "every volume counts as a subject"),
        ({"subject": "subject"}, "subject", "no places of the slices"),
    ],
)
def test_what_is_not_known_of_subjects_is_said(tmp_path, capsys, names, counted_by, warning):
  source = opened(scan_dataset(tmp_path, **names))
  assert source.counted_by == counted_by
  assert warning in " ".join(source.warnings) and warning in capsys.readouterr().err


def test_subject_and_place_alone_make_one_volume_a_subject(tmp_path):
  source = opened(scan_dataset(tmp_path, subject="subject", slice="slice_index"))
  assert set(source.records("train").volume) == {"pa", "pb"}


def test_a_named_feature_must_be_there_and_fit(tmp_path):
  path = scan_dataset(tmp_path, subject="person_number")
  with pytest.raises(InputError, match=r"Unknown feature of pets/1.0.0 'person'.*person_number"):
    opened(path, subject="person")
  with pytest.raises(InputError, match=r"--subject_key=label: the feature cannot be the subject"):
    opened(path, subject="label")
  with pytest.raises(InputError, match=r"--label_key=person_number: the feature cannot be the la"):
    opened(path, label="person_number")


def test_a_class_label_is_no_label_of_pixels(tmp_path):
  # As in published sets of pets: `label` is the breed.
  image, ids = slice_of(1)
  features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=7),
              "segmentation_mask": IMAGE, "file_name": tfds.features.Text()}  # fmt: skip
  path = write(tmp_path, features, [{"image": image, "label": 3, "file_name": "a.png",
                                     "segmentation_mask": ids[..., None]}])  # fmt: skip
  assert opened(path).keys == FeatureKeys(image="image", label="segmentation_mask")


def test_without_a_label_the_features_are_listed(tmp_path):
  path = write(tmp_path, {"image": IMAGE, "breed": tfds.features.ClassLabel(num_classes=7)},
               [{"image": slice_of(1)[0], "breed": 3}])  # fmt: skip
  with pytest.raises(InputError, match=r"name it by --label_key. It has breed \(int64 \[\]\)"):
    opened(path)


def test_records_are_measured_once_and_again_where_the_shards_change(tmp_path, monkeypatch):
  path = scan_dataset(tmp_path)
  first = opened(path).records("train")
  calls = []
  monkeypatch.setattr(foreign_dataset.ForeignDataset, "_measure", lambda *a: calls.append(a))
  again = opened(path).records("train")
  assert not calls
  np.testing.assert_array_equal(again.pixels, first.pixels)
  before = opened(path).identity
  shard = next(path.glob("*train*"))
  os.utime(shard, ns=(1, 1))
  assert opened(path).identity != before != opened(path, label_values=(0, 1, 2)).identity


@pytest.mark.parametrize("which", [0, 1])
def test_a_record_that_cannot_be_decoded_is_left_for_training_to_name(tmp_path, which):
  path = scan_dataset(tmp_path)
  shard = next(path.glob("*train*"))
  data = bytearray(shard.read_bytes())
  starts = [n for n in range(len(data)) if data[n : n + 4] == b"\x89PNG"]
  # The image or the label of the first record, and the checksum of its frame.
  data[starts[which] : starts[which] + 8] = bytes(8)
  length = tfrecord.payload_length(data[: tfrecord.HEADER_BYTES])
  payload = bytes(data[tfrecord.HEADER_BYTES : tfrecord.HEADER_BYTES + length])
  place = tfrecord.HEADER_BYTES + length
  data[place : place + 4] = tfrecord.masked_crc(payload).to_bytes(4, "little")
  shard.write_bytes(data)
  table = opened(path).records("train")
  assert table.height.tolist() == [0] + [9] * 8
  assert table.pixels[0].sum() == 0 and table.pixels[1].sum() == 9 * 12


def test_a_damaged_record_hides_no_other(tmp_path):
  path = scan_dataset(tmp_path, subject="subject")
  shard = next(path.glob("*train*"))
  data = bytearray(shard.read_bytes())
  data[40] ^= 255  # In the payload of the first record; its checksum is wrong now.
  shard.write_bytes(data)
  table = opened(path).records("train")
  assert table.height.tolist() == [0] + [9] * 8
  assert table.subject.tolist()[1:] == ["pa"] * 5 + ["pb"] * 3


def test_a_folder_of_images_as_tfds_reads_them_is_measured(tmp_path):
  # `tfds.folder_dataset` writes no shards; what it reads can be stored as TFRecords.
  from PIL import Image

  for split, seeds in (("train", (1, 2)), ("validation", (3,))):
    for number in seeds:
      (tmp_path / "raw" / split / "x").mkdir(parents=True, exist_ok=True)
      image, _ = slice_of(number)
      Image.fromarray(image[..., 0]).save(tmp_path / "raw" / split / "x" / f"{number}.png")
  folder = tfds.folder_dataset.ImageFolder(str(tmp_path / "raw"))
  splits = {
      name: folder.as_dataset(split=name).map(
          lambda one: {"image": one["image"][..., :1], "mask": one["image"][..., :1] // 128}
      )
      for name in ("train", "validation")
  }
  builder = tfds.dataset_builders.store_as_tfds_dataset(
      name="folder", version="1.0.0", data_dir=tmp_path / "data", split_datasets=splits,
      features=tfds.features.FeaturesDict({"image": IMAGE, "mask": IMAGE}),
  )  # fmt: skip
  source = opened(pathlib.Path(builder.data_dir))
  assert source.label_scheme().num_classes == 2
  assert source.records("train").height.tolist() == [9, 9]


def test_an_array_record_dataset_is_read_and_another_container_says_how_to_convert_it(tmp_path):
  image, ids = slice_of(1)

  class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return self.dataset_info_from_configs(
          features=tfds.features.FeaturesDict({"image": IMAGE, "label": IMAGE})
      )

    def _split_generators(self, dl_manager):
      return {"train": [(0, {"image": image, "label": ids[..., None]})]}

    def _generate_examples(self):
      raise NotImplementedError

  Made.name = "packed"
  builder = Made(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  folder = pathlib.Path(builder.data_dir)
  source = opened(folder)
  reader = readers.native_reader(source, source.records("train"), "image", "label")
  np.testing.assert_array_equal(reader(np.int64(0))["label"][..., 0], ids)
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"parquet"'))
  with pytest.raises(InputError, match=r"holds parquet files.*tfds convert_format"):
    opened(folder)


def test_the_flags_name_features():
  data = config.DataConfig(
      image_key="a", label_key="b", subject_key="c", volume_key="d", slice_key="e",
      spacing_key="f", label_values=("0", "255"),
  )  # fmt: skip
  assert data.feature_keys == FeatureKeys("a", "b", "c", "d", "e", "f", (0, 255))
