"""Every recipe: it is read as the command reads it, trains two updates, and says where its numbers come from."""

import runpy
from pathlib import Path

import pytest

from trpo_tf import cli
from trpo_tf.config import Config, make_config
from trpo_tf.run.metrics.csv import read_csv
from trpo_tf.runs import run_training

RECIPES = sorted((Path(__file__).parents[2] / "flags").glob("*.flags"))
# For recipes that name no environment, since they are for several.
ENVS = {
    "box2d": "LunarLander-v3",
    "classic_control": "CartPole-v1",
    "inverted_pendulum": "InvertedPendulum-v5",
    "mujoco": "Hopper-v5",
}


def config(recipe, **changes):
    """The configuration that the flagfile makes, read as the command reads it."""
    given = cli.parse(Config, ["train", f"--flagfile={recipe}"])
    given.pop("help")
    env = {"env": ENVS[recipe.stem]} if recipe.stem in ENVS else {}
    return make_config(**given | env | changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, id=path.stem) for path in RECIPES],
)
def test_recipe_trains_two_updates(recipe, tmp_path):
    made = config(recipe)
    two = made.environment.num_envs * made.time_steps + 1
    result = run_training(config(recipe, total_steps=two, run_dir=str(tmp_path / "run"), final_eval_episodes=0))
    rows = read_csv(result.run_dir / "progress.csv")
    assert [row["policy/reason"] for row in rows] == ["accepted", "accepted"]
    assert (result.saved_model / "saved_model.pb").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_names_its_source_and_the_return_to_expect(recipe):
    lines = recipe.read_text().splitlines()
    assert any(line.startswith("# Source: ") for line in lines)
    assert any(line.startswith("# Expect: ") for line in lines)


def test_the_benchmarks_train_every_recipe():
    table = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "recipes.py"))["TABLE"]
    assert {recipe for _, recipe in table} == {path.stem for path in RECIPES}
