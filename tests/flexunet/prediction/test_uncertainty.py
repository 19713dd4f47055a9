"""Maps of uncertainty: what they hold, and that they lie on their scans."""

import math
import types

import nibabel as nib
import numpy as np
import pytest
import run_samples
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.network import probabilities
from flexunet.pipelines.laterality import Laterality
from flexunet.prediction import files, scans, uncertainty
from flexunet.prediction.ensemble import Ensemble, Member
from flexunet.prediction.outputs import Outputs
from flexunet.prediction.predictor import Predictor

GREYS = np.array([10, 120, 240])
NO_WINDOW = {"kind": "none", "low": 0.0, "high": 255.0}


class Says:
  """A predictor that answers each slice with what it is told."""

  num_classes = 2

  def __init__(self, *foreground):
    self.answers = [np.array([[[1 - p, p]]], np.float32) for p in foreground]

  def prepare(self, slices, spacing_mm=(math.nan, math.nan)):
    return types.SimpleNamespace(scaling=(1.0, 1.0))

  def answer(self, given):
    yield from self.answers


def together(*predictors) -> Ensemble:
  return Ensemble([Member(lambda one=one: one, None, 1.0) for one in predictors], 2)


def recorded(predictor, kind, slices=1):
  recorder = uncertainty.Recorder(predictor, kind)
  list(recorder.probabilities([np.zeros((1, 1), np.uint8)] * slices))
  return recorder.taken()[0, 0].tolist()


def test_entropy_is_0_where_one_class_is_certain_and_1_where_all_are_as_likely():
  # -(0.9 log 0.9 + 0.1 log 0.1) / log 2 = 0.469, of 255 steps 120.
  assert recorded(Says(0.0, 1.0, 0.5, 0.9), "entropy", 4) == [0, 0, 255, 120]
  thirds = np.full((2, 3), 1 / 3, np.float32)
  assert uncertainty.in_steps(probabilities.entropy(thirds), 3).tolist() == [255, 255]


def test_disagreement_is_what_networks_differ_by_not_what_each_is_unsure_of():
  # Sure of opposite classes; both unsure; sure of the same.
  one, other = Says(0.0, 0.5, 1.0), Says(1.0, 0.5, 1.0)
  assert recorded(together(one, other), "disagreement", 3) == [255, 0, 0]
  # Mean 0.5 has entropy 1, those of 0.1 and 0.9 are 0.469: 0.531 of 255 is 135.
  assert recorded(together(Says(0.1), Says(0.9)), "disagreement") == [135]


def test_a_single_run_disagrees_with_itself_on_mirror_images():
  class SidedNetwork(run_samples.BrightnessNetwork):
    """Sees nothing in the left half."""

    def predict_on_batch(self, batch):
      seen = np.array(batch)
      seen[:, :, : seen.shape[2] // 2] = 0
      return super().predict_on_batch(seen)

  settings = run_samples.run_config(image_size=(8, 8))
  plain = Predictor(SidedNetwork(), settings)
  slices = [np.full((8, 8), 120, np.uint8)]
  recorder = uncertainty.Recorder(
      uncertainty.with_mirror_images(plain, _Mirroring(settings, True)), "disagreement"
  )
  (probability,) = recorder.probabilities(slices)
  # Background 0.8 and class 1 0.1 from one, the other way round from the other.
  np.testing.assert_allclose(probability, np.broadcast_to([0.45, 0.45, 0.1], (8, 8, 3)), atol=1e-6)
  assert (recorder.taken() > 50).all()
  with pytest.raises(InputError, match="left and right are classes. Pass --uncertainty=entropy"):
    uncertainty.prepared("disagreement", plain, _Mirroring(settings, False))


class _Mirroring:
  """The config of a run, with another decision on mirror images."""

  def __init__(self, settings, mirroring):
    self.laterality = Laterality(mirroring, "left and right are classes")
    self.dataset_facts = settings.dataset_facts


def test_the_map_of_a_scan_lies_voxel_by_voxel_on_it(tmp_path):
  label = np.random.default_rng(5).integers(0, 3, (7, 9, 5)).astype(np.uint8)
  affine = np.array([[0, -1.5, 0, 3], [0, 0, 2, -4], [0.7, 0, 0, 5], [0, 0, 0, 1]])
  nib.save(nib.Nifti1Image(GREYS[label].astype(np.int16), affine), tmp_path / "scan.nii.gz")

  class Doubtful(run_samples.BrightnessNetwork):
    """Is the less certain the brighter a pixel is."""

    def predict_on_batch(self, batch):
      grey = np.asarray(batch, np.float32).mean(axis=-1, keepdims=True) / 255 / 2
      return np.concatenate([1 - grey, grey, grey * 0], axis=-1)

  settings = run_samples.with_facts(
      run_samples.run_config(), intensity=NO_WINDOW, spacing_mm=None
  )
  out = tmp_path / "out"
  found = scans.find(tmp_path / "scan.nii.gz", out, volumes_first=True)
  outcome = files.predict_all(
      found.scans, Predictor(Doubtful(), settings), settings,
      Outputs(folder=out, overlay=False, uncertainty="entropy"), show_progress=False,
  )  # fmt: skip
  assert outcome.predicted == 1 and not outcome.failures
  written = nib.load(out / "scan_uncertainty.nii.gz")
  np.testing.assert_allclose(written.affine, affine, atol=1e-5)
  assert written.get_data_dtype() == np.uint8
  share = GREYS[label] / 255 / 2
  expected = -(share * np.log(share) + (1 - share) * np.log(1 - share)) / math.log(3)
  np.testing.assert_allclose(written.get_fdata(), expected, atol=0.5 / 255 + 1e-3)
  # In a folder it is no scan of its own.
  assert [one.stem for one in scans.find(tmp_path, tmp_path / "b", volumes_first=True).scans] == [
      "scan"
  ]


def test_the_map_of_an_image_is_an_image(tmp_path):
  Image.fromarray(np.full((6, 5), 120, np.uint8)).save(tmp_path / "a.png")
  settings = run_samples.run_config()
  found = scans.find(tmp_path / "a.png", tmp_path / "out", volumes_first=True)
  files.predict_all(
      found.scans, Predictor(run_samples.BrightnessNetwork(), settings), settings,
      Outputs(folder=tmp_path / "out", uncertainty="entropy"), show_progress=False,
  )  # fmt: skip
  # 0.8, 0.1, 0.1: 0.639 nats of log 3 are 0.582, of 255 steps 148.
  pixels = np.asarray(Image.open(tmp_path / "out" / "a_uncertainty.png"))
  assert pixels.shape == (6, 5) and (pixels == 148).all()


def test_an_unknown_kind_is_refused(tmp_path):
  with pytest.raises(InputError, match="Did you mean 'entropy'"):
    Outputs(folder=tmp_path, uncertainty="entropie")
