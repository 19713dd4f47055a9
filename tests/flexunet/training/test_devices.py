"""Devices, precision, determinism: what is chosen, and that it changes speed, not results."""

import functools
import json
import subprocess
import sys
import tempfile
import types

import keras
import numpy as np
import pytest
import resume_runs

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.network import model, weights
from flexunet.objectives import losses
from flexunet.training import devices

# The backends of Keras beside TensorFlow, each an extra of setup.cfg.
OTHER_BACKENDS = [
    pytest.param(name, marks=pytest.mark.needs_extra(name)) for name in ("jax", "torch")
]


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu avx512_bf16 amx_bf16", "mixed_bfloat16"), ("fpu avx512_bf16", "float32"),
        ("", "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_a_matrix_unit_for_it(
    monkeypatch, tmp_path, flags, precision
):
  file = tmp_path / "cpuinfo"
  file.write_text(f"processor : 0\nflags\t\t: {flags}\n")
  monkeypatch.setattr(devices, "device_names", lambda: ["CPU"])
  monkeypatch.setattr(devices, "_CPU_INFO", file)
  assert devices.default_precision()[0] == precision


def test_what_depends_on_the_device_is_filled_in_with_a_reason(monkeypatch, tmp_path):
  monkeypatch.setattr(devices, "device_names", lambda: ["CPU"])
  monkeypatch.setattr(devices, "_CPU_INFO", tmp_path / "absent")
  settings, reasons = devices.complete(config.TrainingConfig(steps_per_execution=2))
  assert (settings.precision, settings.deterministic) == ("float32", True)
  assert (settings.jit_compile, settings.steps_per_execution) == ("off", 2)
  assert reasons["steps_per_execution"] == "given" and "CPU" in reasons["precision"]


def test_a_gpu_gets_half_precision_and_several_steps_a_go(monkeypatch):
  monkeypatch.setattr(devices, "device_names", lambda: ["NVIDIA"])
  settings, _ = devices.complete(config.TrainingConfig())
  assert (settings.precision, settings.deterministic) == ("mixed_bfloat16", False)
  assert settings.steps_per_execution > 1 and settings.jit_compile == "on"


def test_more_devices_than_there_are_is_refused():
  with pytest.raises(InputError, match="--num_devices=99 must be at most"):
    devices.strategy(99, 99)


def test_a_cpu_is_divided_into_at_most_its_processors(monkeypatch):
  monkeypatch.setattr(devices, "device_names", lambda: ["CPU"])
  monkeypatch.setattr(devices.machine, "available_cpus", lambda: 2)
  with pytest.raises(InputError, match="--num_devices=3 must be at most the processors .*, 2"):
    devices.divide_cpu(3)


