"""Says in a few letters what a draw did, for names of files and records: rot+07_flipx_noise0.03."""

from __future__ import annotations

import math
from collections.abc import Mapping


def describe(amounts: Mapping[str, float]) -> str:
  """Returns the parts of a draw that are not 0, in the order in which they are applied.

  Args:
    amounts: {parameter: number} of one example, as `draws.parameters` names them.

  Returns:
    Letters, digits and `+-._` alone; "same" for a draw that changes nothing. Turns, rotation and
    shear are in degrees, counter-clockwise; shifts (down, right), brightness and contrast in
    percent.
  """

  def of(name: str) -> float:
    return float(amounts.get(name, 0.0))

  def percent(name: str) -> str:
    return f"{round(100 * of(name)):+03d}"

  def degrees(radians: float) -> str:
    return f"{round(math.degrees(radians)):+03d}"

  texts = {
      "quarter_turns": f"turn{90 * math.floor(of('quarter_turns'))}",
      "flip_vertical": "flipy",
      "flip_horizontal": "flipx",
      "rotation": "rot" + degrees(of("rotation")),
      "scale": f"scale{math.exp(of('scale')):.2f}",
      "shear_y": "sheary" + degrees(math.atan(of("shear_y"))),
      "shear_x": "shearx" + degrees(math.atan(of("shear_x"))),
      "translation_y": "down" + percent("translation_y"),
      "translation_x": "right" + percent("translation_x"),
      "elastic": f"elastic{of('elastic'):.0f}",
      "distortion": f"distort{of('distortion'):.3f}",
      "barrel": f"barrel{of('barrel'):.2f}",
      "pincushion": f"pincushion{of('pincushion'):.2f}",
      "bias_field": f"bias{of('bias_field'):.2f}",
      "brightness": "bright" + percent("brightness"),
      "contrast": "contrast" + percent("contrast"),
      "gamma": f"gamma{math.exp(of('gamma')):.2f}",
      "blur": f"blur{of('blur'):.2f}",
      "sharpening": f"sharp{of('sharpening'):.2f}",
      "low_resolution": f"lowres{math.exp(of('low_resolution')):.1f}",
      "noise": f"noise{of('noise'):.3f}",
  }
  return "_".join(text for name, text in texts.items() if of(name)) or "same"


def is_same(amounts: Mapping[str, float]) -> bool:
  """Tells whether the draw changes nothing; where a lens would stand is no change by itself."""
  return describe(amounts) == "same"
