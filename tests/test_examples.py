"""What the documentation shows works as it is shown."""

import re
import runpy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import trpo_tf

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"

THE_LIBRARY = '''
import gymnasium as gym, trpo_tf

agent = trpo_tf.TRPO("Hopper-v5", max_kl=0.03, seed=0)        # an id, a callable -> Env, a vector env
history = agent.learn(300_000, callbacks=[
    trpo_tf.Evaluate(every=100, episodes=10, keep_best="runs/hopper/best"),
    trpo_tf.Checkpoint("runs/hopper", every=50),               # TRPO.resume("runs/hopper"): to the bit
    trpo_tf.StopAt("eval/episode_return", 3000),
    lambda agent, row: print(row["env_steps"], row["policy/kl"]),   # any callable; False stops
])
history.to_csv("hopper.csv"); history.plot("hopper.png")     # a sequence of rows, each a dict by metric name
for row in agent.iterate(until=500_000): ...                   # the same loop, opened
action, state = agent.predict(obs, deterministic=True)         # SB3's shape
print(agent.evaluate(episodes=20))
agent.save("hopper"); agent = trpo_tf.TRPO.load("hopper", env=other_env)    # also a warm start
agent.export("models/hopper"); policy = trpo_tf.load_policy("models/hopper")
'''  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(6_000, 8_000), (300_000, 500_000)])
def test_the_library_in_twenty_lines(tmp_path, monkeypatch, steps):
    monkeypatch.chdir(tmp_path)
    code = THE_LIBRARY.replace("300_000", str(steps[0])).replace("500_000", str(steps[1]))
    names = {"obs": np.zeros(11), "other_env": lambda: gym.make("Hopper-v5", healthy_reward=0.5)}
    exec(code, names)
    last = names["history"][-1]
    assert last["env_steps"] >= steps[0] or last["eval/episode_return"] >= 3000
    assert names["row"]["env_steps"] >= steps[1]
    assert names["action"].shape == (3,)
    np.testing.assert_allclose(names["policy"].action(names["obs"]), names["action"], rtol=1e-4, atol=1e-5)
    assert (tmp_path / "hopper.png").is_file()
    resumed = trpo_tf.TRPO.resume("runs/hopper")
    assert resumed.update == len(names["history"])
    resumed.close()


def test_the_readmes_python_is_understood():
    """Every Python block of the README compiles; the names it uses of trpo_tf are there."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    blocks = re.findall(r"```python\n(.*?)```", "".join(page.read_text() for page in pages), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "README.md", "exec")
        assert not re.search(r"agent\.(?!learn|iterate|predict|evaluate|save|export|observation_space)\w+\(", block)
        assert ").train(" not in block
        for name in re.findall(r"trpo_tf\.(\w+)", block):
            assert name in trpo_tf.__all__, name


def test_what_the_docs_name_is_there():
    """Tests, files and pages that the documentation names exist."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"`(test_[a-z0-9_]+)`", text)):
            assert f"def {name}(" in tests, f"{page.name}: {name}"
        for target in set(re.findall(r"\]\(([^)#:=]+)\)", text)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        if page.name != "notebook.md":  # a record of what was, with the names of then
            for name in set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md|flags))`", text)):
                assert any((root / name).exists() for root in (ROOT, ROOT / "trpo_tf")), f"{page.name}: {name}"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"own_environment", "stop_and_log", "warm_start"}


@pytest.mark.slow
def test_an_own_environment_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example("own_environment")(30_000) > -25  # standing still has about -50
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_callback_stops_and_logs(tmp_path):
    history = example("stop_and_log")(str(tmp_path / "run"), 200_000)
    assert history[-1]["eval/episode_return"] >= 475
    assert history[-1]["env_steps"] < 100_000
    header, *rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    assert "mine/radius_use" in header
    assert len(rows) == len(history)


@pytest.mark.slow
def test_a_warm_start_is_ahead():
    warm, cold = example("warm_start")()
    assert warm > 2 * cold
