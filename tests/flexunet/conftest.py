"""A tiny dataset that several tests train on."""

import dataset_samples
import pytest


@pytest.fixture(scope="session")
def blob_data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")

  def blobs(subjects, seed):
    made = []
    for place in range(4 * len(subjects)):
      image, label = dataset_samples.blob_slice(20, 28, seed + place)
      subject = subjects[place // 4]
      made.append({"image": image, "label": label, "subject": subject, "volume": subject,
                   "slice_index": place % 4, "spacing_mm": (1.0, 2.0)})  # fmt: skip
    return made

  return dataset_samples.write_dataset(
      folder, {"train": blobs("abcdefghi", 0), "validation": blobs("jk", 100)}
  )
