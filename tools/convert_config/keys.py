"""Every key of the published configuration files: its flag, or why it needs none."""

from __future__ import annotations

from typing import Any

from flexunet.core.errors import InputError
from flexunet.tools.convert_config import augmentor
from flexunet.tools.convert_config.values import (
    Outcome,
    Reader,
    checked_switch,
    choice,
    edge,
    held,
    literal,
    noted,
    number,
    switch,
    whole,
)

_LOSSES = {
    "categorical_crossentropy": "cross_entropy",
    "sparse_categorical_crossentropy": "cross_entropy",
    "binary_crossentropy": "cross_entropy",
    "dice_loss": "dice",
    "iou_loss": "iou",
    "bce_dice_loss": "bce_dice",
    "bce_iou_loss": "bce_iou",
    "basnet_hybrid_loss": "basnet_hybrid",
    "categorical_focal_loss": "focal",
    "focal_loss": "focal",
    # Cross-entropy plus Dice, in spite of its name.
    "categorical_focal_dice_loss": "dice_cross_entropy",
    "tversky_loss": "tversky",
}
_METRICS = {
    "dice_coef_multiclass": "dice_coef_multiclass",
    "dice_coef_foreground": "dice",
    "dice_coef": "dice",
    "iou_coef": "iou",
    "iou_coef_multiclass": "iou",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "recall": "sensitivity",
}
_ACCURACIES = (
    "accuracy", "acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy",
)  # fmt: skip
_OPTIMIZERS = {"adam": "adam", "adamw": "adamw", "sgd": "sgd"}
_ACTIVATIONS = ("relu", "elu", "mish", "selu", "gelu", "silu", "leaky_relu")
_NETWORK = "TensorFlowFlexUNet"
_HEADS = ("sigmoid", "softmax")


def _metrics(text: str, where: str) -> Outcome:
  value = literal(text, where)
  if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
    raise InputError(f"{where} must be a list of names. Got: {value!r}.")
  plain = list(dict.fromkeys(name.removeprefix("val_") for name in value))
  left_out = [name for name in plain if name in _ACCURACIES]
  plain = [name for name in plain if name not in _ACCURACIES]
  if strange := [name for name in plain if name not in _METRICS]:
    raise InputError(f"{where} must name metrics of {', '.join(_METRICS)}. Got: {strange[0]!r}.")
  mine = list(dict.fromkeys(_METRICS[name] for name in plain)) or ["dice_coef_multiclass"]
  note = (
      f"{', '.join(left_out)}: no pixel accuracy here, which is near 1 wherever background fills"
      " the slice; dice_coef_multiclass is close to it"
  )
  return Outcome({"metrics": ",".join(mine)}, note if left_out else "")


def _network(text: str, where: str) -> Outcome:
  # Casing varies between the published files.
  value = literal(text, where)
  if not isinstance(value, str) or value.lower() != _NETWORK.lower():
    raise InputError(f"{where} must be {_NETWORK!r}, the only network here. Got: {value!r}.")
  return Outcome(note="the network of this package")


def _head(text: str, where: str) -> Outcome:
  value: Any = literal(text, where)
  if value not in _HEADS:
    raise InputError(f"{where} must be one of {', '.join(_HEADS)}. Got: {value!r}.")
  return Outcome(
      note="softmax over the classes, sigmoid with --num_classes=1: --num_classes decides"
  )


def _of_other_network(instead: str) -> Reader:
  return noted(f"of the other published networks, which FlexUNet does not read; {instead}")


