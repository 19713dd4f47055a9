"""The confusion matrix is the count of pairs."""

import math

import numpy as np

from flexunet.evaluation.confusion import ConfusionMatrix


def test_pixels_are_counted_by_truth_and_prediction():
  matrix = ConfusionMatrix(["background", "one", "two"])
  random = np.random.default_rng(2)
  pairs = [random.integers(0, 2, (2, 5, 7)).astype(np.uint8) for _ in range(3)]
  for truth, predicted in pairs:
    matrix.add(truth, predicted * 2)
  figures = matrix.figures()
  for true in range(3):
    for found in range(3):
      expected = sum(
          int(t == true and 2 * p == found)
          for truth, predicted in pairs
          for t, p in zip(truth.flat, predicted.flat, strict=True)
      )
      assert figures["pixels"][true][found] == expected
  assert figures["classes"] == ["background", "one", "two"]
  row = figures["pixels"][1]
  assert figures["shares"][1] == [count / sum(row) for count in row]
  assert all(math.isnan(share) for share in figures["shares"][2])


def test_ids_up_to_255_do_not_overflow():
  matrix = ConfusionMatrix([str(n) for n in range(256)])
  matrix.add(np.array([255], np.uint8), np.array([254], np.uint8))
  assert matrix.figures()["pixels"][255][254] == 1
