"""Margins and intervals hold for as many made-up subjects as the theory demands."""

import json

import numpy as np
import pytest

from flexunet import run_calibration
from flexunet.core.errors import InputError
from flexunet.evaluation.conformal import Margins, Scores
from flexunet.run_calibration import RunCalibration
from flexunet.tools.benchmarks import coverage


def check(found):
  for entry in found["levels"]:
    # k of n + 1 exchangeable scores. Distances between voxels are often equal, and both sides of an
    # interval have each their own k: then more are covered, never fewer, but for chance.
    assert entry["demanded"] == pytest.approx(entry["level"], abs=0.001)
    for kind in ("margin", "volume_interval"):
      own = entry[kind]
      assert own["coverage"] > entry["demanded"] - 4 * own["standard_error"]
      assert own["coverage"] < entry["demanded"] + 0.1


def test_a_hundred_draws_of_phantoms_are_covered_and_always_the_same():
  found = coverage.made_up([0.5, 0.8], 100, 19, 150, seed=0)
  assert found["widened_and_looked_at"] == found["subjects"] == 150
  check(found)
  assert found == coverage.made_up([0.5, 0.8], 100, 19, 150, seed=0)


@pytest.mark.slow
def test_a_thousand_draws_of_phantoms_are_covered():
  check(coverage.made_up([0.5, 0.8, 0.9, 0.95], 1000, 19, 400, seed=3))


def test_too_few_calibration_subjects_are_refused():
  with pytest.raises(InputError, match="--level 0.9 takes 9 --calibration_subjects. Got: 5"):
    coverage.made_up([0.9], 10, 5, 20, seed=0)
  with pytest.raises(InputError, match="more than --calibration_subjects"):
    coverage.made_up([0.5], 10, 20, 20, seed=0)


def test_of_a_cross_validation_each_fold_is_judged_by_the_others(tmp_path):
  with pytest.raises(InputError, match="must be a calibrated cross-validation"):
    coverage.of_folds(tmp_path, [0.75])
  own = Scores(tuple("abcdef"), np.array([1, 2, 3, 4, 5, 9.0]), (0, 0, 1, 1, 1, 0))
  run_calibration.write(tmp_path, RunCalibration(
      {"subjects": list("abcdef"), "model_sha256": {}}, None, None,
      Margins("mm", "3d", 1.0, {"a": own}), None, {"levels": []},
  ))  # fmt: skip
  # The bound of fold 1 is 5, which 9 exceeds; that of fold 0 is 9.
  assert coverage.of_folds(tmp_path, [0.75]) == {
      "subjects": 6,
      "levels": [{"level": 0.75, "margin": {"a": {"covered": 5, "subjects": 6}}}],
  }
  json.dumps(coverage.of_folds(tmp_path, [0.75]), allow_nan=False)
