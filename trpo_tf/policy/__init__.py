"""What acts: Keras networks, TensorFlow Probability distributions, the observation normaliser."""
