"""What a FlexUNet of given config costs and sees, by arithmetic alone: nothing is built.

Sizes are (height, width) in pixels, memory in bytes, costs in multiply-adds for one image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.network.architecture import ModelConfig, Stage


@dataclasses.dataclass(frozen=True)
class Row:
  """One layer that has an output of its own.

  Attributes:
    name: As in the Keras model.
    kind: convolution, shortcut, add, pool, up, join, stem or head.
    size: (height, width) of the output.
    channels: Those of the output.
    kernel: Edge of the kernel; 0 where there is none.
    dilation: That of the kernel.
    parameters: With those of the normalization that follows.
    multiply_adds: For one image.
    kept: Numbers that training keeps for the backward pass, for one image.
  """

  name: str
  kind: str
  size: tuple[int, int]
  channels: int
  kernel: int
  dilation: int
  parameters: int
  multiply_adds: int
  kept: int


def rows(config: ModelConfig) -> list[Row]:
  """Returns the layers from the input to the heads. A network of any size is drawn at 512 x 512."""
  config = config if config.image_size else dataclasses.replace(config, image_size=(512, 512))
  stages = config.stages()
  table: list[Row] = []
  channels = config.image_channels
  if config.stem != "full":
    channels *= 4
    table.append(_plain("stem", "stem", _size(config, 0), channels))
  for stage in stages:
    table += _encoder(stage, channels, config)
    channels = stage.filters
    if stage is not stages[-1]:
      table.append(_plain(f"pool{stage.index}", "pool", _size(config, stage.index + 1), channels))
  for stage in stages[-2::-1]:
    table += _up(stage, channels, config)
    table.append(_plain(f"join{stage.index}", "join", _size(config, stage.index),
                        2 * stage.filters))
    table += _decoder(stage, 2 * stage.filters, config)
    channels = stage.filters
  return table + _heads(config)


def count_parameters(config: ModelConfig) -> int:
  """Returns `model.count_params()` of the network without building it."""
  return sum(row.parameters for row in rows(config))


def _full_size(config: ModelConfig) -> tuple[int, int]:
  return config.padded_size or (512, 512)


def _size(config: ModelConfig, stage: int) -> tuple[int, int]:
  height, width = (edge // config.first_scale for edge in _full_size(config))
  return height >> stage, width >> stage


def _plain(name: str, kind: str, size: tuple[int, int], channels: int) -> Row:
  return Row(name, kind, size, channels, 0, 1, 0, 0, size[0] * size[1] * channels)


def _encoder(stage: Stage, channels: int, config: ModelConfig) -> list[Row]:
  name, size = f"encoder{stage.index}", _size(config, stage.index)
  table = []
  for block in range(stage.encoder_blocks):
    last = 2 * block + 1
    table += [
        _convolution(f"{name}_conv{last - 1}", size, stage, channels, config, dropped=True),
        _convolution(f"{name}_conv{last}", size, stage, stage.filters, config),
    ]
    if config.block == "residual":
      if channels != stage.filters:
        point = dataclasses.replace(stage, kernel=1, dilation=1)
        table.append(_convolution(f"{name}_shortcut_conv", size, point, channels, config,
                                  kind="shortcut"))
      table.append(_plain(f"{name}_add{last}", "add", size, stage.filters))
    channels = stage.filters
  return table


def _decoder(stage: Stage, channels: int, config: ModelConfig) -> list[Row]:
  table = []
  for index in range(config.decoder_convolutions):
    dropped = index == 0 and config.decoder_convolutions > 1
    table.append(_convolution(f"decoder{stage.index}_conv{index}", _size(config, stage.index),
                              stage, channels, config, dropped=dropped))
    channels = stage.filters
  return table


def _convolution(
    name: str,
    size: tuple[int, int],
    stage: Stage,
    channels: int,
    config: ModelConfig,
    *,
    kind: str = "convolution",
    dropped: bool = False,
) -> Row:
  """Returns a convolution from so many channels, with its normalization and activation."""
  area, taps = size[0] * size[1], stage.kernel**2 * channels
  # Scale and offset per channel, and for batch normalization the two running statistics.
  per_normalized = {"none": 0, "batch": 4}.get(config.normalization, 2) * stage.filters
  # The activated output; before it what was normalized, and, where the normalization is no single
  # operation of the framework, what came out of it. Measured with TensorFlow on a CPU.
  kept = {"none": 1, "batch": 2}.get(config.normalization, 3)
  kept += 2 if dropped and stage.dropout_rate else 0  # Dropout: result and mask.
  return Row(
      name, kind, size, stage.filters, stage.kernel, stage.dilation,
      (taps + 1) * stage.filters + per_normalized, area * taps * stage.filters,
      kept * area * stage.filters,
  )  # fmt: skip


def _up(stage: Stage, channels: int, config: ModelConfig) -> list[Row]:
  name, size = f"up{stage.index}", _size(config, stage.index)
  if config.upsampling == "transpose":
    return [_transposed(name, "up", size, channels, stage.filters)]
  coarse = _size(config, stage.index + 1)
  area = coarse[0] * coarse[1]
  return [
      Row(f"{name}_conv", "up", coarse, stage.filters, 1, 1, (channels + 1) * stage.filters,
          area * channels * stage.filters, area * stage.filters),
      _plain(name, "up", size, stage.filters),
  ]  # fmt: skip


def _transposed(
    name: str, kind: str, size: tuple[int, int], channels: int, filters: int, copies: int = 1
) -> Row:
  """Returns a transposed convolution, whose 2 x 2 taps each give a pixel of their own.

  Args:
    name, kind: As in `Row`.
    size: (height, width) of the output.
    channels, filters: Those of the input and of the output.
    copies: How often training keeps the output.
  """
  area = size[0] * size[1]
  return Row(name, kind, size, filters, 2, 1, (4 * channels + 1) * filters,
             area * channels * filters, copies * area * filters)  # fmt: skip


def _heads(config: ModelConfig) -> list[Row]:
  """Returns what leads from the features of each stage that answers to its logits."""
  classes, full = config.num_classes, _full_size(config)
  first, *others = config.stages()[: config.num_auxiliary_outputs + 1]
  table, channels = [], first.filters
  if config.stem == "half":
    # Logits and probabilities are kept.
    table.append(_transposed("head", "head", full, channels, classes, copies=2))
  elif config.stem == "half_refined":
    refining = Stage(0, config.exit_filters, 3, 1, 0.0)
    table.append(_transposed("exit_up", "up", full, channels, refining.filters))
    channels = refining.filters + config.image_channels
    table.append(_plain("exit_join", "join", full, channels))
    table.append(_convolution("exit_conv", full, refining, channels, config))
    channels = refining.filters
  if config.stem != "half":
    table.append(_head("head", full, channels, config))
  for stage in others:
    name = f"head_{config.first_scale * 2**stage.index}"
    table.append(_head(name, _size(config, stage.index), stage.filters, config))
  return table


def _head(name: str, size: tuple[int, int], channels: int, config: ModelConfig) -> Row:
  classes, area = config.num_classes, size[0] * size[1]
  height, width = _full_size(config)
  # Logits and probabilities, and the repeated ones of an auxiliary head.
  kept = 2 * area * classes + (height * width * classes if size != (height, width) else 0)
  return Row(name, "head", size, classes, 1, 1, (channels + 1) * classes,
             area * channels * classes, kept)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
  """Edge in input pixels of the square that can change one number of a stage's output.

  Attributes:
    stage: Index, 0 at full size.
    encoder: Behind the encoder's block.
    decoder: Behind the decoder's block; for the bottleneck that of the encoder.
  """

  stage: int
  encoder: int
  decoder: int


def receptive_fields(config: ModelConfig) -> list[ReceptiveField]:
  """Returns one entry per stage, at the least favourable position on the pooling grid."""
  return [
      ReceptiveField(stage.index, _encoder_field(config, stage.index, 1),
                     _decoder_field(config, stage.index, 1))
      for stage in config.stages()
  ]  # fmt: skip


def output_field(config: ModelConfig) -> int:
  """Returns the edge in input pixels of the square that can change one pixel of the output."""
  if config.stem != "half_refined":
    return _decoder_field(config, 0, 1)
  # The convolution at full size sees 3 pixels, which lie in at most 2 of the first stage.
  return max(3, _decoder_field(config, 0, 2))


def _encoder_field(config: ModelConfig, stage: int, edge: int) -> int:
  """Returns the input pixels behind `edge` neighbouring pixels of the encoder's stage."""
  for each in config.stages()[stage::-1]:
    edge += 2 * each.encoder_blocks * (each.kernel - 1) * each.dilation
    edge *= 2 if each.index else 1  # A pooled pixel has seen 2 of the stage above.
  return edge * config.first_scale


