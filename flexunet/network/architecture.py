"""The knobs of a FlexUNet: what each stage looks like, what is allowed, how many parameters.

Pure Python, so that programs can check and plan without loading TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib

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


@dataclasses.dataclass(frozen=True)
class Knobs:
  """Every argument of `model.build_model`, checked. Defaults are those of the published network.

  Attributes:
    image_size: (height, width) in pixels; None for any size.
    image_channels: Input channels, 1 for grey.
    num_classes: Output channels, background included; 1 means one foreground by sigmoid.
    base_filters: Channels of stage 0; doubled at each stage below.
    base_kernels: Odd kernel edge of stage 0; 2 less at each stage below, never under 3.
    num_layers: Number of stages, the bottleneck included.
    dropout_rate: Dropout of stage n is n times this.
    dilation: Dilation of stage 0; 1 less at each stage below, never under 1.
    normalization: After each convolution, before its activation.
    activation: Of every convolution but the head.
    kernel_initializer: Of every convolution.
    input_normalization: "unit" divides by 255; "per_image" standardizes by the non-zero pixels.
    deep_supervision: Adds an output at each of the upper decoder stages, brought to full size.
  """

  image_size: tuple[int, int] | None = (512, 512)
  image_channels: int = 3
  num_classes: int = 7
  base_filters: int = 16
  base_kernels: int = 11
  num_layers: int = 8
  dropout_rate: float = 0.05
  dilation: int = 1
  normalization: str = "none"
  activation: str = "relu"
  kernel_initializer: str = "he_normal"
  input_normalization: str = "unit"
  deep_supervision: bool = False

  def __post_init__(self):
    for name in ("image_channels", "num_classes", "base_filters", "base_kernels", "num_layers",
                 "dilation"):
      _require_count(name, getattr(self, name))
    if self.base_kernels % 2 == 0:
      raise InputError(
          f"base_kernels must be odd, so that a kernel has a centre pixel. Got:"
          f" {self.base_kernels}. Take {self.base_kernels - 1} or {self.base_kernels + 1}."
      )
    _require_choice("normalization", self.normalization, NORMALIZATIONS)
    _require_choice("activation", self.activation, ACTIVATIONS)
    _require_choice("kernel_initializer", self.kernel_initializer, KERNEL_INITIALIZERS)
    _require_choice("input_normalization", self.input_normalization, INPUT_NORMALIZATIONS)
    deepest = self.dropout_rate * (self.num_layers - 1)
    if not self.dropout_rate >= 0 or not deepest < 1:
      raise InputError(
          "dropout_rate times (num_layers - 1), the dropout of the deepest stage, must lie in"
          f" [0, 1). Got: {self.dropout_rate} x {self.num_layers - 1} = {deepest:g}. Lower"
          " dropout_rate."
      )
    if self.image_size is not None:
      self._check_size()
    if self.deep_supervision and self.num_layers < 3:
      raise InputError(
          f"deep_supervision needs num_layers of at least 3. Got: {self.num_layers}. Add stages"
          " or turn it off."
      )

  def _check_size(self):
    try:
      height, width = self.image_size
    except (TypeError, ValueError) as error:
      raise InputError(
          f"image_size must be (height, width) or None for any size. Got: {self.image_size!r}."
      ) from error
    _require_count("image_size", height)
    _require_count("image_size", width)
    object.__setattr__(self, "image_size", (int(height), int(width)))

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


def count_parameters(knobs: Knobs) -> int:
  """Returns `model.count_params()` of the network without building it."""
  # Scale and offset per channel, and for batch normalization the two running statistics.
  per_normalized_channel = {"none": 0, "batch": 4}.get(knobs.normalization, 2)
  stages = knobs.stages()
  total = 0
  channels = knobs.image_channels
  for stage in stages:
    total += _block(stage, channels, per_normalized_channel)
    channels = stage.filters
  for stage in stages[-2::-1]:
    total += (2 * 2 * channels + 1) * stage.filters  # Transposed convolution.
    total += _block(stage, 2 * stage.filters, per_normalized_channel)
    channels = stage.filters
  heads = stages[: knobs.num_auxiliary_outputs + 1]
  return total + sum((stage.filters + 1) * knobs.num_classes for stage in heads)


def _block(stage: Stage, channels_in: int, per_normalized_channel: int) -> int:
  area = stage.kernel**2
  first = (area * channels_in + 1) * stage.filters
  second = (area * stage.filters + 1) * stage.filters
  return first + second + 2 * per_normalized_channel * stage.filters


def _require_count(name: str, value) -> None:
  # bool is an int in Python; NumPy integers are none, but count as one.
  if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
    raise InputError(f"{name} must be a whole number of at least 1. Got: {value!r}.")


def _require_choice(name: str, value, choices: tuple[str, ...]) -> None:
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, n=1)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  raise InputError(f"{name} must be one of {', '.join(choices)}. Got: {value!r}.{hint}")
