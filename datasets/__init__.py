"""From raw folders to TFRecords: the builders, splits by subject, and one folder per dataset.

TFDS finds the builders by name as soon as this package and TFDS are both imported, in any order:
`tfds build NAME --imports=flexunet.datasets`, `tfds.builder(NAME)`. Neither loads the other.
"""

import types

import wrapt


@wrapt.when_imported("tensorflow_datasets")
def _offer_builders(tfds: types.ModuleType) -> None:
  # The catalog is needed where TFDS is used, not for reading a built dataset.
  from flexunet.datasets import catalog

  # Before the providers of TFDS itself, which would import all its own builders to look there.
  tfds.core.add_dataset_builder_provider(catalog.Provider(), index=0)
