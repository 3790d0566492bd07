"""Every metric that training logs is declared, and the docs have the declarations."""

from pathlib import Path

import pytest

from trpo_tf.run.metrics.declaration import METRICS, find, glossary, ordered

GLOSSARY = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_names_are_declared_once():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(
            {"reuse": 2, "behavior_lag": 1, "radius": "adaptive", "objective": "penalty", "network": "gru"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_all_that_training_logs_is_declared(make_session, settings):
    session = make_session(**settings)
    names = [*session.step(), *session.step()]
    assert len(set(names)) > 30
    assert [name for name in names if find(name) is None] == []


def test_columns_are_in_the_order_of_their_declaration_and_others_follow():
    assert ordered(["mine/b", "time/elapsed_seconds", "stale/share_of_staleness_3", "update", "mine/a"]) == [
        "update", "stale/share_of_staleness_3", "time/elapsed_seconds", "mine/b", "mine/a",
    ]  # fmt: skip


def test_the_glossary_of_the_docs_is_the_declarations():
    assert glossary() in GLOSSARY.read_text(encoding="utf-8")
