"""The library as its user writes it: every kind of environment, warm starts, resumes, what an editor sees."""

import inspect

import envpool
import gymnasium as gym
import keras
import numpy as np
import pytest

import trpo_tf
from tests.conftest import SMALL, TINY
from tests.rollout import counting  # noqa: F401, registers its environments
from trpo_tf.config import settings
from trpo_tf.run import checkpoint

pytestmark = pytest.mark.usefixtures("eagerly")


def cartpole():
    return gym.make("CartPole-v1")


def weights(agent):
    return {name: x.tobytes() for name, x in agent.session.policy.get_weights().items()}


def test_a_whole_life_of_an_agent(tmp_path, monkeypatch, capsys):
    """Everything one after the other: learn with callbacks, iterate, predict, evaluate, save, load, export."""
    monkeypatch.chdir(tmp_path)
    agent = trpo_tf.TRPO("CartPole-v1", max_kl=0.03, **SMALL | {"seed": 0})
    history = agent.learn(
        300,
        callbacks=[
            trpo_tf.Evaluate(every=2, episodes=2, keep_best="runs/hopper/best"),
            trpo_tf.Checkpoint("runs/hopper", every=2),
            trpo_tf.StopAt("eval/episode_return", 3000),
            lambda agent, row: print(row["env_steps"], row["policy/kl"]),
        ],
    )
    assert all(row._rest is None for row in history[:-1]), "what a row waited with would take as much memory as the row"
    history.to_csv("hopper.csv")
    history.plot("hopper.png")
    assert len(capsys.readouterr().out.splitlines()) == len(history) == agent.update
    steps = agent.env_steps
    for row in agent.iterate(until=steps + 100):
        assert row["update"] == agent.update
    assert agent.env_steps >= steps + 100
    obs = np.zeros(4, np.float32)
    action, state = agent.predict(obs, deterministic=True)
    assert action in (0, 1)
    assert state is None
    print(agent.evaluate(episodes=2))
    assert "2 episodes" in capsys.readouterr().out
    agent.save("hopper")
    other = trpo_tf.TRPO.load("hopper", env=cartpole)
    assert weights(other) == weights(agent)
    agent.export("models/hopper")
    policy = trpo_tf.load_policy("models/hopper")
    assert policy.action(obs) == action
    assert (tmp_path / "hopper.png").stat().st_size > 5000
    assert len((tmp_path / "hopper.csv").read_text().splitlines()) == len(history) + 1
    assert trpo_tf.TRPO.resume("runs/hopper").update == len(history)
    for one in (agent, other):
        one.close()


def test_nothing_is_written_without_a_callback_that_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    agent.learn(60)
    agent.close()
    assert list(tmp_path.iterdir()) == []


