"""Which devices a run uses, and in which numbers it computes there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from flexunet import config
from flexunet.core import machine
from flexunet.core.errors import InputError
from flexunet.distributed import hosts

# Of `convolution_speed`.
_LEAST_TRIALS, _TRIALS_S = 5, 0.3
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def device_names() -> list[str]:
  """Returns the names of all GPUs, or ["CPU"]; on JAX of whatever devices it has."""
  backend = keras.config.backend()
  if backend == "tensorflow":
    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    return [details(gpu).get("device_name", "GPU") for gpu in gpus] or ["CPU"]
  if backend == "torch":  # Keras cannot list its devices.
    cuda = _torch().cuda
    return [cuda.get_device_name(i) for i in range(cuda.device_count())] or ["CPU"]
  return [str(device) for device in keras.distribution.list_devices()]


def _torch() -> Any:
  """Returns PyTorch, an extra that the other backends do without."""
  # Installed only where Keras runs on PyTorch.
  import torch

  return torch


def has_gpu() -> bool:
  """Returns whether the backend has a GPU or another accelerator."""
  return device_names() != ["CPU"] and not all("cpu" in name.lower() for name in device_names())


def complete(
    settings: config.TrainingConfig,
    *,
    cache: str = "auto",
    augmented: bool = True,
    served: bool = False,
) -> tuple[config.TrainingConfig, dict[str, str]]:
  """Returns the settings with what depends on the devices filled in, and a reason for each.

  Args:
    settings: With None or "auto" where a choice is left open.
    cache: `DataConfig.cache`.
    augmented: Whether the run augments at all.
    served: Whether a data service computes its batches.

  Raises:
    InputError: Settings exclude each other, or the backend cannot do what was asked for.
  """
  gpu = has_gpu()
  wants_jit = settings.jit_compile == "on" and keras.config.backend() == "tensorflow"
  sharing = num_sharing(settings.num_devices)
  if served and cache not in ("auto", "none"):
    raise InputError(
        f"--cache={cache} keeps decoded training slices beside the trainer, but workers of"
        " --data_service decode them. Leave --cache out."
    )
  _check_together(settings, cache, augmented, wants_jit, sharing)
  if wants_jit:
    deterministic = (False, "--jit_compile=on excludes it")
  else:
    deterministic = (not gpu, "would slow a GPU down" if gpu else "costs little on a CPU")
  defaults: dict[str, tuple[Any, str]] = {
      "deterministic": deterministic,
      "precision": default_precision(),
      "jit_compile": default_jit(sharing),
      "augment_on": default_augment_on(cache, served),
      "steps_per_execution": (
          (4, "a GPU would wait for Python between short steps")
          if gpu
          else (1, "a step on a CPU takes far longer than Python between two")
      ),
  }
  reasons: dict[str, str] = {}
  chosen: dict[str, Any] = {}
  for name, (value, why) in defaults.items():
    if getattr(settings, name) in (None, "auto"):
      chosen[name], reasons[name] = value, why
    else:
      reasons[name] = "given"
  return dataclasses.replace(settings, **chosen), reasons


def _check_together(
    settings: config.TrainingConfig, cache: str, augmented: bool, wants_jit: bool, sharing: int
) -> None:
  """Raises InputError for settings that exclude each other.

  Deterministic operations and XLA, which Keras cannot do together on TensorFlow; XLA, and Muon,
  with several devices; a cache on the device and augmentation before it; a step on the device and
  another backend than TensorFlow.
  """
  if wants_jit and sharing > 1:
    raise InputError(
        f"--jit_compile=on needs a single device, but {sharing} are to share a batch. Use"
        " --num_devices=1, or leave --jit_compile out."
    )
  if settings.optimizer == "muon" and sharing > 1:
    raise InputError(
        f"--optimizer=muon trains on a single device, but {sharing} are to share a batch: killed"
        " and resumed it did not end the same. Use --num_devices=1, or another optimizer."
    )
  if cache == "device" and settings.augment_on == "host" and augmented:
    raise InputError(
        "--cache=device and --augment_on=host exclude each other: the slices are on the device,"
        " and so they are augmented there. Leave --augment_on out, or use --cache=ram."
    )
  check_backend(settings.augment_on == "device", cache == "device")
  if hosts.count() > 1 and settings.jit_compile == "off":
    raise InputError(
        "--jit_compile=off computes operation by operation, which several hosts cannot. Leave the"
        " flag out."
    )
  if settings.deterministic and wants_jit:
    raise InputError(
        "--deterministic and --jit_compile=on exclude each other: Keras turns XLA off where"
        " TensorFlow's operations are to be deterministic. Leave either of them out."
    )


def free_memory() -> int | None:
  """Returns the bytes that are free on the devices of a run, the least of several; None: unknown.

  Call it before anything runs on a GPU: TensorFlow takes all of its memory at once.
  """
  return _gpu_memory("free") if has_gpu() else machine.free_main_memory()


def check_backend(wants_augmentation: bool, wants_cache: bool) -> None:
  """Raises InputError if the backend cannot augment on the device, or keep a cache there."""
  backend = keras.config.backend()
  if backend == "tensorflow":
    return
  for wanted, flag, instead in (
      (wants_augmentation, "--augment_on=device", "--augment_on=host"),
      (wants_cache, "--cache=device", "--cache=ram"),
  ):
    if wanted:
      raise InputError(f"{flag} needs KERAS_BACKEND=tensorflow. Got: {backend}. Use {instead}.")


def memory_left() -> int | None:
  """Returns the bytes that a program can still use that runs on its device; None: unknown.

  Of a GPU, all of whose memory TensorFlow has taken, those that no tensor holds.
  """
  if not has_gpu():
    return machine.free_main_memory()
  if keras.config.backend() != "tensorflow":
    return _gpu_memory("free")
  total = _gpu_memory("total")
  held = tf.config.experimental.get_memory_info("GPU:0")["current"]
  return None if total is None else max(0, total - held)


def _gpu_memory(kind: str) -> int | None:
  """Returns the "free" or "total" memory of the GPUs in bytes, the least of several."""
  try:
    text = subprocess.run(
        ["nvidia-smi", f"--query-gpu=index,uuid,memory.{kind}", "--format=csv,noheader,nounits"],
        check=True, capture_output=True, text=True, timeout=20,
    ).stdout  # fmt: skip
    gpus = [line.split(", ") for line in text.splitlines() if line]
    # nvidia-smi lists all GPUs of the machine, this process may see some of them.
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    seen = [gpu for gpu in gpus if {gpu[0], gpu[1]} & set(wanted)] or gpus
    return min(int(size) for _, _, size in seen) * 2**20
  except (OSError, ValueError, subprocess.SubprocessError):
    return None


def default_precision() -> tuple[str, str]:
  """Returns the precision that suits the devices, and why."""
  if not has_gpu():
    if keras.config.backend() == "tensorflow" and _cpu_computes_in_bfloat16():
      return "mixed_bfloat16", "the CPU multiplies matrices of bfloat16"
    return "float32", "the CPU has no unit for matrices of less"
  if keras.config.backend() == "tensorflow":
    details = [
        tf.config.experimental.get_device_details(gpu)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    # bfloat16 needs no loss scaling; NVIDIA computes in it from Ampere (8.0) on.
    if any(detail.get("compute_capability", (8, 0)) < (8, 0) for detail in details):
      return "mixed_float16", "the GPU computes in float16, but not in bfloat16"
  return "mixed_bfloat16", "the GPU computes in bfloat16, which has the range of float32"


@functools.cache
def convolution_speed(policy: str) -> float:
  """Returns the operations a second of a convolution alone, timed on this machine once.

  The median over a third of a second, so that other programs on the machine count as they will
  while it trains.

  Args:
    policy: Precision of the layers, e.g. "mixed_bfloat16".
  """
  convolve, operations = convolution(policy)
  times: list[float] = []
  while len(times) < _LEAST_TRIALS or sum(times) < _TRIALS_S:
    started = time.perf_counter()
    convolve()
    times.append(time.perf_counter() - started)
  return operations / statistics.median(times[1:])  # The first one prepares.


def convolution(policy: str) -> tuple[Callable[[], None], float]:
  """Returns a call that computes one convolution, of a middle stage, and its operations."""
  dtype = keras.DTypePolicy(policy).compute_dtype
  image = keras.ops.ones((8, 64, 64, 32), dtype=dtype)
  kernel = keras.ops.ones((3, 3, 32, 32), dtype=dtype)

  def convolve() -> None:
    answer = keras.ops.conv(image, kernel, padding="same", data_format="channels_last")
    float(keras.ops.cast(answer[0, 0, 0, 0], "float32"))  # Waits until it has been computed.

  return convolve, 2.0 * 8 * 64 * 64 * 9 * 32 * 32


def num_sharing(num_devices: int) -> int:
  """Returns how many devices share a batch, as `strategy` finds them; 0 means all GPUs."""
  if keras.config.backend() != "tensorflow":
    return hosts.num_devices()
  return num_devices or (len(device_names()) if has_gpu() else 1)


def default_augment_on(cache: str, served: bool = False) -> tuple[str, str]:
  """Returns where a run with that `DataConfig.cache` augments, "host" or "device", and why."""
  if served:
    return "host", "the workers of --data_service augment"
  if keras.config.backend() != "tensorflow":
    return "host", "the step on the device augments on TensorFlow alone"
  if cache == "device":
    return "device", "--cache=device keeps the slices there"
  if has_gpu():
    return "device", "uint8 slices travel to the GPU, and the threads that feed it only copy"
  return "host", "without a GPU the threads of the input pipeline work beside the step"


def _cpu_computes_in_bfloat16() -> bool:
  """Returns whether the CPU has a matrix unit for bfloat16.

  Vector instructions (avx512_bf16) do not suffice: with them alone a minute of training on patches
  of the hippocampus set had 115 steps in bfloat16 and 174 in float32.
  """
  try:
    text = _CPU_INFO.read_text(encoding="utf-8")
  except OSError:
    return False  # Not Linux.
  flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
  return "amx_bf16" in flags


def default_jit(sharing: int = 1) -> tuple[str, str]:
  """Returns "on" or "off" for so many devices that share a batch, and why."""
  if keras.config.backend() == "tensorflow" and not has_gpu():
    return "off", "on a CPU steps compiled by XLA are several times slower"
  if keras.config.backend() == "torch":
    return "off", "PyTorch does not use XLA"
  if sharing > 1 and keras.config.backend() == "tensorflow":
    return "off", f"XLA compiles for one device, and {sharing} share a batch"
  return "on", "XLA joins the element-wise work between convolutions"


def prepare(settings: config.TrainingConfig) -> None:
  """Sets what must be set before anything runs on a device: seeds, determinism, who owns the GPU.

  These are settings of the process and cannot be taken back.
  """
  keras.utils.set_random_seed(settings.seed)
  backend = keras.config.backend()
  if settings.deterministic:
    tf.config.experimental.enable_op_determinism()
    if backend == "torch":
      _torch().use_deterministic_algorithms(True, warn_only=True)
  leave_gpus_to_keras()


def leave_gpus_to_keras() -> None:
  """Hides the GPUs from TensorFlow where it only feeds batches: it would take their memory."""
  if keras.config.backend() != "tensorflow":
    with contextlib.suppress(RuntimeError):  # Its devices are in use already: too late, no harm.
      tf.config.set_visible_devices([], "GPU")


def divide_cpu(num_devices: int, *, more_than_processors: bool = False) -> None:
  """Divides the CPU where a run on TensorFlow asks for several devices and there is no GPU.

  Each part is a device with its share of the processors: an operation of one uses that many
  threads. Call it before TensorFlow computes anything; later it has no effect, and `strategy`
  refuses a number that is not there. It trains as several GPUs would, and not faster than the
  undivided CPU, whose operations use all processors anyway.

  Args:
    num_devices: Of the run; below 2 nothing is done.
    more_than_processors: Allows more parts than there are processors, to try them.

  Raises:
    InputError: There are not so many processors.
  """
  if num_devices < 2 or keras.config.backend() != "tensorflow" or has_gpu():
    return
  cpu = tf.config.list_physical_devices("CPU")[0]
  if tf.config.get_logical_device_configuration(cpu):
    return  # Divided already, by whoever uses this as a library.
  cores = machine.available_cpus()
  if num_devices > cores and not more_than_processors:
    raise InputError(
        f"--num_devices={num_devices} must be at most the processors of this machine without a GPU,"
        f" {cores}. Leave it out to use all of them for one device."
    )
  parts = [tf.config.LogicalDeviceConfiguration()] * num_devices
  with contextlib.suppress(RuntimeError):  # TensorFlow has computed already.
    tf.config.set_logical_device_configuration(cpu, parts)
    tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // num_devices))


def num_sharing_hardware(num_devices: int) -> int:
  """Returns by how much several devices are more hardware than one: parts of a CPU are not."""
  return num_sharing(num_devices) if has_gpu() else 1


def strategy(num_devices: int, batch_size: int) -> Any:
  """Returns a MirroredStrategy over several devices, or None for one.

  Raises:
    InputError: There are not so many devices, or the batch cannot be shared evenly.
  """
  if keras.config.backend() != "tensorflow":
    if num_devices > 1:
      raise InputError(
          f"--num_devices={num_devices} needs KERAS_BACKEND=tensorflow. Got:"
          f" {keras.config.backend()}. Use --num_devices=1."
      )
    hosts.check_batch(batch_size)
    return None
  found = tf.config.list_logical_devices("GPU")
  if not found:
    found = tf.config.list_logical_devices("CPU")[: max(1, num_devices)]
  count = num_devices or len(found)
  if count > len(found):
    raise InputError(
        f"--num_devices={num_devices} must be at most the number of devices, {len(found)}. Use"
        " --num_devices=0 for all of them. (A CPU is divided at the start of a program alone.)"
    )
  if batch_size % count:
    raise InputError(
        f"--batch_size={batch_size} must be a multiple of the {count} devices that share a batch."
        f" Use --batch_size={-(-batch_size // count) * count}, or --num_devices=1."
    )
  if count == 1:
    return None
  return _mirrored(tuple(device.name for device in found[:count]))


@functools.cache
def _mirrored(names: tuple[str, ...]) -> Any:
  """Returns one strategy per set of devices.

  Two of one process number their exchanges alike, and TensorFlow takes one for the other.
  """
  return tf.distribute.MirroredStrategy(names)


def scope(strategy_or_none: Any) -> contextlib.AbstractContextManager:
  """Returns a context whose variables lie on all devices of the strategy, if there is one."""
  return strategy_or_none.scope() if strategy_or_none else contextlib.nullcontext()


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
  """Lets layers that are made inside compute as `policy` says."""
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy(policy)
  try:
    yield
  finally:
    keras.config.set_dtype_policy(before)
