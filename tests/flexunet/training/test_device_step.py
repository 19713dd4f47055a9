"""Augmentation and the cache in the step on the device: the same examples, the same losses."""

import functools
import json

import flagged
import keras
import numpy as np
import pytest
import resume_runs

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.pipelines import cache
from flexunet.training import device_step, devices, input_pipeline, resuming

# Dropout is redrawn for each network that a test builds.
AUGMENTED = ("--augmentation=strong", "--dropout_rate=0", "--precision=float32")
# Enough where losses are compared, and compiled sooner; examples are compared with all of them.
TURNED = ("--augmentation=none", "--rotation_probability=1", "--gamma_probability=1")
DEEP = ("--deep_supervision", "--num_layers=3")
ON_DEVICE = ("--augment_on=device",)
CACHED = ("--cache=device",)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def losses(data_dir, *given):
  return flagged.losses(flagged.setup(data_dir, *AUGMENTED, *given), 4)


@pytest.fixture(scope="module")
def host_losses(data_dir):
  """A function that returns the losses of a step fed by the host, trained once for all tests."""

  @functools.cache
  def train(*given):
    return losses(data_dir, "--augment_on=host", *given)

  return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "channels"),
    [(CACHED, ()), ((*ON_DEVICE, "--cache=none"), ("--image_channels=3",))],
)  # fmt: skip
def test_the_device_gives_the_examples_of_the_host(data_dir, device, channels):
  host = flagged.finished(flagged.setup(data_dir, *AUGMENTED, *channels))
  found = flagged.finished(flagged.setup(data_dir, *AUGMENTED, *device, *channels))
  plain = flagged.finished(flagged.setup(data_dir, *channels))
  assert len(found) == len(host) == 4
  for (image, label), (wanted, truth), (before, _) in zip(found, host, plain, strict=True):
    assert image.shape == wanted.shape == (4, 20, 28, 3 if channels else 1)
    assert image.dtype == label.dtype == np.uint8
    assert np.abs(image.astype(int) - wanted).max() <= 1
    np.testing.assert_array_equal(label, truth)
    assert (image != before).any()


def test_a_cache_on_the_device_gives_the_same_slices_without_augmentation(data_dir):
  cached, plain = flagged.setup(data_dir, *CACHED), flagged.setup(data_dir, "--cache=none")
  batch = next(iter(cached.streams.training(cached.order, 0, 1)))
  assert set(batch) == {"row", "seed"}  # No image travels.
  pairs = zip(flagged.finished(cached), flagged.finished(plain), strict=True)
  for (image, label), (wanted, truth) in pairs:
    np.testing.assert_array_equal(image, wanted)
    np.testing.assert_array_equal(label, truth)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [TURNED, (*TURNED, *DEEP, "--steps_per_execution=2")])
def test_steps_on_the_device_have_the_losses_of_the_host(data_dir, host_losses, beside):
  host = host_losses(*beside)
  assert len(host) == 4 // (2 if "--steps_per_execution=2" in beside else 1)
  np.testing.assert_allclose(losses(data_dir, *ON_DEVICE, *beside), host, rtol=1e-3)
  np.testing.assert_allclose(losses(data_dir, *CACHED, *beside), host, rtol=1e-3)


@pytest.mark.slow
def test_the_step_on_the_device_compiles_with_xla(data_dir, host_losses):
  found = losses(data_dir, *ON_DEVICE, "--jit_compile=on")
  np.testing.assert_allclose(found, host_losses(), rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [(), ("--jit_compile=on", "--steps_per_execution=2")])
def test_the_input_of_a_step_is_compiled_by_itself_as_on_a_gpu(
    data_dir, host_losses, monkeypatch, beside
):
  # What is noted is the mean up to a step; of two steps at once it is noted behind the second.
  host = host_losses()[1::2] if beside else host_losses()
  whole = device_step.DeviceInput
  # The run itself is planned for the CPU.
  monkeypatch.setattr(
      device_step, "DeviceInput",
      lambda *given, **named: whole(*given, **{**named, "compiled": True}),
  )  # fmt: skip
  np.testing.assert_allclose(losses(data_dir, *CACHED, *beside), host, rtol=2e-3)


# Everything that a step can be at once.
MUCH = {"ema_momentum": 0.9, "gradient_accumulation": 2, "steps_per_execution": 2,
        "checkpoint_steps": 4, "epochs": 2, "augment_on": "device"}  # fmt: skip
DEEP_MODEL = f"--model={json.dumps({'deep_supervision': True, 'num_layers': 3})}"


@pytest.mark.slow
def test_killed_and_resumed_it_ends_the_same_whatever_keeps_the_slices(blob_data, tmp_path):
  code, expected, stderr = resume_runs.train(blob_data, tmp_path / "whole", DEEP_MODEL, **MUCH)
  assert code == 0, stderr
  cached = (DEEP_MODEL, "--cache=device")
  killed, _, stderr = resume_runs.train(
      blob_data, tmp_path / "run", *cached, "--kill=terminate_step:6", **MUCH
  )
  assert killed == 128 + 15, stderr
  code, found, stderr = resume_runs.train(blob_data, tmp_path / "run", *cached, "--resume", **MUCH)
  assert (code, found) == (0, expected), stderr
  manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert manifest["cache"] == {"mode": "device", "reason": "given; validation: ram"}
  # The saved model is a plain one.
  kept = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
  assert type(kept).__name__ == "Functional" and len(kept.outputs) == 1


