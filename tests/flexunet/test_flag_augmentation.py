"""Every flag of the augmentation changes what a training example becomes."""

import dataclasses

import dataset_samples
import flagged
import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.augmentation.augment import augment_example
from flexunet.pipelines.augmentation.config import (
  PROBABILITIES,
  AugmentationConfig,
  probability_of,
)

# Strength -> the transformation it belongs to, and another value than that of the preset.
STRENGTHS = {
    "rotation_degrees": ("rotation", 90),
    "scale_min": ("scale", 0.4),
    "scale_max": ("scale", 3),
    "shear_degrees": ("shear", 30),
    "translation_fraction": ("translation", 0.4),
    "elastic_alpha": ("elastic", 4000),
    "elastic_sigma": ("elastic", 100),
    "distortion_amount": ("distortion", 0.25),
    "distortion_points": ("distortion", 9),
    "barrel_amount": ("barrel", 0.7),
    "pincushion_amount": ("pincushion", 0.4),
    "lens_radius": ("barrel", 0.4),
    "lens_center_range": ("barrel", 0.45),
    "brightness_change": ("brightness", 0.9),
    "brightness_shift": ("brightness", 0.5),
    "contrast_change": ("contrast", 0.9),
    "gamma_max": ("gamma", 4),
    "sharpening_amount": ("sharpening", 8),
    "blur_sigma": ("blur", 6),
    "noise_std": ("noise", 0.5),
    "low_resolution_factor": ("low_resolution", 8),
    "bias_field_strength": ("bias_field", 1.5),
    "low_resolution_anisotropy": ("low_resolution", 1),
    "synthetic_clusters": ("synthetic", 2),
    "synthetic_by_class": ("synthetic", 0),
    "synthetic_class_range": ("synthetic", 0.9),
    "synthetic_texture": ("synthetic", 0),
    "synthetic_noise_std": ("synthetic", 0.5),
    "synthetic_blur_sigma": ("synthetic", 4),
}


def augmented(*given: str) -> np.ndarray:
  """Returns examples of a few draws, as the flags make them beside no other augmentation."""
  config = flagged.parse("--augmentation=none", *given)["augmentation"].resolve()
  noise = np.random.default_rng(0).uniform(0, 30, (32, 32, 1))
  grey = np.add.outer(np.arange(32), 3 * np.arange(32))[..., None] + noise
  image = tf.constant(grey.astype(np.uint8))
  label = tf.constant((np.add.outer(np.arange(32), np.arange(32)) > 40).astype(np.uint8))
  drawn = []
  for seed in range(3):
    changed, _ = augment_example(config, image, label, tf.constant([seed, 7]))
    drawn.append(changed.numpy())
  return np.stack(drawn)


@pytest.fixture(scope="module")
def plain():
  return augmented()


def test_every_strength_has_a_row():
  fields = {field.name for field in dataclasses.fields(AugmentationConfig)}
  assert fields == {"augmentation", *PROBABILITIES, *STRENGTHS}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_probability_switches_its_transformation_on(plain, name):
  assert (augmented(f"--{name}=1") != plain).any()


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_changes_its_transformation(name):
  owner, value = STRENGTHS[name]
  on = f"--{probability_of(owner)}=1"
  assert (augmented(on) != augmented(on, f"--{name}={value}")).any()


@pytest.mark.slow
def test_training_batches_are_augmented_and_validation_is_not(tmp_path):
  data_dir = flagged.write_dataset(tmp_path)
  plain, changed = (
      flagged.setup(data_dir, f"--augmentation={name}") for name in ("none", "strong")
  )
  assert (plain.first_batch()[0] != changed.first_batch()[0]).any()
  images = [next(iter(run.streams.validation()))[0].numpy() for run in (plain, changed)]
  assert (images[0] == images[1]).all()


def test_a_class_labelled_on_one_side_is_not_mirrored_unless_asked_for(tmp_path, capsys):
  records = []
  for name in "abc":
    image, label = np.full((2, 20, 28), 90, np.uint8) * np.array([1, 0], np.uint8)[:, None, None]
    label[8:12, 3:7] = 1
    records.append({"image": image, "label": label, "subject": name, "volume": name,
                    "slice_index": 0})  # fmt: skip
  folder = dataset_samples.write_dataset(tmp_path, {"train": records, "validation": records[:1]})

  run = flagged.setup(folder, "--augmentation=default").config
  assert run.augmentation.flip_horizontal_probability == 0
  assert not run.laterality.mirroring
  assert "No mirror images: dim lies on one side" in capsys.readouterr().err

  asked = flagged.setup(folder, "--augmentation=default", "--flip_horizontal_probability=0.5")
  assert asked.config.augmentation.flip_horizontal_probability == 0.5
  assert asked.config.laterality.mirroring
  assert "mirrored as asked for, although dim lies on one side" in capsys.readouterr().err

  # Nothing is mirrored in such a run, but its answers could be.
  plain = flagged.setup(folder, "--augmentation=none").config
  assert not plain.laterality.mirroring and not capsys.readouterr().err
