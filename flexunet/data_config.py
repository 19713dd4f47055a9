"""What a run reads: the fields of `config.DataConfig` and their flags."""

from __future__ import annotations

import dataclasses

from flexunet.datasets.checked import Checked, knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
  """Which records are read, and how they become batches."""

  dataset: str | None = knob(
      None,
      "Built dataset as name[/config[/version]] below --data_dir, e.g. hippocampus_t1w/left_right;"
      " not needed when --data_dir is the version folder itself.",
      unset="",
  )
  data_dir: str = knob(
      "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
  )
  train_split: str = knob("train", "Split that is trained on.")
  validation_split: str = knob("validation", "Split that picks the best checkpoint.")
  fold: int = knob(
      -1,
      "Cross-validation: puts both splits together, validates on the subjects of this fold and"
      " trains on the others; the test split stays out. -1: the splits as they are.",
      minimum=-1,
  )
  image_key: str = knob("image", "Feature of the image, for datasets built elsewhere.")
  label_key: str = knob("label", "Feature of the label, for datasets built elsewhere.")
  resize_mode: str = knob(
      None,
      "How images come to --image_size: 'pad' keeps the resolution and adds a border, 'fit' scales"
      " with the aspect kept and adds a border, 'stretch' scales each axis (the published way).",
      choices=("pad", "fit", "stretch"),
  )
  crop_foreground: bool = knob(
      False,
      "Cuts the empty air around head or body away before an image is brought to --image_size, so"
      " that its pixels are spent on tissue. The box is found from the images alone, one a volume:"
      " all that is brighter than a tenth of the bright pixels, and a margin. Evaluation and"
      " prediction do the same and answer on the full frame. Costs one more pass over the records"
      " at the start; labels outside a box are counted and told.",
  )
  context_slices: int = knob(
      0,
      "Neighbour slices on each side that become channels (2.5-D); --image_channels must then be"
      " twice that and one.",
      minimum=0,
      maximum=8,
  )
  foreground_fraction: float = knob(
      None,
      "Share of each batch drawn from slices with foreground; the rest covers every slice once an"
      " epoch. 0 draws uniformly.",
      minimum=0.0,
      maximum=1.0,
  )
  class_balance: bool = knob(
      None, "The foreground classes take turns in that share, so that a rare one is seen as often."
  )
  epoch_passes: int = knob(
      None,
      "Passes over the training slices that make an epoch, after which a run validates and saves:"
      " more than one where slices are so few that it would do little else, 1 with --epochs.",
      minimum=1,
  )
  cache: str = knob(
      "auto",
      "Where decoded slices are kept after the first pass: 'ram', 'disk', or 'none' to decode them"
      " again each epoch; 'device': in the memory of the one GPU (the CPU's where there is none),"
      " where each step looks its batch up, so that only row numbers travel. 'auto' takes what"
      " fits and says why: 'device' if a quarter of what the network leaves of a GPU's memory"
      " holds the training slices.",
      choices=("auto", "device", "ram", "disk", "none"),
  )
  cache_dir: str | None = knob(
      None, "Folder of --cache=disk; the user's cache folder by default.", unset=""
  )
  skip_corrupt: int = knob(
      0,
      "Reads all records first and leaves out at most so many that cannot be read, naming them.",
      minimum=0,
  )
