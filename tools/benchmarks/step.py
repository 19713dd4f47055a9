"""Measures a training step of networks side by side, and what limits each of their layers.

  flexunet benchmark_step --image_size=176,176 --num_classes=4 \
      --compare="stem=half; block=residual encoder_blocks=3; precision=float32"

The first network is that of the flags; --compare adds others that differ in the knobs named, in
batch_size or in precision. All take turns in one process, since machines are noisy: figures are
medians over the turns, of the wall clock and of CPU time, and ratios to the first network.

The roofline: the best convolution of the machine over a few shapes, and the bytes a second of an
addition over arrays as large as the network's largest feature map, set what a layer could reach.
Each layer of the first network (of all with --all_layers) is then timed alone, forward and forward
with backward. Shares are by CPU time on a CPU, where other programs take the clock, and by the wall
clock on a GPU.

Prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import time
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core import command_line, config_fields, flags, progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.network import cost
from flexunet.network.architecture import ModelConfig

_PROGRAM = flags.Program(__doc__)
_COMPARE = _PROGRAM.string(
    "compare", "", 'Other networks: "knob=value knob=value; knob=value".'
)  # fmt: skip
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Images a step.", lower_bound=1)
_PRECISION = _PROGRAM.string("precision", "auto", "Precision of the computation, as in training.")
_ROUNDS = _PROGRAM.integer("rounds", 5, "Turns of each network.", lower_bound=1)
_STEPS = _PROGRAM.integer("steps", 4, "Steps in a turn.", lower_bound=1)
_LAYERS = _PROGRAM.boolean("layers", True, "Times the layers of the first network.")
_ALL_LAYERS = _PROGRAM.boolean("all_layers", False, "Times the layers of the other networks too.")
# What planning chooses for slices of that size on a CPU.
_SHAPE = _PROGRAM.fields(ModelConfig, group="Network", defaults={
    "image_size": (176, 176), "num_classes": 4, "base_filters": 16, "base_kernels": 3,
    "num_layers": 5, "dropout_rate": 0.02, "normalization": "batch", "stem": "full",
    "decoder_convolutions": 2,
})  # fmt: skip

# Edge, channels and kernel of square convolutions, of batches of 8: those that reach most.
_PEAK_SHAPES = ((44, 64, 3), (44, 128, 3), (22, 256, 3), (28, 512, 1))
# Smaller arrays would measure what a call costs.
_LEAST_ARRAY_BYTES = 2**24
_BACKWARD = 3  # Forward, and the gradients of inputs and of weights, cost about the same each.


@dataclasses.dataclass(frozen=True)
class Contender:
  """A network that takes part.

  Attributes:
    name: How it differs from the first.
    model: Its shape; complete.
    batch_size: Images a step.
    precision: A dtype policy of Keras.
  """

  name: str
  model: ModelConfig
  batch_size: int
  precision: str

  @property
  def forward_flops(self) -> int:
    """Floating-point operations of a forward pass over a batch, two for a multiply-add."""
    return 2 * self.batch_size * sum(row.multiply_adds for row in cost.rows(self.model))


def contenders(first: Contender, compare: str) -> list[Contender]:
  """Returns the first network and those of `--compare`.

  Raises:
    InputError: An unknown knob or a value that it cannot have.
  """
  others = [part.split() for part in compare.split(";") if part.strip()]
  return [first, *(_changed(first, words) for words in others)]


def _changed(first: Contender, words: list[str]) -> Contender:
  hints = typing.get_type_hints(ModelConfig)
  knobs: dict[str, Any] = {}
  others: dict[str, Any] = {}
  for word in words:
    name, equals, text = word.partition("=")
    if not equals:
      raise InputError(f"--compare must hold knob=value, separated by blanks. Got: {word}.")
    if name == "precision":
      others[name] = _policy(text)
    elif name == "batch_size":
      others[name] = _value(name, int, text)
    elif name in hints:
      knobs[name] = _value(name, hints[name], text)
    else:
      raise unknown_name("knob of --compare", name, [*hints, "batch_size", "precision"])
  shape = dataclasses.replace(first.model, **knobs)
  return dataclasses.replace(first, name=" ".join(words), model=shape, **others)


def _value(name: str, hint: Any, text: str) -> Any:
  base, _ = config_fields.optional_base(hint)
  if typing.get_origin(base) is tuple:
    return flags.numbers(name, text.split(","), int)
  if base is bool:
    config_fields.check_choice(name, text, ("true", "false"))
    return text == "true"
  return flags.numbers(name, [text], base)[0] if base in (int, float) else text


def _policy(precision: str) -> str:
  """Returns a dtype policy of Keras; of "auto" that of training on this machine."""
  known = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
  config_fields.check_choice("precision", precision, known)
  return libraries().devices.default_precision()[0] if precision == "auto" else precision


@functools.cache
def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  # Heavy: --help and a wrong flag are answered without them.
  import keras
  import tensorflow as tf

  # So are these.
  from flexunet.network import inference, model
  from flexunet.objectives import losses, metrics
  from flexunet.optimizers import run_optimizer
  from flexunet.training import devices, networks

  return types.SimpleNamespace(
      keras=keras, tf=tf, inference=inference, model=model, losses=losses, metrics=metrics,
      devices=devices, networks=networks, run_optimizer=run_optimizer,
  )  # fmt: skip


@dataclasses.dataclass
class Seconds:
  """What calls took.

  Attributes:
    wall, cpu: Seconds of a call, the mean of each turn.
  """

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)

  def add(self, call: Callable[[], Any], times: int) -> None:
    """Calls so many times and keeps the mean; `call` returns when the device is done."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
      call()
    self.wall.append((time.perf_counter() - wall) / times)
    self.cpu.append((time.process_time() - cpu) / times)

  @property
  def counted(self) -> float:
    """The median by which shares are reckoned: CPU time on a CPU, the wall clock on a GPU."""
    return statistics.median(self.wall if libraries().devices.has_gpu() else self.cpu)

  def to_json(self) -> dict[str, Any]:
    """Returns the medians in milliseconds, and those of each turn."""
    wall, cpu = ([round(1e3 * value, 3) for value in values] for values in (self.wall, self.cpu))
    return {
        "wall_ms": round(statistics.median(wall), 3), "cpu_ms": round(statistics.median(cpu), 3),
        "wall_ms_of_each_turn": wall, "cpu_ms_of_each_turn": cpu,
    }  # fmt: skip


