"""What export.json says: inputs, output, classes, geometry, window, sizes, limits."""

from __future__ import annotations

from typing import Any

from flexunet import config
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.network.standalone import Standalone, Surroundings
from flexunet.pipelines import pixel_size

# The form of export.json; raised whenever its keys change their meaning.
FORM = 2
_MEANINGS = {
    "image": "slices of a scan, upright, [slices, rows, columns, channels]",
    "window": "the intensities that become 0 and 255 in this volume, [channels, (low, high)], by"
    " the rule of 'window'",
    "spacing_mm": "edges of a pixel, (row, column); NaN where unknown",
    "label": "class ids, [slices, rows, columns]; of equal probabilities the lower id",
    "probability": "of each class, [slices, rows, columns, classes]",
}
_WINDOW_RULES = {
    "percentile": "low and high are percentiles, numpy.percentile of the volume's voxels that are"
    " neither 0 nor NaN, over the whole volume, never of one slice; they are the input 'window'",
    "window": "low and high are intensities, the same for every volume; inside the graph",
    "none": "intensities are 0..255 already",
}


def of_network(run_config: config.RunConfig | None, size: list[int | None]) -> dict[str, Any]:
  """Returns what export.json says of the bare network, for images of `size`."""
  known = {} if run_config is None else _of_run(run_config)
  return {
      "form": FORM,
      "output": "network",
      **known,
      "inputs": [{
          "name": "image", "dtype": "float32",
          "meaning": "[batch, height, width, channels], values 0..255, cropped and resized as in"
                     " training",
      }],
      "outputs": [{
          "dtype": "float32", "meaning": "probabilities, [batch, height, width, classes]",
      }],
      "image_size": size,
  }  # fmt: skip


def of_graph(
    run_config: config.RunConfig, graph: Standalone, around: Surroundings, classes: int
) -> dict[str, Any]:
  """Returns what export.json says of a graph that stands alone.

  Args:
    run_config: Of the run.
    graph: For slices of any size, where one was asked for.
    around: What stands around its network.
    classes: Of the answer, background included.
  """
  inputs = [
      {
          "name": spec.name,
          "dtype": spec.dtype.name,
          "shape": [*spec.shape],
          "meaning": _MEANINGS[spec.name],
      }
      for spec in graph.signature()
  ]
  name = graph.output_name
  shape = [None, *(around.native_size or (None, None))]
  kind, shape = ("uint8", shape) if name == "label" else ("float32", [*shape, classes])
  return {
      "form": FORM,
      "output": "labels" if name == "label" else "probabilities",
      **_of_run(run_config),
      "inputs": inputs,
      "outputs": [{"name": name, "dtype": kind, "shape": shape, "meaning": _MEANINGS[name]}],
      "image_size": list(around.native_size or (None, None)),
      "temperature": around.temperature if around.probabilities else None,
      "inside": _inside(around),
      "limits": _limits(around),
  }


def _of_run(run_config: config.RunConfig) -> dict[str, Any]:
  facts = run_config.dataset_facts
  windows = [] if facts.intensity is None else [facts.intensity, *facts.other_intensities]
  return {
      "dataset": facts.name,
      "classes": facts.label_scheme.to_json(),
      "channel_names": list(facts.channel_names),
      "context_slices": run_config.data.context_slices,
      "network_size": list(run_config.model.image_size or (None, None)),
      "resize_mode": run_config.data.resize_mode,
      "crop_foreground": run_config.data.crop_foreground,
      "geometry": None if facts.recipe is None else _geometry(facts.recipe),
      "window": [_window(one) for one in windows],
      "pixel_size_mm": _pixel_sizes(run_config),
  }


def _geometry(recipe: SliceRecipe) -> dict[str, Any]:
  plan = recipe.plan
  resampled = recipe.in_plane_mm or recipe.isotropic_mm
  return {
      "plane": plan.plane,
      "axes": plan.axes,
      "display_axes": plan.display_axes,
      "resampled_to_mm": resampled,
      "bias_correction": recipe.bias_correction,
      "rule": "A volume is turned, never interpolated, so that rows, columns and slices run towards"
      f" {', '.join(plan.display_axes)}. One that states no orientation is taken to be stored as"
      f" {plan.axes}."
      + ("" if resampled is None else
         " Its 8-bit slices are then resampled to resampled_to_mm; the graph takes them after"
         " that.")
      + ("" if recipe.bias_correction == "none" else
         f" Before its window its bias field is removed ({recipe.bias_correction.upper()}); the"
         " graph takes 8-bit slices after that."),
  }  # fmt: skip


def _window(window: IntensityWindow) -> dict[str, Any]:
  return {
      "kind": window.kind, "low": window.low, "high": window.high,
      "rule": _WINDOW_RULES[window.kind],
  }  # fmt: skip


def _pixel_sizes(run_config: config.RunConfig) -> dict[str, Any] | None:
  sizes = run_config.dataset_facts.pixel_sizes
  if sizes is None:
    return None
  low, high = sizes.unchanged_mm
  return {
      "median": list(sizes.median_mm),
      "unchanged_low": list(low),
      "unchanged_high": list(high),
      "rule": "(row, column) edges of a pixel of the network's input. Within unchanged_low and"
      " unchanged_high a slice is resized by resize_mode alone; beyond them an axis is scaled to"
      f" the median, unless that asks for more than a factor of {pixel_size.MOST_SCALING:g}.",
  }


def _inside(around: Surroundings) -> list[str]:
  """Returns what the graph does itself, in order."""
  return [
      *(["intensity window"] if around.windows else []),
      *(["scaling to the pixel size of the training"] if around.pixel_sizes else []),
      f"resizing ({around.resize_mode}) and border",
      "network in float32",
      "resizing to the size of the slice",
      f"temperature {around.temperature:g}" if around.probabilities else "class ids",
  ]


def _limits(around: Surroundings) -> list[str]:
  """Returns what prediction does and the graph does not, one sentence each."""
  lines = [
      "Clean-up of the label volume, test-time augmentation and tiles of flexunet predict are not"
      " inside."
  ]
  if reach := around.context_slices:
    lines.append(
        f"A slice goes in with {reach} neighbours on either side as channels, in their order;"
        " beyond the ends of a volume the outermost slice stands in for them."
    )
  if not around.windows:
    lines.append("Slices are 8-bit, as the records of the dataset hold them.")
  return lines


def fixed_size_limits(around: Surroundings) -> list[str]:
  """Returns what a graph of slices of one size does not do besides."""
  if around.pixel_sizes is None:
    return []
  return ["LiteRT: slices must have the pixel size of the training, within unchanged_low and"
          " unchanged_high; others are not scaled."]  # fmt: skip
