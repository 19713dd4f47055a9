"""What a run is expected to take: arithmetic on its plan and the speed of the machine."""

import numpy as np
import pytest
import run_samples

from flexunet import config
from flexunet.network import cost, step_time
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import forecast

SHAPE = {"image_size": (64, 96), "image_channels": 1, "num_classes": 2, "base_filters": 8,
         "base_kernels": 3, "num_layers": 3, "dropout_rate": 0.0}  # fmt: skip


def table(count, foreground=0):
  zeros = np.zeros(count, int)
  pixels = np.stack([np.full(count, 9), np.arange(count) < foreground], axis=1)
  return RecordTable(
      files=["f"], shard=zeros, offset=np.arange(count), subject=np.full(count, "a"),
      volume=np.full(count, "a"), slice_index=np.arange(count), fold=zeros,
      height=np.full(count, 64), width=np.full(count, 96), pixels=pixels,
  )  # fmt: skip


def known(train=80, validation=24, foreground=0, **facts):
  names = ["background", "lesion"]
  return forecast.Facts(table(train, foreground), table(validation), names, **facts)


def settings(**given):
  return config.TrainingConfig(**{
      "batch_size": 8, "epochs": 5, "validation_epochs": 1, "precision": "float32", **given
  })  # fmt: skip


def expected(facts, data=None, **given):
  drawn = config.DataConfig(**{"foreground_fraction": 0.0, "epoch_passes": 2, **(data or {})})
  return forecast.forecast(run_samples.published(**SHAPE), drawn, settings(**given), facts)


def test_the_time_of_a_run_of_epochs_is_that_of_its_steps_and_validations():
  machine = step_time.Machine(cores=2)
  step_s = step_time.step_seconds(run_samples.published(**SHAPE), 8, machine)
  found = expected(known(cpu_cores=2))
  # 5 epochs of 2 passes of 10 steps; 24 slices to validate are 3 forward passes, a step's time,
  # beside 20 steps.
  assert found.steps == 100 and found.step_seconds == pytest.approx(step_s)
  assert found.seconds == pytest.approx(15 + 100 * step_s * (1 + 1 / 20))
  rarely = expected(known(cpu_cores=2), validation_epochs=5)
  assert rarely.seconds == pytest.approx(15 + 100 * step_s * (1 + 1 / 100))


def test_a_time_limit_is_what_a_run_takes_unless_its_epochs_end_before():
  facts = known()
  step_s = expected(facts).step_seconds
  timed = expected(facts, max_minutes=2.0, epochs=10_000)
  assert timed.seconds == pytest.approx(120, abs=2 * step_s)
  assert timed.steps == int(105 / (step_s * 1.05))
  assert expected(facts, max_minutes=1000.0).steps == 100
  assert expected(facts, max_minutes=0.01).steps == 1


def test_several_devices_share_the_time_and_the_memory_of_a_step():
  data = config.DataConfig(foreground_fraction=0.0, epoch_passes=2)
  model, facts = run_samples.published(**SHAPE), known()
  one, two = (forecast.forecast(model, data, settings(), facts, count) for count in (1, 2))
  assert two.step_seconds == pytest.approx(one.step_seconds / 2)
  # Two parts of one CPU are no more hardware.
  parts = forecast.forecast(model, data, settings(), facts, 2, 1)
  assert (parts.step_seconds, parts.memory_bytes) == (one.step_seconds, two.memory_bytes)
  assert two.memory_bytes < one.memory_bytes


def test_a_pass_counts_the_slices_that_are_drawn():
  # Half of a batch of 8 is drawn from 16 slices with foreground: 4 of 80 others, 4 of 16 a step.
  data = config.DataConfig(foreground_fraction=0.5)
  model = run_samples.published(**SHAPE)
  part, what = forecast.passes_per_step(model, data, settings(), known(foreground=16))
  assert part == pytest.approx(1 / 20 + 4 / 16) and what == "slices with foreground"


def test_a_gpu_is_said_to_be_a_guess():
  assert "no GPU has been measured" in expected(known(device="gpu")).basis
  assert "guess" not in expected(known(convolution_speed=1e11)).basis


def test_the_memory_of_a_cpu_is_that_of_the_step_and_the_program():
  model = run_samples.published(**SHAPE)
  needed = cost.training_bytes(model, 8)
  assert forecast.memory_bytes(model, settings(), "cpu") == needed + int(0.9e9)
  assert forecast.memory_bytes(model, settings(), "gpu") == needed


def warned(memory_bytes, num_sharing=1, **training):
  model = config.ModelConfig(
      image_size=(64, 96), num_classes=2, base_filters=8, base_kernels=3, num_layers=3,
      dropout_rate=0.0, normalization="none", stem="full",
      decoder_convolutions=2,
  )  # fmt: skip
  settings = config.TrainingConfig(**{"batch_size": 16, "precision": "float32", **training})
  return forecast.memory_warning(model, settings, memory_bytes, num_sharing)


def test_a_given_batch_that_does_not_fit_is_told_with_its_flags_and_figures():
  shape = run_samples.published(
      image_size=(64, 96), image_channels=1, num_classes=2, base_filters=8, base_kernels=3,
      num_layers=3, dropout_rate=0.0,
  )  # fmt: skip
  needed = cost.training_bytes(shape, 16)
  assert warned(needed) is None and warned(None) is None
  told = warned(needed - 1)
  assert "\n" not in told and "--batch_size (now 16; 15 would fit)" in told
  assert "--image_size (now 64,96)" in told and "--base_filters (now 8)" in told
  assert f"about {needed / 1e9:.1f} GB" in told and f"{(needed - 1) / 1e9:.1f} GB are free" in told
  assert "not even 1 would fit" in warned(1000)
  # Half the numbers, or two devices that take half of the batch each, fit.
  assert warned(needed - 1, precision="mixed_bfloat16") is None
  assert warned(needed - 1, num_sharing=2) is None
