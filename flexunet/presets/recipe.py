"""The numbers of the project's own recipe: what planning chooses, each with its reason.

`flexunet.training.planning` holds the rules that use them. A default is changed here, by a
measurement that stands in the README beside this file.
"""

from __future__ import annotations

# Length of a run.
ENDLESS_EPOCHS = 10_000  # With --max_minutes the time decides.
EPOCHS = 50  # Without a time limit: enough for a few dozen subjects.
# Steps. In a shorter run a moving average would still remember the first weights, and a small
# learning rate does not get far.
LONG_RUN = 500
# Fewer of the usual network, and a lighter one is taken: that far it was compared.
FEW_STEPS = 2500
# Validating and saving after fewer steps would take much of the time.
EPOCH_STEPS = 50
# A validation may cost this share of an epoch's time.
VALIDATION_SHARE = 0.04
PATIENCE = 15  # Epochs without a better score, of runs without a time limit.

# How examples are drawn.
# A foreground class in fewer slices than this share of the commonest one is drawn in turns.
RARE_CLASS = 0.2
# Below this share of slices with foreground, half of each batch is drawn from them.
MUCH_FOREGROUND = 0.5
FOREGROUND_FRACTION = 0.5
# Seen less often, slices are hardly learnt by heart, and augmentation costs more than it gives: in
# five minutes on patches of the hippocampus set (16 to 19 passes) it took 0.005 of the test Dice.
FEW_PASSES = 25

# The network; its filters: NETWORK_SIZES of budgets.py.
# At half the size a step takes half of the time. In five minutes that won for the hippocampus and
# lost for brain tissues, in a minute for both; on a GPU it was not compared.
QUICK_STEM = "half_refined"
# It is taken where foreground is at most this share of the slices that hold some (median), and no
# edge of the input is below so many pixels.
SMALL_FOREGROUND = 0.05
QUICK_STEM_EDGE = 128
BASE_KERNELS = 3
MOST_LAYERS = 5
DECODER_CONVOLUTIONS = 2
# Of runs of few steps on a CPU with the first stage at full size: 1.5 to 1.7 times the steps. Test
# Dice on brain tissues in place of that of the usual network: 0.926 for 0.916 in five minutes (two
# seeds), 0.937 for 0.933 in 20 (one); in one minute, at the same learning rate, 0.895 for 0.893.
HURRIED_LAYERS = 4
HURRIED_DECODER_CONVOLUTIONS = 1
HURRIED_DROPOUT_RATE = 0.0
SMALLEST_BOTTLENECK = 4  # Pixels along the shorter edge; fewer hold no shape.
DROPOUT_RATE = 0.02
NORMALIZATION = "batch"
# Above this edge a slice is scaled down: on a CPU a step at 512x512 takes over a second.
LARGEST_EDGE = {"cpu": 256, "gpu": 512}
BATCH_SIZE = 8
# Besides the estimate: work space of convolutions, the framework itself, other programs.
MEMORY_SHARE = 0.6

# The optimizer.
OPTIMIZER = "adamw"
SCHEDULE = "cosine"
WARMUP_STEPS = 50
WARMUP_SHARE = 0.1  # Of the steps: a short run must not end before the learning rate has risen.
# Of long runs the moving average; where WEIGHT_AVERAGE is above 0, the mean over that last share of
# the run in its place.
EMA_MOMENTUM = 0.98
WEIGHT_AVERAGE = 0.0
CLIPVALUE = 0.5
# Optimizer -> learning rate of (short, long) runs of a network with normalization. Those of adamw
# were measured: in 200 steps 6e-3 won over 2e-3, in ten minutes 3e-3 over 6e-3. An update of muon
# is as large as one of adamw (2502.16982); schedule_free takes more, as its paper says.
LEARNING_RATES = {
    "adam": (6e-3, 3e-3),
    "adamw": (6e-3, 3e-3),
    "muon": (6e-3, 3e-3),
    "schedule_free": (1e-2, 1e-2),
    "sgd": (1e-2, 1e-2),
}
UNNORMALIZED_LEARNING_RATE = 3e-4  # Careful: nothing normalizes the activations.
# Of the optimizers that have them.
WEIGHT_DECAY = {"adamw": 1e-4, "muon": 1e-4, "schedule_free": 1e-4}
MOMENTUM = {"sgd": 0.99, "muon": 0.95}

LOSS = "dice_cross_entropy"
