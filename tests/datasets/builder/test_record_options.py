"""The options of a build: planes, empty slices, windows, resampling."""

import json
import pathlib

import build_samples
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.dataset_facts import DatasetFacts
from flexunet.datasets import built_dataset, catalog
from flexunet.datasets.builder.record_options import RecordOptions, VolumeOptions
from flexunet.imaging import nifti, scan_files, slicing
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.imaging.slicing import Slices
from flexunet.pipelines import dataset_source
from flexunet.training import run_setup

HIPPOCAMPUS = "hippocampus_t1w"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("options") / "raw"
  return build_samples.raw_folder(HIPPOCAMPUS, folder, subjects=3)


@pytest.fixture
def built(raw, tmp_path):
  """A function that builds with options."""
  return lambda **options: build_samples.build(HIPPOCAMPUS, raw, tmp_path, options=options)


def counts(report):
  return {name: split["num_records"] for name, split in report["splits"].items()}


@pytest.mark.parametrize(
    ("plane", "row", "column", "through"),
    [("coronal", 2, 0, 1), ("axial", 1, 0, 2), ("sagittal", 2, 1, 0)],
)
def test_slices_can_be_cut_along_every_plane(raw, built, plane, row, column, through):
  builder = built(plane=plane)
  rows = build_samples.rows_of(builder)
  for case in builder.inspect_source(raw).cases:
    shape = nifti.read_header(case.files["image"]).shape
    mine = [entry for entry in rows if entry["volume"] == case.volume]
    assert len(mine) == shape[through]
    sizes = {(int(entry["height"]), int(entry["width"])) for entry in mine}
    assert sizes == {(shape[row], shape[column])}
  report = build_samples.report_of(builder)
  assert report["slice_plan"]["plane"] == plane


def test_empty_slices_leave_the_training_split_alone_and_are_counted(built):
  everything = build_samples.report_of(built())
  report = build_samples.report_of(built(empty_slices="drop"))
  train, whole = report["splits"]["train"], everything["splits"]["train"]
  assert train["num_records"] == whole["num_foreground_records"] < whole["num_records"]
  assert train["pixels"]["hippocampus"] == whole["pixels"]["hippocampus"]
  # Scores are of whole volumes; without labels nobody knows which slices are empty.
  for name in ("validation", "test", "unlabeled"):
    assert report["splits"][name] == everything["splits"][name]
  dropped = sum(sum(reasons.values()) for reasons in report["slices_left_out"].values())
  assert dropped == whole["num_records"] - train["num_records"] > 0


def test_a_share_of_the_empty_slices_can_be_kept_always_the_same_ones(built):
  keys = {}
  for share in (0.0, 0.3, 0.6, 1.0):
    keys[share] = {row["key"] for row in build_samples.rows_of(built(empty_slices=share))}
  assert keys[0.0] < keys[0.3] < keys[0.6] < keys[1.0]


def test_slices_below_the_least_foreground_are_left_out_and_empty_ones_are_not(built):
  def areas_of(builder, *splits):
    return sorted(int(row["pixels_hippocampus"]) for row in build_samples.rows_of(builder)
                  if row["split"] in splits)  # fmt: skip

  everything, others = built(), ("validation", "test")
  areas = areas_of(everything, "train")
  least = sorted(area for area in areas if area)[2]
  sparse = built(min_foreground_pixels=least)
  assert areas_of(sparse, "train") == [area for area in areas if area == 0 or area >= least]
  assert areas_of(sparse, *others) == areas_of(everything, *others)


def test_an_own_window_replaces_the_datasets(built):
  report = build_samples.report_of(built(window=(0, 500)))
  assert report["intensity"] == {"kind": "window", "low": 0.0, "high": 500.0}


def test_isotropic_slices_have_one_spacing_and_keep_the_field_of_view(raw, built):
  builder = built(isotropic_mm=1.0)
  case = next(case for case in builder.inspect_source(raw).cases)
  header = nifti.read_header(case.files["image"])
  expected = [round(n * mm) for n, mm in zip(header.shape, header.spacing_mm)]
  rows = [row for row in build_samples.rows_of(builder) if row["volume"] == case.volume]
  assert len(rows) == expected[1]
  assert {(int(r["height"]), int(r["width"])) for r in rows} == {(expected[2], expected[0])}


@pytest.mark.needs_extra("itk")
def test_a_bias_correction_is_done_by_the_build_and_remembered_for_prediction(raw, built):
  plain, corrected = built(), built(bias_correction="n4")
  report = build_samples.report_of(corrected)
  assert report["options"]["bias_correction"] == "n4"
  assert plain.data_path != corrected.data_path
  source = dataset_source.open_dataset(None, corrected.data_path)
  facts = run_setup._dataset_facts(source, "label", None, np.ones((1, 2)))
  # A run reads its recipe back from config.json, and cuts scans by it.
  recipe = DatasetFacts.from_json(facts.to_json()).recipe
  assert recipe == SliceRecipe.of_report(report) and recipe.bias_correction == "n4"
  case = next(case for case in corrected.inspect_source(raw).cases if case.labelled)
  cut = recipe.cut(*scan_files.read_stored(case.files["image"]))
  stored = {
      int(example["slice_index"]): example["image"][..., 0]
      for split in corrected.info.splits
      for example in tfds.as_numpy(corrected.as_dataset(split=split))
      if example["volume"].decode() == case.volume
  }
  assert len(stored) == cut.slices.pixels.shape[2]
  for index, image in stored.items():
    np.testing.assert_array_equal(image, cut.slices.pixels[:, :, index])


