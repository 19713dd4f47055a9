"""Whether a class is on one side of the body is read from the labels of several subjects."""

import dataset_samples
import numpy as np
import pytest

from flexunet.pipelines import laterality, readers
from flexunet.pipelines.dataset_source import open_dataset

HEIGHT, WIDTH = 20, 40
NAMES = dataset_samples.NAMES


def subject(name, lefts, label=1, head_left=4):
  """Returns slices of a head 30 wide, labelled at each of `lefts` columns from its own edge."""
  made = []
  for index, left in enumerate(lefts):
    image, mask = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    image[2:18, head_left : head_left + 30] = 100
    if left is not None:
      mask[8:12, head_left + left : head_left + left + 4] = label
    made.append({"image": image, "label": mask, "subject": name, "volume": name,
                 "slice_index": index})  # fmt: skip
  return made


def found_in(folder, *subjects):
  records = [record for one in subjects for record in one]
  source = open_dataset(None, dataset_samples.write_dataset(folder, {"train": records}))
  return laterality.one_sided_classes(source, readers.slice_table(source, "train"), NAMES)


def test_a_class_on_the_same_side_in_three_subjects_is_found(tmp_path):
  three = [subject(name, [None, 3, 5, None]) for name in "abc"]
  assert found_in(tmp_path, *three) == (NAMES[1],)


@pytest.mark.parametrize("head_left", [0, 8])
def test_the_side_is_that_of_the_head_wherever_it_lies_in_the_picture(tmp_path, head_left):
  # The head's middle is 15 from its edge: label columns 9..12 are left of it, though with the head
  # at 8 they are 17..20 of a picture whose middle is 20.
  three = [subject(name, [9, 10], head_left=head_left) for name in "abc"]
  assert found_in(tmp_path, *three) == (NAMES[1],)


@pytest.mark.parametrize(
    "subjects",
    [
        [("a", [3]), ("b", [3])],  # Two agree half the time by chance.
        [("a", [3]), ("b", [3]), ("c", [22])],  # One has it on the other side.
        [("a", [3]), ("b", [3]), ("c", [3, 22])],  # One has it on both.
        [("a", [3]), ("b", [3]), ("c", [13])],  # One has it across the middle.
        [("a", [3]), ("b", [3]), ("c", [None])],  # One does not have it.
        [("", [3, 3, 3, 3])],  # Nobody knows how many subjects these are.
    ],
)  # fmt: skip
def test_less_is_no_evidence(tmp_path, subjects):
  assert found_in(tmp_path, *(subject(name, lefts) for name, lefts in subjects)) == ()


def test_each_class_is_judged_by_its_own_pixels(tmp_path):
  records = []
  for index, name in enumerate("abc"):
    records += [subject(name, [3]), subject(name, [3 if index else 22], label=2)]
  assert found_in(tmp_path, *records) == (NAMES[1],)


def test_many_slices_are_sampled_evenly():
  assert laterality._spread(list(range(100)), 4) == [0, 33, 66, 99]
  assert laterality._spread([7, 8], 4) == [7, 8]


@pytest.mark.parametrize(
    "names, sided",
    [
        (["background", "hippocampus"], False),
        (["background", "hippocampus_1", "hippocampus_2"], True),
        (["background", "left_lung", "right_lung"], True),
        (["background", "Hippocampus L", "Hippocampus R"], True),
        (["background", "lh_hippocampus", "rh_hippocampus"], True),
        (["background", "hemorrhagic", "ischemic"], False),
        (["background", "csf", "grey_matter", "bone"], False),
        (["background", "phase_1"], False),
        (["background", "bright", "cleft"], False),
        # What a foreign dataset that names no classes gets.
        (["background", "class_1", "class_2"], False),
    ],
)
def test_names_of_sides_are_recognised(names, sided):
  assert laterality.names_sides(names) == sided


LESION = ["background", "lesion"]


@pytest.mark.parametrize(
    "names, plane, one_sided, reason",
    [
        (LESION, "axial", (), ""),
        (LESION, None, (), ""),
        (LESION, "sagittal", (), "slices are sagittal"),
        (["background", "lh_hippocampus", "rh_hippocampus"], "coronal", (), "the class names"),
        (LESION, "axial", ("lesion",), "lesion lies on one side"),
    ],
)
def test_one_decision_is_made_and_the_user_may_overrule_it(names, plane, one_sided, reason):
  def decide(requested):
    return laterality.decide(
        names, plane=plane, requested=requested, find_one_sided=lambda: one_sided
    )

  for requested in (None, 0.0):
    decided = decide(requested)
    assert decided.mirroring == (not reason) and decided.reason.startswith(reason)
  overruled = decide(0.5)
  assert overruled.mirroring and overruled.reason.startswith(reason)


def test_labels_are_examined_only_where_names_and_plane_leave_it_open():
  def examine():
    raise AssertionError("examined")

  assert not laterality.decide(["background", "left"], find_one_sided=examine).mirroring
  assert not laterality.decide(LESION, plane="sagittal", find_one_sided=examine).mirroring
