"""A Keras model of one's own on FlexUNet's tf.data pipeline.

  python train_keras.py DATASET_FOLDER [--steps=300] [--size=128]

DATASET_FOLDER is the version folder of any dataset that `flexunet.open_dataset` opens. Prints the
loss and the accuracy on the validation slices. Needs flexunet with its dependencies.
"""

import argparse

import flexunet


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("dataset")
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--size", type=int, default=128)
  given = parser.parse_args()
  dataset = flexunet.open_dataset(None, given.dataset)
  # Heavy, and configured by flexunet: --help is answered without it.
  import keras

  def pairs(split, **options):
    stream = dataset.batches(split, image_size=given.size, resize_mode="fit", **options)
    return stream.map(lambda batch: (batch["image"], batch["label"]))

  train = pairs("train", augmentation="default", num_steps=given.steps, seed=1)
  image = keras.Input(train.element_spec[0].shape[1:])
  x = keras.layers.Rescaling(1 / 255)(image)
  for dilation in (1, 2, 4, 8):
    x = keras.layers.SeparableConv2D(32, 3, dilation_rate=dilation, padding="same")(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.ReLU()(x)
  output = keras.layers.Conv2D(len(dataset.class_names), 1, activation="softmax")(x)
  model = keras.Model(image, output)
  model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
  model.fit(train, epochs=1, verbose=2, validation_data=pairs("validation", shuffle=False))


if __name__ == "__main__":
  main()
