"""Where every seed comes from: one number for each purpose and counter, derived from the seed of the run."""

import numpy as np

# Purposes of derived seeds; a number is never used for two.
WEIGHTS, TRAIN_ENVS, ACTIONS, LEARNER, EVAL_ENVS, SAMPLING, ENV_RESTARTS, BRANCHES = range(8)


def derive_seed(seed: int, *path: int) -> int:
    """A well mixed seed for one purpose, derive_seed(seed, purpose, counter).

    Below 2^31 - 2^17, so that counting environments up from it stays in 31 bits.
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) % (2**31 - 2**17)
