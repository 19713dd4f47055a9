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
