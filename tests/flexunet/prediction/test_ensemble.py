"""Several networks answer as one, on the grid of the scan and whatever their planes."""

import dataclasses
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet.core.errors import InputError
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slice_recipe import SliceRecipe, StoredChannel
from flexunet.imaging.slicing import SlicePlan
from flexunet.imaging.volume import Volume
from flexunet.network.probabilities import class_ids
from flexunet.prediction import predictor as predictors
from flexunet.prediction import scan_volumes
from flexunet.prediction.ensemble import Ensemble, Member, cut_of, fits_memory

NONE = IntensityWindow("none")
PLANES = ("coronal", "axial", "sagittal")


def recipe_of(plane, **changes):
  return dataclasses.replace(SliceRecipe(SlicePlan("LAS", plane), NONE), **changes)


class Fixed:
  """Says of each pixel what a table has for its grey value, and remembers what it was given."""

  def __init__(self, table):
    self.table = np.asarray(table, np.float32)
    self.seen, self.spacing_mm = [], None

  def prepare(self, slices, spacing_mm):
    self.spacing_mm = tuple(spacing_mm)
    return _Given([np.asarray(one) for one in slices])

  def answer(self, given):
    for one in given.slices:
      self.seen.append(one)
      yield self.table[one if one.ndim == 2 else one[..., 0]]

  def pass_lines(self):
    return []


@dataclasses.dataclass
class _Given:
  slices: list
  scaling: tuple = (1.0, 1.0)


def tables(count, classes=3, greys=4, seed=0):
  values = np.random.default_rng(seed).random((count, greys, classes))
  return (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)


def ensemble_of(networks, planes, weights=None, **options):
  weights = weights or [1.0] * len(networks)
  members = [
      Member(lambda network=network: network, plane and recipe_of(plane), weight)
      for network, plane, weight in zip(networks, planes, weights, strict=True)
  ]
  return Ensemble(members, 3, **options)


def grey_slices(count=5, height=4, width=6):
  return np.random.default_rng(7).integers(0, 4, (count, height, width)).astype(np.uint8)


@pytest.mark.parametrize(
    ("planes", "keep_loaded"),
    [(("coronal",) * 3, True), (PLANES, True), (PLANES, False),
     (("axial", "coronal", "axial"), True)],
)  # fmt: skip
def test_probabilities_are_the_weighted_mean_at_every_voxel(planes, keep_loaded):
  given, slices = tables(3), grey_slices()
  both = ensemble_of(
      [Fixed(one) for one in given], planes, [2.0, 1.0, 1.0], keep_loaded=keep_loaded
  )
  found = np.stack(list(both.probabilities(slices, (1.0, 2.0, 3.0))))
  expected = 0.5 * given[0] + 0.25 * given[1] + 0.25 * given[2]
  np.testing.assert_allclose(found, expected[slices], atol=1e-6)
  assert found.dtype == np.float32
  labels = both.labels(slices, (1.0, 2.0, 3.0))
  assert np.array_equal(np.stack(labels), class_ids(found))


def test_each_plane_sees_the_volume_as_its_own_cut_would_give_it():
  # What a scan's cut by each recipe is, from the same stored voxels.
  voxels = np.random.default_rng(1).integers(0, 4, (3, 4, 5)).astype(np.uint8)
  scan = Volume(voxels, np.diag([-1.0, 2.0, 3.0, 1.0]), True)
  cuts = {plane: recipe_of(plane).cut(scan) for plane in PLANES}
  networks = {plane: Fixed(tables(1)[0]) for plane in PLANES}
  both = ensemble_of(list(networks.values()), PLANES)
  first = cuts["coronal"].slices
  spacing_mm = (*first.spacing_mm, first.slice_spacing_mm)
  list(both.probabilities(list(cuts["coronal"].images()[..., 0]), spacing_mm))
  for plane, network in networks.items():
    expected = cuts[plane].slices
    assert np.array_equal(np.stack(network.seen, axis=-1), expected.pixels)
    assert network.spacing_mm == expected.spacing_mm


def test_one_network_and_equal_networks_change_no_bit():
  table, slices = tables(1, seed=3)[0], grey_slices()
  alone = ensemble_of([Fixed(table)], ["coronal"])
  five = ensemble_of([Fixed(table) for _ in range(5)], ["coronal"] * 5)
  odd = ensemble_of([Fixed(table)] * 3, ["coronal"] * 3, [0.2, 0.5, 0.3])
  for both in (alone, five, odd):
    assert np.array_equal(np.stack(list(both.probabilities(slices))), table[slices])


