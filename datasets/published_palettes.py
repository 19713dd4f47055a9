"""Classes and colours of the five published datasets, as their ready-made RGB masks show them."""

from __future__ import annotations

from flexunet.imaging.label_scheme import LabelClass, LabelScheme

_BACKGROUND = LabelClass("background", (0, 0, 0))
FULL_HEAD = LabelScheme((
    _BACKGROUND,
    LabelClass("air_cavity", (10, 180, 10)),
    LabelClass("grey_matter", (255, 255, 255)),
    LabelClass("white_matter", (128, 128, 128)),
    LabelClass("csf", (0, 128, 255)),
    LabelClass("bone", (255, 255, 0)),
    LabelClass("soft_tissue", (180, 100, 100)),
))
MS_LESION = LabelScheme((_BACKGROUND, LabelClass("lesion", (255, 255, 255))))
BRAIN_STROKE = LabelScheme((
    _BACKGROUND,
    LabelClass("hemorrhagic", (255, 0, 0)),
    LabelClass("ischemic", (0, 255, 0)),
))
BRAIN_ICH = LabelScheme((_BACKGROUND, LabelClass("hemorrhage", (210, 80, 0))))
HIPPOCAMPUS = LabelScheme((_BACKGROUND, LabelClass("hippocampus", (255, 0, 0))))
BINARY = LabelScheme((_BACKGROUND, LabelClass("foreground", (255, 255, 255))))
PRESETS: dict[str, LabelScheme] = {
    "binary": BINARY,
    "brain_ich_ct": BRAIN_ICH,
    "brain_stroke_ct": BRAIN_STROKE,
    "full_head_t1w": FULL_HEAD,
    "hippocampus_t1w": HIPPOCAMPUS,
    "ms_lesion_mri": MS_LESION,
}
