"""The disturbances of a stress test by name, and what --stress asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flexunet.core.errors import InputError, unknown_name
from flexunet.evaluation.stress_base import Disturbance
from flexunet.evaluation.stress_grey_values import BiasField, Blur, Brighter, Darker, Noise
from flexunet.evaluation.stress_positions import (
    Flip,
    InPlaneSpacing,
    MissingSlices,
    Rotation,
    SliceThickness,
)

LEVELS = ("quick", "full")
ORIENTATION = "orientation"
DISTURBANCES: tuple[Disturbance, ...] = (
    BiasField(), Noise(), Blur(), InPlaneSpacing(), SliceThickness(), Darker(), Brighter(),
    Rotation(), MissingSlices(), Flip(),
)  # fmt: skip
NAMES = (*(one.name for one in DISTURBANCES), ORIENTATION)
_GROUPS = {"spacing": "spacing_", "gamma": "gamma_"}


@dataclasses.dataclass(frozen=True)
class Request:
  """What --stress asks for.

  Attributes:
    names: Disturbances, in the order in which they are tried.
    full: Whether all strengths are tried, or every second one.
  """

  names: tuple[str, ...]
  full: bool

  @classmethod
  def of(cls, asked: str | Sequence[str]) -> Request | None:
    """Reads the value of --stress.

    Args:
      asked: quick, full, or names; names with one of the two words are tried at these strengths,
        else at all. "" asks for nothing.

    Raises:
      InputError: An unknown name, or both words.
    """
    given = asked.split(",") if isinstance(asked, str) else asked
    words = [word.strip() for word in given if word.strip()]
    if not words:
      return None
    levels = [word for word in words if word in LEVELS]
    if len(set(levels)) > 1:
      raise InputError("--stress must be quick or full, not both. Pass one of the two.")
    chosen: set[str] = set()
    for word in words:
      found = {name for name in NAMES if name == word or name.startswith(_GROUPS.get(word, "\0"))}
      if not found and word not in LEVELS:
        raise unknown_name("disturbance", word, [*NAMES, *_GROUPS, *LEVELS])
      chosen |= found
    names = tuple(name for name in NAMES if name in chosen or not chosen)
    return cls(names, full="quick" not in levels)

  def strengths(self, grades: Sequence[float]) -> list[float]:
    """Returns those that are tried of the strengths of a disturbance."""
    return list(grades) if self.full or len(grades) < 3 else list(grades[1::2])