def test_a_network_without_weight_is_not_read():
  def refuse():
    raise AssertionError("read")

  table, slices = tables(1)[0], grey_slices()
  members = [
      Member(refuse, recipe_of("coronal"), 0.0),
      Member(lambda: Fixed(table), recipe_of("axial"), 2.0),
  ]
  # The plane of the slices stays that of the first.
  found = np.stack(list(Ensemble(members, 3).probabilities(slices)))
  assert np.array_equal(found, table[slices])


def test_entropy_and_disagreement_are_those_of_the_formula():
  given = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]], np.float32)
  slices = np.zeros((2, 3, 3), np.uint8)
  for planes in (("coronal",) * 3, PLANES):
    both = ensemble_of([Fixed(one) for one in given], planes)
    for mean, entropy in both.answer_with_entropy(both.prepare(slices)):
      # Each is sure, so all uncertainty is disagreement: thirds against two thirds.
      np.testing.assert_allclose(entropy, 0.0, atol=1e-6)
      of_mean = -(mean[..., :2] * np.log(mean[..., :2])).sum(axis=-1)
      np.testing.assert_allclose(of_mean, 0.636514, atol=1e-5)


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_the_answers_of_each_network_come_on_the_slices_of_the_first_plane(keep_loaded):
  given, slices = tables(3), grey_slices()
  both = ensemble_of([Fixed(one) for one in given], PLANES, keep_loaded=keep_loaded)
  for grey, answers in zip(slices, both.each(both.prepare(slices)), strict=True):
    for table, answer in zip(given, answers, strict=True):
      np.testing.assert_allclose(answer, table[grey], atol=1e-3)


def test_a_single_slice_cannot_be_seen_from_several_planes():
  both = ensemble_of([Fixed(one) for one in tables(2)], ("coronal", "axial"))
  with pytest.raises(InputError, match="need a whole volume. Got: a single slice"):
    both.labels(grey_slices(1))


def test_slices_windowed_otherwise_are_refused_and_images_of_any_sizes_are_averaged():
  members = [
      Member(lambda: Fixed(tables(1)[0]), recipe_of("coronal"), 1.0),
      Member(
          lambda: Fixed(tables(1)[0]),
          recipe_of("coronal", intensity=IntensityWindow("window", 0, 80)), 1.0,
      ),
  ]  # fmt: skip
  with pytest.raises(InputError, match="must window and resample scans alike"):
    Ensemble(members, 3).labels(grey_slices())
  given = tables(2)
  sizes = [grey_slices(1, 3, 5)[0], grey_slices(1, 7, 4)[0]]
  for keep_loaded in (True, False):
    both = ensemble_of([Fixed(one) for one in given], [None, None], keep_loaded=keep_loaded)
    for one, found in zip(sizes, both.probabilities(sizes), strict=True):
      np.testing.assert_allclose(found, given.mean(axis=0)[one], atol=1e-6)


def test_one_network_at_a_time_is_in_memory_where_not_all_fit(tmp_path):
  reads, slices = [], grey_slices()
  members = [
      Member(lambda n=n: reads.append(n) or Fixed(tables(3)[n]), recipe_of("coronal"), 1.0)
      for n in range(3)
  ]
  kept, single = Ensemble(members, 3), Ensemble(members, 3, keep_loaded=False)
  for _ in range(2):
    list(kept.probabilities(slices))
  assert sorted(reads) == [0, 1, 2]
  found = np.stack(list(single.probabilities(slices)))
  assert len(single._loaded) == 1
  np.testing.assert_allclose(found, tables(3).mean(axis=0)[slices], atol=1e-6)
  (tmp_path / "model.keras").write_bytes(b"0" * 1000)
  assert fits_memory([tmp_path / "model.keras"])


def test_what_decides_a_cut_is_all_but_the_plane_unless_slices_are_resampled():
  assert cut_of(recipe_of("axial")) == cut_of(recipe_of("sagittal"))
  assert cut_of(recipe_of("axial", isotropic_mm=1.0)) != cut_of(recipe_of("axial"))
  resampled = [cut_of(recipe_of(plane, in_plane_mm=(1.0, 1.0))) for plane in PLANES[:2]]
  assert resampled[0] != resampled[1]