KINDS = {
    "id": lambda: "CartPole-v1",
    "callable": lambda: cartpole,
    "vector": lambda: gym.vector.SyncVectorEnv([cartpole] * 4, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP),
    "envpool": lambda: envpool.make("CartPole-v1", env_type="gymnasium", num_envs=4, seed=0),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_environment_trains_and_is_acted_in(kind):
    settings = {k: v for k, v in SMALL.items() if k != "num_envs"} if kind in ("vector", "envpool") else SMALL
    agent = trpo_tf.TRPO(KINDS[kind](), **settings, eval_env=None if kind in ("id", "callable") else "CartPole-v1")
    assert agent.config.environment.num_envs == 4
    history = agent.learn(250)
    assert all(row["policy/max_ratio_error"] < 1e-4 for row in history)
    assert len(history) >= 4  # over a boundary
    assert len(agent.evaluate(2).returns) == 2
    assert agent.predict(np.zeros((3, 4)))[0].shape == (3,)
    agent.close()


def test_a_vector_environment_without_anything_to_evaluate_in_says_so():
    agent = trpo_tf.TRPO(KINDS["vector"](), **{k: v for k, v in SMALL.items() if k != "num_envs"})
    with pytest.raises(trpo_tf.UsageError, match="eval_env") as error:
        agent.evaluate(1)
    assert "--" not in str(error.value)
    agent.close()


@pytest.mark.slow
def test_an_id_and_a_callable_of_it_learn_the_same(tmp_path):
    both = [trpo_tf.TRPO(env, env_backend="gymnasium", **SMALL) for env in ("CartPole-v1", cartpole)]
    for agent in both:
        agent.learn(150)
        agent.close()
    assert weights(both[0]) == weights(both[1])


def test_a_resumed_agent_goes_on_to_the_bit_with_its_callbacks(tmp_path):
    def callbacks(name):
        evaluate = trpo_tf.Evaluate(every=1, episodes=2, keep_best=tmp_path / name / "best")
        return [evaluate, trpo_tf.CsvLogger(tmp_path / f"{name}.csv"), trpo_tf.Checkpoint(tmp_path / name)]

    whole = trpo_tf.TRPO("CartPole-v1", **SMALL)
    whole.learn(480, callbacks("whole"))

    class Stop(trpo_tf.Callback):
        def __call__(self, agent, row):
            return agent.update < 4

    part = trpo_tf.TRPO("CartPole-v1", **SMALL)
    part.learn(480, [*callbacks("part"), Stop()])
    part.close()
    again = trpo_tf.TRPO.resume(tmp_path / "part")
    given = callbacks("part")
    again.learn(480, given)
    assert weights(whole) == weights(again)
    assert given[0].best_return > -np.inf
    rows = [(tmp_path / f"{name}.csv").read_text().splitlines() for name in ("whole", "part")]
    assert len(rows[0]) == len(rows[1]) == whole.update + 1
    assert [line.split(",")[:12] for line in rows[0]] == [line.split(",")[:12] for line in rows[1]]
    for agent in (whole, again):
        agent.close()


@pytest.mark.slow
def test_a_warm_start_takes_over_networks_and_normaliser_and_begins_anew(tmp_path):
    first = trpo_tf.TRPO("CartPole-v1", **SMALL)
    first.learn(200)
    first.save(tmp_path / "agent")
    first.save(tmp_path / "agent")  # again, in its place

    class Longer(gym.Wrapper):
        def __init__(self):
            super().__init__(gym.make("CartPole-v1"))
            self.unwrapped.length = 1.0

    second = trpo_tf.TRPO.load(tmp_path / "agent", env=Longer, max_kl=0.02)
    assert weights(second) == weights(first)
    assert (second.update, second.env_steps) == (0, 0)
    assert second.config.trust_region.max_kl == 0.02
    adam = [agent.session.learner.adam.steps.numpy() for agent in (first, second)]
    assert adam[0] == adam[1] > 0
    second.learn(100)
    for agent in (first, second):
        agent.close()
    with pytest.raises(trpo_tf.UsageError, match="shape"):
        trpo_tf.TRPO.load(tmp_path / "agent", env="Acrobot-v1")
    with pytest.raises(trpo_tf.UsageError, match="is no saved agent"):
        first.save(tmp_path)


def test_a_save_that_was_killed_is_taken_up_and_saved_over(tmp_path):
    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / ".state.0123456789abcdef.safetensors.tmp").write_text("")
    agent.save(tmp_path / "agent")
    (tmp_path / "agent").rename(tmp_path / ".agent.old")  # where an older version was killed between two renames
    again = trpo_tf.TRPO.load(tmp_path / "agent")
    assert weights(again) == weights(agent)
    again.save(tmp_path / "agent")
    assert len(list((tmp_path / "agent").iterdir())) == 2
    with pytest.raises(trpo_tf.UsageError, match="no agent that `save` wrote"):
        trpo_tf.TRPO.load(tmp_path / "nothing")
    for one in (agent, again):
        one.close()


def test_a_checkpoint_decides_on_no_place_and_what_does_not_fit_names_it(tmp_path):
    agent = trpo_tf.TRPO("CartPole-v1", config=trpo_tf.make_config(**TINY, export_dir=str(tmp_path / "theirs")))
    saved = agent.session.checkpoint()
    for name, break_it in {
        "array missing": lambda arrays: arrays.pop("policy/normalizer/count", None) or arrays.popitem(),
        "counter missing": lambda arrays: arrays.pop("session/env_steps"),
        "counter of another shape": lambda arrays: arrays.update({"session/env_steps": np.zeros(3)}),
    }.items():
        arrays = dict(saved.arrays)
        break_it(arrays)
        checkpoint.save(tmp_path / name / "checkpoints", saved._replace(arrays=arrays), 1)
        with pytest.raises(trpo_tf.Error, match="checkpoints/update_000000000"):
            trpo_tf.TRPO.resume(tmp_path / name)
    checkpoint.save(tmp_path / "run" / "checkpoints", saved, 1)
    again = trpo_tf.TRPO.resume(tmp_path / "run")
    assert (again.config.run.export_dir, again.config.run.run_dir) == ("", str(tmp_path / "run"))
    for one in (agent, again):
        one.close()


