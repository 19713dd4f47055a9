"""Few examples are kept of many volumes, and they survive their file."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet.evaluation import examples
from flexunet.evaluation.labelled_volumes import LabelledVolume


def example(dice: float) -> examples.Example:
  rows = [run_samples.row(f"S{dice}", name, dice) for name in run_samples.NAMES]
  return run_samples._example(rows, np.random.default_rng(0))


def test_the_worst_and_the_best_are_kept_in_any_order_of_coming():
  keeper = examples.ExampleKeeper()
  for hundredth in np.random.default_rng(1).permutation(30):
    keeper.offer(example(hundredth / 100))
  chosen = keeper.chosen()
  assert [kept.foreground_dice for kept in chosen if kept.side == "worst"] == [0, 0.01, 0.02, 0.03]
  best = [kept.foreground_dice for kept in chosen if kept.side == "best"]
  assert best == [0.29, 0.28, 0.27, 0.26]


def test_among_few_volumes_none_is_shown_twice():
  keeper = examples.ExampleKeeper()
  for dice in (0.5, 0.9, 0.7):
    keeper.offer(example(dice))
  assert [(kept.foreground_dice, kept.side) for kept in keeper.chosen()] == [
      (0.5, "worst"), (0.9, "best"), (0.7, "best"),
  ]  # fmt: skip


def test_a_volume_without_a_dice_is_no_example():
  keeper = examples.ExampleKeeper()
  keeper.offer(dataclasses.replace(example(0.5), foreground_dice=float("nan")))
  assert keeper.chosen() == []


def test_examples_come_back_from_their_file(tmp_path):
  written = [dataclasses.replace(example(0.25), side="worst"), example(0.75)]
  examples.write(tmp_path / "examples_test.npz", written)
  found = examples.read(tmp_path / "examples_test.npz")
  for before, after in zip(written, found, strict=True):
    for name in ("subject", "volume", "foreground_dice", "dice", "aspect", "side"):
      assert getattr(before, name) == getattr(after, name), name
    for own, other in zip(before.slices, after.slices, strict=True):
      for field in dataclasses.fields(own):
        assert np.array_equal(getattr(own, field.name), getattr(other, field.name)), field.name


def labelled(truth: list, shown_index: int = 5) -> LabelledVolume:
  """Returns a volume of slices with these labels; its first slice has a number of its own."""
  labels = [np.array(label, np.uint8) for label in truth]
  images = [np.zeros((*label.shape, 1), np.uint8) for label in labels]
  numbers = list(range(shown_index, shown_index + len(labels)))
  return LabelledVolume("S", "V", numbers, images, labels, (2.0, 1.0), 1.0)


def test_the_slice_with_most_error_stands_beside_that_with_most_truth():
  volume = labelled([[[1, 1, 1, 0]], [[1, 0, 0, 0]], [[0, 0, 0, 0]]])
  # Wrong pixels: 1, 3, 2.
  found = [np.array(one, np.uint8) for one in ([[1, 1, 0, 0]], [[0, 1, 1, 0]], [[1, 1, 0, 0]])]
  made = examples.example_of(volume, found, [run_samples.row("S", "lesion", 0.5)], None)
  assert [(one.slice_index, one.most_truth, one.most_error) for one in made.slices] == [
      (5, True, False), (6, False, True),
  ]  # fmt: skip
  assert [one.wrong_pixels for one in made.slices] == [1, 3]
  assert made.aspect == 2.0


def test_a_slice_with_most_truth_and_most_error_is_shown_once():
  volume = labelled([[[1, 1, 0]], [[0, 1, 0]]])
  found = [np.zeros((1, 3), np.uint8), np.array([[0, 1, 0]], np.uint8)]
  (shown,) = examples.example_of(volume, found, [run_samples.row("S", "a", 0.5)], None).slices
  assert (shown.slice_index, shown.most_truth, shown.most_error) == (5, True, True)


def test_without_truth_the_slice_with_most_prediction_is_shown():
  volume = labelled([[[0, 0, 0]], [[0, 0, 0]]])
  found = [np.array(one, np.uint8) for one in ([[1, 0, 0]], [[1, 1, 0]])]
  (shown,) = examples.example_of(volume, found, [run_samples.row("S", "a", 0.0)], None).slices
  assert shown.slice_index == 6


def test_of_the_best_only_the_slice_with_most_truth_is_kept():
  keeper = examples.ExampleKeeper()
  for dice in (0.5, 0.9):
    keeper.offer(example(dice))
  assert [(kept.side, len(kept.slices)) for kept in keeper.chosen()] == [("worst", 2), ("best", 1)]


def test_no_file_holds_no_examples(tmp_path):
  assert examples.read(tmp_path / "none.npz") == []


def test_a_dice_that_is_not_a_number_is_refused_by_the_file(tmp_path):
  wrong = dataclasses.replace(example(0.5), aspect=float("nan"))
  with pytest.raises(ValueError, match="not JSON compliant"):
    examples.write(tmp_path / "examples.npz", [wrong])
