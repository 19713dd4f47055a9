"""From raw folders to TFRecords: geometry, labels, splits, and one folder per dataset."""

import sys

# `tfds build NAME --imports=flexunet.datasets` expects this import to register the builders. Where
# TFDS is not loaded nobody can ask for them, and then reading a volume must stay cheap.
if "tensorflow_datasets" in sys.modules:
  from flexunet.datasets import catalog

  catalog.register_all()
