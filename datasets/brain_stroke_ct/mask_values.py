"""What the values of a stroke mask mean: its files come in several forms.

Bleeding: 0 and 255, with grey noise where the file is a JPEG. Infarcts descend from AISD, whose
values are 1 remote, 2 clear acute, 3 blurred acute, 4 invisible, 5 whole infarct; files hold these
numbers, or 0 and 251..255, or 0 and 255.
"""

from __future__ import annotations

import pathlib

import numpy as np

from flexunet.datasets.errors import InputError

_THRESHOLD = 127
_MOST_SMALL = 5
# "Invisible" is drawn where other images of the person show an infarct that this one does not.
_LESION_CODES = (1, 2, 3, 5)
_LOSSY = (".jpg", ".jpeg")


def lesion(mask: np.ndarray, path: pathlib.Path, ischemic: bool) -> np.ndarray:
  """Returns where the lesion is, bool [H, W].

  Args:
    mask: uint8 [H, W], as stored.
    path: Its file; tells whether values are exact, and names it in errors.
    ischemic: Whether small numbers are AISD's codes.

  Raises:
    InputError: When an exact file holds values of none of the known forms.
  """
  if path.suffix.lower() in _LOSSY:
    return mask > _THRESHOLD
  values = np.unique(mask)
  if values[-1] <= _MOST_SMALL:
    return np.isin(mask, _LESION_CODES) if ischemic else mask > 0
  unclear = values[(values > _MOST_SMALL) & (values < 250)]
  # A few in-between values come from resizing with interpolation; a mask of them is no mask.
  if np.isin(mask, unclear).mean() > 0.01:
    raise InputError(
        f"{path}: mask values must be 0..{_MOST_SMALL} or 0 and 250..255, found"
        f" {', '.join(map(str, unclear[:5]))}{' ...' if len(unclear) > 5 else ''}. Is this a mask?"
    )
  return mask > _THRESHOLD
