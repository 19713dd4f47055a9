"""Published configs become flagfiles of the trainer, by literals alone."""


import forked
import pytest

from flexunet import config
from flexunet.core import flags
from flexunet.core.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.presets import preset_files
from flexunet.tools.convert_config import conversion

# The shape of the published files, with values of our own.
TEXT = """
; a comment
[model]
model = "TensorFlowFlexUNet"
generator = False
image_width = 320
image_height = 256
image_channels = 3
input_normalize = True
normalization = False
num_classes = 3
base_filters = 16
base_kernels = (9,9)
num_layers = 8
dropout_rate = 0.04
dilation = (3,3)
optimizer = "Adam"
learning_rate = 0.00007
clipvalue = 0.4
loss = "categorical_crossentropy"
metrics = ["dice_coef_multiclass"]

[train]
;epochs = 50
epochs = 100
batch_size = 2
patience = 10
metrics = ["dice_coef_multiclass", "val_dice_coef_multiclass"]
learning_rate_reducer = True
reducer_factor = 0.4
reducer_patience = 4
epoch_change_infer = True
num_infer_images = 6
images_dir = "../somewhere/"

[mask]
rgb_map = {(0,0,0):0,
  (255,0,0):1,
  (0,255,0):2,}
"""


def converted(tmp_path, text=TEXT):
  path = tmp_path / "train_eval_infer.config"
  path.write_text(text)
  return conversion.convert(path)


def parsed(text: str, folder):
  """Returns the configs that a flagfile gives."""
  file = folder / "recipe.flags"
  file.write_text(text)
  program = flags.Program("")
  parts = (
      config.ModelConfig, config.DataConfig, config.TrainingConfig, AugmentationConfig
  )  # fmt: skip
  holders = [program.fields(part) for part in parts]
  program.parse(["program", f"--flagfile={file}"])
  return [flags.read(part, held) for part, held in zip(parts, holders)]


def test_a_published_config_becomes_flags_that_the_trainer_takes(tmp_path):
  done = converted(tmp_path)
  assert not done.unknown
  model, data, training, augmentation = parsed(done.text("a.config"), tmp_path)
  assert model.image_size == (256, 320) and model.base_kernels == 9 and model.dilation == 3
  assert (model.num_layers, model.dropout_rate, model.normalization) == (8, 0.04, "none")
  assert (data.resize_mode, data.foreground_fraction, data.class_balance) == ("stretch", 0, False)
  assert (training.optimizer, training.learning_rate, training.clipvalue) == ("adam", 7e-5, 0.4)
  assert (training.loss, training.metrics) == ("cross_entropy", ("dice_coef_multiclass",))
  assert (training.epochs, training.batch_size, training.early_stopping_patience) == (100, 2, 10)
  assert (training.reduce_lr_factor, training.reduce_lr_patience) == (0.4, 4)
  assert (training.schedule, training.monitor, training.class_prior) == ("constant", "loss", False)
  assert training.previews == 6 and augmentation.augmentation == "none"


def test_where_a_file_is_silent_the_published_defaults_stand(tmp_path):
  done = converted(tmp_path, "[model]\nmodel = 'TensorFlowFlexUNet'\n")
  model, _, training, augmentation = parsed(done.text("a.config"), tmp_path)
  assert (model.image_size, model.image_channels, model.num_layers) == ((512, 512), 3, 6)
  assert (model.base_filters, model.base_kernels, model.dropout_rate) == (16, 3, 0.1)
  assert (training.learning_rate, training.clipvalue, training.batch_size) == (1e-4, 0.2, 4)
  assert (training.epochs, training.early_stopping_patience, training.previews) == (100, 10, 6)
  # The reducer is off unless it is asked for; its numbers are then 0.4 and 4.
  assert training.reduce_lr_patience == 0 and augmentation.augmentation == "none"
  asked = "[model]\n[train]\nlearning_rate_reducer = True\n"
  _, _, training, _ = parsed(converted(tmp_path, asked).text("a.config"), tmp_path)
  assert (training.reduce_lr_factor, training.reduce_lr_patience) == (0.4, 4)


def test_published_names_of_losses_and_metrics_are_understood(tmp_path):
  text = TEXT.replace("categorical_crossentropy", "categorical_focal_dice_loss")
  names = '"iou_coef_multiclass", "recall", "accuracy"'
  text = text.replace('metrics = ["dice_coef_multiclass"]\n\n', f"metrics = [{names}]\n\n")
  done = converted(tmp_path, text)
  assert done.flags["loss"] == "dice_cross_entropy" and done.flags["metrics"] == "iou,sensitivity"
  assert any("accuracy: no pixel accuracy here" in note for note in done.notes)


def test_batch_norm_counts_where_normalization_is_not_given(tmp_path):
  text = TEXT.replace("normalization = False\n", "batch_norm = True\n", 2)
  text = text.replace("input_batch_norm", "input_normalize")
  assert converted(tmp_path, text).flags["normalization"] == "batch"


@pytest.mark.parametrize(
    "given, line",
    [
        ("binarize = True\nthreshold = 80", "build image_mask --mask_threshold=80"),
        ("binarize = True", "--mask_threshold=LEVEL; none is given"),
        ("binarize = False\nthreshold = 80", "threshold: read with binarize alone"),
        ("blur = True", "hard class ids"),
    ],
)
def test_what_was_done_to_masks_is_an_option_of_the_build_or_a_reason(tmp_path, given, line):
  done = converted(tmp_path, TEXT.replace("[mask]", f"[mask]\n{given}"))
  assert not done.unknown and any(line in note for note in done.notes)


