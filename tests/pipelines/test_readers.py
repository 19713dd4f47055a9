"""A dataset of whole volumes trains as its slices do."""

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.datasets import catalog
from flexunet.pipelines import batches, readers, resizing
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.tools.phantom import layouts


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  base = tmp_path_factory.mktemp("volumes")
  layouts.write("hippocampus_t1w", base / "raw", subjects=4, seed=2, size=(32, 16, 32))
  for config in ("left_right", "volumes"):
    builder = catalog.builder(f"hippocampus_t1w/{config}", data_dir=base / "data")
    builder.num_workers = 1
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=base / "raw")
    )
  return [open_dataset(f"hippocampus_t1w/{c}", base / "data") for c in ("left_right", "volumes")]


def by_place(source, split):
  table = readers.slice_table(source, split)
  edge = int(max(table.height.max(), table.width.max()))
  spec = readers.ExampleSpec(resizing=resizing.Resizing((edge, edge), "pad"))
  loader = batches.open_loader(source, table, spec)
  found = {}
  for batch in batches.evaluation_batches(loader, 8).as_numpy_iterator():
    for row, image, label, valid in zip(*(batch[k] for k in ("record", "image", "label", "valid")),
                                        strict=True):  # fmt: skip
      if valid:
        found[table.volume[row], int(table.slice_index[row])] = (image, label)
  return found


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_slices_of_volumes_are_those_of_config_slices(sources, split):
  slices, volumes = (by_place(source, split) for source in sources)
  assert slices.keys() == volumes.keys() and len(slices) > 5
  for place, (image, label) in slices.items():
    np.testing.assert_array_equal(volumes[place][0], image)
    np.testing.assert_array_equal(volumes[place][1], label)


def test_the_table_counts_what_the_slices_hold(sources):
  by_config = []
  for source in sources:
    table = readers.slice_table(source, "train")
    order = np.lexsort((table.slice_index, table.volume))
    by_config.append((table.subject[order], table.fold[order], table.pixels[order]))
  for one, other in zip(*by_config, strict=True):
    np.testing.assert_array_equal(one, other)
  spacings = [
    np.median(readers.sampled_spacing_mm(source, readers.slice_table(source, "train"))[1], axis=0)
    for source in sources
  ]
  assert spacings[0] == pytest.approx(spacings[1], rel=1e-6)  # Slices keep 32 bits of it.


def test_evaluation_puts_the_same_volumes_together(sources):
  from flexunet.evaluation import labelled_volumes

  read = [
    {
      v.volume: v
      for v in labelled_volumes.read_volumes(source, readers.slice_table(source, "test"))
    }
    for source in sources
  ]
  assert read[0].keys() == read[1].keys() and read[0]
  for name, one in read[0].items():
    other = read[1][name]
    assert (one.subject, one.slice_index) == (other.subject, other.slice_index)
    np.testing.assert_array_equal(np.stack(one.images), np.stack(other.images))
    np.testing.assert_array_equal(np.stack(one.labels), np.stack(other.labels))
    assert one.slice_spacing_mm == pytest.approx(other.slice_spacing_mm, rel=1e-6)


def test_folds_over_two_splits_find_their_slices(sources):
  source = sources[1]
  folds = set(readers.slice_table(source, "train").fold) | set(
    readers.slice_table(source, "validation").fold
  )
  train, held_out = readers.split_tables(source, "train", "validation", int(min(folds)))
  assert not set(train.subject) & set(held_out.subject)
  spec = readers.ExampleSpec(resizing=resizing.Resizing((64, 64), "fit"))
  loader = batches.open_loader(source, train, spec)
  last = len(train) - 1
  assert (loader(last)["label"].numpy() > 0).any() == (train.pixels[last, 1:].sum() > 0)


def test_fractional_scale_factors_give_the_slices_of_the_build(tmp_path):
  # Whole scans were once windowed in float64, slices in float32: grey levels at .5 differed.
  (tmp_path / "raw" / "Train" / "Labels").mkdir(parents=True)
  for number in range(1, 4):
    voxels = np.random.default_rng(number).integers(0, 4000, (40, 12, 40)).astype(np.int16)
    scan = nib.Nifti1Image(voxels, np.diag([1.0, 2, 1, 1]))
    scan.header.set_slope_inter(0.3 + 0.01 * number, 0.7)
    scan.to_filename(tmp_path / "raw" / "Train" / f"HFH_00{number}.nii")
    label = nib.Nifti1Image((voxels > 3000).astype(np.uint8), scan.affine)
    label.to_filename(tmp_path / "raw" / "Train" / "Labels" / f"HFH_00{number}_Hipp_Labels.nii")
  found = []
  for config in ("left_right", "volumes"):
    build_samples.build(f"hippocampus_t1w/{config}", tmp_path / "raw", tmp_path / "data")
    found.append(by_place(open_dataset(f"hippocampus_t1w/{config}", tmp_path / "data"), "train"))
  assert found[0].keys() == found[1].keys() and found[0]
  for place, (image, _) in found[0].items():
    np.testing.assert_array_equal(found[1][place][0], image)
