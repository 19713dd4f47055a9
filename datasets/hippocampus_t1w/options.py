"""The options of the dataset `hippocampus_t1w`."""

from __future__ import annotations

import dataclasses

from flexunet.core.config_fields import knob
from flexunet.datasets.builder.record_options import VolumeOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class HippocampusOptions(VolumeOptions):
  """Adds whether the two hippocampi are two classes."""

  two_classes: bool = knob(False, "Labels 1 and 2 stay two classes; otherwise they are one.")
