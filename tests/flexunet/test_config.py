"""Configs refuse what cannot be, and every field has its flag."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import run_samples

from flexunet import config
from flexunet.core import config_fields, flags
from flexunet.core.errors import InputError
from flexunet.dataset_facts import DatasetFacts
from flexunet.pipelines.augmentation.config import AugmentationConfig

PARTS = (
    config.ModelConfig, config.DataConfig, config.TrainingConfig, AugmentationConfig
)  # fmt: skip


def run_config(**training) -> config.RunConfig:
  return config.RunConfig(
      model=config.ModelConfig(
          image_size=(64, 48), num_classes=2, stem="full", decoder_convolutions=2
      ),
      data=config.DataConfig(dataset="toy"),
      training=config.TrainingConfig(**training),
      dataset_facts=DatasetFacts(
          name="toy/1.0.0", fingerprint="f", label_scheme=run_samples.SCHEME,
          slice_plan=None, intensity=None, channel_names=("t1", "flair"),
      ),
      reasons={"num_classes": "two"},
  )


def test_a_config_survives_json():
  before = run_config(learning_rate=1e-3, batch_size=4)
  after = config.RunConfig.from_json(json.loads(json.dumps(before.to_json())))
  assert after == before


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"batch_size": 2.5}, "batch_size must be of type int"),
        ({"batch_size": True}, "batch_size must be of type int"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer": "adm"}, "Did you mean 'adam'"),
        ({"reduce_lr_factor": 2.0}, "from 0.01 to 0.99"),
    ],
)
def test_a_value_out_of_range_is_refused(values, message):
  with pytest.raises(InputError, match=message):
    config.TrainingConfig(**values)


@pytest.mark.parametrize("size", [(0, 4), (3,) * 3, (1.5, 2), "ab"])
def test_an_impossible_image_size_is_refused(size):
  with pytest.raises(InputError, match="image_size"):
    config.ModelConfig(image_size=size)


def test_one_number_means_a_square():
  assert config.ModelConfig(image_size=(96,)).image_size == (96, 96)


def test_an_unknown_name_lists_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'learning_rate'"):
    config_fields.from_mapping(config.TrainingConfig, {"learning_rat": 1.0})
  values = run_config().to_json()
  values["modle"] = {}
  with pytest.raises(InputError, match="model"):
    config.RunConfig.from_json(values)


@pytest.mark.parametrize("part", PARTS)
def test_every_field_becomes_a_flag_with_the_same_default_and_a_help_text(part):
  program = flags.Program("")
  program.fields(part)
  values = program.values
  for field in dataclasses.fields(part):
    flag = values[field.name]
    # A flag of several values holds a list, a frozen config a tuple.
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    assert flag.default == default, field.name
    assert len(flag.help) > 10


def test_the_trainer_has_the_flag_of_every_field():
  told = subprocess.run(
      [sys.executable, "-m", "flexunet.train", "--help"], capture_output=True, text=True
  ).stdout
  for part in PARTS:
    for field in dataclasses.fields(part):
      assert re.search(rf"--(\[no\])?{field.name}\b", told), field.name


def test_flags_become_the_config_they_say():
  program = flags.Program("")
  holders = program.fields(config.ModelConfig)
  program.parse(["program", "--image_size=32,64"])
  assert flags.read(config.ModelConfig, holders).image_size == (32, 64)
  program.parse(["program", "--image_size=a"])
  with pytest.raises(InputError, match="--image_size"):
    flags.read(config.ModelConfig, holders)
