"""Small whole inputs, made up: scans, images, raw folders, a built dataset, a run."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib

import build_samples
import nibabel as nib
import numpy as np
from PIL import Image

from flexunet.datasets import built_dataset
from flexunet.datasets.builder import build_tool

SHAPE = (34, 26, 15)
# Dataset of the phantom -> what is built of it.
BUILDERS = {
    "full_head_t1w": "full_head_t1w",
    "ms_lesion_mri": "ms_lesion_mri",
    "brain_stroke_ct": "brain_stroke_ct",
    "brain_ich_ct": "brain_ich_ct",
    "brain_ich_ct/nifti": "brain_ich_ct",
    "hippocampus_t1w": "hippocampus_t1w",
    "image_mask": "image_mask/full_head_t1w",
    "scan_label": "scan_label",
}


def voxels(dtype: type = np.int16) -> np.ndarray:
  """Returns a bright block in noise, [i, j, k]."""
  found = np.random.default_rng(7).integers(0, 300, SHAPE)
  found[9:20, 8:16, 5:12] += 900
  return found.astype(dtype)


def write_scans(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes one scan per format and returns {format: the file that is damaged}."""
  affine = np.diag([-1.0, 1.2, 3.0, 1.0])
  affine[:3, 3] = (10, -20, 5)
  plain = folder / "plain.nii"
  nib.save(nib.Nifti1Image(voxels(), affine), plain)
  compressed = folder / "compressed.nii.gz"
  compressed.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
  nib.save(nib.AnalyzeImage(voxels(), affine), folder / "pair.img")
  (folder / "pair.mat").unlink(missing_ok=True)
  nib.save(nib.Nifti1Pair(voxels(np.float32), affine), folder / "nifti_pair.img")
  nib.save(nib.MGHImage(voxels(np.int32), affine), folder / "freesurfer.mgz")
  return {
      ".nii": plain,
      ".nii.gz": compressed,
      "ANALYZE .hdr": folder / "pair.hdr",
      "ANALYZE .img": folder / "pair.img",
      "NIfTI .hdr": folder / "nifti_pair.hdr",
      ".mgz": folder / "freesurfer.mgz",
  }


def write_pictures(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes one image per format and returns {format: file}."""
  noise = np.random.default_rng(5).integers(0, 60, (24, 31))
  grey = (np.add.outer(np.arange(24) * 6, np.arange(31)) + noise % 7).astype(np.uint8)
  colour = np.stack([grey, grey // 2, 255 - grey], axis=-1)
  indexed = Image.fromarray((grey // 80).astype(np.uint8), "P")
  indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
  images = {
      "PNG grey": (Image.fromarray(grey), "grey.png"),
      "PNG colour": (Image.fromarray(colour), "colour.png"),
      "PNG palette": (indexed, "palette.png"),
      "JPEG": (Image.fromarray(grey), "image.jpg"),
      "BMP": (Image.fromarray(grey), "image.bmp"),
  }
  for image, name in images.values():
    image.save(folder / name)
  return {kind: folder / name for kind, (_, name) in images.items()}


def write_raw(dataset: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the phantom raw folder of a dataset and returns it."""
  return build_samples.raw_folder(dataset, folder, subjects=2, seed=3)


def build(dataset: str, raw: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
  """Builds a dataset in this process and returns its version folder."""
  return build_tool.build_dataset(BUILDERS[dataset], raw, data_dir, num_workers=1)


def build_and_listen(
    dataset: str, raw: pathlib.Path, data_dir: pathlib.Path
) -> tuple[pathlib.Path, list[str]]:
  """Builds a dataset; returns its version folder, and what the user gets to read."""
  make_builder = build_tool.maker(BUILDERS[dataset], data_dir=data_dir, num_workers=1)
  builder = build_tool.build(make_builder, raw)
  folder = pathlib.Path(builder.data_path)
  report = built_dataset.read_report(folder)
  left_out = [f"{entry['file']}: {entry['reason']}" for entry in report["left_out"]]
  # Reports call files by codes; on the terminal they have their names.
  lines = [builder.names.as_in_source(line) for line in [*left_out, *report["warnings"]]]
  return folder, lines


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A run folder, and what was put into it.

  Attributes:
    path: The run folder.
    data_dir: Folder of the dataset it was trained on.
    dataset: Version folder of that.
  """

  path: pathlib.Path
  data_dir: pathlib.Path
  dataset: pathlib.Path


def write_run(folder: pathlib.Path) -> TrainedRun:
  """Writes a run of a small network, untrained, on a dataset that is built beside it."""
  # They load TensorFlow, which the areas of scans and builders do without.
  import flexunet
  from flexunet import run_folder
  from flexunet.core import files
  from flexunet.network import model

  raw = build_samples.raw_folder("full_head_t1w", folder / "raw", subjects=3, seed=3)
  data_dir = folder / "data"
  dataset = build("full_head_t1w", raw, data_dir)
  planned = flexunet.plan(
      dataset="full_head_t1w", data_dir=str(data_dir), image_size=(16, 16), base_filters=2,
      base_kernels=3, num_layers=2, batch_size=2, epochs=1, precision="float32",
  )  # fmt: skip
  run = run_folder.RunFolder.create(folder / "run")
  run.write_config(planned)
  files.write_json(run.manifest_json, run_folder.started_with(planned))
  partial = run.path / ".model.partial.keras"
  model.build_model(planned.model).save(partial)
  run.replace_model(partial)
  return TrainedRun(run.path, data_dir, dataset)
