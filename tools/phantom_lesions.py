"""Phantom lesions: bleedings of the five subtypes, infarcts, and multiple-sclerosis plaques.

Masks are bool arrays of the grid's shape. Coordinates are those of `phantom_anatomy`.
"""

from __future__ import annotations

import numpy as np

from flexunet.tools import phantom_anatomy

SUBTYPES = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")


def _blob(coordinates, centre_mm, half_axes_mm, rng) -> np.ndarray:
  """An ellipsoid with a lumpy surface."""
  phase = rng.uniform(0, 2 * np.pi, 3)
  lumps = sum(
      np.sin(x / (0.5 * a) + p)
      for x, a, p in zip(coordinates, half_axes_mm, phase, strict=True)
  )
  return phantom_anatomy.ellipsoid(coordinates, centre_mm, half_axes_mm) * (1 + 0.12 * lumps) < 1


def _cap(head, coordinates, side: int, rng, inner: float, spread: float) -> np.ndarray:
  """A shell piece under the skull of one side: from radius `inner` out, `spread` wide."""
  r = phantom_anatomy.radius(head, coordinates)
  anterior_mm, superior_mm = rng.uniform(-25, 35), rng.uniform(0, 40)
  towards = np.array([side * 60.0, anterior_mm, superior_mm])
  towards /= np.linalg.norm(towards)
  norm = np.sqrt(sum(x**2 for x in coordinates)) + 1e-3
  cosine = sum(t * x for t, x in zip(towards, coordinates, strict=True)) / norm
  # Thickest in the middle of the piece, tapering to its rim.
  thickness = (0.865 - inner) * np.clip((cosine - spread) / (1 - spread), 0, 1) ** 0.5
  return (r < 0.865) & (r > 0.865 - thickness) & (thickness > 0.02)


def bleeding(subtype: str, head, coordinates, tissue, rng) -> np.ndarray:
  """Draws one bleeding of a subtype into a head's tissue map; returns its mask."""
  side = 1 if rng.random() < 0.5 else -1
  brain = np.isin(tissue, (phantom_anatomy.GREY, phantom_anatomy.WHITE, phantom_anatomy.CSF))
  if subtype == "Intraventricular":
    near = phantom_anatomy.ellipsoid(coordinates, (side * 10, -6, 18), (13, 34, 16)) < 1
    return (tissue == phantom_anatomy.CSF) & near
  if subtype == "Intraparenchymal":
    centre = (side * rng.uniform(22, 40), rng.uniform(-35, 35), rng.uniform(0, 35))
    return brain & _blob(coordinates, centre, rng.uniform(11, 20, 3), rng)
  if subtype == "Subarachnoid":
    # Blood in the fluid of the sulci, in a part of one hemisphere.
    centre = (side * 50, rng.uniform(-30, 30), rng.uniform(5, 35))
    near = phantom_anatomy.ellipsoid(coordinates, centre, (34, 34, 30)) < 1
    r = phantom_anatomy.radius(head, coordinates)
    return (tissue == phantom_anatomy.CSF) & near & (r < 0.865) & (r > 0.6)
  if subtype == "Epidural":
    return brain & _cap(head, coordinates, side, rng, inner=0.58, spread=0.88)
  return brain & _cap(head, coordinates, side, rng, inner=0.73, spread=0.45)


def infarct(coordinates, tissue, rng) -> np.ndarray:
  """A wedge-like territory of one hemisphere, grey and white matter alike."""
  side = 1 if rng.random() < 0.5 else -1
  centre = (side * rng.uniform(34, 48), rng.uniform(-30, 30), rng.uniform(-2, 35))
  brain = np.isin(tissue, (phantom_anatomy.GREY, phantom_anatomy.WHITE))
  return brain & _blob(coordinates, centre, rng.uniform(16, 26, 3), rng)


def plaques(coordinates, tissue, rng) -> np.ndarray:
  """Plaques in the white matter around the ventricles: few large, more small."""
  mask = np.zeros(tissue.shape, bool)
  for half_axis in rng.uniform(4, 9, rng.integers(8, 16)):
    side = 1 if rng.random() < 0.5 else -1
    centre = (side * rng.uniform(15, 38), rng.uniform(-45, 40), rng.uniform(8, 38))
    mask |= _blob(coordinates, centre, half_axis * rng.uniform(0.8, 1.3, 3), rng)
  return mask & (tissue == phantom_anatomy.WHITE)
