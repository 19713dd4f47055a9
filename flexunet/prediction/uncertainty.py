"""How uncertain a network is of each voxel, as a map beside the label.

  entropy        of the mean probability: 0 where one class is certain, 1 where all are as likely
  disagreement   of networks, or of a slice and its mirror image: the mutual information of label
                 and network, entropy of the mean less mean of entropies; 0 where all agree

Both are divided by log(classes), so that they lie in 0..1, and kept in steps of 1/255.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.imaging import nifti, scan_files
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.imaging.volume import Volume
from flexunet.network.probabilities import entropy
from flexunet.prediction.ensemble import Ensemble, Member
from flexunet.prediction.outputs import UNCERTAINTY_ENDINGS
from flexunet.prediction.scans import Scan

_STEPS = 255


def in_steps(nats: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns uint8: `nats` as a share of log(classes), in steps of 1/255."""
  share = np.clip(nats / math.log(num_classes), 0.0, 1.0)
  return np.rint(share * _STEPS).astype(np.uint8)


class Recorder:
  """A predictor that keeps how uncertain it is of the slices of one volume.

  It answers as what it wraps, whose other attributes are its own.
  """

  def __init__(self, predictor: Any, kind: str):
    """Wraps a predictor.

    Args:
      predictor: `Predictor`, or `Ensemble`.
      kind: "entropy", or for an ensemble "disagreement".
    """
    self._predictor = predictor
    self._kind = kind
    self._maps: list[np.ndarray] = []

  def __getattr__(self, name: str) -> Any:
    return getattr(self._predictor, name)

  def probabilities(
      self, slices: Sequence[np.ndarray], spacing_mm: Sequence[float] = (math.nan, math.nan)
  ) -> Iterator[np.ndarray]:
    """As `Predictor.probabilities`."""
    return self.answer(self._predictor.prepare(slices, spacing_mm))

  def answer(self, given: Any) -> Iterator[np.ndarray]:
    """As `Predictor.answer`."""
    self._maps = []
    classes = self._predictor.num_classes
    if self._kind == "entropy":
      for probability in self._predictor.answer(given):
        self._maps.append(in_steps(entropy(probability), classes))
        yield probability
      return
    for probability, own in self._predictor.answer_with_entropy(given):
      self._maps.append(in_steps(entropy(probability) - own, classes))
      yield probability

  def taken(self) -> np.ndarray:
    """Returns the map of the volume that was answered last, uint8 [row, column, slice]."""
    maps, self._maps = self._maps, []
    return np.stack(maps, axis=-1)


def prepared(kind: str, predictor: Any, run_config: config.RunConfig) -> Any:
  """Returns what can say how uncertain it is: the predictor, or an ensemble with mirror images.

  Args:
    kind: One of `outputs.UNCERTAINTY_KINDS`.
    predictor: `Predictor`, or `Ensemble`.
    run_config: Of its run, or of the first of its runs.

  Raises:
    InputError: The networks cut scans in ways that no map can join; or a single run disagrees with
      nobody, since it rules out mirror images.
  """
  recipe = run_config.dataset_facts.recipe
  if kind != "none" and isinstance(predictor, Ensemble) and not predictor.shares_cut(recipe):
    raise InputError(
        f"--uncertainty={kind} needs runs that window and resample scans alike, whatever their"
        " plane. Name such runs, or leave it out."
    )
  if kind != "disagreement" or isinstance(predictor, Ensemble):
    return predictor
  return with_mirror_images(predictor, run_config)


class _Mirrored:
  """A predictor that sees mirrored slices, and answers for them as they were."""

  def __init__(self, predictor: Any):
    self._predictor = predictor

  def prepare(self, slices: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> Any:
    return self._predictor.prepare([np.asarray(one)[:, ::-1] for one in slices], spacing_mm)

  def answer(self, given: Any) -> Iterator[np.ndarray]:
    for probability in self._predictor.answer(given):
      yield probability[:, ::-1]

  def pass_lines(self) -> list[str]:
    return self._predictor.pass_lines()


def with_mirror_images(predictor: Any, run_config: config.RunConfig) -> Ensemble:
  """Returns the ensemble of a network and of itself on mirrored slices.

  Args:
    predictor: Without test-time augmentation.
    run_config: Of its run.

  Raises:
    InputError: The run decided against mirror images.
  """
  decided = run_config.laterality
  if not decided.mirroring:
    raise InputError(
        "--uncertainty=disagreement of a single run compares slices with their mirror images, which"
        f" the run rules out: {decided.reason}. Pass --uncertainty=entropy, or name several runs."
    )
  recipe, mirrored = run_config.dataset_facts.recipe, _Mirrored(predictor)
  members = [Member(lambda: predictor, recipe, 1.0), Member(lambda: mirrored, recipe, 1.0)]
  return Ensemble(members, predictor.num_classes, clean_up=predictor.clean_up)


def write_volume(
    scan: Scan, seen: np.ndarray, recipe: SliceRecipe, output_dir: pathlib.Path
) -> None:
  """Writes <stem>_uncertainty.nii.gz, which readers take for 0..1, in the geometry of the scan.

  NIfTI, whatever the format of the scan: others have no place for a scale.

  Args:
    scan: The scan.
    seen: uint8 [row, column, slice], as `Recorder.taken` returns it.
    recipe: How the scan was cut.
    output_dir: Where outputs go.
  """
  header = scan_files.read_header(scan.path, next(iter(scan.components), None))
  empty = np.broadcast_to(np.uint8(0), header.shape)
  on_grid = recipe.restore(seen, Volume(empty, header.affine, header.oriented))
  target = scan.output(output_dir, UNCERTAINTY_ENDINGS["volume"])
  nifti.write_label(header, on_grid, target, scale=1 / _STEPS)
