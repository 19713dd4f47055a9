"""Every key that the published programs read is known: it becomes a flag or says why not."""

import configparser
import re

import pytest
import skip_rules

from flexunet.tools.convert_config import augmentor, conversion, keys

# The keys of the published programs, each with its default there or another value of its kind.
PUBLISHED = """
[augmentor]
angles = [90, 180, 270]
barrdistortion = False
brightening = False
deformation = False
distortion = False
hflip = True
pincdistortion = False
rotation = True
sharpening = False
shears = []
shrinks = [0.8]
vflip = True
[barrdistortion]
amount = 0.5
centers = [(0.5, 0.5)]
radius = 0.5
[brightening]
alpha = 1.2
beta = 10
[dataset]
class_name = "ImageCategorizedMaskDataset"
[debug]
verbose = False
[deformation]
alpah = 1300
sigmoid = 8
sigmoids = [8]
[distortion]
distortions = [0.02]
gaussian_filter_rsigma = 40
gaussian_filter_sigma = 0.5
[eval]
batch_size = 4
eval_dir = "./eval"
image_datapath = "./here"
mask_datapath = "./here"
[generator]
augmentation = False
debug = True
generated_images_dir = "./generated_images_dir"
generated_masks_dir = "./generated_masks_dir"
verbose = False
[image]
color_order = "RGB"
[infer]
images_dir = "./here"
output_dir = "./here"
[infer3d]
images_dir = "./here"
mask_overlay = True
output_dir = "./here"
overlay_alpha = 0.5
overlay_beta = 0.5
overlay_gamma = 0
slice_normalize = True
slice_resize = (512, 512)
slice_rotation = "cv2.ROTATE_90_CLOCKWISE"
slice_shape_order = "hwd"
video_dir = "./video_3d"
video_fileformat = ".mp4"
video_fps = 10
video_type = "overlays"
[mask]
binarize = True
blur = True
mask_datatype = "categorized"
mask_file_format = ".png"
rgb_map = {(0,0,0):0, (255,0,0):1}
threshold = 127
[model]
activation = "relu"
backbone = "resnet50"
base_filters = 16
base_kernels = (3, 3)
base_ksize = (3, 3)
batch_norm = True
clipvalue = 0.2
color_order = "RGB"
depth = 4
dilation = (1, 1)
dropout_rate = 0.1
dropout_seed_fixing = False
efficientnet = "B0"
embed_dim = 768
filter_num = [64, 128, 256, 512]
filter_num_begin = 128
filters = [32, 64, 128, 256]
final_activation = "sigmoid"
freeze_backbone = True
freeze_batch_norm = True
generator = True
image_channels = 3
image_height = 256
image_width = 256
input_normalize = True
learning_rate = 0.0001
loss = "categorical_crossentropy"
max_filter = 512
metrics = ["dice_coef_multiclass"]
mlp_activation = 'GELU'
model = "TensorFlowFlexUNet"
normalization = False
num_classes = 2
num_heads = 12
num_layers = 6
num_mlp = 3072
num_transformer = 12
optimizer = "Adam"
patch_size = (4, 4)
pool = True
shift_window = 2
stack_num_down = 2
stack_num_up = 2
weights = 'imagenet'
window_size = 4
[pincdistortion]
amount = -0.5
centers = [(0.5, 0.5)]
radius = 0.5
[sharpening]
k = 1.0
[test]
images_dir = "./here"
masks_dir = "./here"
[tiledinfer]
images_dir = "./here"
output_dir = "./here"
overlapping = 64
split_size = 512
[train]
batch_size = 4
epoch_change_infer = False
epoch_change_infer_dir = "./epoch_change_infer"
epoch_change_tiled_infer = False
epoch_change_tiled_infer_dir = "./epoch_change_tiled_infer"
epochs = 100
eval_dir = "./eval"
image_datapath = "./here"
images_dir = "./here"
learning_rate_reducer = True
mask_datapath = "./here"
masks_dir = "./here"
metrics = ["dice_coef_multiclass"]
model_dir = "./models"
num_infer_images = 6
patience = 10
reducer_factor = 0.4
reducer_patience = 4
steps_per_epoch = 400
validation_steps = 800
[valid]
images_dir = "./here"
masks_dir = "./here"
"""
# Keys that mean something beside another one only.
BESIDE = {
    ("model", "image_height"): ("model", "image_width", "512"),
    ("model", "image_width"): ("model", "image_height", "512"),
    ("train", "reducer_factor"): ("train", "learning_rate_reducer", "True"),
    ("train", "reducer_patience"): ("train", "learning_rate_reducer", "True"),
    ("generator", "augmentation"): ("model", "generator", "True"),
}
# Another value of each key of the augmentor than its default, and the switch it needs.
CHANGED = {
    ("augmentor", "angles"): "[10, 350]",
    ("augmentor", "shears"): "[0.1]",
    ("augmentor", "shrinks"): "[0.6, 0.8]",
    ("deformation", "alpah"): "900",
    ("deformation", "sigmoids"): "[8, 10]",
    ("distortion", "distortions"): "[0.01, 0.03]",
    ("distortion", "gaussian_filter_rsigma"): "60",
    ("distortion", "gaussian_filter_sigma"): "0.7",
    ("barrdistortion", "amount"): "0.3",
    ("barrdistortion", "radius"): "0.3",
    ("barrdistortion", "centers"): "[(0.3, 0.7), (0.5, 0.5)]",
    ("pincdistortion", "amount"): "-0.3",
    ("pincdistortion", "radius"): "0.3",
    ("pincdistortion", "centers"): "[(0.3, 0.7), (0.5, 0.5)]",
    ("sharpening", "k"): "0.5",
    ("brightening", "alpha"): "1.4",
    ("brightening", "beta"): "20",
}


