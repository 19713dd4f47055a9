"""`report.html` of a cross-validation: pooled figures, a line per fold, how the folds differ."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import config
from flexunet.cross_validation.folder import CrossValidationFolder, Plan
from flexunet.evaluation import examples, summary
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import cases_section, caveats, charts, colors, results_section
from flexunet.reporting import html_parts as page

_SUBJECTS_NAMED = 200
# Where files lie, and which fold it is, differ by nature.
_OWN = ("fold", "data_dir", "cache_dir", "init_from")


def render(
    folder: CrossValidationFolder,
    plan: Plan,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> str:
  """Returns the page as text.

  Args:
    folder: All its folds are trained and scored.
    plan, results, rows: As of `pooling.pool`.
  """
  configs = [folder.run(fold).read_config() for fold in plan.folds]
  scheme = configs[0].dataset_facts.label_scheme
  pooled, per_fold = results["pooled"], results["per_fold"]
  name = page.count(len(per_fold), "fold")
  subjects = page.count(pooled["evaluated"]["subjects"], "subject")
  return page.document(
      kind="FlexUNet cross-validation",
      heading=plan.dataset,
      lead=(
          f"{page.count(len(per_fold), 'network')}, each trained without one fold and scored on it:"
          f" {subjects}, each held out once."
      ),
      top=results_section.tiles(name, pooled)
      + caveats.caveat_box(caveats.caveats({name: pooled}, configs[0], None)),
      sections=[
          ("results", f"Results on {name}", results_section.split_section(pooled, rows, scheme)),
          ("folds", "Folds", _folds_section(plan, results, rows, scheme)),
          ("cases", "Cases", _case_section(folder, plan, scheme)),
          ("settings", "Settings", _settings_section(plan, configs)),
          ("definitions", "What the figures mean",
           results_section.figure_definitions({name: pooled})),
          ("provenance", "Provenance", _provenance(plan, per_fold)),
      ],
      footer=(
          "Written by FlexUNet from the files of the folds. For research; not a medical device, and"
          " no diagnosis may rest on it."
      ),
  )  # fmt: skip


def _folds_section(
    plan: Plan,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    scheme: LabelScheme,
) -> str:
  """Returns a line per fold with a link to its report, and the spread between the folds."""
  palette = dict(zip(scheme.names, colors.display_palette(scheme.palette), strict=True))
  per_fold, spread = results["per_fold"], results["between_folds"]
  classes = list(per_fold[0]["dice"]) if len(per_fold[0]["dice"]) > 1 else []
  headers = ["Fold", "Held out", "Trained on", "Volumes", "Foreground Dice", "95 % interval"]
  headers += [page.class_name(name, palette[name]) for name in classes] + ["Best epoch"]
  lines = [
      [
          f'<a href="{page.text(one["run"])}/report.html">{page.words(one["run"])}</a>',
          page.count(len(one["subjects"]), "subject"),
          page.count(one["trained_on_subjects"], "subject"),
          page.number(one["volumes"]),
          f"<b>{page.number(one['foreground_dice']['mean'])}</b>",
          page.interval(one["foreground_dice"]["ci95"]),
          *(page.number(one["dice"][name]) for name in classes),
          page.DASH if one["best_epoch"] is None
          else f"{one['best_epoch']:g} of {one['epochs']:g}",
      ]
      for one in per_fold
  ]  # fmt: skip
  between = (
      f"Between the folds the mean foreground Dice has a standard deviation of"
      f" {page.number(spread['sd'])}, from {page.number(spread['min'])} to"
      f" {page.number(spread['max'])}. Folds hold different subjects, and few: the interval of all"
      " subjects above says more about new people than this spread."
  )
  return (
      page.table(headers, lines, texts=(0,))
      + f'<p class="note">{between}</p>'
      + _distribution(plan, rows)
      + _held_out(per_fold)
  )


def _distribution(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns a chart of the mean Dice of each volume, by fold."""
  groups = []
  for place, fold in enumerate(plan.folds):
    scores = summary.foreground_dice([row for row in rows if row["fold"] == fold])
    values = [value for value in scores.values() if not math.isnan(value)]
    colour = charts.LINE_COLORS[place % len(charts.LINE_COLORS)]
    groups.append(charts.Values(f"fold {fold}", values, colour))
  chart = charts.svg(charts.StripChart(title="Foreground Dice of each volume", groups=groups))
  if not chart:
    return ""
  return (
      f'<figure class="strip">{chart}<figcaption class="note">One dot per volume, held out by its'
      " fold; the box spans the quartiles, line and number are the median.</figcaption></figure>"
  )


