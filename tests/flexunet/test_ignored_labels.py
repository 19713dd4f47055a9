"""Pixels with an ignored label count neither in records' classes, nor in loss, nor in scores."""

import dataclasses

import build_samples
import flagged
import nibabel as nib
import numpy as np
import pytest
import scan_folders
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.evaluation import labelled_volumes, split_scores
from flexunet.imaging.clean_up import CleanUp
from flexunet.imaging.label_scheme import IGNORED, LabelScheme
from flexunet.pipelines import foreground_boxes, readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.tools import verify_records

FLAGS = ("--batch_size=4", "--epochs=1", "--num_layers=2", "--base_filters=4", "--previews=0",
         "--precision=float32")  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  raw = tmp_path_factory.mktemp("ignored") / "raw"
  labels = {"background": 0, "front": 1, "back": 2, "ignore": 9}
  folder = scan_folders.nnunet(raw, labels=labels)
  for path in folder.glob("labelsTr/*"):
    label = np.asanyarray(nib.load(path).dataobj).copy()
    label[:2] = 9  # Two of ten columns, over all rows and slices.
    scan_folders.save(label, path)
  out = tmp_path_factory.mktemp("built")
  for config_name in ("slices", "volumes"):
    build_samples.build(f"scan_label/{config_name}", raw, out)
  return out


def setup(data_dir, *given, form="slices"):
  return flagged.setup(data_dir, f"--dataset=scan_label/{form}", *FLAGS, *given)


def test_the_scheme_says_that_there_are_ignored_pixels():
  scheme = dataclasses.replace(LabelScheme.from_names(["background", "a"]), ignores=True)
  assert LabelScheme.from_json(scheme.to_json()) == scheme
  label = np.array([[0, 1, IGNORED]], np.uint8)
  assert scheme.count(label).tolist() == [1, 1]
  assert scheme.without_ignored(label).tolist() == [[0, 1, 0]]
  assert scheme.colorize(label)[0, 2].tolist() == [128, 128, 128]
  with pytest.raises(InputError, match="none called 'ignore'"):
    dataclasses.replace(LabelScheme.from_names(["background", "ignore"]), ignores=True)


def test_records_keep_them_and_the_table_does_not_count_them(data_dir):
  dataset = dataset_folders.find_one(data_dir / "scan_label" / "slices")
  assert dataset.scheme.names == ["background", "front", "back"] and dataset.scheme.ignores
  for row, example in dataset.records():
    label = example["label"][..., 0]
    assert (label == IGNORED).sum() == 2 * 12
    counted = [int(row[f"pixels_{name}"]) for name in dataset.scheme.names]
    assert counted == [int((label == n).sum()) for n in range(3)]
  assert verify_records.verify(dataset).problems == []


@pytest.mark.parametrize("form", ["slices", "volumes"])
@pytest.mark.parametrize("given", [(), ("--augmentation=default", "--augment_on=device"),
                                   ("--cache=device",)])  # fmt: skip
def test_they_weigh_nothing_in_training(data_dir, given, form):
  run = setup(data_dir, *given, form=form)
  batch = next(iter(run.streams.training(run.order, 0, 1)))
  _, label, weight = (np.asarray(part) for part in run.streams.finished(batch))
  assert weight.shape == label.shape and label.max() <= 2
  # Two of ten columns before the border and the augmentation.
  assert 0.05 < (weight == 0).mean() < 0.35
  assert (label[weight == 0] == 0).all()


@pytest.mark.parametrize("loss", ["dice_cross_entropy", "focal", "tversky"])
def test_the_loss_does_not_depend_on_what_is_predicted_there(data_dir, loss):
  run = setup(data_dir, f"--loss={loss}")
  _, label, weight = next(iter(run.streams.training(run.order, 0, 1)))
  own = run.network.output_loss
  answers = np.random.default_rng(0).normal(size=(*label.shape, 3)).astype(np.float32)
  other = answers + 9.0 * (np.asarray(weight) == 0)[..., None] * np.array([0, 1, 0], np.float32)
  first, second = (float(own(label, tf.constant(one), weight)) for one in (answers, other))
  assert first == pytest.approx(second, rel=1e-5)
  assert first != pytest.approx(float(own(label, tf.constant(other))), rel=1e-3)


def test_scores_do_not_count_them(data_dir):
  source = open_dataset("scan_label/slices", data_dir)
  table = readers.slice_table(source, "train")
  truth = {v.volume: v for v in labelled_volumes.read_volumes(source, table)}
  assert all(one.labels[0].max() <= 2 and one.ignored[0].sum() == 24 for one in truth.values())

  class Guess:
    """Answers the truth, and the first class wherever a pixel is ignored."""

    clean_up = CleanUp()

    def __init__(self):
      self.volumes = iter(truth.values())

    def probabilities(self, images, spacing_mm=None):
      volume = next(self.volumes)
      for label, ignored in zip(volume.labels, volume.ignored, strict=True):
        yield np.eye(3, dtype=np.float32)[np.where(ignored, 1, label)]

  scores = split_scores.score_split(
      source, table, Guess(), source.label_scheme().names, split="train", tolerances_mm=(1.0,),
      show_progress=False,
  )  # fmt: skip
  assert {row["dice"] for row in scores.rows} == {1.0}
  assert scores.voxel_figures["published"]["pixel_accuracy"] == 1.0


def test_cropping_does_not_take_them_for_labels(data_dir):
  source = open_dataset("scan_label/slices", data_dir)
  result = foreground_boxes.crop_tables(source, [readers.slice_table(source, "train")])
  table = readers.slice_table(source, "train")
  assert result.labelled_pixels == int(table.pixels[:, 1:].sum())


def test_a_given_id_is_ignored_without_a_name(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  builder = build_samples.build("scan_label", root, tmp_path / "out", options={"ignore_label": 2})
  report = build_samples.report_of(builder)
  assert [entry["name"] for entry in report["label_scheme"]] == ["background", "class_1", "ignore"]
  assert "2 is not counted" in report["choices"]["classes"]
