"""Leaves of nested spaces by name."""

from trpo_tf.acting import encoders, spaces


def test_leaves_of_nested_spaces_have_names_that_can_stand_as_inputs():
    tree = {"Left arm": ({"x-y": 1, "9": 2}, 3), "seed": 4, "b": 5, "left_arm_1": 6}
    names = spaces.named(tree, "observation", encoders.TAKEN)
    assert names == {
        "left_arm_0_9": 2, "left_arm_0_x_y": 1, "left_arm_1": 3, "b": 5, "left_arm_1_": 6, "observation_seed": 4,
    }  # fmt: skip
    assert spaces.named(names, "observation", encoders.TAKEN) == names
    assert spaces.named((1, (2,)), "observation") == {"observation_0": 1, "observation_1_0": 2}
    built = spaces.rebuild(tree, lambda leaf: leaf * 10)
    assert built == {"Left arm": ({"x-y": 10, "9": 20}, 30), "seed": 40, "b": 50, "left_arm_1": 60}
