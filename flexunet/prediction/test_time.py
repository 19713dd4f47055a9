"""Test-time augmentation: what a network answers to mirrored, turned and scaled slices, averaged.

A view changes frames before the network and takes its answer back. Mirror images and turns by 90
degrees are exact both ways; scales are not, pixels being interpolated twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError
from flexunet.pipelines import laterality

_KINDS = {
    "none": "the slice as it is",
    "mirror": "also its mirror image, left to right; twice the time",
    "rotations": "also turned by 90, 180 and 270 degrees; four times the time",
    "scales": "also scaled by each of --tta_scales",
    "all": "mirror images and scales; rotations too, and both at once, where training turned"
    " slices as far; as far as the run allows them",
}
_SMALLEST, _LARGEST = 0.5, 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewOptions(Checked):
  """What the user asks for: flags of `predict` and `evaluate`, arguments of the library."""

  tta: tuple[str, ...] = knob(
      ("none",),
      "Test-time augmentation: averages the network's answers to several views of each slice."
      " Several kinds may be named, as in mirror,rotations. Mirror images and rotations are refused"
      " where a label could change sides by them.",
      choices=_KINDS,
  )
  tta_scales: tuple[str, ...] = knob(
      None, "Scales of --tta=scales besides 1.", unset="0.8,1.25"
  )

  def __post_init__(self):
    super().__post_init__()
    if "none" in self.tta and len(self.tta) > 1:
      raise InputError(f"--tta=none stands alone. Got: {','.join(self.tta)}.")
    if self.tta_scales is not None and not {"scales", "all"} & set(self.tta):
      raise InputError("--tta_scales is of --tta=scales or all. Add one of them, or leave it out.")
    self.scales()

  @classmethod
  def of(
      cls, tta: str | Sequence[str] = "none", tta_scales: Sequence[float] | None = None
  ) -> ViewOptions:
    """Returns the options as Python has them: "mirror,scales" or ["mirror", "scales"], [0.9]."""
    kinds = tta.split(",") if isinstance(tta, str) else tta
    scales = None if tta_scales is None else tuple(str(scale) for scale in tta_scales)
    return cls(tta=tuple(kinds), tta_scales=scales)

  def scales(self) -> tuple[float, ...]:
    """Returns the scales besides 1 that are asked for, whatever `tta` is."""
    given = ("0.8", "1.25") if self.tta_scales is None else self.tta_scales
    try:
      scales = tuple(float(word) for word in given)
    except ValueError:
      scales = (float("nan"),)
    others = tuple(scale for scale in dict.fromkeys(scales) if scale != 1)
    if not others or not all(_SMALLEST <= scale <= _LARGEST for scale in others):
      raise InputError(
          f"--tta_scales must be numbers from {_SMALLEST:g} to {_LARGEST:g}, not 1 alone. Got:"
          f" {','.join(given)}."
      )
    return others

  def views(
      self, decided: laterality.Laterality, plane: str | None, trained_degrees: float = 0.0
  ) -> tuple[View, ...]:
    """Returns the views of a run, the unchanged one first.

    Args:
      decided: Its decision on mirror images.
      plane: Of its slices; None: unknown.
      trained_degrees: How far its training turned slices; "all" has rotations from 90 on.

    Raises:
      InputError: A kind was named by which labels could change sides.
    """
    asked, everything = set(self.tta), "all" in self.tta
    refusals = {
        "mirror": "" if decided.mirroring else decided.reason,
        "rotations": laterality.against_rotation(decided, plane),
    }
    for kind, reason in refusals.items():
      if kind in asked and reason and not everything:
        raise InputError(
            f"--tta={kind} is ruled out for this run: {reason}. Leave {kind} out; --tta=scales is"
            " possible."
        )
    mirrored = not refusals["mirror"] and (everything or "mirror" in asked)
    known = everything and trained_degrees >= 90
    turned = not refusals["rotations"] and (known or "rotations" in asked)
    views = [
        View(turns, is_mirrored)
        for is_mirrored in ((False, True) if mirrored else (False,))
        for turns in (range(4) if turned else (0,))
    ]
    if everything or "scales" in asked:
      views += [View(scale=scale) for scale in self.scales()]
    return tuple(views)


ONE_VIEW = ViewOptions()


@dataclasses.dataclass(frozen=True)
class View:
  """One way to show a frame to the network, and the way back.

  Attributes:
    turns: By 90 degrees, counterclockwise, after the mirroring.
    mirrored: Whether left and right are exchanged.
    scale: Of height and width.
  """

  turns: int = 0
  mirrored: bool = False
  scale: float = 1.0

  def forward(self, frames: np.ndarray) -> np.ndarray:
    """uint8 [N, h, w, channels] -> uint8 [N, h', w', channels]."""
    if self.scale != 1:
      size = [max(1, round(edge * self.scale)) for edge in frames.shape[1:3]]
      smooth = _resized(frames, size, "bicubic")
      return np.clip(np.rint(smooth), 0, 255).astype(np.uint8)
    if self.mirrored:
      frames = frames[:, :, ::-1]
    return np.ascontiguousarray(np.rot90(frames, self.turns, (1, 2)))

  def inverse(self, answers: np.ndarray, frame_hw: tuple[int, int]) -> np.ndarray:
    """float32 [N, h', w', classes] -> float32 [N, h, w, classes], of a frame of size (h, w)."""
    if self.scale != 1:
      return _resized(answers, frame_hw, "bilinear")
    answers = np.rot90(answers, -self.turns, (1, 2))
    return answers[:, :, ::-1] if self.mirrored else answers

  def __str__(self) -> str:
    if self.scale != 1:
      return f"scale {self.scale:g}"
    parts = ["mirrored"] if self.mirrored else []
    parts += [f"turned by {90 * self.turns} degrees"] if self.turns else []
    return " and ".join(parts) or "as it is"


def mean_answer(
    network: Callable[[np.ndarray], np.ndarray], frames: np.ndarray, views: Sequence[View]
) -> np.ndarray:
  """Returns float32 [N, h, w, classes], the mean of what a network answers to each view.

  Args:
    network: uint8 [N, h, w, channels] of any height and width -> float32 [N, h, w, classes].
    frames: uint8 [N, h, w, channels].
    views: At least one.
  """
  if tuple(views) == (View(),):
    return network(frames)
  total: np.ndarray | None = None
  for view in views:
    one = view.inverse(network(view.forward(frames)), frames.shape[1:3])
    if total is None:
      total = np.array(one, np.float32)
    else:
      total += one
  if total is None:
    raise ValueError("There must be a view.")
  return total / np.float32(len(views))


def _resized(pixels: np.ndarray, size_hw: Sequence[int], method: str) -> Any:
  """[N, h, w, C] -> float32 [N, *size_hw, C]; what shrinks is smoothed first."""
  # Flags and help are answered before it is loaded.
  import tensorflow as tf

  return tf.image.resize(pixels, size_hw, method=method, antialias=True).numpy()