class Runner:
  """A network with the calls that are timed.

  Attributes:
    contender: What it was made from.
    network: In training; its outputs are logits.
    training, inference: What a step and a prediction of a batch took.
  """

  def __init__(self, contender: Contender):
    lib = libraries()
    self.contender = contender
    shape, size = contender.model, contender.batch_size
    with lib.devices.precision(contender.precision):
      plain = lib.model.build_model(shape)
      twin = lib.model.logits_twin(plain)
    outputs = twin.outputs if shape.deep_supervision else twin.outputs[0]
    self.network = lib.networks.TrainingNetwork(twin.input, outputs, name=twin.name)
    settings = config.TrainingConfig(
        optimizer="adamw", learning_rate=1e-3, weight_decay=1e-4, clipvalue=0.5, ema_momentum=0.98
    )
    classes = shape.num_classes
    names = [f"class {index}" for index in range(max(2, classes))]
    self.network.compile(
        optimizer=lib.run_optimizer.make(settings),
        loss=lib.losses.make("dice_cross_entropy", classes, from_logits=True),
        weighted_metrics=lib.metrics.training_metrics(["dice"], classes, names),
        jit_compile=lib.devices.default_jit()[0] == "on",
    )
    generator = np.random.default_rng(0)
    area = (size, *(shape.image_size or (512, 512)))
    image = generator.integers(0, 256, (*area, shape.image_channels), np.uint8)
    label = generator.integers(0, len(names), area, np.uint8)
    batch = (image, label, np.ones(size, np.float32))
    self._batches = iter(lib.tf.data.Dataset.from_tensors(batch).repeat())
    self.network.make_train_function()
    self._predict = lib.tf.function(lib.inference.as_function(plain), autograph=False)
    self._image = lib.tf.constant(image)
    self.training, self.inference = Seconds(), Seconds()

  def step(self) -> None:
    """Trains on a batch and waits until it is done."""
    float(self.network.train_function(self._batches)["loss"])

  def predict(self) -> None:
    """Answers for a batch and waits until it is done."""
    self._predict(self._image).numpy()


def take_turns(runners: Sequence[Runner], rounds: int, steps: int) -> None:
  """Fills in what the steps take, each network in its turn."""
  for turn in range(rounds + 1):
    # The order is reversed each time, so that no network always follows the same other one.
    for runner in list(runners)[:: 1 if turn % 2 else -1]:
      for seconds, call in ((runner.training, runner.step), (runner.inference, runner.predict)):
        (seconds if turn else Seconds()).add(call, steps)  # The first turn compiles.
    progress.say(f"Turn {turn} of {rounds} is done.")


