"""The published augmentor in numbers: shares of its variants, and strengths in our units."""

import math

import numpy as np
import pytest
import scipy.ndimage

from flexunet.core import flags
from flexunet.core.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.tools.convert_config import augmentor


def convert(size_hw=(512, 512), channels=3, **values):
  given = {name.replace("__", "."): (value, name) for name, value in values.items()}
  return augmentor.convert(given, size_hw, channels)


PLAIN = {"augmentor__hflip": False, "augmentor__vflip": False, "augmentor__rotation": False,
         "augmentor__shrinks": []}  # fmt: skip


def test_each_variant_has_its_share():
  # The image, both flips, three right angles and one shrink: seven variants.
  done = convert()
  assert done.flags == {
      "flip_horizontal_probability": format(1 / 7, ".4g"),
      "flip_vertical_probability": format(1 / 7, ".4g"),
      "right_angle_probability": format(3 / 7, ".4g"),
      "scale_min": "0.8",
      "scale_max": "1",
      "scale_probability": format(1 / 7, ".4g"),
  }
  assert "one of 7 variants" in done.notes[0]


def test_a_shear_comes_with_every_flip():
  done = convert(augmentor__shears=[0.1], augmentor__rotation=False, augmentor__shrinks=[])
  # The image, two flips; the shear as it is, mirrored each way and both: seven variants, four
  # sheared; three of all are mirrored left to right.
  assert done.flags["shear_probability"] == format(4 / 7, ".4g")
  assert done.flags["flip_horizontal_probability"] == format(3 / 7, ".4g")
  assert float(done.flags["shear_degrees"]) == pytest.approx(math.degrees(math.atan(0.1)), rel=1e-3)


def test_angles_are_right_ones_or_a_range():
  done = convert(augmentor__angles=[5, 10, 350, 355, 90, 360])
  # 360 is the image again. Ten variants: it twice, two flips, five angles, one shrink.
  assert done.flags["rotation_degrees"] == "10"
  assert done.flags["rotation_probability"] == "0.4"
  assert done.flags["right_angle_probability"] == "0.1"
  wide = convert((256, 512), augmentor__angles=[90])
  assert any("180 degrees only" in note for note in wide.notes)


def test_the_elastic_strength_moves_pixels_as_far_as_the_published_filter():
  # The published code: uniform noise over rows, columns and channels, smoothed along all three.
  generator, sigma, alpha = np.random.default_rng(3), 8, 1300
  noise = generator.uniform(-1, 1, (256, 256, 3))
  shifts = scipy.ndimage.gaussian_filter(noise, sigma, mode="constant", cval=0) * alpha
  theirs = shifts[32:-32, 32:-32].std()
  done = convert((256, 256), **PLAIN, augmentor__deformation=True)
  # Ours: uniform noise of deviation 1 / sqrt(3) smoothed over rows and columns, in pixels of 512.
  mine_sigma, mine_alpha = (float(done.flags[f"elastic_{name}"]) for name in ("sigma", "alpha"))
  deviation = math.sqrt(1 / 3 / (4 * math.pi)) / mine_sigma * mine_alpha * 256 / 512
  assert mine_sigma * 256 / 512 == sigma
  assert deviation == pytest.approx(theirs, rel=0.15)
  assert done.flags["elastic_probability"] == "0.5"


def test_halfway_to_its_radius_a_lens_moves_pixels_as_far_as_there():
  values = {"augmentor__barrdistortion": True, "augmentor__pincdistortion": True,
            "barrdistortion__amount": 0.3, "barrdistortion__radius": 0.3,
            "pincdistortion__amount": -0.3, "pincdistortion__radius": 0.3,
            "barrdistortion__centers": [(0.3, 0.3), (0.5, 0.5), (0.7, 0.7)]}  # fmt: skip
  done = convert(**PLAIN, **values)
  barrel, pincushion = (float(done.flags[f"{x}_amount"]) for x in ("barrel", "pincushion"))
  assert 1 - barrel * 0.75 == pytest.approx(math.sin(math.pi / 4) ** 0.3, abs=1e-4)
  assert 1 + pincushion * 0.75 == pytest.approx(math.sin(math.pi / 4) ** -0.3, abs=1e-4)
  # 0.3 of the width is 0.6 of half of it; the farthest centre is 0.2 from the middle.
  assert (done.flags["lens_radius"], done.flags["lens_center_range"]) == ("0.6", "0.2")
  # The image, three barrels, one pincushion.
  assert (done.flags["barrel_probability"], done.flags["pincushion_probability"]) == ("0.6", "0.2")


def test_grey_values_are_sharpened_and_brightened_as_much():
  values = {"augmentor__sharpening": True, "augmentor__brightening": True}
  done = convert(**PLAIN, **values)
  assert done.flags["sharpening_amount"] == "6"
  assert (done.flags["brightness_change"], done.flags["brightness_shift"]) == ("0.2", "0.03922")
  # A slow wave keeps its shape and grows as much by either kernel: 1 + 6 (1 - exp(-w^2 / 2))
  # beside 1 + 9 (1 - (1 + 2 cos w) / 3) for a frequency w along one axis.
  w = 0.2
  theirs, mine = 9 * (1 - (1 + 2 * math.cos(w)) / 3), 6 * (1 - math.exp(-(w**2) / 2))
  assert mine == pytest.approx(theirs, rel=0.02)


def test_a_strength_beyond_the_limits_is_cut_with_a_line():
  done = convert(**PLAIN, augmentor__sharpening=True, sharpening__k=3.0)
  assert done.flags["sharpening_amount"] == "10"
  assert "--sharpening_amount: 18 there, the limit here is 10" in done.notes


@pytest.mark.parametrize("shrinks", [[0.0], [1.2]])
def test_a_shrink_is_a_share(shrinks):
  with pytest.raises(InputError, match="above 0 up to 1"):
    convert(augmentor__shrinks=shrinks)


def test_the_flags_of_all_sections_are_taken_by_the_trainer():
  on = ("deformation", "distortion", "barrdistortion", "pincdistortion", "sharpening",
        "brightening")  # fmt: skip
  done = convert(**{f"augmentor__{name}": True for name in on}, augmentor__shears=[0.1],
                 augmentor__angles=[30, 60, 90])  # fmt: skip
  program = flags.Program("")
  holders = program.fields(AugmentationConfig)
  words = [f"--{name}={value}" for name, value in done.flags.items()]
  program.parse(["program", "--augmentation=none", *words])
  config = flags.read(AugmentationConfig, holders).resolve()
  assert config.enabled and config.barrel_probability == config.pincushion_probability > 0
