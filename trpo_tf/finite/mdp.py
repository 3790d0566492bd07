"""A finite Markov decision process, and exact policy evaluation."""

from typing import NamedTuple

import numpy as np

from trpo_tf.errors import UsageError


class Mdp(NamedTuple):
    """A finite MDP, and what a policy sees of its states; `make_mdp` makes one.

    A policy is an array [O, A]: the probabilities of the actions, given the observation. States with the same
    observation have the same probabilities, as states with the same features have in a network.
    """

    transition: np.ndarray  # [S, A, S], probability of the next state
    reward: np.ndarray  # [S, A], expected
    gamma: float  # discount, in [0, 1)
    start: np.ndarray  # [S], probability of the first state
    observation: np.ndarray  # [S] int, 0..O-1

    @property
    def observations(self) -> int:
        """O."""
        return int(self.observation.max()) + 1

    @property
    def actions(self) -> int:
        """A."""
        return self.reward.shape[1]

    def observed(self) -> "Mdp":
        """The same MDP for policies that see the state."""
        return self._replace(observation=np.arange(len(self.start)))

    def by_state(self, policy: np.ndarray) -> np.ndarray:
        """[S, A] of a policy [O, A]: its probabilities in each state."""
        return policy[self.observation]


def make_mdp(
    transition: np.ndarray, reward: np.ndarray, gamma: float, start: np.ndarray, observation: np.ndarray | None = None
) -> Mdp:
    """An MDP of these arrays; without `observation`, policies see the state.

    Args:
      transition: [S, A, S]. reward: [S, A]. gamma: in [0, 1). start: [S].
      observation: [S] int, that uses every number from 0 to O - 1.

    Raises:
      UsageError: a shape is wrong, probabilities do not sum to 1, or a number is outside its range.
    """
    states, actions = reward.shape
    mdp = Mdp(transition, reward, gamma, start, np.arange(states) if observation is None else observation)
    shapes = {"transition": (states, actions, states), "start": (states,), "observation": (states,)}
    for name, shape in shapes.items():
        if getattr(mdp, name).shape != shape:
            raise UsageError(f"--{name} has shape {getattr(mdp, name).shape}; {shape} is needed")
    for name, p in {"transition": transition, "start": start}.items():
        if not (p >= 0).all() or not np.allclose(p.sum(-1), 1.0, rtol=0, atol=1e-12):
            raise UsageError(f"--{name} has to hold probabilities that sum to 1")
    if not 0 <= gamma < 1:
        raise UsageError(f"--gamma={gamma} has to be in [0, 1)")
    if set(mdp.observation.tolist()) != set(range(mdp.observations)):
        raise UsageError("--observation has to use every number from 0 to the largest one")
    return mdp


class Evaluation(NamedTuple):
    """What `evaluate` finds of a policy, in the notation of Schulman et al. 2015, section 2."""

    values: np.ndarray  # [S], V
    advantage: np.ndarray  # [S, A], A(s, a) = r(s, a) + gamma E V(s') - V(s)
    visits: np.ndarray  # [S], rho(s) = sum_t gamma^t P(s_t = s); they sum to 1 / (1 - gamma)
    eta: float  # expected discounted return
    observed_visits: np.ndarray  # [O], sum of the visits of the states with an observation
    observed_advantage: np.ndarray  # [O, A], mean of A over them, weighted by visits; evenly where there are none


def evaluate(mdp: Mdp, policy: np.ndarray) -> Evaluation:
    """Evaluates a policy [O, A] exactly.

    V = (I - gamma P)^-1 r,  rho = (I - gamma P^T)^-1 start,  eta = start . V, with P and r those of the policy.

    Reference: Schulman et al. 2015, section 2.
    """
    by_state = mdp.by_state(policy)
    system = np.eye(len(by_state)) - mdp.gamma * np.einsum("sa,sat->st", by_state, mdp.transition)
    values = np.linalg.solve(system, (by_state * mdp.reward).sum(1))
    visits = np.linalg.solve(system.T, mdp.start)
    advantage = mdp.reward + mdp.gamma * mdp.transition @ values - values[:, None]
    member = np.eye(mdp.observations)[mdp.observation].T  # [O, S]
    observed_visits = member @ visits
    weights = member * np.where(observed_visits[:, None] > 0, visits, 1.0)
    observed_advantage = weights @ advantage / weights.sum(1, keepdims=True)
    return Evaluation(values, advantage, visits, float(mdp.start @ values), observed_visits, observed_advantage)


class Expectation(NamedTuple):
    """E over s ~ (1 - gamma) rho, a ~ policy as a weighted sum: a row for every state and action, N = S A."""

    observation: np.ndarray  # [N] int
    action: np.ndarray  # [N] int
    logp: np.ndarray  # [N], log policy(a | s); 0 where the weight is 0
    advantage: np.ndarray  # [N], A(s, a)
    weights: np.ndarray  # [N], (1 - gamma) rho(s) policy(a | s); they sum to 1


def expectation(mdp: Mdp, policy: np.ndarray) -> Expectation:
    """The batch whose weighted means are exact expectations under a policy [O, A]."""
    of, by_state = evaluate(mdp, policy), mdp.by_state(policy)
    states, actions = np.divmod(np.arange(by_state.size), mdp.actions)
    weights = ((1.0 - mdp.gamma) * of.visits[:, None] * by_state).ravel()
    logp = np.log(np.where(weights > 0, by_state.ravel(), 1.0))
    return Expectation(mdp.observation[states], actions, logp, of.advantage.ravel(), weights)
