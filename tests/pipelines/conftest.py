"""A tiny dataset that the tests of the streams read."""

import dataset_samples
import numpy as np
import pytest

from flexunet.pipelines.dataset_source import open_dataset


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  def records(subjects, first_seed):
    made = []
    for subject in subjects:
      for index in range(4):
        image, label = dataset_samples.blob_slice(20 + index, 28, first_seed + len(made))
        if index == 3:  # An empty slice.
          image, label = np.full_like(image, 10), np.zeros_like(label)
        made.append({"image": image, "label": label, "subject": subject, "volume": f"{subject}_v",
                     "slice_index": index, "spacing_mm": (1.0, 2.0)})  # fmt: skip
    return made

  folder = dataset_samples.write_dataset(
    tmp_path_factory.mktemp("data"),
    {"train": records(["a", "b", "c"], 0), "validation": records(["d"], 100)},
  )
  return open_dataset(None, folder)
