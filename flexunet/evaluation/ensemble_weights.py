"""Weights of an ensemble that fit subjects whom none of its runs was trained on.

They are the convex weights w with the least Brier score of the mean: the sum over voxels and
classes of (sum_i w_i p_i - y)^2, each volume divided by its true foreground voxels, so that volumes
count alike whatever their size. Since weights sum to 1, this is sum_ij w_i w_j R_ij, where R_ij
sums the products of the errors p_i - y and p_j - y. These few numbers are all that is kept of the
volumes, and the least is found exactly. Voxels on which a network is sure and right add nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize

from flexunet.core import progress
from flexunet.evaluation.labelled_volumes import read_volumes
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.ensemble import Ensemble

# A network with less than this does not count, and need not be run.
_LEAST_WEIGHT = 1e-3


class BrierSums:
  """The sums of which the Brier score of any weighted mean of networks follows.

  Attributes:
    products: Sums of the products of two networks' errors, float64 [networks, networks].
    volumes: How many were added.
  """

  def __init__(self, num_networks: int):
    self.products = np.zeros((num_networks, num_networks))
    self.volumes = 0

  def add_slice(self, label: np.ndarray, probabilities: Sequence[np.ndarray]) -> None:
    """Takes voxels: class ids [N], and what each network says of them, [N, classes] each."""
    truth = np.eye(probabilities[0].shape[-1], dtype=np.float32)[label]
    errors = np.stack([(np.asarray(one, np.float32) - truth).ravel() for one in probabilities])
    self.products += (errors @ errors.T).astype(np.float64)

  def add_volume(self, volume: BrierSums, foreground: int) -> None:
    """Takes the sums of the slices of one volume, with its count of true foreground voxels."""
    self.products += volume.products / max(1, foreground)
    self.volumes += 1

  def brier(self, weights: Sequence[float] | np.ndarray) -> float:
    """Returns the Brier score of the weighted mean, per true foreground voxel, mean of volumes."""
    own = np.asarray(weights, np.float64)
    return float(own @ self.products @ own / max(1, self.volumes))

  def best_weights(self) -> np.ndarray:
    """Returns the weights with the least score: float64 [networks], at least 0, of sum 1.

    The search starts from equal ones, so that networks that always agree share their weight.
    """
    count = len(self.products)
    products = self.products / max(np.finfo(float).tiny, float(np.trace(self.products)))
    found = optimize.minimize(
        lambda own: own @ products @ own,
        np.full(count, 1 / count),
        jac=lambda own: 2 * products @ own,
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda own: own.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    ).x
    kept = np.where(found < _LEAST_WEIGHT, 0.0, found)
    return kept / kept.sum()


def learn(
    ensemble: Ensemble,
    source: DatasetSource,
    table: RecordTable,
    num_networks: int,
    *,
    show_progress: bool = True,
) -> BrierSums:
  """Predicts the volumes of a table with each network of an ensemble, on their scans' own grid.

  Args:
    ensemble: Its networks all have a weight.
    source: The opened dataset.
    table: The records to learn from.
    num_networks: How many networks the ensemble has.
    show_progress: Draws a bar on standard error.
  """
  sums = BrierSums(num_networks)
  keys = (source.keys.image, source.keys.label)
  with progress.bar(
      total=len(table), desc="weights", unit="slice", disable=not show_progress
  ) as bar:
    for shown in read_volumes(source, table, keys):
      volume, own = shown.on_native_grid(), BrierSums(num_networks)
      given = ensemble.prepare(shown.images, (*shown.spacing_mm, shown.slice_spacing_mm))
      index = 0
      for place, seen in enumerate(ensemble.each(given)):
        native = [list(shown.to_native_grid(place, one)) for one in seen]
        for probabilities in zip(*native, strict=True):
          counted = ~volume.ignored[index] if volume.ignored else np.ones(
              volume.labels[index].shape, bool
          )
          own.add_slice(volume.labels[index][counted], [one[counted] for one in probabilities])
          index += 1
        bar.update()
      sums.add_volume(own, sum(int(np.count_nonzero(label)) for label in volume.labels))
  return sums