def published_keys() -> list[tuple[str, str, str]]:
  """Returns (section, key, value) of the text above."""
  parser = configparser.ConfigParser(interpolation=None)
  parser.read_string(PUBLISHED)
  return [(name, key, text) for name in parser.sections() for key, text in parser[name].items()]


KEYS = published_keys()


def convert(tmp_path, sections: dict[str, dict[str, str]]) -> conversion.ConvertedConfig:
  lines = []
  for section, values in sections.items():
    lines += [f"[{section}]", *(f"{key} = {text}" for key, text in values.items())]
  path = tmp_path / "train_eval_infer.config"
  path.write_text("\n".join(lines))
  return conversion.convert(path)


def test_there_are_134_keys():
  assert len(KEYS) == len(set(KEYS)) == 134


@pytest.mark.parametrize("section, key, text", KEYS, ids=[f"{s}.{k}" for s, k, _ in KEYS])
def test_a_published_key_becomes_a_flag_or_says_why_not(tmp_path, section, key, text):
  plain: dict[str, dict[str, str]] = {"model": {}, section: {}}
  sections: dict[str, dict[str, str]] = {"model": {}, section: {key: text}}
  if beside := BESIDE.get((section, key)):
    sections[beside[0]][beside[1]] = beside[2]
    if not beside[1].startswith("image_"):
      plain[beside[0]][beside[1]] = beside[2]
  done, before = convert(tmp_path, sections), convert(tmp_path, plain)
  assert not done.unknown
  reasons = [note for note in done.notes if note.startswith(f"[{section}] {key}")]
  has_flag = bool(keys.KEYS[section][key](text, "here").flags)
  assert has_flag or reasons or done.flags != before.flags
  # A reason is one line that teaches: more than the name of the key.
  assert all("\n" not in note and len(note) > len(section) + len(key) + 15 for note in reasons)


AUGMENTOR = [(section, key) for section, key in augmentor._KNOBS]


@pytest.mark.parametrize("section, key", AUGMENTOR, ids=[f"{s}.{k}" for s, k in AUGMENTOR])
def test_a_key_of_the_augmentor_changes_its_flags_where_the_generator_is_on(tmp_path, section, key):
  active = {"model": {"generator": "True"}, "augmentor": {}}
  if section != "augmentor":
    active["augmentor"][section] = "True"
    active[section] = {}
  default = augmentor._KNOBS[section, key][1]
  text = CHANGED.get((section, key), str(not default))
  if key == "sigmoid":  # Read where sigmoids is an empty list, as there.
    active[section]["sigmoids"], text = "[]", "12"
  before = convert(tmp_path, active)
  changed = {name: dict(values) for name, values in active.items()}
  changed[section][key] = text
  done = convert(tmp_path, changed)
  reasons = [note for note in done.notes if note.startswith(f"[{section}] {key}")]
  assert done.flags != before.flags or reasons
  # What is read counts, not what is merely there: without the generator nothing changes.
  changed["model"]["generator"] = "False"
  off = convert(tmp_path, changed)
  assert off.flags["augmentation"] == "none" and "shear_probability" not in off.flags
  assert any(note.startswith(f"[{section}] {key}: not read") for note in off.notes)


def test_all_keys_at_once_are_known(tmp_path):
  sections: dict[str, dict[str, str]] = {}
  for section, key, text in KEYS:
    sections.setdefault(section, {})[key] = text
  assert not convert(tmp_path, sections).unknown


@pytest.mark.realdata
def test_the_list_above_is_that_of_the_published_programs():
  folder = skip_rules.realdata_folder()
  if folder is None or not (folder.parent / "published-keys.md").is_file():
    pytest.skip("the listing of the published keys is not on this machine")
  listing = (folder.parent / "published-keys.md").read_text(encoding="utf-8")
  rows = re.findall(r"^\| (\w+) \| (\w+) \|", listing, re.MULTILINE)
  listed = {(section, key) for section, key in rows if section != "section"}
  assert {(section, key) for section, key, _ in KEYS} == listed


def test_tiled_inference_names_the_flags_of_predict(tmp_path):
  tiled = {"split_size": "512", "overlapping": "64"}
  notes = "\n".join(convert(tmp_path, {"model": {}, "tiledinfer": tiled}).notes)
  assert "flexunet predict --run_dir=RUN --input=IN --output_dir=OUT --tile=512" in notes
  assert "--overlap=64, with --tile" in notes
