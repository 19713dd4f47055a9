"""export_images, on small built phantoms."""

import json
import pathlib

import build_samples
import forked
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, catalog, dataset_folders
from flexunet.tools import export_images


def test_an_exported_folder_holds_every_record_in_its_colours(built_slices, tmp_path):
  dataset = built_dataset.open_folder(built_slices)
  counts = export_images.export(dataset, tmp_path / "out")
  assert counts == {name: entry["num_records"] for name, entry in dataset.splits.items()}
  row = next(row for row in dataset.rows if int(row["pixels_hippocampus"]) > 0)
  name = f"{row['key']}.png"
  mask = np.asarray(Image.open(tmp_path / "out" / row["split"] / "masks" / name))
  assert (mask == dataset.scheme.palette[1]).all(axis=-1).sum() == int(row["pixels_hippocampus"])
  image = Image.open(tmp_path / "out" / row["split"] / "images" / name)
  assert image.mode == "RGB" and image.size == (int(row["width"]), int(row["height"]))
  assert not (tmp_path / "out" / "unlabeled" / "masks").exists()
  assert json.loads((tmp_path / "out" / "palette.json").read_text())["hippocampus"] == [255, 0, 0]


def test_an_exported_folder_builds_again_as_image_mask_with_equal_pixels(built_slices, tmp_path):
  dataset = built_dataset.open_folder(built_slices)
  export_images.export(dataset, tmp_path / "out", image_mode="grey")
  pattern = r"(?P<subject>.*)_(?P<slice>\d+)$"
  builder = catalog.builder(
      "image_mask/hippocampus_t1w", tmp_path / "data", options={"subject_pattern": pattern})
  builder.num_workers = 1
  config = tfds.download.DownloadConfig(manual_dir=tmp_path / "out")
  builder.download_and_prepare(download_config=config)
  again = built_dataset.open_folder(pathlib.Path(builder.data_path))
  labelled = {(row["split"], row["key"]): row["pixels_hippocampus"]
              for row in dataset.rows if row["split"] != "unlabeled"}  # fmt: skip
  assert {(row["split"], row["key"]): row["pixels_hippocampus"] for row in again.rows} == labelled


def test_whole_volumes_are_no_images(built_volumes, tmp_path):
  with pytest.raises(InputError, match="no images"):
    export_images.export(built_dataset.open_folder(built_volumes), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_an_export_into_a_folder_with_files_is_refused(built_slices, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(InputError, match="new or an empty folder"):
    export_images.export(built_dataset.open_folder(built_slices), tmp_path)


def test_one_of_several_channels_is_exported(tmp_path):
  raw = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1"))
  for path in raw.rglob("*_0001.nii.gz"):
    scan_folders.save(255 - scan_folders.voxels(int(path.name[5:9]) - 1000), path)
  builder = build_samples.build("scan_label", tmp_path / "raw", tmp_path / "data")
  dataset = dataset_folders.find_one(pathlib.Path(builder.data_path))
  for name, feature in (("FLAIR", "image"), ("T1", "image_2")):
    export_images.export(dataset, tmp_path / name, "grey", channel=name)
    for row, example in dataset.records():
      path = tmp_path / name / row["split"] / "images" / f"{row['key']}.png"
      np.testing.assert_array_equal(np.asarray(Image.open(path)), example[feature][..., 0])
  with pytest.raises(InputError, match="Unknown channel"):
    export_images.export(dataset, tmp_path / "other", channel="T2")


@pytest.mark.slow
def test_the_command_writes_where_it_is_told(built_slices, tmp_path):
  done = forked.command("export_images", built_slices, tmp_path / "out", "--image_mode=grey")
  assert done.returncode == 0 and "train" in done.stdout
  picture = next((tmp_path / "out" / "train" / "images").iterdir())
  assert Image.open(picture).mode == "L"
