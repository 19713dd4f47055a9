"""Few examples are kept of many volumes, and they survive their file."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet.evaluation import examples


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
    for field in dataclasses.fields(before):
      assert np.array_equal(getattr(before, field.name), getattr(after, field.name)), field.name


def test_no_file_holds_no_examples(tmp_path):
  assert examples.read(tmp_path / "none.npz") == []


def test_a_dice_that_is_not_a_number_is_refused_by_the_file(tmp_path):
  wrong = dataclasses.replace(example(0.5), aspect=float("nan"))
  with pytest.raises(ValueError, match="not JSON compliant"):
    examples.write(tmp_path / "examples.npz", [wrong])
