"""Opens the network of a run for prediction, with what the run has learnt of its answers.

Programs and library take the options of prediction here, so that predicting and scoring are the
same by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flexunet import config, run_calibration, run_folder
from flexunet.ensemble_folder import RunSet
from flexunet.imaging.clean_up import CleanUp
from flexunet.prediction import ensemble as ensembles
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.predictor import Predictor, load_model
from flexunet.prediction.test_time import ONE_VIEW, ViewOptions
from flexunet.prediction.tiles import WHERE_NEEDED, TileOptions


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
  """How networks are asked.

  Attributes:
    batch_size: Slices per step.
    views: Test-time augmentation.
    tiles: Which slices are predicted in tiles.
    calibrated: Scales probabilities as `calibration.json` of each run says, where there is one.
    clean_up: Cleans labels up as it says.
  """

  batch_size: int = 8
  views: ViewOptions = ONE_VIEW
  tiles: TileOptions = WHERE_NEEDED
  calibrated: bool = True
  clean_up: bool = True

  def temperature(self, run: run_folder.RunFolder) -> float:
    """Returns the temperature of a run; InputError where its calibration is of another network."""
    return run_calibration.temperature_of(run) if self.calibrated else 1.0

  def clean_up_of(
      self, named: run_folder.RunFolder | RunSet, class_names: Sequence[str]
  ) -> CleanUp:
    """Returns how labels are cleaned up; errors as of `run_calibration.clean_up_of`."""
    return run_calibration.clean_up_of(named, class_names) if self.clean_up else CleanUp()


# Slices as they come, one view, the calibration of the run.
AS_TRAINED = PredictionOptions()


def open_run(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    options: PredictionOptions,
    model: Any = None,
) -> Predictor:
  """Returns what predicts with a run.

  Args:
    run: A trained run.
    run_config: Its config.
    options: How it is asked.
    model: Its network; read where None.
  """
  return Predictor(
      load_model(run) if model is None else model,
      run_config,
      batch_size=options.batch_size,
      views=options.views,
      tiles=options.tiles,
      temperature=options.temperature(run),
      clean_up=options.clean_up_of(run, run_config.dataset_facts.label_scheme.names),
  )


def open_runs(runs: RunSet, options: PredictionOptions) -> Ensemble:
  """Returns what predicts with several runs together; their clean-up is what they share."""
  names = runs.configs()[0].dataset_facts.label_scheme.names
  cleaning = options.clean_up_of(runs, names)
  options = dataclasses.replace(options, clean_up=False)
  ensemble = ensembles.of_runs(runs, lambda run, own: open_run(run, own, options))
  ensemble.clean_up = cleaning
  return ensemble
