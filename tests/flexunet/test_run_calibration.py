"""`calibration.json` is read as it was written, and refused when damaged or of another network."""

import json

import numpy as np
import pytest

from flexunet import run_calibration, run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation.conformal import Margins, Scores, VolumeRatios
from flexunet.prediction.opening import PredictionOptions
from flexunet.run_calibration import RunCalibration


def learnt(sha256="abc", temperature=1.5) -> RunCalibration:
  own = Scores(("s1", "s2"), np.array([1.0, np.inf]))
  return RunCalibration(
      learnt_on={"split": "validation", "subjects": ["s1", "s2"], "model_sha256": sha256},
      temperature=None if temperature is None else {"temperature": temperature},
      clean_up=None,
      margins=Margins("mm", "3d", 1.0, {"a": own}),
      volume_ratios=VolumeRatios({"a": Scores(("s1",), np.array([[-0.1, 0.2]]))}),
  )


@pytest.fixture
def run(tmp_path):
  made = run_folder.RunFolder(tmp_path)
  files.write_json(made.manifest_json, {"model_sha256": ["abc"]})
  return made


def test_what_is_written_is_read(run):
  assert run_calibration.read(run) is None and run_calibration.temperature_of(run) == 1.0
  run_calibration.write(run.path, learnt())
  assert run_calibration.temperature_of(run) == 1.5
  assert run_calibration.read(run).to_json() == learnt().to_json()
  values = json.loads(run.calibration_json.read_text())
  assert set(values) == {"form", "learnt_on", "temperature", "conformal", "volume_interval"}


def test_that_of_another_network_is_refused(run):
  run_calibration.write(run.path, learnt(sha256="other"))
  with pytest.raises(InputError, match="learnt with another network.*flexunet calibrate again"):
    run_calibration.read(run)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("temperature", "temperature"), 0.0),
        (("temperature", "temperature"), "warm"),
        (("conformal", "unit"), "inch"),
        (("conformal", "classes", "a", "margins"), [1.0]),
        (("conformal", "classes", "a", "margins"), [-1.0, 2.0]),
        (("volume_interval", "classes", "a", "log_ratios"), [[0.1]]),
        (("volume_interval", "classes"), None),
        (("learnt_on",), 3),
        (("form",), 99),
        (("conformal",), None),
    ],
)
def test_a_damaged_file_ends_in_one_line_that_names_it(run, part, value):
  values = learnt().to_json()
  at = values
  for key in part[:-1]:
    at = at[key]
  at[part[-1]] = value
  run.calibration_json.write_text(json.dumps(values))
  with pytest.raises(InputError) as caught:
    run_calibration.read(run)
  text = str(caught.value)
  assert str(run.calibration_json) in text and "\n" not in text
  assert "--nocalibrated --noclean_up" in text


def test_half_a_file_is_refused(run):
  run_calibration.write(run.path, learnt())
  run.calibration_json.write_bytes(run.calibration_json.read_bytes()[:100])
  with pytest.raises(InputError, match="must be readable JSON"):
    run_calibration.read(run)


def test_that_of_a_cross_validation_belongs_to_all_its_networks(tmp_path):
  members = {name: run_folder.RunFolder(tmp_path / name) for name in ("fold_0", "fold_1")}
  for name, member in members.items():
    files.write_json(member.manifest_json, {"model_sha256": [name]})
  assert run_calibration.read_folds(tmp_path, members) is None
  hashes = {name: name for name in members}
  run_calibration.write(tmp_path, learnt(sha256=hashes, temperature=None))
  assert run_calibration.read_folds(tmp_path, members).scale == 1.0
  run_calibration.write(tmp_path, learnt(sha256={**hashes, "fold_1": "new"}, temperature=None))
  with pytest.raises(InputError, match="other networks than those of its folds"):
    run_calibration.read_folds(tmp_path, members)


def test_what_the_error_names_leaves_the_file_aside(run):
  run_calibration.write(run.path, learnt(sha256="that of another network"))
  for options in (PredictionOptions(), PredictionOptions(calibrated=False)):
    with pytest.raises(InputError, match="another network"):
      options.temperature(run)
      options.clean_up_of(run, ["background", "a"])
  aside = PredictionOptions(calibrated=False, clean_up=False)
  assert aside.temperature(run) == 1.0
  assert not aside.clean_up_of(run, ["background", "a"])