def test_a_callable_must_be_given_again(tmp_path):
    agent = trpo_tf.TRPO(cartpole, **SMALL)
    agent.save(tmp_path / "agent")
    with pytest.raises(trpo_tf.UsageError, match="cartpole"):
        trpo_tf.TRPO.load(tmp_path / "agent")


def test_models_of_the_users_train_are_saved_and_taken_up(tmp_path):
    def models():
        layers = [keras.layers.Dense(5, "gelu", kernel_initializer=keras.initializers.Orthogonal(seed=1))]
        return {"policy_network": keras.Sequential([*layers, keras.layers.Dense(2)])}

    agent = trpo_tf.TRPO("CartPole-v1", **SMALL, **models())
    agent.learn(130, [trpo_tf.Checkpoint(tmp_path / "run")])
    again = trpo_tf.TRPO.resume(tmp_path / "run", **models())
    assert weights(again) == weights(agent)
    again.learn(200)
    with pytest.raises(trpo_tf.UsageError, match="Keras models of its own"):
        trpo_tf.TRPO.resume(tmp_path / "run")
    for one in (agent, again):
        one.close()


def test_predict_keeps_states_and_draws_by_the_seed():
    agent = trpo_tf.TRPO("CartPole-v1", network="gru", **SMALL)
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    action, state = agent.predict(obs)
    assert action.shape == (3,)
    assert set(state) == {"policy_state", "value_state"}
    single, one = agent.predict(obs[0])
    assert single == action[0]
    np.testing.assert_allclose(one["policy_state"], state["policy_state"][:1], atol=1e-6)
    _, carried = agent.predict(obs, state)
    _, fresh = agent.predict(obs, state, episode_start=np.array([False, True, False]))
    np.testing.assert_array_equal(carried["policy_state"][0], fresh["policy_state"][0])
    np.testing.assert_allclose(fresh["policy_state"][1], state["policy_state"][1], atol=1e-6)
    assert np.abs(carried["policy_state"][1] - fresh["policy_state"][1]).max() > 1e-6
    many = np.zeros((200, 4), np.float32)
    first, second = (agent.predict(many, deterministic=False)[0] for _ in range(2))
    assert (first != second).any()
    other = trpo_tf.TRPO("CartPole-v1", network="gru", **SMALL)
    np.testing.assert_array_equal(other.predict(many, deterministic=False)[0], first)
    agent.close()


def test_predict_takes_dictionaries_and_gives_actions_as_the_environment_takes_them():
    agent = trpo_tf.TRPO("tests.tasks:Hybrid-v0", allow_env_module=True, **SMALL)
    obs = agent.observation_space.sample()
    action, _ = agent.predict(obs)
    assert agent.action_space.contains({k: np.asarray(v, agent.action_space[k].dtype) for k, v in action.items()})
    agent.close()


def test_errors_speak_of_arguments():
    with pytest.raises(trpo_tf.UsageError) as error:
        trpo_tf.TRPO("CartPole-v1", gamma=2)
    assert str(error.value) == "gamma=2: must be <= 1"
    with pytest.raises(trpo_tf.UsageError, match="no such setting: gama; perhaps gamma"):
        trpo_tf.TRPO("CartPole-v1", gama=0.9)
    with pytest.raises(trpo_tf.UsageError, match=r"env=Hoper-v5.*Hopper-v5"):
        trpo_tf.TRPO("Hoper-v5")
    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    agent.learn(60)
    with pytest.raises(trpo_tf.UsageError, match="total_steps=60: the agent has taken"):
        agent.learn(60)
    agent.close()


def test_every_setting_is_visible_with_its_default_and_meaning():
    parameters = inspect.signature(trpo_tf.TRPO).parameters
    for _, field in settings():
        assert parameters[field.name].default == field.default or field.name == "env"
        assert field.metadata["help"] in trpo_tf.TRPO.__doc__ or field.name == "env"
    assert {"TRPO", "Checkpoint", "StopAt", "load_policy"} <= set(dir(trpo_tf))
    assert all(getattr(trpo_tf, name) is not None for name in trpo_tf.__all__)


