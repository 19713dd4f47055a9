"""The architecture of a FlexUNet: its knobs, what each stage looks like, how many parameters.

Pure Python, so that programs can check and plan without loading TensorFlow.
"""

from __future__ import annotations

import dataclasses

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError

NORMALIZATIONS = ("none", "batch", "group", "instance", "layer")
INPUT_NORMALIZATIONS = ("unit", "per_image")
ACTIVATIONS = (
    "relu", "elu", "mish", "selu", "silu", "gelu", "leaky_relu", "relu6", "celu", "softplus", "tanh"
)
KERNEL_INITIALIZERS = (
    "he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "lecun_normal", "lecun_uniform",
    "orthogonal", "truncated_normal",
)
# Auxiliary outputs of deep supervision: at 1/2, 1/4 and 1/8 of the size, as far as stages exist.
MAX_AUXILIARY_OUTPUTS = 3


@dataclasses.dataclass(frozen=True)
class Stage:
  """One resolution of the network; the decoder's block mirrors the encoder's.

  Attributes:
    index: 0 at full size; each stage below has half the height and width.
    filters: Channels of both convolutions.
    kernel: Edge of the square kernels, in pixels of this stage.
    dilation: Spacing of the kernel's taps.
    dropout_rate: Between the two convolutions.
  """

  index: int
  filters: int
  kernel: int
  dilation: int
  dropout_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
  """Shape of a FlexUNet: the arguments of `build_model`, the flags of the trainer, `config.json`.

  A field that is None is open: planning fills it in from the data. A network is built from a config
  without open fields (`require_complete`), except `image_size`, whose None then means any size.
  """

  image_size: tuple[int, int] = knob(
      None, "Height and width of the network's input, e.g. 512,512; one number means a square."
  )
  image_channels: int = knob(
      1, "Channels of the input; 3 repeats grey images as the published recipes do.", minimum=1
  )
  num_classes: int = knob(
      None,
      "Classes, background included; 1 means one foreground class by sigmoid.",
      minimum=1,
  )
  base_filters: int = knob(
      None, "Channels of the first stage; they double at each stage below.", minimum=1
  )
  base_kernels: int = knob(
      None, "Odd kernel edge of the first stage; 2 less at each stage below, never under 3.",
      minimum=1,
  )
  num_layers: int = knob(None, "Stages, the bottleneck included.", minimum=1, maximum=12)
  dropout_rate: float = knob(
      None, "Dropout at stage n (from 0) is n times this rate.", minimum=0.0, maximum=0.9
  )
  dilation: int = knob(
      1, "Dilation of the first stage; 1 less at each stage below, never under 1.", minimum=1
  )
  normalization: str = knob(
      None, "Layer after each convolution, before its activation.", choices=NORMALIZATIONS
  )
  activation: str = knob(
      "relu", "Activation of every convolution but the head.", choices=ACTIVATIONS
  )
  kernel_initializer: str = knob(
      "he_normal", "How the kernels of the convolutions start.", choices=KERNEL_INITIALIZERS
  )
  input_normalization: str = knob(
      "unit",
      "How 0..255 enters the network: 'unit' divides by 255; 'per_image' standardizes by the"
      " non-zero pixels.",
      choices=INPUT_NORMALIZATIONS,
  )
  deep_supervision: bool = knob(
      False,
      "Trains outputs at 1/2, 1/4 and 1/8 of the size too, each half as heavy as the one before;"
      " the saved model has the main output alone.",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.base_kernels is not None and self.base_kernels % 2 == 0:
      raise InputError(
          f"base_kernels must be odd, so that a kernel has a centre pixel. Got:"
          f" {self.base_kernels}. Take {self.base_kernels - 1} or {self.base_kernels + 1}."
      )
    if self.num_layers is None:
      return
    deepest = (self.dropout_rate or 0.0) * (self.num_layers - 1)
    if not deepest < 1:
      raise InputError(
          "dropout_rate times (num_layers - 1), the dropout of the deepest stage, must lie in"
          f" [0, 1). Got: {self.dropout_rate} x {self.num_layers - 1} = {deepest:g}. Lower"
          " dropout_rate."
      )
    if self.deep_supervision and self.num_layers < 3:
      raise InputError(
          f"deep_supervision needs num_layers of at least 3. Got: {self.num_layers}. Add stages"
          " or turn it off."
      )

  def require_complete(self) -> None:
    """Raises an InputError when a field other than `image_size` is open."""
    for field in dataclasses.fields(self):
      if getattr(self, field.name) is None and field.name != "image_size":
        raise InputError(f"{field.name} must be given before a network can be built from it.")

  @property
  def multiple(self) -> int:
    """Height and width are padded to a multiple of this, in pixels."""
    return 2 ** (self.num_layers - 1)

  @property
  def padded_size(self) -> tuple[int, int] | None:
    """(height, width) that the first convolution sees; None for any size."""
    if self.image_size is None:
      return None
    height, width = (n + -n % self.multiple for n in self.image_size)
    return height, width

  @property
  def num_auxiliary_outputs(self) -> int:
    """How many outputs deep supervision adds."""
    return min(MAX_AUXILIARY_OUTPUTS, self.num_layers - 2) if self.deep_supervision else 0

  def stages(self) -> list[Stage]:
    """Returns the stages from full size down to the bottleneck."""
    return [
        Stage(
            index=n,
            filters=self.base_filters * 2**n,
            kernel=max(3, self.base_kernels - 2 * n),
            dilation=max(1, self.dilation - n),
            dropout_rate=self.dropout_rate * n,
        )
        for n in range(self.num_layers)
    ]


# The published network for seven tissue classes.
PUBLISHED = ModelConfig(
    image_size=(512, 512),
    image_channels=3,
    num_classes=7,
    base_filters=16,
    base_kernels=11,
    num_layers=8,
    dropout_rate=0.05,
    normalization="none",
)


def count_parameters(config: ModelConfig) -> int:
  """Returns `model.count_params()` of the network without building it."""
  # Scale and offset per channel, and for batch normalization the two running statistics.
  per_normalized_channel = {"none": 0, "batch": 4}.get(config.normalization, 2)
  stages = config.stages()
  total = 0
  channels = config.image_channels
  for stage in stages:
    total += _block(stage, channels, per_normalized_channel)
    channels = stage.filters
  for stage in stages[-2::-1]:
    total += (2 * 2 * channels + 1) * stage.filters  # Transposed convolution.
    total += _block(stage, 2 * stage.filters, per_normalized_channel)
    channels = stage.filters
  heads = stages[: config.num_auxiliary_outputs + 1]
  return total + sum((stage.filters + 1) * config.num_classes for stage in heads)


def _block(stage: Stage, channels_in: int, per_normalized_channel: int) -> int:
  area = stage.kernel**2
  first = (area * channels_in + 1) * stage.filters
  second = (area * stage.filters + 1) * stage.filters
  return first + second + 2 * per_normalized_channel * stage.filters
