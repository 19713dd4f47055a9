"""What a builder of scan_label makes of a folder, for tests."""

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder.raw_folder import Notes


def builder_of(tmp_path, **options):
  return catalog.builder("scan_label", tmp_path / "out", options=options)


def found_in(root, tmp_path, **options):
  return builder_of(tmp_path, **options).inspect_source(root)


def by_key(findings):
  return {case.key: case for case in findings.cases}


def refusal(root, tmp_path, **options) -> str:
  with pytest.raises(InputError) as error:
    builder = builder_of(tmp_path, **options)
    builder.decide(builder.inspect_source(root))
  return str(error.value)


def slices_of(root, tmp_path, **options):
  """Returns {case key: (images, labels, spacings)} as a build would write them."""
  builder = builder_of(tmp_path, **options)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  cut = {}
  for case in findings.cases:
    slices = list(builder.slices_of(case, Notes()))
    cut[case.key] = (
        np.stack([one.image for one in slices]),
        np.stack([one.label for one in slices]),
        [(*one.spacing_mm, one.slice_spacing_mm) for one in slices],
    )
  return cut


def turned(array, affine, codes):
  image = nib.Nifti1Image(array, affine)
  turn = nib.orientations.ornt_transform(
      nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
  )
  image = image.as_reoriented(turn)
  return np.asanyarray(image.dataobj), image.affine
