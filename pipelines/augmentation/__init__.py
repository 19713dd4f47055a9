"""Random changes of a training example, image and label together, decided by a seed alone."""
