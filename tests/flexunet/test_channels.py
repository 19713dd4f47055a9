"""A dataset of several channels, from its records to previews and predicted scans."""

import json
import shutil

import build_samples
import flagged
import nibabel as nib
import numpy as np
import pytest
import scan_folders
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.dataset_facts import DatasetFacts
from flexunet.evaluation import evaluate, labelled_volumes
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.prediction import files as prediction_files
from flexunet.prediction import predictor as predictors
from flexunet.prediction import scan_volumes, scans
from flexunet.prediction.outputs import Outputs
from flexunet.reporting import overlay

FLAGS = ("--batch_size=4", "--epochs=1", "--num_layers=2", "--base_filters=4", "--previews=0",
         "--precision=float32")  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("channels") / "raw"
  scan_folders.nnunet(folder, channels=("FLAIR", "T1"), count=6)
  # Otherwise both channels would be equal after their windows.
  for path in folder.rglob("*_0001.nii.gz"):
    image = nib.load(path)
    scan_folders.save(255 - np.asanyarray(image.dataobj), path)
  return folder


@pytest.fixture(scope="module")
def data_dir(raw, tmp_path_factory):
  out = tmp_path_factory.mktemp("built")
  for config_name in ("slices", "volumes"):
    build_samples.build(f"scan_label/{config_name}", raw, out)
  return out


def setup(data_dir, *given, form="slices"):
  return flagged.setup(data_dir, f"--dataset=scan_label/{form}", *FLAGS, *given)


@pytest.mark.parametrize("form", ["slices", "volumes"])
def test_every_channel_reaches_the_network(data_dir, form):
  run = setup(data_dir, form=form)
  assert run.config.model.image_channels == 2
  assert run.config.dataset_facts.channel_names == ("FLAIR", "T1")
  assert run.network.input_shape[-1] == 2
  image, _ = run.first_batch()
  assert image.shape[-1] == 2
  # One channel is the negative of the other, up to rounding by its own window.
  inside = (image[..., 0] > 20) & (image[..., 0] < 235)
  assert np.corrcoef(image[..., 0][inside], image[..., 1][inside])[0, 1] < -0.99


def test_whole_volumes_give_the_channels_of_their_slices(data_dir):
  found = []
  for form in ("slices", "volumes"):
    source = open_dataset(f"scan_label/{form}", data_dir)
    table = readers.slice_table(source, "train")
    found.append({
        volume.volume: np.stack(volume.images)
        for volume in labelled_volumes.read_volumes(source, table)
    })
  assert found[0].keys() == found[1].keys() and found[0]
  for name, images in found[0].items():
    assert images.shape == (6, 12, 10, 2)
    np.testing.assert_array_equal(images, found[1][name])


def test_grey_values_change_channel_by_channel_and_geometry_does_not(data_dir):
  run = setup(data_dir, "--augmentation=none", "--brightness_probability=1", "--augment_on=host")
  changed, _ = run.first_batch()
  plain, _ = setup(data_dir, "--augmentation=none").first_batch()
  gains = [changed[..., n].mean() / plain[..., n].mean() for n in (0, 1)]
  assert abs(gains[0] - gains[1]) > 1e-3
  turned, _ = setup(
      data_dir, "--augmentation=none", "--flip_horizontal_probability=1"
  ).first_batch()
  np.testing.assert_array_equal(turned, plain[:, :, ::-1])


def test_the_channels_decide_what_other_flags_may_say(data_dir):
  for flag, words in (
      ("--image_channels=3", "--image_channels must be 2, the channels FLAIR, T1"),
      ("--context_slices=1", "--context_slices is of datasets of one channel"),
      ("--shown_channel=T2", "Unknown channel of --shown_channel 'T2'"),
      ("--image_key=image_2", "--image_key is for datasets built elsewhere"),
  ):
    with pytest.raises(InputError, match=words):
      setup(data_dir, flag)


def test_the_shown_channel_is_the_first_or_the_one_named(data_dir):
  assert setup(data_dir).config.shown_channel == 0
  assert setup(data_dir, "--shown_channel=T1").config.shown_channel == 1
  image = np.stack([np.full((2, 3), 10, np.uint8), np.full((2, 3), 30, np.uint8)], axis=-1)
  assert overlay.grey_of(image, 1).tolist() == [[30] * 3] * 2
  assert overlay.grey_of(image).tolist() == [[20] * 3] * 2


def test_a_run_remembers_what_its_channels_need(data_dir):
  facts = setup(data_dir).config.dataset_facts
  assert DatasetFacts.from_json(facts.to_json()) == facts
  assert len(facts.other_intensities) == 1 and facts.recipe.other_intensities


def test_a_scan_is_predicted_from_a_file_for_each_channel(data_dir, raw):
  run = setup(data_dir)
  paths = sorted(raw.rglob("case_1000_000?.nii.gz"))
  predictor = predictors.Predictor(run.network, run.config)
  found = scan_volumes.predict_scan(predictor, run.config, paths[0], paths[1:])
  assert found.label.shape == scan_folders.SHAPE
  source = open_dataset("scan_label/slices", data_dir)
  for split in source.splits:
    for volume in labelled_volumes.read_volumes(source, readers.slice_table(source, split)):
      if volume.volume == "case_1000":
        np.testing.assert_array_equal(
            np.stack(predictor.labels(volume.images), axis=-1), found.label_slices
        )
  with pytest.raises(InputError, match="must have 2 channels. Got: 1"):
    scan_volumes.predict_scan(predictor, run.config, paths[0])


