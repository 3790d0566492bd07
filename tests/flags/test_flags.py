"""Every recipe: read as the command reads it, trains two updates, and says where its numbers come from."""

from pathlib import Path

import pytest

import trpo_tf
from trpo_tf import cli
from trpo_tf.config import Config

RECIPES = sorted((Path(__file__).parents[2] / "flags").glob("*.flags"))
# other numbers of what mujoco.flags and classic_control.flags have
SLOWER = ("ant", "box2d", "half_cheetah", "inverted_pendulum", "pendulum", "swimmer")
# where no env is set
ENVS = {"box2d": "LunarLander-v3", "classic_control": "CartPole-v1", "inverted_pendulum": "InvertedPendulum-v5"}


def config(recipe, **changes):
    """The configuration that the flagfile makes, read as the command reads it."""
    given = cli.parse(Config, ["train", f"--flagfile={recipe}"])
    given.pop("help")
    return Config(**({"env": ENVS.get(recipe.stem, "Hopper-v5")} | given | changes))


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOWER else ()) for path in RECIPES],
)
def test_recipe_trains_two_updates(recipe, tmp_path):
    made = config(recipe)
    two = made.num_envs * made.time_steps + 1
    result = trpo_tf.train(config(recipe, total_steps=two, run_dir=str(tmp_path / "run"), final_eval_episodes=0))
    rows = (result.run_dir / "progress.csv").read_text().splitlines()[1:]
    assert len(rows) == 2
    assert all(",accepted," in row for row in rows)
    assert (result.saved_model / "saved_model.pb").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_its_source_and_the_return_to_expect(recipe):
    text = recipe.read_text()
    assert "Source:" in text
    assert "Expect:" in text


def test_all_recipes_are_here():
    assert {path.stem for path in RECIPES} >= {"mujoco", "classic_control", "swimmer"}
