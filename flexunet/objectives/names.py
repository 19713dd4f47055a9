"""The losses and metrics by name, with their meaning: what flags offer and help texts list.

Pure Python, so that programs can list and check them without loading Keras; `losses.LOSSES` and
`metrics.training_metrics` hold what the names stand for.
"""

from __future__ import annotations

LOSSES: dict[str, str] = {
    "cross_entropy": "mean of -log(probability of the pixel's own class)",
    "dice": "1 - mean soft Dice of the foreground classes",
    "dice_cross_entropy": "dice plus cross_entropy; the first choice for small structures",
    "focal": "cross_entropy in which pixels that are easy by now count little",
    "tversky": "dice with separate prices for missed and for invented pixels; for small lesions",
    "iou": "1 - mean soft intersection over union of the foreground classes",
    "bce_dice": "binary cross-entropy plus dice; one structure against its background",
    "bce_iou": "binary cross-entropy plus iou; one structure against its background",
    "basnet_hybrid": "binary cross-entropy plus structural similarity plus iou; one structure",
}

METRICS: dict[str, str] = {
    "dice_coef_multiclass": "the published score, background included; close to pixel accuracy",
    "dice": "2 TP / (2 TP + FP + FN) of hard labels, mean over the foreground classes",
    "iou": "TP / (TP + FP + FN), mean over the foreground classes",
    "sensitivity": "TP / (TP + FN), mean over the foreground classes",
    "specificity": "TN / (TN + FP), mean over the foreground classes",
    "precision": "TP / (TP + FP), mean over the foreground classes",
}
