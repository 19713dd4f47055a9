"""The options of the dataset `ms_lesion_mri`."""

from __future__ import annotations

import dataclasses

from flexunet.core.config_fields import knob
from flexunet.datasets.builder.record_options import VolumeOptions

MODALITIES = ("t2", "t1", "flair")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsOptions(VolumeOptions):
  """Adds which of the three scans of a patient is built; they differ in shape and position."""

  modality: str = knob("t2", "Which scan of each patient is built.", choices=MODALITIES)