def test_a_folder_of_numbered_channels_gives_one_label_a_case(data_dir, raw, tmp_path):
  run = setup(data_dir)
  predictor = predictors.Predictor(run.network, run.config)
  folder = tmp_path / "imagesTs"
  folder.mkdir()
  for path in raw.rglob("case_100[01]_000?.nii.gz"):
    shutil.copy(path, folder)
  outputs = Outputs(folder=tmp_path / "out")
  found = prediction_files.predict_path(
      folder, predictor, run.config, outputs, show_progress=False
  )
  assert (found.predicted, found.failures) == (2, [])
  labels = sorted((tmp_path / "out").rglob("*_label.nii.gz"))
  assert len(labels) == 2
  paths = sorted(raw.rglob("case_1000_000?.nii.gz"))
  whole = scan_volumes.predict_scan(predictor, run.config, paths[0], paths[1:])
  np.testing.assert_array_equal(np.asanyarray(nib.load(labels[0]).dataobj), whole.label)


def stacked(raw, folder, order=(0, 1)):
  """Writes cases 1000 and 1001 as files of four axes and returns the folder."""
  for case in ("case_1000", "case_1001"):
    paths = sorted(raw.rglob(f"{case}_000?.nii.gz"))
    channels = [np.asanyarray(nib.load(paths[number]).dataobj) for number in order]
    scan_folders.save(np.stack(channels, axis=-1), folder / f"{case}.nii.gz")
  return folder


def labels_of(run, path, out):
  """Returns {file name: image} of the labels that are predicted, without a failure."""
  found = prediction_files.predict_path(
      path, predictors.Predictor(run.network, run.config), run.config,
      Outputs(folder=out, probabilities=True), show_progress=False,
  )  # fmt: skip
  assert found.failures == []
  return {label.name: nib.load(label) for label in sorted(out.rglob("*_label.nii.gz"))}


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0)])
def test_channels_of_one_file_are_predicted_as_a_file_each(data_dir, raw, tmp_path, order):
  run = setup(data_dir)
  folder = stacked(raw, tmp_path / "Task" / "imagesTs", order)
  if order != (0, 1):  # Names decide, where dataset.json has one for each volume.
    names = {0: "T1", 1: "FLAIR"} if len(order) == 2 else {0: "T1", 1: "PD", 2: "FLAIR"}
    (tmp_path / "Task" / "dataset.json").write_text(json.dumps({"modality": names}))
  found = labels_of(run, folder, tmp_path / "out")
  assert list(found) == ["case_1000_label.nii.gz", "case_1001_label.nii.gz"]
  direct = labels_of(run, folder / "case_1000.nii.gz", tmp_path / "direct")
  paths = sorted(raw.rglob("case_1000_000?.nii.gz"))
  predictor = predictors.Predictor(run.network, run.config)
  wanted = scan_volumes.predict_scan(predictor, run.config, paths[0], paths[1:]).label
  for label in (found["case_1000_label.nii.gz"], direct["case_1000_label.nii.gz"]):
    assert label.shape == scan_folders.SHAPE and label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.affine, nib.load(paths[0]).affine)
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), wanted)


def test_a_file_of_other_channels_than_the_run_is_refused(data_dir, raw, tmp_path):
  run = setup(data_dir)
  folder = stacked(raw, tmp_path / "in", (0, 1, 1))
  for path, words in ((folder / "case_1000.nii.gz", "It has 3 volumes"), (folder, "none of the")):
    with pytest.raises(InputError, match=f"FLAIR, T1.*{words}|{words}.*FLAIR, T1"):
      labels_of(run, path, tmp_path / "out")
  scan_folders.save(np.stack([scan_folders.voxels(1)] * 2, axis=-1), tmp_path / "one" / "a.nii")
  found = scans.find(tmp_path / "one", tmp_path / "out", volumes_first=True)
  assert found.scans[0].components == ()  # A run of one channel takes it for a series,
  with pytest.raises(InputError, match="Split the series"):  # which reading refuses.
    scan_volumes.predict_scan(
        predictors.Predictor(run.network, run.config), run.config, found.scans[0].path
    )


def test_a_fourth_axis_is_channels_only_for_a_run_of_as_many(data_dir, raw, tmp_path):
  run = setup(data_dir)
  names = run.config.dataset_facts.channel_names
  path = stacked(raw, tmp_path / "in") / "case_1000.nii.gz"
  assert scans.components_of(path, names) == (0, 1)
  assert scans.components_of(path, names[:1]) == ()
  assert scans.components_of(next(iter(raw.rglob("case_1000_0000.nii.gz"))), names) == ()


def test_a_run_is_not_scored_on_other_channels(data_dir, tmp_path):
  raw = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T2"))
  build_samples.build("scan_label", raw, tmp_path / "out")
  source = open_dataset("scan_label/slices", tmp_path / "out")
  with pytest.raises(InputError, match="channels of the run, FLAIR, T1. It has FLAIR, T2"):
    evaluate.check_data(source, setup(data_dir).config, ["test"], allow_other_data=True)


def test_the_records_of_a_channel_are_read_by_any_tfds_reader(data_dir):
  source = open_dataset("scan_label/slices", data_dir)
  assert source.image_keys("image") == ("image", "image_2")
  reader = readers.native_reader(source, readers.slice_table(source, "train"), "image", "label")
  assert reader(tf.constant(0, tf.int64))["image"].shape == (12, 10, 2)
