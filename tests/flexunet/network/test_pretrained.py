"""Taking weights over into a network of other classes or channels."""

from __future__ import annotations

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.network import model, pretrained


def small(**changes):
  defaults = dict(image_size=(8, 12), image_channels=1, num_classes=3, base_filters=4,
                  base_kernels=5, num_layers=3)  # fmt: skip
  return model.build_model(**{**defaults, **changes})


def pictures(channels: int) -> np.ndarray:
  grey = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 1))
  return np.repeat(grey, channels, axis=-1)


def test_an_equal_network_answers_equally():
  source, target = small(normalization="batch"), small(normalization="batch")
  done = pretrained.transfer_weights(source, target)
  np.testing.assert_array_equal(source(pictures(1)), target(pictures(1)))
  assert not done.adapted and not done.fresh
  assert done.sentence() == f"{len(done.copied)} layers taken over."


@pytest.mark.parametrize("stem", ["full", "half"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 5)])
def test_grey_pictures_answer_equally_whatever_the_channels(before, after, stem):
  source, target = (small(image_channels=n, stem=stem) for n in (before, after))
  done = pretrained.transfer_weights(source, target)
  np.testing.assert_allclose(source(pictures(before)), target(pictures(after)), atol=1e-5)
  assert done.adapted == ["encoder0_conv0"]


def test_other_classes_get_a_new_head_alone():
  source, target = small(), small(num_classes=5, image_size=None, deep_supervision=True)
  head = target.get_layer("head").get_weights()[0]
  done = pretrained.transfer_weights(source, target)
  np.testing.assert_array_equal(target.get_layer("head").get_weights()[0], head)
  assert sorted(done.fresh) == ["head", "head_2"]
  np.testing.assert_array_equal(
      source.get_layer("decoder0_conv1").get_weights()[0],
      target.get_layer("decoder0_conv1").get_weights()[0],
  )
  assert "head, head_2 reinitialized" in done.sentence()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 4}, "stages and normalization"),
        ({"normalization": "batch"}, "stages and normalization"),
        ({"base_kernels": 7}, r"encoder0_conv0: \(7, 7, 1, 4\) there, \(5, 5, 1, 4\) here"),
        ({"base_filters": 8}, "filters and kernels"),
        ({"block": "residual"}, "stages and normalization"),
        ({"max_filters": 8}, "filters and kernels"),
    ],
)
def test_a_network_of_another_shape_is_refused_and_nothing_changes(changes, said):
  target = small()
  before = target.get_weights()
  with pytest.raises(InputError, match=said):
    pretrained.transfer_weights(small(**changes), target)
  for old, new in zip(before, target.get_weights(), strict=True):
    np.testing.assert_array_equal(old, new)