def _decoder_field(config: ModelConfig, stage: int, edge: int) -> int:
  """Returns the input pixels behind `edge` neighbouring pixels of the decoder's stage."""
  stages = config.stages()
  for each in stages[stage:-1]:
    edge += config.decoder_convolutions * (each.kernel - 1) * each.dilation
    # So many fine pixels in a row lie in at most this many coarse ones.
    edge = edge // 2 + 1
  return _encoder_field(config, len(stages) - 1, edge)


def training_bytes(config: ModelConfig, batch_size: int, *, bytes_per_number: int = 4) -> int:
  """Returns an estimate of the memory one training step needs with Adam.

  Weights, gradients and two moments in float32; what the backward pass needs of each image, and
  the gradients of the two largest outputs. The framework's own share, work space of convolution
  algorithms and the metrics come on top.

  Args:
    config: Shape of the network.
    batch_size: Images a step.
    bytes_per_number: 4 for float32, 2 for mixed precision.
  """
  table = rows(config)
  height, width = _full_size(config)
  image = height * width * config.image_channels
  largest = max(row.size[0] * row.size[1] * row.channels for row in table)
  kept = image + sum(row.kept for row in table) + 2 * largest
  return 16 * count_parameters(config) + batch_size * bytes_per_number * kept


def prediction_bytes(config: ModelConfig, size_hw: tuple[int, int], batch_size: int = 1) -> int:
  """Returns an estimate of the memory that one forward pass needs besides weights and framework.

  It is largest in the decoder at full size, where skip connection, upsampled features, both joined
  (twice as many), a convolution's result and what is made of it are there at once, and then logits
  and probabilities. With 1024 x 1024 pixels, 8 to 32 filters, kernels of 3 and 11 the peak of a
  process rose by 0.97 to 1.01 of this in float32, and by half of it in bfloat16 (TensorFlow, CPU).

  Args:
    config: Shape of the network.
    size_hw: (height, width) of its input, whatever that of the config.
    batch_size: Images a pass.
  """
  height, width = (edge + -edge % config.multiple for edge in size_hw)
  numbers = 6 * config.base_filters / config.first_scale**2
  numbers += 2 * config.num_classes + 2 * config.image_channels
  if config.stem != "full":  # The image as channels; what refines: up, joined, its result.
    numbers += config.image_channels * 2 + 4 * config.exit_filters
  return round(4 * batch_size * height * width * numbers)