@dataclasses.dataclass(frozen=True)
class Roof:
  """What the machine reaches at most, by the seconds of `Seconds.counted`.

  Attributes:
    flops: Floating-point operations a second of the best convolution, by number type.
    bytes: Read and written in a second.
    array_bytes: Size of the arrays by which that was measured.
  """

  flops: dict[str, float]
  bytes: float
  array_bytes: int

  def limit(self, flops: float, moved_bytes: float, number: str) -> tuple[float, str]:
    """Returns the seconds that some work takes at least, and what limits it."""
    compute, memory = flops / self.flops[number], moved_bytes / self.bytes
    return max(compute, memory), "compute" if compute >= memory else "memory"

  def to_json(self) -> dict[str, Any]:
    """Returns the figures in usual units."""
    return {
        "convolution_gflop_per_s": {k: round(v / 1e9, 1) for k, v in self.flops.items()},
        "memory_gb_per_s": round(self.bytes / 1e9, 2),
        "memory_array_mb": round(self.array_bytes / 1e6, 1),
    }


def measure_roof(numbers: Sequence[str], array_bytes: int) -> Roof:
  """Measures the machine.

  Args:
    numbers: Number types, e.g. ["float32", "bfloat16"].
    array_bytes: As large as what the network reads and writes.
  """
  tf = libraries().tf
  peaks: dict[str, float] = {}
  for number in numbers:
    for edge, channels, kernel in _PEAK_SHAPES:
      maps = tf.cast(tf.random.normal([8, edge, edge, channels]), number)
      taps = tf.cast(tf.random.normal([kernel, kernel, channels, channels]), number)
      seconds = _timed(lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), maps, taps)
      flops = 2 * 8 * edge**2 * kernel**2 * channels**2
      peaks[number] = max(peaks.get(number, 0.0), flops / seconds.counted)
  array = tf.ones([max(1, array_bytes // 4)])
  seconds = _timed(lambda x: x + 1.0, array)
  return Roof(peaks, 2 * array_bytes / seconds.counted, array_bytes)


def _timed(function: Callable, *arguments: Any, rounds: int = 5, times: int = 3) -> Seconds:
  """Returns what a function of tensors takes once it is compiled."""
  compiled = libraries().tf.function(function, autograph=False)

  def call() -> None:
    for tensor in libraries().tf.nest.flatten(compiled(*arguments))[:1]:
      tensor[(0,) * len(tensor.shape)].numpy()  # Waits for the device.

  call()
  seconds = Seconds()
  for _ in range(rounds):
    seconds.add(call, times)
  return seconds


def units(network: Any) -> list[list[Any]]:
  """Returns the layers of a network in groups of one, activations with their normalization."""
  groups: list[list[Any]] = []
  for layer in network.layers:
    name = layer.name
    if not isinstance(layer.input, (list, tuple)) and not layer.name.startswith("image"):
      before = layer.input._keras_history.operation.name  # Keras has no public way to it.
      if "_act" in name and "_norm" in before and groups[-1][-1].name == before:
        groups[-1].append(layer)
        continue
    if not name.startswith("image"):
      groups.append([layer])
  return groups


def measure_layers(runner: Runner, roof: Roof) -> list[dict[str, Any]]:
  """Returns the figures of each layer alone, in the order of the network."""
  rows = {row.name: row for row in cost.rows(runner.contender.model)}
  return [_layer_figures(unit, rows.get(unit[0].name), runner.contender, roof)
          for unit in units(runner.network)]  # fmt: skip


def _layer_figures(
    unit: list[Any], row: cost.Row | None, contender: Contender, roof: Roof
) -> dict[str, Any]:
  tf, first = libraries().tf, unit[0]
  size, number = contender.batch_size, first.compute_dtype
  inputs = [_random((size, *one.shape[1:]), one.dtype, number) for one in _listed(first.input)]
  outputs = [(size, *one.shape[1:]) for one in _listed(unit[-1].output)]
  weights = [weight for layer in unit for weight in layer.trainable_variables]
  watched = [one for one in inputs if one.dtype.is_floating]

  def forward(*given: Any) -> Any:
    x: Any = list(given) if len(given) > 1 else given[0]
    for layer in unit:
      x = layer(x, training=True) if _knows_training(layer) else layer(x)
    return x

  def both(*given: Any) -> Any:
    with tf.GradientTape() as tape:
      tape.watch([one for one in given if one.dtype.is_floating])
      answer = forward(*given)
    return [answer, *tape.gradient(answer, [*(x for x in given if x.dtype.is_floating),
                                            *(weight.value for weight in weights)])]

  moved = tf.as_dtype(number).size * (
      sum(math.prod(one.shape) for one in (*inputs, *weights)) + sum(map(math.prod, outputs))
  )
  flops = 2 * size * row.multiply_adds if row else 0
  alone = _timed(forward, *inputs)
  trained = _timed(both, *inputs) if watched else alone
  backward = _BACKWARD if watched else 1
  limit, limited_by = roof.limit(backward * flops, backward * moved, number)
  return {
      "name": "+".join(layer.name for layer in unit),
      "kind": row.kind if row else type(first).__name__,
      "number": number,
      "forward_flops": flops,
      "forward_bytes": moved,
      "forward": _medians(alone),
      "forward_and_backward": _medians(trained),
      "share_of_peak": round(backward * flops / roof.flops[number] / trained.counted, 4),
      "share_of_roof": round(limit / trained.counted, 4),
      "limited_by": limited_by,
  }


def _medians(seconds: Seconds) -> dict[str, float]:
  return {name: value for name, value in seconds.to_json().items() if "turn" not in name}


def _listed(tensors: Any) -> Sequence[Any]:
  return tensors if isinstance(tensors, (list, tuple)) else [tensors]


def _knows_training(layer: Any) -> bool:
  return bool(layer._call_has_training_arg)  # As Keras asks it; there is no public name.


def _random(shape: tuple[int, ...], dtype: str, number: str) -> Any:
  """Returns random numbers of the type in which a layer receives them."""
  tf = libraries().tf
  if not tf.as_dtype(dtype).is_floating:
    return tf.cast(tf.random.uniform(shape, 0, 256, tf.int32), dtype)
  return tf.cast(tf.random.normal(shape), number)


def measure(chosen: Sequence[Contender]) -> dict[str, Any]:
  """Returns the figures of networks that take turns."""
  lib = libraries()
  runners = [Runner(contender) for contender in chosen]
  take_turns(runners, _ROUNDS.value, _STEPS.value)
  # The head computes in float32 in any case.
  numbers = sorted({"float32", *(one.precision.removeprefix("mixed_") for one in chosen)})
  roof = measure_roof(numbers, max(_LEAST_ARRAY_BYTES, largest_map_bytes(chosen[0])))
  entries = []
  for place, runner in enumerate(runners):
    entry = _figures(runner, runners[0], roof)
    if _LAYERS.value and (place == 0 or _ALL_LAYERS.value):
      entry["layers"] = measure_layers(runner, roof)
    entries.append(entry)
  return {
      "devices": lib.devices.device_names(),
      "rounds": _ROUNDS.value,
      "steps_a_turn": _STEPS.value,
      "machine": roof.to_json(),
      "networks": entries,
  }


def largest_map_bytes(contender: Contender) -> int:
  """Returns the bytes of the largest feature map of a batch, in the number type of its layers."""
  largest = max(math.prod(row.size) * row.channels for row in cost.rows(contender.model))
  width = 4 if contender.precision == "float32" else 2
  return width * contender.batch_size * largest


def _figures(runner: Runner, first: Runner, roof: Roof) -> dict[str, Any]:
  contender = runner.contender
  flops, size = contender.forward_flops, contender.batch_size
  peak = roof.flops[contender.precision.removeprefix("mixed_")]
  training, predicting = runner.training, runner.inference
  images = first.contender.batch_size / size
  return {
      "name": contender.name,
      "knobs": dataclasses.asdict(contender.model),
      "batch_size": size,
      "precision": contender.precision,
      "parameters": cost.count_parameters(contender.model),
      "forward_flops": flops,
      "training": training.to_json(),
      "inference": predicting.to_json(),
      "steps_per_s": round(1 / statistics.median(training.wall), 3),
      # Of networks on patches and on whole slices alike, where steps and images differ in size.
      "training_megapixel_per_s": round(
          size * math.prod(contender.model.image_size or (512, 512))
          / statistics.median(training.wall) / 1e6, 4
      ),
      "training_share_of_peak": round(_BACKWARD * flops / peak / training.counted, 4),
      "training_time_per_image_to_first": round(
          images * training.counted / first.training.counted, 4
      ),
      "inference_time_per_image_to_first": round(
          images * predicting.counted / first.inference.counted, 4
      ),
  }


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  shape = flags.read(ModelConfig, _SHAPE)
  shape.require_complete()
  command_line.load_tensorflow()
  first = Contender("first", shape, _BATCH_SIZE.value, _policy(_PRECISION.value))
  print(json.dumps(measure(contenders(first, _COMPARE.value)), indent=2))


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