@pytest.mark.slow
def test_two_devices_augment_their_parts_of_a_batch(blob_data, tmp_path):
  def train(name, *arguments, **knobs):
    knobs = {"epochs": 1, "num_devices": 2, "precision": "float32", **knobs}
    code, found, stderr = resume_runs.train(
        blob_data, tmp_path / name, "--logical_devices=2", "--dropout=0", *arguments, **knobs
    )
    return code, found, stderr

  code, found, stderr = train("device", augment_on="device")
  assert code == 0, stderr
  code, host, stderr = train("host", augment_on="host")
  assert code == 0, stderr
  for one, two in zip(*(json.loads(run["history"]) for run in (found, host)), strict=True):
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
  code, _, stderr = train("cached", "--cache=device", augment_on="device")
  assert code == 1 and "it lies on one device, and 2 share a batch" in stderr


def test_the_device_is_chosen_with_its_reason(monkeypatch):
  def chosen(names, **flags):
    monkeypatch.setattr(devices, "device_names", lambda: names)
    settings = config.TrainingConfig(num_devices=flags.pop("num_devices", 0))
    settings, reasons = devices.complete(settings, **flags)
    return settings.augment_on, reasons["augment_on"]

  assert chosen(["CPU"])[0] == "host" and "without a GPU" in chosen(["CPU"])[1]
  assert chosen(["CPU"], cache="device")[0] == "device"
  assert chosen(["NVIDIA"])[0] == "device" and "GPU" in chosen(["NVIDIA"])[1]
  monkeypatch.setattr(keras.config, "backend", lambda: "jax")
  monkeypatch.setattr(devices, "default_precision", lambda: ("float32", ""))
  assert chosen(["NVIDIA"])[0] == "host" and "TensorFlow alone" in chosen(["NVIDIA"])[1]


def test_several_gpus_leave_xla_out(monkeypatch):
  monkeypatch.setattr(devices, "device_names", lambda: ["NVIDIA", "NVIDIA"])
  settings, reasons = devices.complete(config.TrainingConfig())
  assert settings.jit_compile == "off" and "2 share a batch" in reasons["jit_compile"]
  assert devices.complete(config.TrainingConfig(num_devices=1))[0].jit_compile == "on"
  with pytest.raises(InputError, match="but 2 are to share a batch. Use --num_devices=1"):
    devices.complete(config.TrainingConfig(jit_compile="on"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"augment_on": "device"}, "--augment_on=device needs KERAS_BACKEND=tensorflow. Got: jax"),
        ({"cache": "device"}, "--cache=device needs KERAS_BACKEND=tensorflow. Got: jax"),
    ],
)
def test_another_backend_is_refused_before_training(monkeypatch, given, message):
  monkeypatch.setattr(keras.config, "backend", lambda: "jax")
  settings = config.TrainingConfig(augment_on=given.get("augment_on", "auto"))
  with pytest.raises(InputError, match=message):
    devices.complete(settings, cache=given.get("cache", "auto"))


def test_slices_on_the_device_cannot_be_augmented_before_it(data_dir):
  conflict = (*CACHED, "--augment_on=host")
  with pytest.raises(InputError, match="--cache=device and --augment_on=host exclude each other"):
    flagged.setup(data_dir, "--augmentation=default", *conflict)
  # Without augmentation there is nothing to exclude.
  assert flagged.setup(data_dir, *conflict).streams.cache_choice.mode == "device"


def test_a_run_that_augments_on_the_host_keeps_doing_so(data_dir):
  saved = flagged.setup(data_dir, "--augmentation=default", "--cache=ram").config
  now = flagged.setup(data_dir, "--augmentation=default", *CACHED)
  merged = resuming.merge(saved, now.config)
  assert (merged.training.augment_on, merged.data.cache) == ("host", "device")
  with pytest.raises(InputError, match="the run augments on the host"):
    _ = flagged.Setup(merged, now.data).streams


def test_validation_is_not_augmented_and_not_kept_on_the_device(data_dir):
  run = flagged.setup(data_dir, *AUGMENTED, *CACHED)
  plain = flagged.setup(data_dir, "--cache=none")
  assert "validation: ram" in run.streams.cache_choice.reason
  for one, two in zip(run.streams.validation(), plain.streams.validation(), strict=True):
    for found, wanted in zip(keras.tree.flatten(one), keras.tree.flatten(two), strict=True):
      np.testing.assert_array_equal(found, wanted)


def test_a_gpu_with_room_takes_the_training_slices(data_dir, monkeypatch):
  run = flagged.setup(data_dir, *AUGMENTED, *ON_DEVICE)
  monkeypatch.setattr(devices, "has_gpu", lambda: True)
  room = input_pipeline.device_room(run.config, 2**30, replicas=1)
  assert room.is_gpu and not room.obstacle and 0.9 * 2**30 < room.free_bytes < 2**30
  assert "2 share a batch" in input_pipeline.device_room(run.config, 2**30, replicas=2).obstacle
  # Twelve slices of 20 x 28 pixels, one byte a pixel of image and of label: 13,440 bytes.
  assert cache.num_bytes_on_device(run.streams.train) == 12 * 20 * 28 * 2
  unknown = input_pipeline.device_room(run.config, None, replicas=1)
  loaders = (run.streams.train, run.streams.held_out)
  host = input_pipeline.make_caches(run.config.data, loaders, ("a", "b"), unknown)
  assert host.choice.mode == "ram" and "cannot be measured" in host.choice.reason
