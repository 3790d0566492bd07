"""What benchmarks/returns.py makes of its records: tables and a picture."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from against_report import draw_curves
from curves import interquartile_mean, with_interval
from recipes import BEFORE, RECIPE, TABLE
from runs import Record, finished, grouped

Runs = list[Record]
PEER = "sb3-contrib"


def _of(runs: Runs, what: str) -> list[float]:
    return [run[what] for run in runs]


def _digits(runs: Runs) -> int:
    """Two for returns of a few units."""
    return 0 if max(abs(x) for x in _of(runs, "final")) >= 100 else 2


def table(records: Runs) -> str:
    """A line per environment and recipe, in the order of recipes.py."""
    lines = [
        "| environment | recipe | steps | runs | IQM of the final return | mean | worst seed | area | expected "
        f"| {PEER}, mean | worst seed |",
        "|---" * 11 + "|",
    ]
    groups = grouped((r for r in records if not r["tried"]), "env", "recipe", "steps")
    for (env, recipe), (steps, expected) in TABLE.items():
        whole = groups.get((env, recipe, steps), [])
        if runs := finished(whole):
            final, digits = _of(runs, "final"), _digits(runs)
            cells = [env, f"`flags/{recipe}.flags`", f"{steps:,}", _count(whole)]
            cells.append(with_interval(final, statistic=interquartile_mean, digits=digits))
            cells += [f"{x:.{digits}f}" for x in (np.mean(final), min(final), np.mean(_of(runs, "area")))]
            cells.append(f"{expected:,}")
            theirs = _of(finished(groups.get((env, PEER, steps), [])), "final")
            cells += [f"{f(theirs):.{digits}f}" for f in (np.mean, min)] if theirs else ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def before(recipe: str) -> str:
    """What makes a recipe what it was before, as on a command line."""
    return " ".join(BEFORE[recipe])


def gains(records: Runs) -> str:
    """The areas of the recipes beside those of the recipes before, with the ratios of their means."""
    lines = ["| environment | runs | area | area before | ratio |", "|---|---|---|---|---|"]
    compared = []
    groups = grouped(records, "env", "recipe", "steps", "tried")
    for env, recipe in RECIPE.items():
        if recipe not in BEFORE:
            continue
        of = env, recipe, TABLE[env, recipe][0]
        now, then = (finished(groups.get((*of, tried), [])) for tried in ("", before(recipe)))
        if now and then:
            areas = [_of(runs, "area") for runs in (now, then)]
            compared += areas
            means = (with_interval(area, digits=_digits(now)) for area in areas)
            ratio = with_interval(*areas, statistic=_ratio, digits=2)
            lines.append(f"| {env} | {len(now)}, {len(then)} | {' | '.join(means)} | {ratio} |")
    if compared:
        lines.append(f"| mean | | | | {with_interval(*compared, statistic=_ratio, digits=2)} |")
    return "\n".join(lines) + "\n"


def _count(whole: Runs) -> str:
    failed = len(whole) - len(finished(whole))
    return f"{len(whole) - failed}" + (f", {failed} failed" if failed else "")


def _ratio(*samples: np.ndarray, axis: int) -> np.ndarray:
    """Of the means of each two samples, averaged over the pairs."""
    means = [sample.mean(axis) for sample in samples]
    return np.mean([a / b for a, b in zip(means[::2], means[1::2], strict=True)], axis=0)


def settings_table(records: Runs) -> str:
    """Per task a line for each of the settings, relative to the recipe's on the same seeds; then means over tasks."""
    lines, compared = [], defaultdict(list)
    for (env, recipe, steps), task in grouped(records, "env", "recipe", "steps").items():
        lines += [f"{env}, {recipe}.flags, {steps:,} steps", ""]
        lines += ["| settings | runs | final return | its IQM | worst seed | area | area / the recipe's |"]
        lines += ["|---" * 7 + "|"]
        groups = {tried: runs for (tried,), runs in grouped(task, "tried").items() if finished(runs)}
        for tried, runs in sorted(groups.items()):
            both = _areas_of_same_seeds(runs, groups.get("", [])) if tried else []
            compared[tried] += both
            lines.append(_settings_line(tried, runs, both))
        lines.append("")
    lines += ["| settings | tasks | mean of the ratios of areas |", "|---|---|---|"]
    for tried, samples in sorted(compared.items()):
        if samples:
            ratio = with_interval(*samples, statistic=_ratio, digits=2)
            lines.append(f"| `{tried}` | {len(samples) // 2} | {ratio} |")
    return "\n".join(lines) + "\n"


def _areas_of_same_seeds(runs: Runs, plain: Runs) -> list[list[float]]:
    """Of settings, and of the recipe as it is; nothing where they have no seed in common."""
    both = finished(runs), finished(plain)
    common = set.intersection(*({*_of(group, "seed")} for group in both))
    return [[r["area"] for r in group if r["seed"] in common] for group in both] if common else []


def _settings_line(tried: str, whole: Runs, both: list[list[float]]) -> str:
    runs = finished(whole)
    final, digits = _of(runs, "final"), _digits(runs)
    cells = [f"`{tried}`" if tried else "", _count(whole), with_interval(final, digits=digits)]
    cells += [f"{x:.{digits}f}" for x in (interquartile_mean(np.array(final)), min(final), np.mean(_of(runs, "area")))]
    cells.append(with_interval(*both, statistic=_ratio, digits=2) if both else "")
    return f"| {' | '.join(cells)} |"


def draw(records: Runs, path: Path) -> None:
    """Training returns of the best recipe of each environment, with intervals over runs."""
    names = {recipe: "trpo_tf" for _, recipe in TABLE} | {PEER: PEER}
    runs = [
        r | {"algorithm": names[r["recipe"]], "value": 0}
        for r in finished(records)
        if not r["tried"]
        and r["recipe"] in (PEER, RECIPE.get(r["env"]))
        and r["steps"] == TABLE[r["env"], RECIPE[r["env"]]][0]
    ]
    if runs:
        draw_curves(runs, list(RECIPE), ["trpo_tf", PEER], path)
