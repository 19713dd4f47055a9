"""Builds small phantom datasets for tests."""

import csv
import hashlib
import json
import pathlib

import pytest

from flexunet.datasets import catalog
from flexunet.datasets.builder import case_records
from flexunet.tools.phantom import layouts

SIZES = {
    "hippocampus_t1w": (24, 12, 20),
    "brain_ich_ct": (40, 4),
    "brain_ich_ct/nifti": (24, 5),
    "image_mask": (160, 3),
    "brain_stroke_ct": (64, 8),
    "full_head_t1w": (16, 20, 12),
    "ms_lesion_mri": (28, 21, 8),
    "scan_label": (24, 12, 20),
}


def raw_folder(dataset: str, folder: pathlib.Path, subjects: int = 4, seed: int = 0):
  """Writes a phantom in the layout of `dataset` and returns its folder."""
  return layouts.write(dataset, folder, subjects=subjects, seed=seed, size=SIZES[dataset])


def build(dataset: str, raw: pathlib.Path, out: pathlib.Path, workers: int = 1, **kwargs):
  """Builds a dataset and returns its builder."""
  import tensorflow_datasets as tfds

  builder = catalog.builder(dataset, out, **kwargs)
  builder.num_workers = workers
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
  return builder


class Interrupted(BaseException):
  """Stands for Ctrl-C."""


def build_until(cases: int, dataset: str, raw: pathlib.Path, out: pathlib.Path) -> list[str]:
  """Builds until so many cases are written, and is interrupted then; returns their keys."""
  write_case, done = case_records.write_case, []

  def interrupted(builder, task):
    if len(done) == cases:
      raise Interrupted
    done.append(task.case.key)
    return write_case(builder, task)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(case_records, "write_case", interrupted)
    build(dataset, raw, out)
  return done


def report_of(builder) -> dict:
  return json.loads((pathlib.Path(builder.data_path) / "build_report.json").read_text())


def rows_of(builder) -> list[dict]:
  """Returns the rows of records.csv."""
  with open(pathlib.Path(builder.data_path) / "records.csv", newline="") as stream:
    return list(csv.DictReader(stream))


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Returns {file name: sha256} of all that a build decides, not of how TFDS was called."""
  return {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(pathlib.Path(folder).rglob("*"))
      if path.is_file() and path.name not in ("dataset_info.json", "checksums.json")
  }


def files_below(folder: pathlib.Path) -> list[str]:
  """Returns all that lies in a folder, which may be missing."""
  folder = pathlib.Path(folder)
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