def test_resampling_keeps_positions_and_picks_labels():
  ramp = np.tile(np.arange(4.0)[:, None, None], (1, 2, 3))  # Rises along rows, 2 mm apart.
  label = (ramp > 1.5).astype(np.uint8)
  fine, fine_label = slicing.isotropic(Slices(ramp, (2.0, 1.0), 1.0), label, 1.0, "scan")
  assert fine.pixels.shape == (8, 2, 3)
  # Centres of 1 mm voxels lie a quarter of a 2 mm voxel beside the old centres.
  np.testing.assert_allclose(
      fine.pixels[:, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)
  np.testing.assert_array_equal(fine_label[:, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
  assert fine.spacing_mm == (1.0, 1.0) and fine.slice_spacing_mm == 1.0


def test_a_scan_without_spacing_cannot_be_made_isotropic():
  slices = Slices(np.zeros((2, 2, 2)), (np.nan, np.nan), np.nan)
  with pytest.raises(InputError, match=r"scan\.nii: isotropic_mm needs"):
    slicing.isotropic(slices, None, 1.0, "scan.nii")


def test_a_name_tells_the_options_and_an_option_without_effect_changes_nothing():
  builder = catalog.builder(HIPPOCAMPUS, "/none", options={"window": (0, 80.5), "plane": "axial"})
  assert builder.builder_config.name == "slices-plane_axial-window_0_80.5"
  same = catalog.builder(HIPPOCAMPUS, "/none", options={"empty_slices": "keep"})
  assert same.builder_config.name == "slices"


def test_options_of_a_known_config_are_that_config(tmp_path):
  for dataset, options, config in (
      (HIPPOCAMPUS, {"two_classes": True}, "left_right"),
      ("ms_lesion_mri", {"modality": "flair", "form": "volumes"}, "flair_volumes"),
      ("brain_ich_ct", {"form": "volumes"}, "volumes"),
  ):
    builder = catalog.builder(dataset, tmp_path, options=options)
    assert builder.builder_config.name == config


def test_a_share_is_a_number_in_the_report_however_it_was_given():
  for given in (0.5, "0.5", "0.50"):
    assert RecordOptions(empty_slices=given).changed() == {"empty_slices": 0.5}
  assert RecordOptions(empty_slices="drop").changed() == {"empty_slices": "drop"}
  assert RecordOptions().changed() == {}


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_catalog_knows_the_options_of_each_builder(name):
  assert catalog.builder_class(name).builder_config_cls.OPTIONS is catalog.OPTIONS[name]


def test_an_unknown_option_gets_its_nearest_spelling():
  with pytest.raises(InputError, match="empty_slices"):
    catalog.builder(HIPPOCAMPUS, "/none", options={"empty_slice": "drop"})


@pytest.mark.parametrize(
    "options", [
        {"plane": "diagonal"}, {"empty_slices": 1.5}, {"empty_slices": "none"},
        {"min_foreground_pixels": -1}, {"window": (5, 1)}, {"window": (1,)},
        {"isotropic_mm": 0}, {"form": "cubes"}, {"form": "volumes", "plane": "axial"},
        {"bias_correction": "n3"}, {"bias_correction": "n4", "form": "volumes"},
        {"bias_correction": "n4", "window": (0, 80)},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
  with pytest.raises(InputError):
    VolumeOptions(**options)


def test_a_config_can_be_given_as_json_as_the_tfds_command_does():
  chosen = catalog.builder_class(HIPPOCAMPUS)
  config = chosen.builder_config_cls(
      **{"name": "bright", "window": [0, 80], "empty_slices": 0.5, "two_classes": True})
  builder = chosen(data_dir="/none", config=config)
  assert builder.label_scheme().num_classes == 3
  assert builder.active_intensity().high == 80


def test_split_options_can_be_given_as_json_too(raw, tmp_path):
  chosen = catalog.builder_class(HIPPOCAMPUS)
  config = chosen.builder_config_cls(
      **{"name": "held", "split_shares": [50, 25, 25], "split_seed": 2})
  builder = chosen(data_dir=str(tmp_path), config=config)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
  report = build_samples.report_of(builder)
  assert report["split_options"] == {"split_shares": [0.5, 0.25, 0.25], "split_seed": 2}
  assert report["split_asked"] == {"train": 0.5, "validation": 0.25, "test": 0.25}
  assert report["options"] == {}


def test_split_options_leave_a_config_its_name():
  builder = catalog.builder(HIPPOCAMPUS, "/none", options={"split_seed": 1, "plane": "axial"})
  assert builder.builder_config.name == "slices-plane_axial"
  assert builder.split_options.split_seed == 1


def test_labels_can_decide_on_the_strata_and_the_records_hold_the_folds(tmp_path):
  raw = build_samples.raw_folder(HIPPOCAMPUS, tmp_path / "raw", subjects=12)
  builder = build_samples.build(
      HIPPOCAMPUS, raw, tmp_path / "out", options={"stratify": "foreground"})
  assert builder.builder_config.name == "slices"
  assert build_samples.report_of(builder)["split_options"] == {"stratify": "foreground"}
  folder = pathlib.Path(builder.data_path)
  listed = json.loads((folder / "splits.json").read_text())["subjects"]
  strata = [entry["stratum"].split()[-1] for entry in listed.values()]
  assert {name: strata.count(name) for name in strata} == {"little": 4, "some": 4, "much": 4}
  for row, record in built_dataset.open_folder(folder).records():
    assert int(row["fold"]) == record["fold"]
    if row["split"] != "unlabeled":
      entry = listed[record["subject"]]
      assert (entry["split"], entry["fold"]) == (row["split"], record["fold"])
