"""Clean-up of labels, on drawn ones and against plain loops."""

from __future__ import annotations

import json
import math

import brute_force
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging.clean_up import ClassRule, CleanUp

NAMES = ("background", "one", "two", "three")
drawn = brute_force.drawn


def of_images(**rules):
  return CleanUp(NAMES, {NAMES.index(name): rule for name, rule in rules.items()}, True)


def cleaned(label, **rules):
  return of_images(**rules).apply(label)


def test_small_components_become_background():
  label = drawn("11...1",
                "11....",
                "....11")  # fmt: skip
  expected = drawn("11....",
                   "11....",
                   "....11")  # fmt: skip
  assert np.array_equal(cleaned(label, one=ClassRule(min_size=2)), expected)


def test_only_the_largest_component_stays():
  label = drawn("11...1",
                "11....",
                "....11")  # fmt: skip
  kept = cleaned(label, one=ClassRule(largest=True))
  assert np.array_equal(kept, np.where(np.arange(6) < 2, label, 0))


def test_of_equally_large_components_the_first_stays():
  assert np.array_equal(
      cleaned(drawn("1.1.1"), one=ClassRule(largest=True)), drawn("1....")
  )


def test_components_that_touch_at_a_corner_are_one():
  label = drawn("1..", ".1.", "..1")
  assert cleaned(label, one=ClassRule(min_size=3)) is label


def test_an_island_within_another_structure_becomes_that_structure():
  label = drawn("222222",
                "221222",
                "222...")  # fmt: skip
  assert np.array_equal(
      cleaned(label, one=ClassRule(min_size=2)), np.where(label == 1, 2, label)
  )


def test_a_removed_component_becomes_what_it_has_most_faces_in_common_with():
  # The one has three faces beside 2 and one beside 3.
  label = drawn(".2.",
                "213",
                ".2.")  # fmt: skip
  assert cleaned(label, one=ClassRule(min_size=2))[1, 1] == 2
  # Of two equals the lower id: background.
  assert cleaned(drawn("212", "...")[:, 1:], one=ClassRule(min_size=2))[0, 0] == 0


def test_removed_neighbours_are_no_reason_for_each_other():
  # Both go; the one would else become a two, and the two a one.
  label = drawn("......", "..12..", "......")
  rule = ClassRule(min_size=2)
  assert not cleaned(label, one=rule, two=rule).any()


def test_the_order_of_the_classes_does_not_matter():
  random = np.random.default_rng(3)
  rules = {
      1: ClassRule(min_size=4, fill_holes=True),
      2: ClassRule(largest=True),
      3: ClassRule(min_size=3),
  }
  for _ in range(30):
    label = random.integers(0, 4, (12, 12)).astype(np.uint8)
    there = CleanUp(NAMES, rules, True).apply(label)
    back = CleanUp(NAMES, dict(reversed(rules.items())), True).apply(label)
    assert np.array_equal(there, back)


def test_holes_of_one_class_are_filled_and_others_are_not():
  label = drawn("1111....2222",
                "1..1....2.3.",
                "1111....2222",
                "............",
                "11111.......",
                "1...........",
                "11111.......")  # fmt: skip
  expected = label.copy()
  expected[1, 1:3] = 1
  assert np.array_equal(cleaned(label, one=ClassRule(fill_holes=True)), expected)
  # Two classes enclose that hole, and its other end is open at the edge of the array.
  assert cleaned(label, two=ClassRule(fill_holes=True)) is label


def test_another_structure_inside_is_no_hole():
  label = drawn("111", "121", "111")
  assert cleaned(label, one=ClassRule(fill_holes=True)) is label


def test_a_hole_that_reaches_the_edge_of_the_image_stays():
  label = drawn("111", "1.1", "1.1")
  assert cleaned(label, one=ClassRule(fill_holes=True)) is label


def test_a_hole_leaks_through_faces_not_through_corners():
  assert np.array_equal(
      cleaned(drawn(".111", "1.11", "1111"), one=ClassRule(fill_holes=True)),
      drawn(".111", "1111", "1111"),
  )


def test_sizes_in_ml_follow_the_spacing():
  label = np.zeros((4, 4, 4), np.uint8)
  label[0, 0, :3] = 1  # 3 voxels of 2 x 2 x 5 = 20 mm3: 0.06 ml.
  label[3, 3, :2] = 1  # 0.04 ml.
  rule = ClassRule(min_size=0.06, unit="ml")
  kept = CleanUp(NAMES, {1: rule}).apply(label, (2.0, 2.0, 5.0))
  assert kept[0, 0, :3].all() and not kept[3].any()
  assert CleanUp(NAMES, {1: rule}).apply(label, (2.0, 2.0, math.nan)) is label


