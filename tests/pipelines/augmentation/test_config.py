import dataclasses
import json

import pytest

from flexunet import config as run_config
from flexunet.core.config_fields import from_mapping
from flexunet.core.errors import InputError
from flexunet.pipelines.augmentation.config import PRESETS, PROBABILITIES, AugmentationConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_json_brings_a_config_back_whole(preset):
  for config in (
      AugmentationConfig(augmentation=preset, rotation_degrees=7),
      AugmentationConfig(augmentation=preset).resolve(),
  ):
    text = json.dumps(dataclasses.asdict(config))
    assert from_mapping(AugmentationConfig, json.loads(text)) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_config_is_complete_and_resolving_again_changes_nothing(preset):
  config = AugmentationConfig(augmentation=preset).resolve()
  assert None not in dataclasses.asdict(config).values()
  assert config.resolve() == config
  assert config.enabled == (preset != "none")


def test_what_is_given_wins_over_the_preset():
  config = AugmentationConfig(augmentation="none", rotation_probability=0.25).resolve()
  assert config.rotation_probability == 0.25
  assert config.enabled
  assert all(not getattr(config, p) for p in PROBABILITIES if p != "rotation_probability")


def test_strong_is_nowhere_weaker_than_default():
  default = dataclasses.asdict(AugmentationConfig(augmentation="default").resolve())
  strong = dataclasses.asdict(AugmentationConfig(augmentation="strong").resolve())
  for name in default.keys() - {"augmentation", "scale_min"}:
    assert strong[name] >= default[name], name
  assert strong["scale_min"] < default["scale_min"]


def test_where_images_may_not_be_mirrored_only_what_was_given_mirrors():
  for preset in PRESETS:
    config = AugmentationConfig(augmentation=preset).resolve(mirroring=False)
    assert config.flip_horizontal_probability == 0
    assert config.flip_vertical_probability == 0
    assert config.right_angle_probability == 0
  assert AugmentationConfig().resolve().flip_horizontal_probability > 0
  given = AugmentationConfig(flip_vertical_probability=0.5).resolve(mirroring=False)
  assert (given.flip_vertical_probability, given.flip_horizontal_probability) == (0.5, 0)


@pytest.mark.parametrize(
    "values, wanted",
    [
        ({"rotation_probability": 1.5}, "rotation_probability must be from 0.0 to 1.0"),
        ({"scale_min": 1.2}, "scale_min must be from 0.1 to 1"),
        ({"elastic_sigma": 0}, "elastic_sigma must be from 4 to 200"),
        ({"distortion_points": 2}, "distortion_points must be from 4 to 32"),
        ({"distortion_points": 4.5}, "distortion_points must be of type int"),
        ({"augmentation": "stong"}, "Did you mean 'strong'"),
        ({"rotation_degree": 3}, "Did you mean 'rotation_degrees'"),
        ({"noise_std": float("nan")}, "noise_std must be"),
    ],
)
def test_bad_values_are_refused_with_their_name(values, wanted):
  with pytest.raises(InputError, match=wanted):
    from_mapping(AugmentationConfig, values)


def test_what_excludes_each_other_cannot_be_certain_together():
  config = AugmentationConfig(blur_probability=0.6, sharpening_probability=0.6)
  with pytest.raises(InputError, match=r"--blur_probability and --sharpening_probability.*1\.2"):
    config.resolve()


def test_no_name_is_taken_by_another_part_of_a_run():
  own = {field.name for field in dataclasses.fields(AugmentationConfig)}
  for part in (run_config.ModelConfig, run_config.DataConfig, run_config.TrainingConfig):
    assert not own & {field.name for field in dataclasses.fields(part)}
