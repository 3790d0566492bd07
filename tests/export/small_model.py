"""A SavedModel with the signatures of a policy and one matrix, and ways to change it."""

import numpy as np
import tensorflow as tf

from tests.exports import METADATA
from trpo_tf.serving import saved_model

EXAMPLES = {
    "observation": np.linspace(-2, 2, 96, dtype=np.float32).reshape(32, 3),
    "seed": np.stack([np.arange(32), np.arange(32)], 1).astype(np.int32),
}
OBS = tf.TensorSpec([None, 3], tf.float32)
SEED = tf.TensorSpec([None, 2], tf.int32)


class Served(tf.Module):
    """A policy with one matrix, of actions [N, 2]."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.random.default_rng(0).normal(size=(3, 2)), dtype=tf.float32)
        self.spare = None

    def parts(self):
        """Signatures as functions and the specifications of their inputs."""

        def mean(observation):
            valid = tf.reduce_all(tf.math.is_finite(observation), -1)
            known = tf.clip_by_value(tf.where(tf.math.is_finite(observation), observation, 0.0), -10.0, 10.0)
            return known @ self.w, {"value": tf.reduce_sum(known, -1), "valid": valid}

        def action(observation):
            found, answer = mean(observation)
            return answer | {"action": found}

        def sample(observation, seed):
            found, answer = mean(observation)
            noise = tf.map_fn(
                lambda key: tf.random.stateless_normal([2], key),
                seed,
                fn_output_signature=tf.TensorSpec([2], tf.float32),
            )
            drawn = found + noise
            return answer | {"action": drawn, "raw_action": drawn, "log_prob": -tf.reduce_sum(noise**2, -1)}

        def evaluate(observation, raw_action):
            found, answer = mean(observation)
            known = tf.clip_by_value(tf.where(tf.math.is_finite(raw_action), raw_action, 0.0), -10.0, 10.0)
            log_prob = -tf.reduce_sum((known - found) ** 2, -1)
            answer["valid"] &= tf.reduce_all(known == raw_action, -1)
            return answer | {"log_prob": log_prob, "entropy": tf.ones_like(log_prob)}

        def distribution(observation):
            found, answer = mean(observation)
            return {"mean": found, "valid": answer["valid"]}

        return {
            "serving_default": (action, {"observation": OBS}),
            "sample": (sample, {"observation": OBS, "seed": SEED}),
            "evaluate": (evaluate, {"observation": OBS, "raw_action": tf.TensorSpec([None, 2], tf.float32)}),
            "distribution": (distribution, {"observation": OBS}),
        }


def export(directory, change=lambda served, parts: None, examples=EXAMPLES, metadata=METADATA, compiled=()):
    """Version 1 below directory, after change(served, parts). compiled: the signatures that XLA must compile."""
    served = Served()
    parts = served.parts()
    change(served, parts)
    functions = {
        name: tf.function(by_name(function), autograph=False, jit_compile=name in compiled).get_concrete_function(
            **{key: tf.TensorSpec(spec.shape, spec.dtype, key) for key, spec in specs.items()}
        )
        for name, (function, specs) in parts.items()
    }
    path = directory / "1"
    saved_model.write(path, served, functions, metadata, dict(examples))
    return path


def by_name(function):
    """The function with keyword arguments only."""
    return lambda **inputs: function(**inputs)


def also(parts, name, extend):
    """Lets a signature's answer pass through extend(answer, inputs)."""
    function, specs = parts[name]
    parts[name] = (lambda **inputs: extend(function(**inputs), inputs), specs)