def test_rules_of_volumes_leave_images_alone_and_the_other_way_round():
  rule = {1: ClassRule(min_size=9)}
  image, volume = np.ones((2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
  assert CleanUp(NAMES, rule).apply(image) is image
  assert CleanUp(NAMES, rule, in_slices=True).apply(volume, (1.0, 1.0, 1.0)) is volume
  assert CleanUp(NAMES, rule).apply(image[None], (1.0, 1.0, 1.0)).all()  # One slice: an image.
  assert not CleanUp(NAMES, rule).apply(volume, (1.0, 1.0, 1.0)).any()


def test_slices_of_a_volume_are_cleaned_together_unless_some_are_missing():
  speck, bar = drawn("1..", "..."), drawn("..1", "...")
  slices = [speck | bar, bar, bar]
  rule = CleanUp(NAMES, {1: ClassRule(min_size=2)})
  together = rule.apply_to_slices(slices, (1.0, 1.0), 1.0, is_solid=True)
  assert all(np.array_equal(one, bar) for one in together)
  apart = rule.apply_to_slices(slices, (1.0, 1.0), 1.0, is_solid=False)
  assert all(one is other for one, other in zip(apart, slices, strict=True))
  images, unknown = CleanUp(NAMES, rule.rules, in_slices=True), (math.nan, math.nan)
  assert not any(one.any() for one in images.apply_to_slices(slices, unknown, is_solid=True))


def test_the_given_label_stays_as_it_is():
  label = drawn("1.11", "....")
  before = label.copy()
  cleaned(label, one=ClassRule(largest=True, fill_holes=True))
  assert np.array_equal(label, before)


def test_cleaning_twice_changes_nothing_more():
  random = np.random.default_rng(5)
  rules = {one: ClassRule(min_size=5, fill_holes=True) for one in (1, 2, 3)}
  for shape, spacing in (((14, 14), ()), ((7, 8, 9), (1.0, 1.0, 1.0))):
    chosen = CleanUp(NAMES, rules, in_slices=len(shape) == 2)
    for _ in range(10):
      once = chosen.apply(random.choice(4, shape, p=(0.5, 0.3, 0.1, 0.1)).astype(np.uint8), spacing)
      assert np.array_equal(chosen.apply(once, spacing), once)


@pytest.mark.parametrize("shape", [(10, 12), (5, 6, 7)])
def test_random_labels_are_cleaned_as_plain_loops_clean_them(shape):
  random = np.random.default_rng(len(shape))
  steps = [step * sign for step in np.eye(len(shape), dtype=int) for sign in (-1, 1)]

  def beside(place):
    for step in steps:
      other = tuple(int(n) for n in np.add(place, step))
      if all(0 <= n < size for n, size in zip(other, shape)):
        yield other

  for _ in range(25):
    label = random.choice(4, shape, p=(0.5, 0.3, 0.1, 0.1)).astype(np.uint8)
    rules = {1: ClassRule(min_size=4, fill_holes=True), 2: ClassRule(largest=True)}
    gone = [one for one in brute_force.flood_fill(label == 1) if len(one) < 4]
    twos = sorted(brute_force.flood_fill(label == 2), key=lambda one: (-len(one), min(one)))
    gone += twos[1:]
    removed = set().union(*gone)
    expected = label.copy()
    for component in gone:
      faces = [0] * 4
      for place in component:
        for other in beside(place):
          faces[label[other]] += other not in removed
      for place in component:
        expected[place] = faces.index(max(faces))
    before = expected.copy()
    for hole in brute_force.flood_fill(before == 0, corners=False):
      on_edge = any(n in (0, size - 1) for p in hole for n, size in zip(p, shape))
      around = {int(before[other]) for place in hole for other in beside(place)} - {0}
      if not on_edge and around == {1}:
        for place in hole:
          expected[place] = 1
    found = CleanUp(NAMES, rules, len(shape) == 2).apply(label, (1.0,) * len(shape))
    assert np.array_equal(found, expected)


def test_rules_survive_json_and_are_said_in_words():
  rules = {2: ClassRule(largest=True, fill_holes=True), 1: ClassRule(min_size=0.5, unit="ml")}
  chosen = CleanUp(NAMES, rules, evidence={"subjects": 7})
  back = CleanUp.from_json(json.loads(json.dumps(chosen.to_json())), NAMES)
  assert back == chosen and back.evidence == {"subjects": 7}
  assert back.sentences() == [
      "one: components below 0.5 ml are removed",
      "two: only the largest component stays, holes are filled",
  ]
  assert not CleanUp() and not CleanUp(NAMES, {1: ClassRule()}) and chosen


@pytest.mark.parametrize(
    "change",
    [
        {"rules": {"four": {"largest": True, "min_size": 0, "unit": "ml", "fill_holes": True}}},
        {"rules": {"background": {"largest": True}}},
        {"rules": {"one": {"largest": True}}},
        {"rules": {"one": {"largest": 1, "min_size": 0, "unit": "ml", "fill_holes": True}}},
        {"rules": {"one": {"largest": True, "min_size": -1, "unit": "ml", "fill_holes": True}}},
        {"rules": {"one": {"largest": True, "min_size": 0, "unit": "l", "fill_holes": True}}},
        {"rules": []},
        {"in_slices": None},
    ],
)  # fmt: skip
def test_other_json_is_refused_in_one_line(change):
  values = {**CleanUp(NAMES, {}).to_json(), **change}
  with pytest.raises(InputError, match="flexunet calibrate"):
    CleanUp.from_json(values, NAMES)
