"""The report of a dataset, on small built phantoms."""

import dataclasses
import re

import forked
import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, dataset_folders
from flexunet.tools.dataset_report import brightness, charts, page, statistics, subjects


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["built_slices", "built_volumes", "built_heads"])
def test_the_report_is_one_file_with_the_counts_of_the_build(request, fixture, tmp_path):
  dataset = built_dataset.open_folder(request.getfixturevalue(fixture))
  page.write_report(dataset, tmp_path / "a.html")
  html_page = (tmp_path / "a.html").read_text()
  # Nothing is loaded from elsewhere.
  assert not re.findall(r'(?:src|href)="(?!data:|#)', html_page)
  assert str(len(dataset.rows)) in html_page and dataset.report["fingerprint"] in html_page
  for name in dataset.scheme.names:
    assert name.replace("_", " ") in html_page
  assert "$" not in html_page.split("</style>")[1]
  assert html_page.count("<svg") >= 5
  image = np.asarray(Image.open(tmp_path / "a.png"))
  assert image.shape[1] > 1000 and image.std() > 10


def test_intensities_are_counted_by_class(built_slices):
  dataset = built_dataset.open_folder(built_slices)
  counts = statistics.gather(dataset).intensities.sum(axis=1)
  labelled = [entry for name, entry in dataset.splits.items() if name != "unlabeled"]
  assert counts.tolist() == [sum(e["pixels"][name] for e in labelled)
                             for name in dataset.scheme.names]  # fmt: skip


def test_the_sheet_shows_different_subjects_first(built_slices):
  rows = statistics.chosen_rows(built_dataset.open_folder(built_slices))["hippocampus"]
  assert len({row["subject"] for row in rows[:4]}) == 4


def test_a_report_makes_its_folder_and_is_a_page(built_slices, tmp_path):
  dataset = built_dataset.open_folder(built_slices)
  page.write_report(dataset, tmp_path / "new" / "a.html")
  assert {path.name for path in (tmp_path / "new").iterdir()} == {"a.html", "a.png"}
  with pytest.raises(InputError, match="must end in .html"):
    page.write_report(dataset, tmp_path / "a.txt")


def test_a_class_that_no_pixel_has_and_volumes_without_foreground_are_charted(built_slices):
  dataset = built_dataset.open_folder(built_slices)
  figures = statistics.gather(dataset)
  empty = dataclasses.replace(figures, intensities=np.zeros_like(figures.intensities))
  rows = [{**row, "pixels_hippocampus": "0"} for row in dataset.rows]
  drawn = charts.charts_of(dataclasses.replace(dataset, rows=rows), empty)
  has_nothing = {chart.title for chart in drawn if chart.empty}
  assert has_nothing == {"Intensities of each class", "Where in the volume each class occurs"}
  assert any("(4 of 4 have none)" in chart.title for chart in drawn)


def test_the_report_says_who_is_in_the_dataset_and_under_which_terms(built_slices):
  dataset = dataset_folders.find_one(built_slices)
  page.write_report(dataset, built_slices / "dataset_report.html")
  text = (built_slices / "dataset_report.html").read_text()
  (built_slices / "dataset_report.html").unlink()
  (built_slices / "dataset_report.png").unlink()
  for subject in {row["subject"] for row in dataset.rows}:
    assert f"<td>{subject}</td>" in text
  assert "No subject stands in two splits" in text and "Each record is one slice" in text
  assert "Research and education" in text and "Jafari-Khouzani et al. (2011)" in text
  links = set(re.findall(r'href="([^#"][^"]*)"', text))
  assert {"records.csv", "splits.json", "build_report.json"} <= links
  assert all((built_slices / name).is_file() for name in links)


def test_the_report_has_the_mean_intensity_of_each_class_and_subject(built_slices):
  dataset = dataset_folders.find_one(built_slices)
  figures = statistics.gather(dataset)
  values = {}
  for row, example in dataset.records():
    if row["split"] != "unlabeled":
      inside = example["image"][example["label"] == 1]
      values.setdefault((row["split"], row["subject"]), []).extend(inside.tolist())
  assert values.keys() == figures.grey_totals.keys()
  shown = brightness.section(dataset, figures.grey_totals)
  for key, pixels in values.items():
    assert figures.grey_totals[key][1].tolist() == [len(pixels), sum(pixels)]
    assert f">{np.mean(pixels):.0f}<" in shown


def test_a_report_that_lies_elsewhere_has_no_links_to_files(built_slices, tmp_path):
  page.write_report(dataset_folders.find_one(built_slices), tmp_path / "a.html")
  assert not re.findall(r'href="[^#"]', (tmp_path / "a.html").read_text())


def test_a_subject_in_two_splits_is_counted(built_slices):
  dataset = dataset_folders.find_one(built_slices)
  assert subjects.in_several_splits(dataset) == []
  first = dataset.rows[0]
  other = "test" if first["split"] != "test" else "train"
  rows = [*dataset.rows, {**first, "split": other}]
  assert subjects.in_several_splits(dataclasses.replace(dataset, rows=rows)) == [first["subject"]]


@pytest.mark.slow
def test_the_command_writes_where_it_is_told(built_slices, tmp_path):
  done = forked.command("report", built_slices, f"--output={tmp_path / 'a.html'}")
  assert done.returncode == 0, done.stderr
  assert {path.name for path in tmp_path.iterdir()} == {"a.html", "a.png"}