@pytest.mark.slow
def test_parts_of_a_cpu_have_their_share_of_the_processors():
  program = (
      "from flexunet.core import machine\nmachine.available_cpus = lambda: 5\n"
      "from flexunet.training import devices\nimport tensorflow as tf\ndevices.divide_cpu(2)\n"
      "tf.zeros(1)\ndevices.divide_cpu(4)\n"  # Too late: without effect.
      "print(len(tf.config.list_logical_devices('CPU')),"
      " tf.config.threading.get_intra_op_parallelism_threads(), devices.num_sharing(2),"
      " devices.num_sharing_hardware(2), devices.strategy(2, 4).num_replicas_in_sync)"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout.split() == ["2", "2", "2", "1", "2"]


def test_one_device_needs_no_strategy():
  assert devices.strategy(1, 7) is None


def test_the_precision_of_the_process_is_put_back():
  with devices.precision("mixed_bfloat16"):
    layer = keras.layers.Dense(1)
  assert layer.compute_dtype == "bfloat16"
  assert keras.config.dtype_policy().name == "float32"


def first_weights(seed):
  network = model.build_model(
      image_size=(16, 16), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2, normalization="batch")
  weights.set_from_seed(network, seed)
  return network.get_weights()


def test_first_weights_are_a_function_of_the_seed():
  one, same, other = first_weights(1), first_weights(1), first_weights(2)
  for first, second in zip(one, same, strict=True):
    np.testing.assert_array_equal(first, second)
  assert any(not np.array_equal(first, second) for first, second in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["he_normal", "he_uniform", "glorot_uniform", "lecun_normal"])
def test_first_weights_have_the_spread_of_their_initializer(name):
  initializer = keras.initializers.get(name)
  shape = (3, 3, 40, 60)
  drawn = weights.variance_scaled(shape, initializer, np.random.default_rng(0))
  expected = keras.ops.convert_to_numpy(initializer(shape))
  assert drawn.dtype == np.float32
  assert drawn.std() == pytest.approx(expected.std(), rel=0.02)
  assert np.abs(drawn).max() == pytest.approx(np.abs(expected).max(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_follows_the_losses_of_float32(policy):
  random = np.random.default_rng(0)
  label = np.zeros((4, 16, 16), np.int32)
  label[:, 4:10, 4:10] = 1
  images = (label * 150 + random.integers(0, 50, label.shape))[..., None].astype("float32")
  curves = []
  for precision in ("float32", policy):
    keras.utils.set_random_seed(0)
    with devices.precision(precision):
      network = model.build_model(
      image_size=(16, 16), image_channels=1, num_classes=2, base_filters=8, base_kernels=3,
      num_layers=2, dropout_rate=0.0, normalization="batch")
    weights.set_from_seed(network, 0)
    network.compile(keras.optimizers.Adam(1e-2), losses.make("dice_cross_entropy", 2))
    curves.append([float(network.train_on_batch(images, label)) for _ in range(12)])
  assert all(variable.dtype == "float32" for variable in network.trainable_variables)
  assert curves[1][-1] < 0.8 * curves[1][0]  # It learns.
  # bfloat16 has 8 bits of mantissa: 2^-8 = 0.4 % a number.
  np.testing.assert_allclose(curves[1], curves[0], rtol=0.03)


def trained(found):
  """Takes what `resume_runs.train` returns; returns what a run that has ended tells."""
  code, told, stderr = found
  assert code == 0, stderr[-3000:]
  return told


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_weights(blob_data, tmp_path):
  one, two, other = (
      trained(resume_runs.train(blob_data, tmp_path / f"run_{number}", epochs=2, seed=seed))
      for number, seed in enumerate((1, 1, 2))
  )
  assert one == two
  assert other["model"] != one["model"]


def test_muon_is_refused_on_several_devices(monkeypatch):
  monkeypatch.setattr(devices, "num_sharing", lambda count: 2)
  with pytest.raises(InputError, match="muon trains on a single device, but 2 are to share"):
    devices.complete(config.TrainingConfig(optimizer="muon", num_devices=2))


def on_two(data_dir, run_dir, *arguments, **knobs):
  knobs = {"epochs": 2, "num_devices": 2, "previews": 3, **knobs}
  return resume_runs.train(data_dir, run_dir, "--logical_devices=2", *arguments, **knobs)


@pytest.mark.slow
def test_two_devices_share_a_batch_and_resume_exactly(blob_data, tmp_path):
  averages = {"ema_momentum": 0.9}
  whole = trained(on_two(blob_data, tmp_path / "whole", **averages))
  run = tmp_path / "run"
  assert on_two(blob_data, run, "--kill=terminate_step:14", **averages)[0] == 128 + 15
  assert trained(on_two(blob_data, run, "--resume", **averages)) == whole
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["devices_sharing_a_batch"] == 2


@pytest.mark.slow
def test_another_number_of_devices_is_refused_and_the_losses_are_alike(blob_data, tmp_path):
  both = trained(on_two(blob_data, tmp_path / "both", epochs=1))
  code, _, stderr = resume_runs.train(
      blob_data, tmp_path / "both", "--resume", epochs=2, num_devices=1, previews=3
  )
  assert code == 1 and "--num_devices was 2, now it is 1" in stderr
  # Each device draws its own dropout; else they are one (test_replicas.py).
  alone = trained(resume_runs.train(blob_data, tmp_path / "alone", epochs=1, num_devices=1))
  losses = [json.loads(run["history"])[0]["loss"] for run in (both, alone)]
  assert losses[0] == pytest.approx(losses[1], rel=0.1)


@functools.lru_cache
def loss_curve(backend, data_dir):
  with tempfile.TemporaryDirectory() as folder:
    # "auto" is bfloat16 on TensorFlow alone, where the CPU has a matrix unit for it.
    return trained(resume_runs.train_apart(
        {"KERAS_BACKEND": backend}, data_dir, f"{folder}/run", "--dropout=0", "--losses", epochs=2,
        precision="float32",
    ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_the_trainer_gives_the_same_loss_curve_on_other_backends(backend, blob_data):
  expected, found = loss_curve("tensorflow", blob_data), loss_curve(backend, blob_data)
  assert len(found) == 18  # Two epochs of 36 slices, 4 a step.
  assert found[-1] < 0.95 * found[0]
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_a_run_with_dropout_resumes_exactly_on_other_backends(
    backend, blob_data, tmp_path, jax_cache
):
  averages = {
      "jax": {"weight_average": 0.7, "optimizer": "muon", "gradient_accumulation": 2},
      "torch": {"optimizer": "schedule_free"},
  }[backend]

  def train(name, *arguments):
    variables = {"KERAS_BACKEND": backend, **jax_cache}
    return resume_runs.train_apart(
        variables, blob_data, tmp_path / name, *arguments, epochs=2, **averages
    )

  whole = trained(train("whole"))
  assert train("run", "--kill=terminate_step:5")[0] == 128 + 15
  assert trained(train("run", "--resume")) == whole


def test_the_speed_of_a_convolution_is_that_of_the_clock_and_timed_once(monkeypatch):
  ticks = iter([0, 100, *range(101, 1000)])  # The first one takes 100 s, each other one 1 s.
  monkeypatch.setattr(devices.time, "perf_counter", lambda: float(next(ticks)))
  monkeypatch.setattr(devices, "_TRIALS_S", 200.0)
  devices.convolution_speed.cache_clear()
  found = devices.convolution_speed("float32")
  assert devices.convolution_speed("float32") == found
  devices.convolution_speed.cache_clear()
  assert found == pytest.approx(2 * 8 * 64 * 64 * 9 * 32 * 32)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_convolution_is_timed_in_each_precision(policy):
  devices.convolution_speed.cache_clear()
  assert 1e6 < devices.convolution_speed(policy) < 1e15


def test_deterministic_operations_and_xla_exclude_each_other():
  with pytest.raises(InputError, match="exclude each other"):
    devices.complete(config.TrainingConfig(deterministic=True, jit_compile="on"))
  settings, reasons = devices.complete(config.TrainingConfig(jit_compile="on"))
  assert not settings.deterministic and "excludes" in reasons["deterministic"]


@pytest.mark.parametrize(
    ("visible", "free_mib"), [("1", 700), ("GPU-a", 90), ("", 90), ("0,1", 90)]
)
def test_free_memory_is_that_of_the_gpus_that_this_process_sees(monkeypatch, visible, free_mib):
  lines = "0, GPU-a, 90\n1, GPU-b, 700\n"
  done = types.SimpleNamespace(stdout=lines)
  monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: done)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  assert devices._gpu_memory("free") == free_mib * 2**20
