"""The schema of a record, shared by all datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets.label_scheme import LabelScheme


def slice_features(
    scheme: LabelScheme, extras: Mapping[str, Any], image_channels: int = 1
) -> tfds.features.FeaturesDict:
  """Returns the features of config `slices`: one upright 2-D slice.

  Args:
    scheme: Gives the label its class names.
    extras: Further features of the dataset.
    image_channels: 1, or 3 for colour pictures.
  """
  return tfds.features.FeaturesDict({
      "image": tfds.features.Image(
          shape=(None, None, image_channels),
          dtype=np.uint8,
          encoding_format="png",
          doc="Native in-plane resolution, upright; one intensity window per volume.",
      ),
      "label": tfds.features.LabeledImage(
          labels=scheme.names, shape=(None, None, 1), encoding_format="png", doc="Class ids."
      ),
      "slice_index": tfds.features.Scalar(np.int32, doc="Position in the volume."),
      "spacing_mm": tfds.features.Tensor(
          shape=(2,), dtype=np.float32, doc="Row and column distance; NaN where unknown."
      ),
      "slice_spacing_mm": tfds.features.Scalar(
          np.float32, doc="Distance of neighbouring slices; NaN where unknown."
      ),
      **_identity(),
      **extras,
  })


def volume_features(
    scheme: LabelScheme, voxel_dtype: np.dtype, extras: Mapping[str, Any]
) -> tfds.features.FeaturesDict:
  """Returns the features of config `volumes`: one whole scan, lossless, axes as stored.

  Args:
    scheme: Its class names are in the label's documentation; the ids are those of `slices`.
    voxel_dtype: What the source stores.
    extras: Further features of the dataset, one value per scan.
  """
  shape = (None, None, None)
  # tf.Example holds 32-bit floats only: what must stay float64 is stored as bytes.
  return tfds.features.FeaturesDict({
      "image": tfds.features.Tensor(
          shape=shape, dtype=voxel_dtype, encoding="zlib",
          doc="Stored numbers [i, j, k]; intensity = image * scale_slope + scale_inter.",
      ),
      "label": tfds.features.Tensor(
          shape=shape, dtype=np.uint8, encoding="zlib",
          doc="Class ids: " + ", ".join(f"{i} {name}" for i, name in enumerate(scheme.names)),
      ),
      "affine": tfds.features.Tensor(
          shape=(4, 4), dtype=np.float64, encoding="bytes", doc="(i, j, k, 1) to RAS+ mm."
      ),
      "oriented": tfds.features.Scalar(
          np.bool_, doc="False: the source states no orientation, the affine only its spacing."
      ),
      "spacing_mm": tfds.features.Tensor(
          shape=(3,), dtype=np.float64, encoding="bytes", doc="Voxel edges; NaN where unknown."
      ),
      "scale_slope": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
      "scale_inter": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
      "source_dtype": tfds.features.Text(doc="dtype of the source file."),
      **_identity(),
      **extras,
  })


def _identity() -> dict[str, Any]:
  return {
      "subject": tfds.features.Text(doc="Stable pseudonym of the person."),
      "volume": tfds.features.Text(doc="Stable pseudonym of the scan."),
      "fold": tfds.features.Scalar(np.int32, doc="Cross-validation fold 0..4 of the subject."),
  }
