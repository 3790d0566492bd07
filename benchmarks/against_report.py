"""What benchmarks/against.py makes of its records: tables and pictures."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from curves import DEFINITION, POINTS, WINDOW, interquartile_mean, interval, with_interval
from runs import Record, as_lines, finished, grouped

OF_KL = ("trpo", "trpo-paper", "trpo-penalty")  # their step size is a KL, quadratic in the length of a step
NOTES = (
    "Final returns are means of 20 deterministic episodes, IQM is the interquartile mean, and brackets hold 95 % "
    "bootstrap intervals over runs. Seconds are those of a process from its start to its end, final evaluation "
    "included, with other runs beside it. Steps/s leave out the first update. Both are medians."
)


def best(scores: dict[float, list[float | None]]) -> float:
    """The value with the highest mean score; the smallest of several. A run that failed, None, is below any other."""
    means = {value: np.mean([-np.inf if x is None else x for x in runs]) for value, runs in scores.items()}
    return max(sorted(means), key=means.__getitem__)


def scores(records: list[Record], what: str) -> dict[float, list[float | None]]:
    """Areas or final returns by the value of the step size, None where a run failed."""
    groups = grouped(records, "value")
    return {value: [r.get(what) for r in groups[value,]] for (value,) in sorted(groups)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def search_table(records: list[Record], envs: Sequence[str], algorithms: Sequence[str]) -> list[str]:
    """A line per environment and algorithm: the mean area of each value, the best one bold."""
    lines = ["| environment | algorithm | step size: mean area under the training return |", "|---|---|---|"]
    groups = grouped(records, "env", "algorithm")
    for env, algorithm in ((e, a) for e in envs for a in algorithms if (e, a) in groups):
        found = scores(groups[env, algorithm], "area")
        cells = []
        for value, runs in found.items():
            text = f"{value:g}: " + ("failed" if None in runs else f"{np.mean(runs):.0f}")
            cells.append(f"**{text}**" if value == best(found) else text)
        end = " (at an end of the grid)" if best(found) in (min(found), max(found)) else ""
        lines.append(f"| {env} | {algorithm} | {', '.join(cells)}{end} |")
    return lines


def compare_table(records: list[Record], env: str, algorithms: Sequence[str]) -> list[str]:
    """A line per algorithm on an environment; means over seeds with intervals, medians of times."""
    lines = [
        "| algorithm | step size | runs | final return | its IQM | area | updates after which the return fell | "
        "mean KL | largest KL | seconds | steps/s |",
        "|---" * 11 + "|",
    ]
    groups = grouped((r for r in records if r["env"] == env), "algorithm", "value")
    for algorithm, value in sorted(groups, key=lambda key: (algorithms.index(key[0]), key[1])):
        whole = groups[algorithm, value]
        runs = finished(whole)
        count = f"{len(runs)}" + (f", {len(whole) - len(runs)} failed" if len(runs) < len(whole) else "")
        if not runs:
            lines.append(f"| {algorithm} | {value:g} | {count} |" + " |" * 8)
            continue
        final, areas = ([r[name] for r in runs] for name in ("final", "area"))
        shares = [r["fell"] / r["counted"] for r in runs if r["counted"]]
        kls = [(r["kl_mean"], r["kl_max"]) for r in runs if r["kl_mean"] is not None]
        mean, largest = (np.mean([k for k, _ in kls]), max(k for _, k in kls)) if kls else (None, None)
        cells = [algorithm, f"{value:g}", count, with_interval(final)]
        cells.append(with_interval(final, statistic=interquartile_mean))
        cells += [with_interval(areas), f"{np.mean(shares):.0%}" if shares else "", _number(mean), _number(largest)]
        cells += [f"{np.median([r[name] for r in runs]):,.0f}" for name in ("seconds", "env_steps_per_second")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def summary_table(records: list[Record], envs: Sequence[str], algorithms: Sequence[str]) -> list[str]:
    """A line per algorithm: on each environment the mean final return, and the share of updates after which it fell."""
    shown = [env for env in envs if any(r["env"] == env for r in records)]
    lines = [f"| algorithm | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    groups = grouped(finished(records), "algorithm", "env")
    for algorithm in (a for a in algorithms if any((a, env) in groups for env in shown)):
        cells = []
        for env in shown:
            runs = groups.get((algorithm, env), [])
            shares = [r["fell"] / r["counted"] for r in runs if r["counted"]]
            share = f", {np.mean(shares):.0%}" if shares else ""
            cells.append(with_interval([r["final"] for r in runs]) + share if runs else "")
        lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return lines


def sensitivity_table(records: list[Record], envs: Sequence[str], algorithms: Sequence[str]) -> list[str]:
    """A line per environment and algorithm: the mean final return and its range by the value."""
    lines = ["| environment | algorithm | step size: mean final return (smallest to largest) |", "|---|---|---|"]
    groups = grouped(records, "env", "algorithm")
    for env, algorithm in ((e, a) for e in envs for a in algorithms if (e, a) in groups):
        cells = []
        for value, given in scores(groups[env, algorithm], "final").items():
            runs = [x for x in given if x is not None]
            failed = f", {len(given) - len(runs)} failed" if len(runs) < len(given) else ""
            text = f" {np.mean(runs):.0f} ({min(runs):.0f} to {max(runs):.0f})" if runs else ""
            cells.append(f"{value:g}:{text}{failed}")
        lines.append(f"| {env} | {algorithm} | {'; '.join(cells)} |")
    return lines


def missing_lines(missing: Sequence[tuple[str, str, str]]) -> list[str]:
    """What is not there, counted by part, environment and algorithm."""
    return [f"- {part}: {env}, {algorithm}: {count} runs" for (part, env, algorithm), count in Counter(missing).items()]


def markdown(records: list[Record], missing: Sequence[tuple[str, str, str]], envs, algorithms) -> str:
    """All tables."""
    parts = {part: [r for r in records if r["part"] == part] for part in ("search", "compare", "sensitivity")}
    lines = []
    for part, found in parts.items():
        steps = ", ".join(f"{env} {n:,}" for env, n in sorted({(r["env"], r["steps"]) for r in found}))
        lines += [f"## {part}", "", f"Environment steps: {steps or 'no runs'}.", ""]
        if part == "search" and found:
            lines += [*search_table(found, envs, algorithms), ""]
        if part == "compare" and found:
            lines += [DEFINITION, "", NOTES, ""]
            lines += ["Mean final return with its interval, and the share of updates after which the return fell:", ""]
            lines += [*summary_table(found, envs, algorithms), ""]
            for env in (e for e in envs if any(r["env"] == e for r in found)):
                lines += [f"### {env}", "", *compare_table(found, env, algorithms), ""]
        if part == "sensitivity" and found:
            lines += [*sensitivity_table(found, envs, algorithms), ""]
    lines += ["## missing", "", *(missing_lines(missing) or ["Nothing."])]
    return "\n".join(lines) + "\n"


def as_json(records: list[Record], missing: Sequence[tuple[str, str, str]]) -> str:
    """Every run with its numbers, those of the comparison with their curve on a grid of POINTS points."""
    about = {"fell": DEFINITION, "curve": f"the training return at steps / {POINTS}, 2 steps / {POINTS}, ..., steps"}
    head = json.dumps({"about": about, "missing": missing_lines(missing)}, allow_nan=False)
    kept = [
        record if record["part"] in ("compare", "vine") else {n: x for n, x in record.items() if n != "curve"}
        for record in records
    ]
    return f'{head[:-1]}, "runs": {as_lines(kept)}}}\n'


def draw_curves(records: list[Record], envs: Sequence[str], algorithms: Sequence[str], path: Path) -> None:
    """Mean training returns of the comparison by environment steps, with their 95 % intervals over runs."""
    from matplotlib.figure import Figure

    shown = [env for env in envs if any(r["env"] == env for r in records)]
    figure = Figure(figsize=(11, 4 * -(-len(shown) // 2) + 1), layout="constrained")
    axes = figure.subplots(-(-len(shown) // 2), 2, squeeze=False).ravel()
    lines = {}
    for axis, env in zip(axes, shown, strict=False):
        groups = grouped(finished(r for r in records if r["env"] == env), "algorithm", "value")
        for algorithm, value in groups:
            runs, color = groups[algorithm, value], f"C{algorithms.index(algorithm)}"
            total = runs[0]["steps"]
            curves = np.array([r["curve"] for r in runs])
            grid = np.linspace(total / POINTS, total, POINTS) / 1000
            (lines[algorithm],) = axis.plot(grid, curves.mean(0), color=color, linewidth=1.5)
            axis.fill_between(grid, *interval(curves), color=color, alpha=0.15, linewidth=0)
        axis.set(title=env, xlabel="thousands of environment steps", ylabel=f"return of {WINDOW} training episodes")
        axis.grid(alpha=0.3)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    _legend(figure, lines, algorithms)
    figure.savefig(path, dpi=85)


def draw_step_sizes(records: list[Record], envs: Sequence[str], algorithms: Sequence[str], path: Path) -> None:
    """Final returns by the length of a step, relative to the algorithm's best: means, bars from smallest to largest."""
    from matplotlib.figure import Figure

    shown = [env for env in envs if any(r["env"] == env for r in records)]
    figure = Figure(figsize=(5.5 * max(len(shown), 1), 5.5), layout="constrained")
    lines = {}
    for axis, env in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for (algorithm,), runs in grouped((r for r in records if r["env"] == env), "algorithm").items():
            by_value = {v: [x for x in found if x is not None] for v, found in scores(runs, "final").items()}
            by_value = {value: found for value, found in by_value.items() if found}
            if not by_value:
                continue
            mean = np.array([np.mean(found) for found in by_value.values()])
            low, high = (np.array([f(found) for found in by_value.values()]) for f in (min, max))
            x = np.array([*by_value]) ** (0.5 if algorithm in OF_KL else 1.0)
            x /= x[int(mean.argmax())]
            style = {"color": f"C{algorithms.index(algorithm)}", "marker": "o", "markersize": 3}
            spread = {"yerr": [mean - low, high - mean], "elinewidth": 0.7, "capsize": 2}
            lines[algorithm] = axis.errorbar(x, mean, **spread, **style)
        axis.set(title=env, xscale="log", xlabel="length of a step / the algorithm's best", ylabel="final return")
        axis.grid(alpha=0.3)
    _legend(figure, lines, algorithms)
    figure.savefig(path, dpi=85)


def _legend(figure: Any, lines: dict[str, Any], algorithms: Sequence[str]) -> None:
    names = [name for name in algorithms if name in lines]
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=4)


def report(
    records: list[Record],
    missing: Sequence[tuple[str, str, str]],
    envs: Sequence[str],
    algorithms: Sequence[str],
    results: Path,
    pictures: Path,
) -> str:
    """Writes against.json and against.md into results, pictures of what is there into pictures; returns the tables.

    Args:
      records: of runs, finished and failed.
      missing: part, environment and algorithm of each run that is not there.
      envs, algorithms: in the order in which they are shown.
    """
    results.mkdir(parents=True, exist_ok=True)
    text = markdown(records, missing, envs, algorithms)
    (results / "against.json").write_text(as_json(records, missing), encoding="utf-8")
    (results / "against.md").write_text(text, encoding="utf-8")
    pictured = {"compare": (draw_curves, "against.png"), "sensitivity": (draw_step_sizes, "against_step_size.png")}
    for part, (draw, name) in pictured.items():
        found = [r for r in records if r["part"] == part]
        if finished(found):
            draw(found, envs, algorithms, pictures / name)
    return text
