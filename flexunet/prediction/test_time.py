"""Test-time augmentation: what a network answers to mirrored, turned and scaled slices, averaged.

A view changes frames before the network and takes its answer back. Mirror images and turns by 90
degrees are exact both ways; scales are not, pixels being interpolated twice.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError
from flexunet.pipelines import laterality

if TYPE_CHECKING:
  import tensorflow as tf

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

  def forward(self, frames: tf.Tensor) -> tf.Tensor:
    """uint8 [N, h, w, channels] -> uint8 [N, h', w', channels]."""
    tf = _tensorflow()
    if self.scale != 1:
      edges = tf.cast(tf.shape(frames)[1:3], tf.float64)
      size_hw = tf.maximum(1, tf.cast(tf.round(edges * self.scale), tf.int32))
      smooth = tf.image.resize(frames, size_hw, method="bicubic", antialias=True)
      return tf.cast(tf.clip_by_value(tf.round(smooth), 0.0, 255.0), tf.uint8)
    if self.mirrored:
      frames = frames[:, :, ::-1]
    return tf.image.rot90(frames, self.turns) if self.turns else frames

  def inverse(self, answers: tf.Tensor, frame_hw: tf.Tensor) -> tf.Tensor:
    """float32 [N, h', w', classes] -> float32 [N, h, w, classes], of a frame of size (h, w)."""
    tf = _tensorflow()
    if self.scale != 1:
      return tf.image.resize(answers, frame_hw, method="bilinear", antialias=True)
    answers = tf.image.rot90(answers, 4 - self.turns) if self.turns else answers
    return answers[:, :, ::-1] if self.mirrored else answers

  def __str__(self) -> str:
    if self.scale != 1:
      return f"scale {self.scale:g}"
    parts = ["mirrored"] if self.mirrored else []
    parts += [f"turned by {90 * self.turns} degrees"] if self.turns else []
    return " and ".join(parts) or "as it is"


def mean_answer(
    network: Callable[[tf.Tensor], tf.Tensor], frames: tf.Tensor, views: Sequence[View]
) -> tf.Tensor:
  """Returns float32 [N, h, w, classes], the mean of what a network answers to each view.

  Args:
    network: uint8 [N, h, w, channels] of any height and width -> float32 [N, h, w, classes].
    frames: uint8 [N, h, w, channels]; in a graph too.
    views: At least one.
  """
  tf = _tensorflow()
  frame_hw = tf.shape(frames)[1:3]
  first, *others = views
  total = first.inverse(network(first.forward(frames)), frame_hw)
  for view in others:
    with tf.control_dependencies([total]):  # Not all at once, for the memory they need.
      total += view.inverse(network(view.forward(frames)), frame_hw)
  return total / len(views) if others else total


@functools.cache
def _tensorflow() -> types.ModuleType:
  """Returns TensorFlow."""
  # Flags and help are answered before it is loaded.
  import tensorflow

  return tensorflow