_SIZE = "--num_layers and --base_filters set the size of this one"
_TRANSFORMER = f"it has no attention layers; {_SIZE}"
_BACKBONE = "it starts from random weights or, with --init_from=RUN, from those of another run"
_DATA = "records are built once: flexunet build image_mask --manual_dir=FOLDER, here {value}"
_SIDES = noted(f"{_DATA}; FOLDER holds train, valid and test")
_NPZ = noted(f"{_DATA}; FOLDER holds images and masks as files")
_RUN_FILES = noted("everything of a run lies in --run_dir")
_PREVIEWS = noted("previews lie in RUN/previews")
_COPIES = noted("flexunet augment_offline --output_dir=OUT writes augmented copies, training none")
_RECIPE = "a run remembers how its volumes were cut, and predicts every scan that way:"
_VIDEO = noted(
    "after training: flexunet predict --animation=mp4 (extra `animation`) or --animation=gif writes"
    " <stem>_overlay.mp4 or .gif beside the label, of overlays; here {value}"
)
_VIDEO_FPS = noted("after training: flexunet predict --animation=mp4 --animation_fps={value}")
_SLICES = noted(
    "--overlay of flexunet predict, a sheet per scan, is on by default; --overlay_slices writes an"
    " image per slice"
)
_OPACITY = noted("overlays have outlines and a fill of fixed opacity; --nooverlay leaves them out")
_INPUT = noted("after training: flexunet predict --run_dir=RUN --input={value} --output_dir=OUT")
_OUTPUT = noted("after training: flexunet predict --run_dir=RUN --input=IN --output_dir={value}")
_TILES = (
    "after training: flexunet predict --run_dir=RUN --input=IN --output_dir=OUT --{flag}={value}"
)
_TILE = noted(_TILES.replace("{flag}", "tile"))
_OVERLAP = noted(
    f"{_TILES.replace('{flag}', 'overlap')}, with --tile; tiles are blended where they overlap"
)
_VERBOSE = noted("--verbosity=1 shows more")