def _held_out(per_fold: Sequence[Mapping[str, Any]]) -> str:
  """Returns which subjects each fold held out, by name."""
  entries = []
  for one in per_fold:
    names = [page.text(name) for name in one["subjects"][:_SUBJECTS_NAMED]]
    more = len(one["subjects"]) - len(names)
    shown = ", ".join(names) + (f" and {more} more in cases.csv" if more > 0 else "")
    entries.append((page.words(one["run"]), shown))
  return "<h3>Subjects that each fold held out</h3>" + page.definitions(entries)


def _case_section(folder: CrossValidationFolder, plan: Plan, scheme: LabelScheme) -> str:
  """Returns the best and the worst volumes of all folds."""
  keeper = examples.ExampleKeeper()
  for fold in plan.folds:
    for example in examples.read(examples.path_of(folder.run(fold), plan.validation_split)):
      keeper.offer(example)
  return cases_section.cases_section(keeper.chosen(), scheme)


def _settings_section(plan: Plan, configs: Sequence[config.RunConfig]) -> str:
  """Returns what was given, and in which planned settings the folds differ."""
  given = [
      [f"<code>{page.text(name)}</code>", page.text(_shown(value))]
      for name, value in plan.given.items() if name not in _OWN
  ]  # fmt: skip
  flat = [_flat(one) for one in configs]
  differing = [
      [f"<code>{page.text(name)}</code>", *(page.text(_shown(one.get(name))) for one in flat)]
      for name in flat[0]
      if name not in _OWN and any(one.get(name) != flat[0][name] for one in flat)
  ]
  parts = ["<h3>Given</h3>"]
  parts.append(page.table(["Setting", "Value"], given, texts=(0, 1)) if given else "<p>None.</p>")
  note = "Every other setting was planned from the training subjects of each fold, or is a default."
  parts.append(f'<p class="note">{note}</p><h3>In which the folds differ</h3>')
  if differing:
    headers = ["Setting", *(page.words(name) for name in plan.runs)]
    parts.append(page.table(headers, differing, texts=tuple(range(len(headers)))))
  else:
    parts.append("<p>All folds have the same settings.</p>")
  return "".join(parts)


def _flat(one: config.RunConfig) -> dict[str, Any]:
  """Returns name -> value of every setting of a run, as JSON holds it."""
  parts = (one.model, one.data, one.training, one.augmentation)
  stored = [json.loads(json.dumps(dataclasses.asdict(part))) for part in parts]
  return {name: value for part in stored for name, value in part.items()}


def _shown(value: Any) -> str:
  if value is None:
    return page.DASH
  if isinstance(value, list):
    return ", ".join(map(str, value)) or page.DASH
  return f"{value:g}" if isinstance(value, float) else str(value)


def _provenance(plan: Plan, per_fold: Sequence[Mapping[str, Any]]) -> str:
  entries = [("Fingerprint", f"<code>{page.text(plan.fingerprint or 'none')}</code>")]
  entries += [
      (f"{page.words(one['run'])}", f"<code>sha256 {page.text(one['model_sha256'])}</code>")
      for one in per_fold
  ]
  return page.definitions(entries)