def run_config():
  return run_samples.run_config(image_size=(16, 16))


def brightness_ensemble(recipes):
  def open_one():
    return predictors.Predictor(run_samples.BrightnessNetwork(), run_config())

  return Ensemble([Member(open_one, recipe, 1.0) for recipe in recipes], 3)


def scan_of(codes, voxels):
  """Returns the same scan stored with other axes."""
  affine = np.diag([1.0, 1.5, 2.0, 1.0])
  image = nib.Nifti1Image(voxels, affine)
  turn = nib.orientations.ornt_transform(
      nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
  )
  turned = image.as_reoriented(turn)
  return Volume(np.asarray(turned.dataobj), turned.affine, True)


def predicted(both, recipe, scan):
  read = scan_volumes.ScanVolume([StoredChannel(scan)], recipe)
  return scan_volumes.restore_volume(
      read, scan_volumes.answer_slices(both, read, probabilities=True)
  )


WINDOWED = {"intensity": IntensityWindow("window", 0, 200)}


@pytest.mark.parametrize("recipes", [
    [recipe_of(plane) for plane in PLANES],
    # Cut in ways that share nothing: another window, an isotropic grid.
    [recipe_of("coronal"), recipe_of("axial", **WINDOWED), recipe_of("sagittal", isotropic_mm=1.0)],
])  # fmt: skip
def test_eight_orientations_of_a_scan_get_equal_labels(recipes):
  # Blocks of one grey, so that no resampling touches more than their edges.
  greys = np.random.default_rng(2).choice([10, 100, 250], (3, 3, 3)).astype(np.uint8)
  voxels = np.kron(greys, np.ones((4, 4, 4), np.uint8))
  both = brightness_ensemble(recipes)
  found = []
  for codes in ("RAS", "LAS", "RPS", "RAI", "LPI", "ASR", "SRA", "PIL"):
    scan = scan_of(codes, voxels)
    prediction = predicted(both, recipes[0], scan)
    assert prediction.label.shape == scan.voxels.shape
    assert prediction.label_slices.shape == prediction.slices.pixels.shape
    assert prediction.probability.shape == (*scan.voxels.shape, 3)
    back = scan.turned_like(Volume(voxels, np.diag([1.0, 1.5, 2.0, 1.0]), True))
    label = Volume(prediction.label, scan.affine, True).turned_like(back)
    found.append(label.voxels)
  for label in found[1:]:
    assert np.array_equal(label, found[0])
  assert np.mean(found[0] == np.digitize(voxels, [60, 180])) > 0.9


def test_networks_cut_in_several_ways_are_summed_on_the_grid_of_the_scan():
  # Grey 150 of 0..200 is windowed to 191, class 2; unwindowed it is class 1.
  voxels = np.full((6, 5, 4), 150, np.uint8)
  voxels[0] = 20
  scan = Volume(voxels, np.diag([-1.0, 1.0, 1.0, 1.0]), True)
  recipes = [recipe_of("coronal"), recipe_of("axial", **WINDOWED)]
  found = predicted(brightness_ensemble(recipes), recipes[0], scan)
  np.testing.assert_allclose(found.probability[0, 0, 0], [0.8, 0.1, 0.1], atol=1e-3)
  np.testing.assert_allclose(found.probability[3, 2, 1], [0.1, 0.45, 0.45], atol=1e-3)
  # A tie goes to the lower id.
  assert found.label[3, 2, 1] == 1 and found.label[0, 2, 1] == 0
  assert np.array_equal(found.slices.pixels, recipes[0].cut(scan).native.pixels)


def test_planes_need_no_more_memory_than_their_sum():
  slices = np.zeros((40, 64, 64), np.uint8)
  both = ensemble_of([Fixed(one) for one in tables(3)], PLANES)
  for network in both._members:
    network.open().seen = _Forgetful()
  tracemalloc.start()
  for _ in both.probabilities(slices):
    pass
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # 4 bytes per voxel and class, the copy of the slices, and a few slices.
  assert peak < 1.3 * slices.size * (4 * 3 + 1)


class _Forgetful(list):
  def append(self, one):
    pass
