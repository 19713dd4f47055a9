"""Removes the bias field of an MRI volume: the slow change of brightness that its coils cause.

N4 (Tustison et al. 2010, https://doi.org/10.1109/TMI.2010.2046908) as SimpleITK has it, on a
shrunken copy; the field is then evaluated on the full grid. One thread, whatever the machine has:
sums in another order would give other bits, and a build must not depend on that.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from flexunet.core.errors import InputError

KINDS = {
    "none": "as scanned",
    "n4": "N4 of SimpleITK, for MRI; it takes seconds for each scan",
}
_SHRINK = 4
_FEWEST_AFTER_SHRINKING = 16  # Voxels along an axis: four control points lie along each.
_ITERATIONS = (50, 50, 50, 50)
_CONVERGED = 1e-3
_FEWEST_IN_MASK = 1000
_ZEROS_OF_A_MASK = 0.05  # More voxels of exactly 0 were set by a program, not by a scanner.


def removed(voxels: np.ndarray, kind: str, name: str = "") -> np.ndarray:
  """Returns a volume without its bias field.

  Args:
    voxels: Intensities [i, j, k]; the axes may point anywhere.
    kind: One of `KINDS`; "none" returns `voxels` itself.
    name: Names the scan in errors.

  Returns:
    float32 [i, j, k]; the geometric mean over the tissue stays.

  Raises:
    InputError: SimpleITK is not installed, or the scan is too small or has too little tissue.
  """
  return voxels if kind == "none" else (voxels / field(voxels, name)).astype(np.float32)


def field(voxels: np.ndarray, name: str = "") -> np.ndarray:
  """Returns the gain of each voxel, float32 [i, j, k] with geometric mean 1 over the tissue.

  Args:
    voxels: Intensities [i, j, k].
    name: Names the scan in errors.

  Raises:
    InputError: As of `removed`.
  """
  itk = require()
  values = np.nan_to_num(voxels.astype(np.float32), posinf=0.0, neginf=0.0)
  inside = _tissue(itk, values)
  if min(values.shape) < 4 or np.count_nonzero(inside) < _FEWEST_IN_MASK:
    raise InputError(
        f"{name}: bias_correction=n4 needs at least 4 voxels along each axis and {_FEWEST_IN_MASK}"
        f" of tissue. Got: {' x '.join(map(str, values.shape))} voxels,"
        f" {np.count_nonzero(inside)} of tissue. Build with bias_correction=none."
    )
  shrink = [max(1, min(_SHRINK, n // _FEWEST_AFTER_SHRINKING)) for n in values.shape]
  image, mask = _image(itk, values), _image(itk, inside.astype(np.uint8))
  corrector = itk.N4BiasFieldCorrectionImageFilter()
  corrector.SetMaximumNumberOfIterations(_ITERATIONS)
  corrector.SetConvergenceThreshold(_CONVERGED)
  corrector.SetNumberOfThreads(1)
  try:
    corrector.Execute(itk.Shrink(image, shrink), itk.Shrink(mask, shrink))
    logarithm = itk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).T
  except RuntimeError as error:
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    raise InputError(f"{name}: N4 cannot correct it ({last.strip()}).") from error
  logarithm -= logarithm[inside].mean()
  # Far from the tissue nothing holds the field.
  return np.exp(np.clip(logarithm, logarithm[inside].min(), logarithm[inside].max()))


def require() -> Any:
  """Returns the package SimpleITK; an InputError where it is not installed."""
  try:
    itk = importlib.import_module("SimpleITK")
  except ImportError as error:
    raise InputError(
        "bias_correction=n4 is done by SimpleITK, which is not installed. Install the extra: pip"
        ' install "flexunet[itk]".'
    ) from error
  itk.ProcessObject.SetGlobalWarningDisplay(False)
  return itk


def _tissue(itk: Any, values: np.ndarray) -> np.ndarray:
  """Returns what the field is fitted to, bool [i, j, k]: never what is 0 or less, a logarithm."""
  if np.mean(values == 0) >= _ZEROS_OF_A_MASK:
    return values > 0
  otsu = itk.OtsuThreshold(_image(itk, values), 0, 1)
  return (itk.GetArrayFromImage(otsu).T > 0) & (values > 0)


def _image(itk: Any, values: np.ndarray) -> Any:
  """Returns an image whose first axis is that of `values`; spacing plays no part in the fit."""
  return itk.GetImageFromArray(np.ascontiguousarray(values.T))
