"""Returns and advantages from a time-major trajectory, and the scale of its rewards."""

import tensorflow as tf

from trpo_tf.policy.normalizer import RunningMoments

_CLIP = 10.0  # of scaled rewards (Engstrom et al. 2020)


def weighted_sum(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """sum_n w_n x_n, in float64. x: [...], anything where the weights [...] are 0."""
    weights = tf.cast(weights, tf.float64)
    return tf.reduce_sum(tf.where(weights > 0, weights * tf.cast(x, tf.float64), 0.0))


def mean_weights(mask: tf.Tensor) -> tf.Tensor:
    """The weights whose `weighted_sum` is the mean of the rows whose mask is 1; all 0 when there is none. Float64.

    Here and below, a mask may hold other weights than 1, too: the mean is weighted by them.
    """
    mask = tf.cast(mask, tf.float64)
    return mask / tf.maximum(tf.reduce_sum(mask), 1.0)


def masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of the rows whose mask is 1, in float64; 0 when there is none.

    Args:
      x: [...]. mask: [...], 0 or 1; x may be anything where it is 0.
    """
    return weighted_sum(x, mean_weights(mask))


def standardize(x: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(x - mean) / std over the rows whose mask is not 0; 0 elsewhere, and everywhere when they are all equal.

    mask: 0 or 1, or the weight of a row in mean and std.

    Returns:
      standardised x, and std, a float64 scalar.
    """
    mean = masked_mean(x, mask)
    centered = tf.where(mask > 0, tf.cast(x, tf.float64) - mean, 0.0)
    std = tf.sqrt(masked_mean(centered**2, mask))
    # Below this, differences are rounding of the float32 inputs and would be blown up to size one.
    noise = 1e-6 * tf.abs(mean) + 1e-12
    return tf.cast(tf.where(std > noise, centered / tf.maximum(std, noise), 0.0), x.dtype), std


def generalized_advantage(reward, values, terminated, truncated, mask, gamma: float, gae_lambda: float) -> tf.Tensor:
    """Generalised advantage estimation.

    delta_t = r_t + gamma (1 - terminated_t) V(s_t+1) - V(s_t)
    A_t = delta_t + gamma lambda (1 - ended_t) A_t+1,   ended = terminated or truncated

    A truncated row bootstraps from V(obs[t + 1]), a terminated one does not. Rows with mask 0 get A = 0 and so pass
    nothing back: an episode cut by an invalid row keeps its last valid delta.

    Reference: Schulman et al. 2016, equations 11-16.

    Args:
      reward, terminated, truncated, mask: [T, B].
      values: [T+1, B].
      gamma, gae_lambda: in [0, 1].

    Returns:
      advantage [T, B].
    """
    alive = 1.0 - tf.cast(terminated, reward.dtype)
    running = alive * (1.0 - tf.cast(truncated, reward.dtype))
    delta = tf.where(mask > 0, reward + gamma * alive * values[1:] - values[:-1], 0.0)
    decay = tf.where(mask > 0, gamma * gae_lambda * running, 0.0)
    return tf.scan(lambda later, row: row[0] + row[1] * later, (delta, decay), tf.zeros_like(delta[0]), reverse=True)


def explained_variance(returns: tf.Tensor, values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """1 - Var(returns - values) / Var(returns), masked, float64; 0 when the returns do not vary. All [N]."""

    def variance(x):
        x = tf.cast(x, tf.float64)
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    total = variance(returns)
    return tf.where(total > 0, 1.0 - variance(returns - values) / tf.where(total > 0, total, 1.0), 0.0)


class RewardScaler(tf.Module):
    """Divides rewards by the running standard deviation of each environment's discounted return.

    R_t = gamma R_t-1 (1 - ended_t-1) + r_t;  scaled = clip(r / sqrt(Var(R) + 1e-8), -10, 10), no shift of the mean.

    Reference: Engstrom et al. 2020, section 3 ("reward scaling").
    """

    def __init__(self, num_envs: int, gamma: float, enabled: bool):
        super().__init__(name="reward_scaler")
        self.enabled = enabled
        self.moments = RunningMoments([], "reward_moments")
        self.running = tf.Variable(tf.zeros([num_envs]), trainable=False, name="reward_scaler/running")
        self._gamma = gamma

    def merge(self, reward, ended, mask) -> None:
        """Takes a new trajectory's discounted returns into account. All [T, B]; reward 0 where mask is 0."""
        decay = self._gamma * (1.0 - tf.cast(ended, reward.dtype))

        def step(carried, row):
            total = carried[0] + row[0]
            return total * row[1], total

        carried, totals = tf.scan(step, (reward, decay), (self.running.value(), self.running.value()))
        self.running.assign(carried[-1])
        self.moments.merge(tf.reshape(totals, [-1]), tf.reshape(mask, [-1]))

    def __call__(self, reward) -> tf.Tensor:
        """Rewards [...] scaled."""
        return tf.clip_by_value(reward / self.scale(), -_CLIP, _CLIP) if self.enabled else reward

    def reset(self) -> None:
        """Forgets the returns under way: every environment starts a new episode."""
        self.running.assign(tf.zeros_like(self.running))

    def scale(self) -> tf.Tensor:
        """What rewards are divided by, float32; 1 when not enabled."""
        return self.std() if self.enabled else tf.constant(1.0)

    def std(self) -> tf.Tensor:
        """Running standard deviation of the discounted return, float32."""
        return tf.cast(tf.sqrt(self.moments.variance() + 1e-8), tf.float32)
