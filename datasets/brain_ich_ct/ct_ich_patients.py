"""Published facts about the 82 patients of CT-ICH, and the split of each.

Two datasets hold these patients (`brain_ich_ct`, and the haemorrhagic half of `brain_stroke_ct`),
in three forms. The split is decided over the whole published list, so it does not depend on the
form or on which patients are there, and nobody is trained on in one set and tested on in another.
"""

from __future__ import annotations

import functools

from flexunet.datasets import subject_splits

FIRST_PATIENT, LAST_PATIENT = 49, 130
# Patients with at least one slice that `hemorrhage_diagnosis.csv` (CT-ICH v1.0.0, 2501 rows,
# doi 10.13026/4nae-zg36) calls haemorrhage. All others of 49..130 have none.
HEMORRHAGE_PATIENTS = frozenset([*range(49, 54), 58, *range(66, 95), 97])
# The authors' order for cross-validation: 0-based patients, five folds of 16, the last of 18
# (published with their U-Net, doi 10.3390/data5010014).
_AUTHORS_ORDER = (
    31, 39, 21, 33, 34, 5, 54, 2, 67, 15, 68, 10, 53, 29, 44, 76, 59, 73, 77, 71, 61, 69, 50, 32,
    6, 37, 57, 75, 80, 41, 27, 16, 40, 46, 79, 13, 45, 55, 62, 7, 66, 58, 78, 4, 47, 52, 28, 20,
    24, 51, 36, 63, 30, 48, 26, 60, 49, 25, 42, 18, 43, 14, 72, 0, 35, 81, 70, 22, 64, 1, 3, 17,
    74, 23, 38, 12, 8, 65, 19, 56, 9, 11,
)
_FOLD_SIZE, _NUM_FOLDS = 16, 5
# One of the salts for which the four patients with masks that small shared subsets hold (077 to
# 080) fall into all three splits; the published list of 82 is split 58, 12 and 12 by any salt.
SALT = "ct-ich-1021"


def subject_name(patient: int) -> str:
  """Returns the pseudonym, the same in every dataset; the number is the publisher's own."""
  return f"ctich_{patient:03d}"


def is_patient(number: int) -> bool:
  """Returns whether a patient of CT-ICH has this number."""
  return FIRST_PATIENT <= number <= LAST_PATIENT


def stratum(patient: int) -> str:
  """Returns "hemorrhage" or "none", by the published table."""
  return "hemorrhage" if patient in HEMORRHAGE_PATIENTS else "none"


def fold(patient: int) -> int:
  """Returns the authors' cross-validation fold, 0..4."""
  position = _AUTHORS_ORDER.index(patient - FIRST_PATIENT)
  return min(position // _FOLD_SIZE, _NUM_FOLDS - 1)


@functools.cache
def splits() -> dict[str, str]:
  """Returns {subject name: split} of all 82 patients."""
  patients = range(FIRST_PATIENT, LAST_PATIENT + 1)
  return subject_splits.assign({subject_name(p): stratum(p) for p in patients}, SALT)