def test_importing_a_command_replaces_no_public_name():
    import trpo_tf.evaluate
    import trpo_tf.export
    import trpo_tf.train

    assert not {"train", "evaluate", "export"} & set(trpo_tf.__all__)
    assert callable(trpo_tf.train.main)


def test_a_history_is_a_sequence_of_rows():
    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    history = agent.learn(200, [lambda agent, row: row.__setitem__("mine", 1.0) if agent.update == 2 else None])
    assert [row["update"] for row in history[1:]] == [2, 3, 4][: len(history) - 1]
    assert history.column("mine")[:3] == [None, 1.0, None]
    assert history.columns()[-1] == "mine"
    with pytest.raises(KeyError, match="nothing: not a metric"):
        history.column("nothing")
    agent.close()


def test_ctrl_c_lets_the_update_finish_and_a_second_one_is_as_usual():
    import os
    import signal

    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    before = signal.getsignal(signal.SIGINT)
    history = agent.learn(10_000, [lambda agent, row: os.kill(os.getpid(), signal.SIGINT)])
    assert len(history) == agent.update == 1
    assert signal.getsignal(signal.SIGINT) is before

    def twice(agent, row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        agent.learn(10_000, [twice])
    agent.close()


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("run_dir", "runs/x", "Checkpoint"),
        ("resume", True, "TRPO.resume"),
        ("keep_checkpoints", 3, "Checkpoint"),
        ("eval_every", 5, "Evaluate"),
        ("eval_episodes", 5, "Evaluate"),
        ("final_eval_episodes", 0, "Evaluate"),
        ("export", False, "export"),
        ("export_every", 5, "Export"),
        ("export_dir", "models", "Export"),
        ("tensorboard", False, "TensorBoardLogger"),
    ],
)
def test_what_only_the_command_minds_is_refused_with_what_does_it(name, value, instead):
    with pytest.raises(trpo_tf.UsageError, match=rf"^{name}=.* in Python .*{instead}"):
        trpo_tf.TRPO("CartPole-v1", **{name: value})


def test_an_agent_of_a_function_asks_for_it(tmp_path):
    agent = trpo_tf.TRPO(cartpole, **SMALL)
    agent.save(tmp_path / "agent")
    with pytest.raises(trpo_tf.UsageError, match=r"env=tests.test_api:cartpole: .* pass env="):
        trpo_tf.TRPO.load(tmp_path / "agent")
    assert weights(trpo_tf.TRPO.load(tmp_path / "agent", env=cartpole)) == weights(agent)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "text"}, "name of its state\\(\\) is str"),
        ({"parts": [[1], [2, 3]]}, "parts of its state\\(\\) is list"),
        ({"thing": None}, "thing of its state\\(\\) is NoneType"),
        ([1], "its state\\(\\) is list; a dict"),
    ],
)
def test_a_callback_whose_state_is_no_numbers_is_named(given, said, tmp_path):
    class Mine(trpo_tf.Callback):
        def state(self):
            return given

    agent = trpo_tf.TRPO("CartPole-v1", **SMALL)
    with pytest.raises(trpo_tf.UsageError, match=f"^Mine/0: {said}"):
        agent.learn(60, [Mine(), trpo_tf.Checkpoint(tmp_path / "run")])


def test_an_environment_that_changes_the_directory_scatters_no_files(tmp_path, monkeypatch):
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    start.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(start)

    def moving():
        monkeypatch.chdir(elsewhere)
        return cartpole()

    callbacks = [
        trpo_tf.Evaluate(every=1, episodes=1, keep_best="run/best", final_episodes=1, json_path="run/evaluation.json"),
        trpo_tf.Checkpoint("run"),
        trpo_tf.CsvLogger("run/progress.csv"),
        trpo_tf.TensorBoardLogger("run/tensorboard"),
        trpo_tf.Export("run/models"),
    ]
    trpo_tf.TRPO(moving, **SMALL).learn(60, callbacks)
    assert not list(elsewhere.iterdir())
    found = {path.name for path in (start / "run").iterdir()}
    assert found >= {"best", "checkpoints", "evaluation.json", "models", "progress.csv", "tensorboard"}