def test_the_colours_come_out_as_a_palette_file(tmp_path):
  assert '{"background": [0, 0, 0], "class_1": [255, 0, 0], "class_2": [0, 255, 0]}' in (
      converted(tmp_path).text("a.config")
  )


def test_every_unknown_entry_is_named_with_the_nearest_spelling(tmp_path):
  text = TEXT.replace("patience = 10", "patiense = 7")
  text = text.replace("[mask]", "[whatever]\na = 1\n[mask]")
  done = converted(tmp_path, text)
  assert done.unknown == ["[train] patiense (a misspelt patience?)", "[whatever]"]
  assert "# Unknown and left out: [train] patiense" in done.text("a.config")
  assert done.flags["early_stopping_patience"] == 10  # As the published program would take it.


def test_without_reducer_and_previews_both_are_off(tmp_path):
  text = TEXT.replace("learning_rate_reducer = True", "learning_rate_reducer = False")
  text = text.replace("epoch_change_infer = True", "epoch_change_infer = False")
  done = converted(tmp_path, text)
  assert done.flags["reduce_lr_patience"] == 0 and done.flags["previews"] == 0
  assert "reduce_lr_factor" not in done.flags


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("0.00007", "__import__('os').getcwd()", "learning_rate must be a Python literal"),
        ("0.00007", "float('1')", "learning_rate must be a Python literal"),
        ('"Adam"', "Adam", "optimizer must be a Python literal"),
        ('"Adam"', '"Adm"', "nearest is 'adam'"),
        ("(9,9)", "(9,7)", "base_kernels must be a pair of equal"),
        ("(9,9)", "()", "base_kernels must be a pair of equal"),
        ("num_classes = 3", "num_classes = 4", "one colour per class of num_classes=4. Got: 3"),
        ("num_classes = 3", "num_classes = True", "num_classes must be a whole number"),
        ("epochs = 100\n", "epochs = 100\nepochs = 3\n", "must be an ini file"),
        ("image_height = 256\n", "", "image_height must be a whole number"),
        ("normalization = False", "normalization = 0", "normalization must be True or False"),
        ("TensorFlowFlexUNet", "TensorFlowSwinUNet", "the only network here"),
        ("categorical_crossentropy", "crossentropy_and_more", "loss must be one of"),
        ('["dice_coef_multiclass"]', '["dice_of_mine"]', "must name metrics of"),
        ("generator = False", "generator = 1", "generator must be True or False"),
        ("(255,0,0):1", "(255,0,0):5", "must map colours to the class ids"),
        ("[model]", "[modle]", r"a section \[model\]"),
    ],
)
def test_what_is_wrong_in_a_config_is_named_by_key(tmp_path, before, after, message):
  assert before in TEXT
  with pytest.raises(InputError, match=message):
    converted(tmp_path, TEXT.replace(before, after, 1))


@pytest.mark.parametrize("name", preset_files.names())
def test_a_preset_is_the_published_recipe_of_its_dataset(name, tmp_path):
  # kernels, dropout, learning rate, reducer factor: the facts that differ between the datasets.
  facts = {
      "full_head_t1w": (11, 0.05, 7e-5, 0.5),
      "ms_lesion_mri": (9, 0.04, 5e-5, 0.4),
      "brain_stroke_ct": (9, 0.05, 7e-5, 0.5),
      "brain_ich_ct": (11, 0.04, 7e-5, 0.5),
      "hippocampus_t1w": (11, 0.05, 7e-5, 0.5),
  }
  dataset = name.removeprefix("published/")
  text = preset_files.path_of(name).read_text()
  model, data, training, augmentation = parsed(text, tmp_path)
  told = (model.base_kernels, model.dropout_rate, training.learning_rate, training.reduce_lr_factor)
  assert told == facts[dataset] and data.dataset == dataset
  # Beside these, all are what a published config with the same values would give.
  shared = TEXT.replace("320", "512").replace("256", "512").replace("0.4", "0.5")
  shared = shared.replace("(3,3)", "(1,1)").replace("num_classes = 3\n", "")
  model_2, data_2, training_2, augmentation_2 = parsed(
      converted(tmp_path, shared).text("a.config"), tmp_path
  )
  own = {"base_kernels", "dropout_rate", "learning_rate", "reduce_lr_factor", "dataset"}
  pairs = [(model, model_2), (data, data_2), (training, training_2)]
  for mine, theirs in [*pairs, (augmentation, augmentation_2)]:
    for key, value in vars(mine).items():
      assert key in own or value == getattr(theirs, key), key


@pytest.mark.slow
def test_the_program_writes_a_flagfile_and_warns_of_what_it_does_not_know(tmp_path):
  source = tmp_path / "train_eval_infer.config"
  source.write_text(TEXT.replace("patience = 10", "patiense = 10"))
  target = tmp_path / "recipe.flags"
  done = forked.command("convert_config", source, f"--output={target}")
  assert done.returncode == 0 and "patiense" in done.stderr and "--epochs=100" in target.read_text()
  strict = forked.command("convert_config", source, "--strict")
  assert strict.returncode == 1 and "patiense" in strict.stderr
