"""Datasets that were resampled when they were built are scored on the grids of their scans."""

import dataclasses

import build_samples
import numpy as np
import pytest

from flexunet.datasets.builder import native_labels
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.evaluation import labelled_volumes, split_scores
from flexunet.imaging import slice_recipe
from flexunet.imaging.clean_up import CleanUp
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import open_dataset

NAME = "hippocampus_t1w"


@pytest.fixture(
    scope="module",
    params=[pytest.param(0.7, id="finer", marks=pytest.mark.slow), pytest.param(3.0, id="coarser")],
)
def built(request, tmp_path_factory):
  """A builder whose scans of about 1 mm were resampled, and its opened dataset."""
  folder = tmp_path_factory.mktemp("native")
  raw = build_samples.raw_folder(NAME, folder / "raw", subjects=4)
  builder = build_samples.build(
      NAME, raw, folder / "data", options={"isotropic_mm": request.param}
  )
  return builder, raw, open_dataset(None, builder.data_dir)


def scans_of(builder, raw):
  """Returns volume -> its cut scan, from the raw files."""
  return {
      case.volume: builder.recipe().cut(scan.stored, scan.slope, scan.inter, label=scan.label)
      for case in builder.inspect_source(raw).cases
      for scan in [builder.read_scan(case, Notes())]
  }  # fmt: skip


def volumes_of(source, split):
  return labelled_volumes.read_volumes(source, readers.slice_table(source, split))


def test_records_hold_the_labels_of_the_scan_voxel_by_voxel(built):
  builder, raw, source = built
  scans = scans_of(builder, raw)
  for split in ("train", "validation", "test"):
    for volume in volumes_of(source, split):
      cut, native = scans[volume.volume], volume.on_native_grid()
      assert np.array_equal(np.stack(native.labels, axis=-1), cut.native_label)
      assert np.stack(volume.labels, axis=-1).shape != cut.native_label.shape
      assert native.slice_index == list(range(cut.native_label.shape[2]))
      spacing = (*cut.native.spacing_mm, cut.native.slice_spacing_mm)
      assert (*native.spacing_mm, native.slice_spacing_mm) == pytest.approx(spacing)
      assert native.distances == "3d" and len(native.images) == len(native.labels)


def test_predictions_come_back_as_prediction_brings_them_to_the_scan(built):
  _, _, source = built
  (volume, *_) = volumes_of(source, "train")
  native = volume.on_native_grid()
  values = np.random.default_rng(0).integers(0, 9, (len(volume.labels), *volume.labels[0].shape))
  back = [
      one for place, pixels in enumerate(values) for one in volume.to_native_grid(place, pixels)
  ]  # fmt: skip
  shape = (*native.labels[0].shape, len(native.labels))
  expected = slice_recipe.to_grid(np.moveaxis(values, 0, -1), shape)
  assert np.array_equal(np.stack(back, axis=-1), expected)


class Perfect:
  """Answers with the labels of the resampled slices."""

  clean_up = CleanUp()

  def __init__(self, source, split):
    self._labels = {
        volume.images[0].tobytes(): volume.labels for volume in volumes_of(source, split)
    }

  def probabilities(self, images, spacing_mm):
    assert np.isfinite(spacing_mm).all()
    for label in self._labels[images[0].tobytes()]:
      yield np.eye(2, dtype=np.float32)[label]


def scores(source, split):
  table = readers.slice_table(source, split)
  return split_scores.score_split(
      source, table, Perfect(source, split), ["background", "hippocampus"], split=split,
      tolerances_mm=[1.0], show_progress=False,
  )  # fmt: skip


def test_scores_are_those_on_the_grid_of_the_scan(built):
  builder, raw, source = built
  scans = scans_of(builder, raw)
  found = scores(source, "train")
  assert found.counts["volumes_on_resampled_grid"] == 0
  assert not any("resampled" in text for text in found.warnings)
  for row in found.rows:
    cut = scans[row["volume"]]
    truth = cut.native_label == 1
    claim = slice_recipe.to_grid(cut.label, truth.shape) == 1
    overlap = np.count_nonzero(truth & claim)
    assert row["dice"] == 2 * overlap / (truth.sum() + claim.sum())
    spacing = (*cut.native.spacing_mm, cut.native.slice_spacing_mm)
    assert row["reference_ml"] == pytest.approx(truth.sum() * np.prod(spacing) / 1000, rel=1e-5)
    assert row["slices"] == truth.shape[2]


def test_a_dataset_without_the_labels_of_the_scans_says_that_scores_are_on_the_resampled_grid(
    built, monkeypatch
):
  _, _, source = built
  monkeypatch.setattr(native_labels, "decode", lambda record: None)  # As an earlier version built.
  found = scores(source, "train")
  assert {row["dice"] for row in found.rows} == {1.0}
  count = found.counts["volumes"]
  assert found.counts["volumes_on_resampled_grid"] == count > 0
  assert found.warnings[0].startswith(f"{count} of {count} volume")
  assert "to which the build resampled them" in found.warnings[0]


def test_volumes_without_some_slices_are_scored_on_the_slices_of_the_scan_that_are_left(built):
  _, _, source = built
  table = readers.slice_table(source, "train")
  middle = int(np.median(table.slice_index))
  (volume, *_) = labelled_volumes.read_volumes(
      source, table.take(np.flatnonzero(table.slice_index != middle))
  )
  (whole, *_) = (one for one in volumes_of(source, "train") if one.volume == volume.volume)
  lost = whole.native[middle]
  gone = range(lost.slice_index, lost.slice_index + len(lost.labels))
  left = [n for n in whole.on_native_grid().slice_index if n not in gone]
  assert volume.on_native_grid().slice_index == left
  assert volume.on_native_grid().has_gaps == bool(len(gone))


def test_a_dataset_with_features_of_its_own_keeps_the_labels_of_the_scan_too(tmp_path):
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw", subjects=3)
  builder = build_samples.build(
      "brain_ich_ct", raw, tmp_path / "data", options={"isotropic_mm": 2.0}
  )
  scans, source = scans_of(builder, raw), open_dataset(None, builder.data_dir)
  found = [volume for split in source.splits for volume in volumes_of(source, split)]
  assert len(found) == 3
  for volume in found:
    wanted = scans[volume.volume].native_label
    assert np.array_equal(np.stack(volume.on_native_grid().labels, axis=-1), wanted)


def test_without_resampling_no_record_holds_a_second_label(tmp_path):
  raw = build_samples.raw_folder(NAME, tmp_path / "raw", subjects=2)
  builder = build_samples.build(NAME, raw, tmp_path / "data")
  assert not set(native_labels.features()) & set(builder.info.features)
  (volume, *_) = volumes_of(open_dataset(None, builder.data_dir), "train")
  assert volume.on_native_grid() is volume and dataclasses.replace(volume).native == []