KEYS: dict[str, dict[str, Reader]] = {
    "model": {
        "model": _network,
        "generator": held("generator", checked_switch),
        "image_width": held("width"),
        "image_height": held("height"),
        "image_channels": whole("image_channels"),
        "input_normalize": noted("the network scales its input by 1/255 in any case"),
        "normalization": switch(
            Outcome({"normalization": "batch"}), Outcome({"normalization": "none"})
        ),
        "batch_norm": held("batch_norm", checked_switch),
        "num_classes": whole("num_classes"),
        "base_filters": whole("base_filters"),
        "base_kernels": edge("base_kernels"),
        "num_layers": whole("num_layers"),
        "dropout_rate": number("dropout_rate"),
        "dropout_seed_fixing": noted("--seed fixes dropout, weights and order in any case"),
        "dilation": edge("dilation"),
        "activation": choice("activation", {name: name for name in _ACTIVATIONS}),
        "final_activation": _head,
        "optimizer": choice("optimizer", _OPTIMIZERS),
        "learning_rate": number("learning_rate"),
        "clipvalue": number("clipvalue"),
        "loss": choice("loss", _LOSSES),
        "metrics": _metrics,
        "show_summary": noted("flexunet inspect shows the network"),
        "color_order": noted("colour images are read as RGB; grey ones have no order"),
        "backbone": _of_other_network(_BACKBONE),
        "efficientnet": _of_other_network(_BACKBONE),
        "weights": _of_other_network(_BACKBONE),
        "freeze_backbone": _of_other_network(_BACKBONE),
        "freeze_batch_norm": _of_other_network(_BACKBONE),
        "base_ksize": _of_other_network("base_kernels becomes --base_kernels"),
        "depth": _of_other_network("num_layers becomes --num_layers"),
        "filters": _of_other_network("--base_filters, which doubles at each stage, replaces it"),
        "filter_num": _of_other_network("--base_filters, which doubles at each stage, replaces it"),
        "filter_num_begin": _of_other_network("base_filters becomes --base_filters"),
        "max_filter": _of_other_network(f"its channels double without limit; {_SIZE}"),
        "stack_num_down": _of_other_network("each of its stages has two convolutions"),
        "stack_num_up": _of_other_network("each of its stages has two convolutions"),
        "pool": _of_other_network("it pools by the maximum of 2 x 2 between stages"),
        "embed_dim": _of_other_network(_TRANSFORMER),
        "mlp_activation": _of_other_network("--activation is that of all its convolutions"),
        "num_heads": _of_other_network(_TRANSFORMER),
        "num_mlp": _of_other_network(_TRANSFORMER),
        "num_transformer": _of_other_network(_TRANSFORMER),
        "patch_size": _of_other_network(_TRANSFORMER),
        "shift_window": _of_other_network(_TRANSFORMER),
        "window_size": _of_other_network(_TRANSFORMER),
    },
    "dataset": {
        "class_name": noted("images and masks are read by flexunet build image_mask"),
    },
    "train": {
        "epochs": whole("epochs"),
        "batch_size": whole("batch_size"),
        "steps_per_epoch": noted("an epoch is one pass over the training split"),
        "validation_steps": noted("a validation is one pass over the validation split"),
        "patience": whole("early_stopping_patience"),
        "metrics": noted("curves of all --metrics are drawn"),
        "model_dir": _RUN_FILES,
        "eval_dir": _RUN_FILES,
        "image_datapath": _NPZ,
        "mask_datapath": _NPZ,
        "images_dir": _SIDES,
        "masks_dir": _SIDES,
        "create_backup": noted("a run never overwrites another one"),
        "learning_rate_reducer": held("reducer", checked_switch),
        "reducer_factor": number("reduce_lr_factor"),
        "reducer_patience": whole("reduce_lr_patience"),
        "epoch_change_infer": held("previewed", checked_switch),
        "epoch_change_infer_dir": _PREVIEWS,
        "epoch_change_tiled_infer": noted(
            "previews show whole slices; those that are larger than --image_size are predicted in"
            " tiles (--resize_mode=pad)"
        ),
        "epoch_change_tiled_infer_dir": _PREVIEWS,
        "epoch_changeinfer": noted("a former name of epoch_change_infer"),
        "epoch_changeinfer_dir": _PREVIEWS,
        "num_infer_images": whole("previews"),
        "save_weights_only": noted("the whole best model is saved"),
    },
    "valid": {"images_dir": _SIDES, "masks_dir": _SIDES},
    "test": {"images_dir": _SIDES, "masks_dir": _SIDES},
    "eval": {
        "images_dir": _SIDES,
        "masks_dir": _SIDES,
        "image_datapath": _NPZ,
        "mask_datapath": _NPZ,
        "eval_dir": noted("flexunet evaluate writes RUN/evaluation and RUN/report.html"),
        "batch_size": noted(
            "after training: flexunet evaluate --run_dir=RUN --split=test --batch_size={value}"
        ),
    },
    "infer": {"images_dir": _INPUT, "output_dir": _OUTPUT},
    "tiledinfer": {
        "images_dir": _INPUT,
        "output_dir": _OUTPUT,
        "split_size": _TILE,
        "overlapping": _OVERLAP,
    },
    "infer3d": {
        "images_dir": _INPUT,
        "output_dir": _OUTPUT,
        "mask_overlay": _SLICES,
        "overlay_alpha": _OPACITY,
        "overlay_beta": _OPACITY,
        "overlay_gamma": _OPACITY,
        "slice_normalize": noted(f"{_RECIPE} intensities per volume; flexunet build --window"),
        "slice_resize": noted(f"{_RECIPE} --image_size and --resize_mode bring them to size"),
        "slice_rotation": noted(f"{_RECIPE} upright, by the affine of the file"),
        "slice_shape_order": noted(f"{_RECIPE} along the plane of flexunet build --plane"),
        "video_dir": _VIDEO,
        "video_fileformat": _VIDEO,
        "video_fps": _VIDEO_FPS,
        "video_type": _VIDEO,
    },
    "image": {"color_order": noted("colour images are read as RGB; grey ones have no order")},
    "mask": {
        "mask_datatype": noted("flexunet build image_mask reads colours and class ids alike"),
        "mask_file_format": noted("PNG, JPEG and BMP are read"),
        "rgb_map": held("rgb_map"),
        "binarize": held("binarize", checked_switch),
        "threshold": held("threshold"),
        "blur": switch(
            Outcome(
                note="labels are hard class ids: a blurred edge would be cut at one half again, so"
                " that build takes the masks as they are"
            ),
            Outcome(note="masks are taken as they are"),
        ),
        "blur_size": noted("masks are not blurred: labels are hard class ids"),
    },
    "generator": {
        "augmentation": held("generator_augmentation", checked_switch),
        "debug": _COPIES,
        "generated_images_dir": _COPIES,
        "generated_masks_dir": _COPIES,
        "verbose": _VERBOSE,
    },
    "debug": {"verbose": _VERBOSE},
    **augmentor.KEYS,
}  # fmt: skip