def config_of_keras_file(path: pathlib.Path) -> ModelConfig:
  """Reads the config of a FlexUNet back from the architecture in its `.keras` file.

  Raises:
    InputError: No readable `.keras` file, or a network of another kind.
  """
  with _opened(path) as archive:
    content = archive.read("config.json")
    layers = files.parse_json(content, f"{path}, config.json in it,")["config"]["layers"]
  return config_of_layers(layers, str(path))


def check_keras_file(path: pathlib.Path) -> None:
  """Raises InputError unless every part of a `.keras` file is what its checksum says.

  Keras reads the weights past their checksum where reading them at once fails.
  """
  with _opened(path) as archive:
    if damaged := archive.testzip():
      raise InputError(
          f"{path} is damaged: the checksum of {damaged} in it does not fit. Put the original back."
      )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens a `.keras` file; whatever its bytes do to the readers in the block is an InputError."""
  try:
    with zipfile.ZipFile(path) as archive:
      yield archive
  except FileNotFoundError:
    raise InputError(f"{path} does not exist. Pass a .keras file.") from None
  except InputError:
    raise
  except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError,
          struct.error, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
    raise InputError(f"{path} must be a model saved as .keras: {error}.") from error


def config_of_layers(layers: list[dict], source: str) -> ModelConfig:
  """Reads the config of a FlexUNet back from the layers of its `get_config()`.

  Args:
    layers: The entries of "layers".
    source: What an error is to name.

  Raises:
    InputError: A network of another kind.
  """
  try:
    return _config_by_name({layer["config"]["name"]: layer for layer in layers})
  except InputError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
    raise InputError(
        f"{source} must hold a FlexUNet made by flexunet.build_model. It has no layer or setting"
        f" {error}."
    ) from error


def _config_by_name(layers: dict[str, dict]) -> ModelConfig:
  first = layers["encoder0_conv0"]["config"]
  num_layers = 1 + sum(name.startswith("pool") for name in layers)
  _, height, width, channels = layers["image"]["config"]["batch_shape"]
  normalization, activation = _normalization_of(layers), first["activation"]
  if normalization != "none":
    activation = layers["encoder0_act0"]["config"]["activation"]
  dropout = layers.get("encoder1_dropout", {"config": {"rate": 0.0}})["config"]["rate"]
  heads = sum(name.startswith("head") for name in layers)
  scale = layers["scale"]["class_name"]
  size: Any = None if height is None or width is None else (height, width)
  return ModelConfig(
      image_size=size,
      image_channels=channels,
      num_classes=layers["head"]["config"]["filters"],
      base_filters=first["filters"],
      base_kernels=first["kernel_size"][0],
      num_layers=num_layers,
      dropout_rate=dropout,
      dilation=first["dilation_rate"][0],
      normalization=normalization,
      activation=activation,
      kernel_initializer=_snake(first["kernel_initializer"]["class_name"]),
      input_normalization="unit" if scale == "Rescaling" else "per_image",
      deep_supervision=heads > 1,
      stem="full" if "stem" not in layers else "half_refined" if "exit_conv" in layers else "half",
      **_blocks_of(layers, first["filters"], num_layers),
  )


def _blocks_of(layers: dict[str, dict], base_filters: int, num_layers: int) -> dict[str, Any]:
  """Returns the knobs of blocks, upsampling and limited width."""
  deepest = f"encoder{num_layers - 1}"
  convolutions = sum(name.startswith(f"{deepest}_conv") for name in layers)
  width = layers[f"{deepest}_conv0"]["config"]["filters"]
  up = layers.get("up0", {"class_name": "Conv2DTranspose"})
  return {
      "block": "residual" if "encoder0_add1" in layers else "plain",
      "encoder_blocks": convolutions // 2,
      "decoder_convolutions": sum(name.startswith("decoder0_conv") for name in layers) or 2,
      "upsampling": "transpose" if up["class_name"] == "Conv2DTranspose" else "nearest",
      "max_filters": width if width < base_filters * 2 ** (num_layers - 1) else 0,
  }


def _normalization_of(layers: dict[str, dict]) -> str:
  layer = layers.get("encoder0_norm0")
  if layer is None:
    return "none"
  if layer["class_name"] == "GroupNormalization":
    channels = layers["encoder0_conv0"]["config"]["filters"]
    return "instance" if layer["config"]["groups"] == channels else "group"
  return {"BatchNormalization": "batch", "LayerNormalization": "layer"}[layer["class_name"]]


def _snake(name: str) -> str:
  return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
