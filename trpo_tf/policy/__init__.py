"""Keras networks, TensorFlow Probability distributions, the observation normaliser; acting through TensorFlow."""
