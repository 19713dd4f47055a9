"""Clean-up is chosen where validation subjects gain by it, and left off where they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flexunet.evaluation import clean_up_choice
from flexunet.evaluation.clean_up_choice import choose
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.imaging.clean_up import ClassRule, CleanUp

NAMES = ("background", "ball", "other")
SIZE = 16


def ball() -> np.ndarray:
  """A class of 4 x 6 x 6 voxels in a volume of 8 x 16 x 16."""
  truth = np.zeros((8, SIZE, SIZE), np.uint8)
  truth[2:6, 5:11, 5:11] = 1
  return truth


def volume(truth, subject, spacing_mm=(1.0, 1.0, 1.0), name="scan"):
  return LabelledVolume(
      subject, f"{subject}_{name}", list(range(len(truth))),
      images=[np.zeros((*one.shape, 1), np.uint8) for one in truth], labels=list(truth),
      spacing_mm=spacing_mm[1:], slice_spacing_mm=spacing_mm[0],
  )  # fmt: skip


def with_specks(truth, size, count=1):
  """The truth, with bars of wrong voxels, `size` long each, far from the class."""
  found = truth.copy()
  for k in range(count):
    found[0, 2 * k, :size] = 1
  return found


def pairs(predict, subjects=8, **options):
  for k in range(subjects):
    truth = ball()
    yield volume(truth, f"s{k}", **options), list(predict(truth, k))


def chosen(predict, subjects=8, in_slices=False, lesions=False, **options):
  return choose(
      pairs(predict, subjects, **options), NAMES, in_slices=in_slices, lesions=lesions
  )


def test_specks_of_every_subject_are_removed_by_the_mildest_size_that_does():
  # Bars of 4 voxels of 1 mm3: 0.004 ml. Sizes tried: 0.003, 0.01, ... ml. The ball has 0.144 ml.
  found = chosen(lambda truth, k: with_specks(truth, size=4, count=3))
  assert found.rules == {1: ClassRule(min_size=0.01, unit="ml")}
  # Dice of 144 true voxels and 12 wrong ones: 288 / 300; it rises to 1.
  tried = {one["rule"]: one for one in found.evidence["classes"]["ball"]["tried"]}
  entry = tried["components below 0.01 ml are removed"]
  assert entry["dice"] == pytest.approx(1 - 288 / 300) and entry["subjects_gaining"] == 8
  # The mean over both classes; the other one is empty on both sides, which counts as 1.
  assert entry["mean_dice"] == pytest.approx((1 - 288 / 300) / 2)
  assert tried["holes are filled"]["dice"] == 0


def test_sizes_are_of_voxels_where_one_volume_has_no_spacing():
  given = list(pairs(lambda truth, k: with_specks(truth, size=4, count=3)))
  given[3][0].slice_spacing_mm = math.nan
  found = choose(given, NAMES, in_slices=False, lesions=False)
  assert found.rules == {1: ClassRule(min_size=5.0, unit="pixels")}


def test_holes_are_decided_apart():
  def hollow(truth, k):
    found = with_specks(truth, size=4, count=3)
    found[3:5, 7:9, 7:9] = 0
    return found

  rule = ClassRule(min_size=0.01, unit="ml", fill_holes=True)
  assert chosen(hollow).rules == {1: rule}


def test_nothing_is_cleaned_up_with_few_subjects():
  found = chosen(lambda truth, k: with_specks(truth, size=4, count=3), subjects=4)
  assert not found and found.rules == {}
  assert found.evidence["classes"]["ball"]["reason"] == "4 subjects, fewer than 5"


def test_several_scans_of_a_subject_are_one_subject():
  given = [
      (volume(ball(), "same", name=str(k)), list(with_specks(ball(), 4, 3))) for k in range(9)
  ]
  assert not choose(given, NAMES, in_slices=False, lesions=False)


def test_nothing_is_cleaned_up_where_nothing_is_wrong():
  assert not chosen(lambda truth, k: truth)


def test_a_gain_below_the_margin_is_left():
  # One voxel beside 144: Dice 288 / 289 rises by 0.0017 at 4 of 8 subjects.
  assert not chosen(lambda truth, k: with_specks(truth, 1) if k % 2 else truth)


def test_a_gain_for_most_is_left_where_more_than_a_tenth_loses():
  def mixed(truth, k):
    found = with_specks(truth, size=4, count=3)
    if k < 2:  # Of two subjects small true pieces would go: a bar of truth, of which 4 are found.
      found = truth.copy()
      truth[0, 0, :4] = found[0, 0, :4] = 1
    return found

  given = []
  for k in range(8):
    truth = ball()
    found = mixed(truth, k)
    given.append((volume(truth, f"s{k}"), list(found)))
  assert not choose(given, NAMES, in_slices=False, lesions=False)


def test_one_subject_alone_decides_nothing():
  # Huge for one subject, nothing for the others: the mean is within its standard error.
  assert not chosen(lambda truth, k: with_specks(truth, 8, 4) if k == 0 else truth)


def test_random_gains_and_losses_are_rarely_taken_for_a_rule():
  random = np.random.default_rng(0)
  adopted = 0
  for _ in range(60):
    given = []
    for k in range(6):
      truth, found = ball(), ball()
      for row in range(3):  # A speck that is true as often as it is false.
        bar = (0, 2 * row, slice(0, 4))
        found[bar] = 1
        truth[bar] = random.integers(2)
      given.append((volume(truth, f"s{k}"), list(found)))
    adopted += bool(choose(given, NAMES, in_slices=False, lesions=False))
  assert adopted <= 3


def test_a_false_alarm_that_goes_is_a_gain():
  nothing = np.zeros((8, SIZE, SIZE), np.uint8)
  given = [(volume(nothing, f"s{k}"), list(with_specks(nothing, 4))) for k in range(6)]
  found = choose(given, NAMES, in_slices=False, lesions=False)
  assert found.rules == {1: ClassRule(min_size=0.01, unit="ml")}


def test_lesions_are_judged_by_their_number_too():
  # One false voxel costs 0.0035 of Dice at most; of lesion F1 1 - 2 / 3.
  def speck(truth, k):
    found = truth.copy()
    found[0, 0, 0] = 1
    return found

  big = ball()
  big[1:7, 2:14, 2:14] = 1  # 864 voxels: Dice rises by 0.0006 only.
  given = [(volume(big, f"s{k}"), list(speck(big, k))) for k in range(6)]
  assert not choose(given, NAMES, in_slices=False, lesions=False)
  found = choose(given, NAMES, in_slices=False, lesions=True)
  assert found.rules == {1: ClassRule(min_size=0.003, unit="ml")}
  first = found.evidence["classes"]["ball"]["tried"][1]
  assert first["lesion_f1"] == pytest.approx(1 - 2 / 3)


def test_images_are_cleaned_one_by_one():
  def specks(truth, k):
    found = truth.copy()
    found[2:6, 0, :3] = 1
    return found

  # In 3-D these are one piece of 12 voxels, in each image 3 pixels. An image to be predicted has no
  # spacing: sizes are in pixels, whatever the dataset knows.
  found = chosen(specks, in_slices=True, spacing_mm=(1.0, 0.5, 0.5))
  assert found.in_slices and found.rules == {1: ClassRule(min_size=5.0, unit="pixels")}


def test_volumes_with_gaps_say_nothing_of_volumes():
  given = list(pairs(lambda truth, k: with_specks(truth, size=4, count=3)))
  for one, _ in given:
    one.slice_index[-1] += 1
  assert not choose(given, NAMES, in_slices=False, lesions=False)


@pytest.mark.parametrize("in_slices", [False, True])
@pytest.mark.parametrize("lesions", [False, True])
def test_what_a_candidate_brings_is_what_applying_it_brings(in_slices, lesions):
  random = np.random.default_rng(7)
  given = [
      (
          volume(random.choice(3, (4, 9, 9), p=(0.6, 0.3, 0.1)).astype(np.uint8), f"s{k}"),
          list(random.choice(3, (4, 9, 9), p=(0.6, 0.3, 0.1)).astype(np.uint8)),
      )
      for k in range(5)
  ]
  evidence = choose(given, NAMES, in_slices=in_slices, lesions=lesions).evidence
  for class_id, name in ((1, "ball"), (2, "other")):
    tried = {one["rule"]: one for one in evidence["classes"][name]["tried"]}
    for rule in clean_up_choice.candidates("pixels" if in_slices else "ml"):
      gains = []
      for truth, predicted in given:
        cleaned = CleanUp(NAMES, {class_id: rule}, in_slices).apply_to_slices(
            predicted, (1.0, 1.0), 1.0, is_solid=True
        )
        before, after = (dice(truth.labels, one, class_id) for one in (predicted, cleaned))
        gains.append(after - before)
      assert tried[str(rule)]["dice"] == pytest.approx(np.mean(gains), abs=1e-12)


def dice(truth, predicted, class_id):
  true, found = (np.stack(one) == class_id for one in (truth, predicted))
  sizes = true.sum() + found.sum()
  return 2 * (true & found).sum() / sizes if sizes else 1.0


def test_of_nearly_equal_removals_the_mildest_is_taken():
  # Bars of 8 voxels, 0.008 ml, and for one subject one of 16, 0.016 ml, whose removal above that
  # of the others brings 2 * 144 / (288 + 16) -> 1, 0.053, to one of 60 subjects: 0.0009.
  def predict(truth, k):
    found = with_specks(truth, size=8, count=2)
    return with_specks(found, size=16, count=1) if k == 0 else found

  given = list(pairs(predict, subjects=60))
  found = choose(given, NAMES, in_slices=False, lesions=False)
  assert found.rules == {1: ClassRule(min_size=0.01, unit="ml")}
  tried = [one["dice"] for one in found.evidence["classes"]["ball"]["tried"]]
  assert 0 < tried[3] - tried[2] < 0.001
