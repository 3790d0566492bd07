"""Measures the peers, in a process of its own: PyTorch and TensorFlow crash in one.

    python -m venv .venv-peers
    .venv-peers/bin/pip install sb3-contrib tianshou envpool 'gymnasium[mujoco,box2d]' absl-py

Prints JSON: environment steps per second (task throughput), milliseconds of each update, microseconds of each answer
(predict), the environment steps after which a training return was reached, null if it was not (return), or the whole
training curve and the final return (learn).
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from absl import app, flags

MINIBATCH = 128

FLAGS = flags.FLAGS
PYTHON = flags.DEFINE_string(
    "peer_python", ".venv-peers/bin/python", "an interpreter that has the peers; see benchmarks/peers.py"
)
if __name__ == "__main__":
    flags.DEFINE_enum("task", "throughput", ["throughput", "update", "predict", "return", "learn"], "what to measure")
    flags.DEFINE_enum("system", "sb3-contrib", ["sb3-contrib", "tianshou"], "which peer")
    flags.DEFINE_string("env", "HalfCheetah-v5", "environment")
    flags.DEFINE_integer("num_envs", 16, "environments stepped together")
    flags.DEFINE_integer("rows", 2048, "transitions per update, or observations per answer")
    flags.DEFINE_integer("hidden", 64, "units of each of the two hidden layers")
    flags.DEFINE_integer("epochs", 10, "passes of the value fit")
    flags.DEFINE_integer("minibatch", MINIBATCH, "transitions per step of the value fit")
    flags.DEFINE_integer("cg_iterations", 15, "of sb3-contrib; 15 is its default")
    flags.DEFINE_float("cg_damping", 0.1, "of sb3-contrib; 0.1 is its default")
    flags.DEFINE_float("gamma", 0.99, "of sb3-contrib; 0.99 is its default")
    flags.DEFINE_float("gae_lambda", 0.95, "of sb3-contrib; 0.95 is its default")
    flags.DEFINE_bool("sde", False, "state-dependent exploration of sb3-contrib, drawn anew every 4 steps")
    flags.DEFINE_bool("normalize", False, "observations and rewards, as rl-zoo does")
    flags.DEFINE_float("target_kl", 0.01, "of sb3-contrib; 0.01 is its default")
    flags.DEFINE_integer("seed", 0, "of sb3-contrib")
    flags.DEFINE_float("target", 3000.0, "the mean return of --window episodes that task return waits for")
    flags.DEFINE_integer("window", 20, "see --target")
    flags.DEFINE_integer("steps", 1_000_000, "environment steps at most, of task return")
    flags.DEFINE_float("seconds", 12.0, "of training")
    flags.DEFINE_integer("repeats", 7, "updates or answers to time")


def ask(timeout: float | None = None, **settings) -> Any:
    """Runs this file with the peers' interpreter, for at most so many seconds.

    Raises:
      subprocess.CalledProcessError: it failed; its messages went to stderr.
      subprocess.TimeoutExpired: it was killed.
    """
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    command = [PYTHON.value, str(Path(__file__).resolve()), *arguments]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout).stdout.splitlines()[-1]
    )


_MUJOCO = {"rows": 2048, "epochs": 20, "cg_iterations": 25, "normalize": True}
_ZOO = {  # by the name of an environment without its version
    "HalfCheetah": _MUJOCO | {"target_kl": 0.04},
    "Swimmer": _MUJOCO | {"gamma": 0.9999},
    "CartPole": {"rows": 1024, "epochs": 20, "minibatch": 512, "gae_lambda": 0.98, "cg_damping": 1e-3},
    "Pendulum": {"rows": 2048, "epochs": 15, "gamma": 0.9, "sde": True},
    "Acrobot": {"rows": 2048, "normalize": True},
    "MountainCar": {"rows": 2048, "epochs": 20, "normalize": True},
    "MountainCarContinuous": {"rows": 4096, "normalize": True, "sde": True},
    "LunarLander": {"rows": 1024, "epochs": 15, "gae_lambda": 0.98, "cg_damping": 0.01},
    "LunarLanderContinuous": {"rows": 2048, "epochs": 20, "normalize": True},
}


def zoo(env: str) -> dict:
    """Settings of `ask` for rl-zoo's recipe of an environment; where it has none, that of MuJoCo.

    Source: hyperparams/trpo.yml of RL Baselines3 Zoo, commit 13a3fe7.
    """
    return {"num_envs": 2, "epochs": 10} | _ZOO.get(env.rpartition("-")[0], _MUJOCO)


def sb3():
    """sb3-contrib's TRPO."""
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    envs = make_vec_env(FLAGS.env, FLAGS.num_envs, seed=FLAGS.seed)
    return TRPO(
        "MlpPolicy",
        VecNormalize(envs, gamma=FLAGS.gamma) if FLAGS.normalize else envs,
        seed=FLAGS.seed,
        stats_window_size=FLAGS.window,
        target_kl=FLAGS.target_kl,
        n_steps=max(FLAGS.rows // FLAGS.num_envs, 2),
        batch_size=FLAGS.minibatch,
        gamma=FLAGS.gamma,
        gae_lambda=FLAGS.gae_lambda,
        cg_damping=FLAGS.cg_damping,
        use_sde=FLAGS.sde,
        sde_sample_freq=4 if FLAGS.sde else -1,
        n_critic_updates=FLAGS.epochs,
        cg_max_steps=FLAGS.cg_iterations,
        policy_kwargs={"net_arch": [FLAGS.hidden, FLAGS.hidden]},
        device="cpu",
    )


def sb3_throughput() -> float:
    """Steps per second from the second update on."""
    from stable_baselines3.common.callbacks import BaseCallback

    starts = []

    class Clock(BaseCallback):
        def _on_rollout_start(self):
            starts.append(time.perf_counter())

        def _on_step(self):
            return len(starts) < 3 or starts[-1] - starts[1] < FLAGS.seconds

    sb3().learn(10**9, callback=Clock())
    return FLAGS.rows * (len(starts) - 2) / (starts[-1] - starts[1])


def sb3_return() -> int | None:
    """Environment steps after which the mean of the last episodes' returns is the target; None if it never is."""
    from stable_baselines3.common.callbacks import BaseCallback

    reached = []

    class Watch(BaseCallback):
        def _on_rollout_end(self):
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            if len(returns) == FLAGS.window and sum(returns) / FLAGS.window >= FLAGS.target:
                reached.append(self.num_timesteps)

        def _on_step(self):
            return not reached

    sb3().learn(FLAGS.steps, callback=Watch())
    return reached[0] if reached else None


def sb3_learn() -> dict:
    """A whole training: the return of the last episodes after each rollout, and of 20 deterministic ones at the end.

    The moments of observations stay as they are in the evaluation, and its returns are those of the environment.
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy

    steps, returns = [], []

    class Watch(BaseCallback):
        def _on_rollout_end(self):
            found = [episode["r"] for episode in self.model.ep_info_buffer]
            if found:
                steps.append(self.num_timesteps)
                returns.append(sum(found) / len(found))

        def _on_step(self):
            return True

    model = sb3()
    model.learn(FLAGS.steps, callback=Watch())
    envs = model.get_env()
    if FLAGS.normalize:
        envs.training = envs.norm_reward = False
    final, _ = evaluate_policy(model, envs, 20, deterministic=True)
    return {"steps": steps, "returns": returns, "final": float(final)}


def sb3_update() -> list[float]:
    """Milliseconds of its train() on a full buffer."""
    model = sb3()
    model.learn(FLAGS.rows)
    return [1e3 * timed(model.train) for _ in range(FLAGS.repeats + 1)][1:]


def sb3_predict() -> list[float]:
    """Microseconds of its deterministic answers."""
    import numpy as np

    model, random, times = sb3(), np.random.default_rng(0), []
    shape = model.observation_space.shape
    for _ in range(FLAGS.repeats + 50):
        obs = random.standard_normal(shape if FLAGS.rows == 1 else (FLAGS.rows, *shape)).astype(np.float32)
        times.append(1e6 * timed(lambda obs=obs: model.predict(obs, deterministic=True)))
    return times[50:]


def tianshou_throughput() -> float:
    """Steps per second on EnvPool; its value fit is over the whole batch, a minibatch would be a policy step each."""
    import envpool
    import gymnasium as gym
    import torch
    from tianshou.algorithm import TRPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
    from tianshou.utils.torch_utils import policy_within_training_step
    from torch.distributions import Categorical, Independent, Normal

    envs = envpool.make_gymnasium(FLAGS.env, num_envs=FLAGS.num_envs, seed=0, num_threads=os.cpu_count())
    space, shape = envs.action_space, envs.observation_space.shape
    box = isinstance(space, gym.spaces.Box)

    def net():
        return Net(state_shape=shape, hidden_sizes=[FLAGS.hidden] * 2, activation=torch.nn.Tanh)

    if box:
        actor = ContinuousActorProbabilistic(preprocess_net=net(), action_shape=space.shape, unbounded=True)
        critic = ContinuousCritic(preprocess_net=net())
    else:
        actor = DiscreteActor(preprocess_net=net(), action_shape=space.n, softmax_output=False)
        critic = DiscreteCritic(preprocess_net=net())

    def distribution(params):
        return Independent(Normal(*params), 1) if box else Categorical(logits=params)

    policy = ProbabilisticActorPolicy(actor=actor, dist_fn=distribution, action_space=space, action_scaling=box)
    optim = AdamOptimizerFactory(lr=1e-3)
    algorithm = TRPO(policy=policy, critic=critic, optim=optim, optim_critic_iters=FLAGS.epochs)
    collector = Collector(algorithm, envs, VectorReplayBuffer(FLAGS.rows, FLAGS.num_envs))
    collector.reset()

    def update():
        with policy_within_training_step(policy):
            collector.collect(n_step=FLAGS.rows)
            algorithm.update(buffer=collector.buffer, batch_size=None, repeat=1)
        collector.reset_buffer(keep_statistics=True)

    return repeated(update, FLAGS.rows, FLAGS.seconds)


def timed(function) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def repeated(update, steps: int, seconds: float) -> float:
    """Environment steps per second of an update that takes so many, the first one left out."""
    update()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        update()
        count += 1
    return count * steps / (time.perf_counter() - start)


def main(argv):
    """Measures one thing."""
    del argv
    if FLAGS.system == "tianshou":
        print(json.dumps(tianshou_throughput()))
    else:
        tasks = {"throughput": sb3_throughput, "update": sb3_update, "predict": sb3_predict, "return": sb3_return}
        tasks["learn"] = sb3_learn
        print(json.dumps(tasks[FLAGS.task]()))


if __name__ == "__main__":
    app.run(main)
