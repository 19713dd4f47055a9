"""Batch normalization that costs a fraction of Keras' own on TensorFlow.

Keras puts it together from a dozen operations, each a pass over the feature maps in float32.
TensorFlow has one operation for it, forward and backward, that also takes 16-bit numbers. On two
CPU cores a training step of the default network (224 x 176 pixels, batch 8, bfloat16) takes 0.33 s
instead of 0.46 s with it.
"""

from __future__ import annotations

import keras


@keras.saving.register_keras_serializable(package="flexunet")
class BatchNormalization(keras.layers.BatchNormalization):
  """`keras.layers.BatchNormalization` over the last axis of [batch, height, width, channels].

  Same weights, same arguments, same result up to rounding. On other backends than TensorFlow it
  is Keras' own.
  """

  def call(self, inputs, training=None, mask=None):
    if keras.backend.backend() != "tensorflow" or mask is not None or not self._fits(inputs):
      return super().call(inputs, training=training, mask=mask)
    import tensorflow as tf

    learns = bool(training) and self.trainable
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(self.gamma),
        offset=tf.convert_to_tensor(self.beta),
        # While it learns these come from the batch.
        mean=tf.zeros([0]) if learns else tf.convert_to_tensor(self.moving_mean),
        variance=tf.zeros([0]) if learns else tf.convert_to_tensor(self.moving_variance),
        epsilon=self.epsilon,
        is_training=learns,
    )
    if learns:
      # The operation gives the estimate for the population, n / (n - 1) times the variance that
      # it divides by; Keras keeps the latter on every backend.
      count = tf.cast(tf.size(inputs) // self.gamma.shape[0], tf.float32)
      variance *= (count - 1.0) / count
      for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
        kept.assign(kept * self.momentum + new * (1.0 - self.momentum))
    return outputs

  def _fits(self, inputs) -> bool:
    """Tells whether TensorFlow's operation covers what was asked for."""
    plain = self.scale and self.center and not (self.renorm or self.synchronized)
    last = self.axis in (-1, len(inputs.shape) - 1)
    narrow = keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
    return plain and last and narrow and len(inputs.shape) == 4
