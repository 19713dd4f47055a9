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
STEMS = {
    "full": "the first stage works at full size",
    "half": "each 2x2 pixels become channels, the first stage works at half the size, and the head"
            " answers for the four pixels: about a third of the operations",
    "half_refined": "half, and a light convolution at full size sees the image again before the"
                    " head",
}  # fmt: skip
BLOCKS = {
    "plain": "convolutions one after another",
    "residual": "each encoder block's input is added to its output, as in nnU-Net's residual"
                " encoder",
}  # fmt: skip
UPSAMPLINGS = {
    "transpose": "a 2x2 transposed convolution",
    "nearest": "a 1x1 convolution at the coarse size, whose pixels are repeated",
}
# Auxiliary outputs of deep supervision: of the stages below the first, as far as they exist.
MAX_AUXILIARY_OUTPUTS = 3


@dataclasses.dataclass(frozen=True)
class Stage:
  """One resolution of the network; the decoder's block mirrors the encoder's.

  Attributes:
    index: 0 in the first; each stage below has half the height and width.
    filters: Channels of its convolutions.
    kernel: Edge of the square kernels, in pixels of this stage.
    dilation: Spacing of the kernel's taps.
    dropout_rate: Between two convolutions of a block.
    encoder_blocks: Blocks of two convolutions in the encoder.
  """

  index: int
  filters: int
  kernel: int
  dilation: int
  dropout_rate: float
  encoder_blocks: int = 1


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
      "Trains outputs of the next stages too, up to three, each half as heavy as the one before;"
      " the saved model has the main output alone.",
  )
  stem: str = knob(None, "Size at which the first stage works.", choices=STEMS)
  block: str = knob("plain", "How convolutions of the encoder are joined.", choices=BLOCKS)
  encoder_blocks: int = knob(
      1,
      "Most blocks of two convolutions in an encoder stage: one in the first, one more at each"
      " stage below.",
      minimum=1, maximum=12,
  )
  decoder_convolutions: int = knob(
      None, "Convolutions in each decoder stage; nnU-Net's residual networks have 1.",
      minimum=1, maximum=4,
  )
  upsampling: str = knob(
      "transpose", "How the decoder doubles height and width.", choices=UPSAMPLINGS
  )
  max_filters: int = knob(0, "Most channels of a stage; 0 sets no limit.", minimum=0)

  def __post_init__(self):
    super().__post_init__()
    if self.base_kernels is not None and self.base_kernels % 2 == 0:
      raise InputError(
          f"base_kernels must be odd, so that a kernel has a centre pixel. Got:"
          f" {self.base_kernels}. Take {self.base_kernels - 1} or {self.base_kernels + 1}."
      )
    if 0 < self.max_filters < (self.base_filters or 0):
      raise InputError(
          f"max_filters must be 0 or at least base_filters, {self.base_filters}. Got:"
          f" {self.max_filters}."
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

  def of_run(self) -> ModelConfig:
    """Returns it as it stands for in a run's config: what an earlier one lacks as it was then."""
    return dataclasses.replace(
        self,
        stem=self.stem or "full",
        decoder_convolutions=self.decoder_convolutions or 2,
    )

  def require_complete(self) -> None:
    """Raises an InputError when a field other than `image_size` is open."""
    for field in dataclasses.fields(self):
      if getattr(self, field.name) is None and field.name != "image_size":
        raise InputError(f"{field.name} must be given before a network can be built from it.")

  @property
  def first_scale(self) -> int:
    """Pixels of the input along the edge of a pixel of the first stage."""
    return 2 if self.stem in ("half", "half_refined") else 1

  @property
  def multiple(self) -> int:
    """Height and width are padded to a multiple of this, in pixels."""
    return self.first_scale * 2 ** (self.num_layers - 1)

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

  @property
  def exit_filters(self) -> int:
    """Channels of the convolution at full size that refines a first stage at half the size."""
    return max(1, self.base_filters // 2) if self.stem == "half_refined" else 0

  def stages(self) -> list[Stage]:
    """Returns the stages from the largest down to the bottleneck."""
    most = self.max_filters or self.base_filters * 2**self.num_layers
    return [
        Stage(
            index=n,
            filters=min(self.base_filters * 2**n, most),
            kernel=max(3, self.base_kernels - 2 * n),
            dilation=max(1, self.dilation - n),
            dropout_rate=self.dropout_rate * n,
            encoder_blocks=min(n + 1, self.encoder_blocks),
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
    stem="full",
    decoder_convolutions=2,
)
