"""The Croissant file of a build: every file by its sha256, and a table any reader loads."""

import json
import pathlib

import build_samples
import mlcroissant
import pytest

from flexunet.core import files
from flexunet.datasets import catalog
from flexunet.datasets.builder import croissant


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp("croissant")
  raw = build_samples.raw_folder("hippocampus_t1w", folder / "raw", subjects=3)
  return build_samples.build("hippocampus_t1w", raw, folder / "out")


def test_it_lists_every_shard_and_the_table_with_their_sums(built):
  folder = pathlib.Path(built.data_path)
  content = json.loads((folder / croissant.NAME).read_text(encoding="utf-8"))
  listed = {entry["contentUrl"]: entry["sha256"] for entry in content["distribution"]}
  assert set(listed) == {"records.csv", *(path.name for path in folder.glob("*.tfrecord*"))}
  for name, sha256 in listed.items():
    assert sha256 == files.sha256_of(folder / name)
  assert content["name"] == "hippocampus_t1w-slices" and content["license"]


def test_it_holds_no_local_path_and_no_date(built):
  text = (pathlib.Path(built.data_path) / croissant.NAME).read_text(encoding="utf-8")
  assert str(pathlib.Path(built.data_path).parents[3]) not in text
  assert "date" not in json.loads(text) and "datePublished" not in json.loads(text)


def test_without_a_stated_licence_none_is_claimed():
  assert "license" not in croissant.prose_of("Scans.", "", "", ())
  cc_by = croissant.prose_of("Scans.", "", "", (croissant.CC_BY,))
  assert cc_by["license"] == ["https://creativecommons.org/licenses/by/4.0/"]
  own = croissant.License("Research", "https://a.b/c")
  assert croissant.prose_of("", "", "", (own,))["license"] == ["Research: https://a.b/c"]


def test_a_build_without_a_stated_licence_warns(tmp_path, monkeypatch):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=3)
  monkeypatch.setattr(catalog.builder_class("hippocampus_t1w"), "LICENSES", ())
  builder = build_samples.build("hippocampus_t1w", raw, tmp_path / "out")
  [warning] = build_samples.report_of(builder)["warnings"]
  assert "states no licence" in warning


@pytest.mark.slow
def test_the_reference_reader_loads_it_without_errors(built):
  folder = pathlib.Path(built.data_path)
  dataset = mlcroissant.Dataset(jsonld=str(folder / croissant.NAME))
  assert not dataset.metadata.issues.errors
  records = list(dataset.records("records"))
  rows = build_samples.rows_of(built)
  assert [record["records/key"].decode() for record in records] == [row["key"] for row in rows]
  pixels = sum(record["records/pixels_hippocampus"] for record in records)
  assert pixels == sum(int(row["pixels_hippocampus"]) for row in rows)
