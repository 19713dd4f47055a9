"""The dataset report names subjects whose brightness no training subject has."""

import types

import numpy as np

from flexunet.tools.dataset_report import brightness

NAMES = ["background", "organ", "lesion"]


def dataset(*splits):
  return types.SimpleNamespace(
      splits=dict.fromkeys(splits), scheme=types.SimpleNamespace(names=NAMES)
  )


def totals(**subjects):
  """Returns the totals of subjects named SPLIT_NAME=(organ's mean, lesion's mean or None)."""
  found = {}
  for name, values in subjects.items():
    split, subject = name.split("_")
    pixels = [1000, *(0 if value is None else 50 for value in values)]
    sums = [0, *(0 if value is None else 50 * value for value in values)]
    found[split, subject] = np.array([pixels, sums]).T
  return found


TRAINING = {"train_a": (80, 200), "train_b": (120, 200), "train_c": (160, 200)}
SPREAD = np.std([80, 120, 160])  # 32.7


def test_a_subject_further_out_than_the_spread_of_training_is_named_with_its_figure():
  found = brightness.outside_of_training(
      dataset("train", "validation", "test"),
      totals(**TRAINING, test_far=(40, 200), test_near=(161, 200), validation_in=(125, 200)),
  )
  (sentence,) = found
  assert sentence.startswith("test: organ is darker or brighter in 1 of 2 subjects")
  assert "80 to 160: far (40)." in sentence


def is_named(mean, training):
  found = totals(**training)
  found["test", "x"] = np.array([[0, 0], [10_000, round(10_000 * mean)], [0, 0]])
  return bool(brightness.outside_of_training(dataset("train", "test"), found))


def test_the_margin_is_the_standard_deviation_of_the_training_subjects():
  for mean, named in ((160 + SPREAD + 0.1, True), (160 + SPREAD - 0.1, False)):
    assert is_named(mean, TRAINING) == named
  # Where these are alike, 25 of 255: 100 to 110 differ by 4.1.
  alike = {"train_a": (100, 200), "train_b": (105, 200), "train_c": (110, 200)}
  assert is_named(74.9, alike) and not is_named(75.1, alike)


def test_classes_that_a_subject_lacks_and_few_training_subjects_say_nothing():
  lacks = totals(**TRAINING, test_x=(110, None))
  assert brightness.outside_of_training(dataset("train", "test"), lacks) == []
  two = totals(train_a=(100, 200), train_b=(110, 200), test_x=(10, 20))
  assert brightness.outside_of_training(dataset("train", "test"), two) == []
  unlabeled = totals(**TRAINING, unlabeled_x=(10, 20))
  assert brightness.outside_of_training(dataset("train", "unlabeled"), unlabeled) == []


def test_a_few_pixels_have_no_mean():
  assert np.isnan(brightness.means(np.array([[19, 1900]]))).all()
  assert brightness.means(np.array([[20, 2000]])).tolist() == [100]


def test_many_subjects_are_counted():
  many = totals(**TRAINING, **{f"test_s{n}": (10 + n, 200) for n in range(7)})
  (sentence,) = brightness.outside_of_training(dataset("train", "test"), many)
  assert "in 7 of 7 subjects" in sentence and "s4 (14) and 2 more." in sentence
