"""Volumes and settings made up for tests of disturbances."""

import numpy as np

from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.evaluation.stress_base import Setting
from flexunet.imaging.slicing import SlicePlan


def volume(
    count=6, height=20, width=24, channels=1, spacing_mm=(1.0, 1.0), slice_mm=2.0, subject="A"
) -> LabelledVolume:
  """Returns slices of random grey values with a bright square, which is class 1."""
  generator = np.random.default_rng(7)
  images, labels = [], []
  for _ in range(count):
    image = generator.integers(30, 200, (height, width, channels)).astype(np.uint8)
    label = np.zeros((height, width), np.uint8)
    label[6:14, 5:17] = 1
    image[label > 0] = 255
    images.append(image)
    labels.append(label)
  return LabelledVolume(
      subject, f"{subject}_scan", list(range(count)), images, labels, spacing_mm, slice_mm
  )


def setting(plane="axial", **changes) -> Setting:
  """Returns the setting of a dataset of 1 mm pixels and slices of 2 mm, without sides."""
  values = {
      "is_ct": False, "windowed": (False,), "separate_channels": False,
      "plan": SlicePlan("LAS", plane), "sides": np.arange(3, dtype=np.uint8), "pixel_mm": 1.0,
      "slice_mm": 2.0, **changes,
  }  # fmt: skip
  return Setting(**values)
