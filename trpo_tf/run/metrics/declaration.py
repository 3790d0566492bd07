"""Every metric once: name, unit, meaning, and how the screen shows it. Columns, screen and docs/metrics.md agree.

Metrics that are not declared, a user's own for example, are logged after the declared ones.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """One metric. label: its name on the screen, empty where it is not shown. form: a format of numbers."""

    name: str
    unit: str
    meaning: str
    label: str = ""
    form: str = ""


_KL = "nats"
_RETURN = "reward"

METRICS = (
    Metric("update", "count", "updates so far"),
    Metric("env_steps", "count", "valid transitions so far"),
    Metric("env/episode_return", _RETURN, "mean undiscounted return of the last 20 whole episodes", "return", ".1f"),
    Metric("env/episode_length", "steps", "mean length of the last 20 whole episodes", "length", ".0f"),
    Metric("env/episodes", "count", "whole episodes so far"),
    Metric("env/invalid_rows", "count", "transitions masked so far, because they held NaN or infinity"),
    Metric("env/restarts", "count", "environments made anew so far, because they raised, died or hung"),
    Metric("env/dropped_rows", "count", "transitions masked so far, because their environment failed in that episode"),
    Metric("eval/episode_return", _RETURN, "mean return of the evaluation after this update"),
    Metric("eval/episode_return_std", _RETURN, "standard deviation of that evaluation's returns"),
    Metric("policy/kl", _KL, "mean KL(old || new) of the step", "KL", ".2e"),
    Metric(
        "policy/max_kl_used",
        _KL,
        "KL of the full step in the quadratic model; below max_kl where max_step or stale data made it shorter",
    ),
    Metric(
        "policy/improvement", "std", "gain of the surrogate, whose advantages are standardised", "improvement", ".4f"
    ),
    Metric("policy/expected_improvement", "std", "gradient . step"),
    Metric("policy/improvement_ratio", "1", "improvement / expected improvement"),
    Metric("policy/step_fraction", "1", "fraction of the full step that the line search took", "step fraction", ".2f"),
    Metric("policy/backtracks", "count", "line-search candidates after the full step"),
    Metric("policy/reason", "word", "accepted, or what the last candidate failed; stale: the batch was too stale"),
    Metric("policy/step_size", "1", "length of the full step in multiples of the conjugate gradient direction"),
    Metric("policy/entropy", _KL, "mean entropy of the policy before the step", "entropy", ".2f"),
    Metric("policy/gradient_norm", "1", "norm of the surrogate's gradient"),
    Metric("policy/max_ratio_error", "1", "largest |ratio - 1| before the step; rounding only, if all data is fresh"),
    Metric("policy/advantage_std", "std", "of advantages, in standard deviations of the discounted return"),
    Metric("policy/unbiased_improvement", "std", "gain predicted by gradients of two halves of the environments"),
    Metric("search/return_mean", _RETURN, "mean return of the candidates, one episode of each", "mean", ".1f"),
    Metric("search/return_best", _RETURN, "return of the best candidate", "best", ".1f"),
    Metric("search/return_std", _RETURN, "standard deviation of the candidates' returns"),
    Metric("search/step_norm", "1", "norm of the change of the weights that are searched", "step", ".2e"),
    Metric(
        "search/sigma", "1", "standard deviation of a weight among the candidates, root mean square", "sigma", ".2e"
    ),
    Metric("cg/relative_residual", "1", "|(F + damping I) x - g| / |g| at the end", "CG residual", ".1e"),
    Metric("cg/iterations", "count", "conjugate gradient iterations"),
    Metric("cg/reason", "word", "why conjugate gradient stopped: iterations, residual, curvature, not_finite"),
    Metric("radius/max_kl", _KL, "the adaptive radius"),
    Metric("radius/measured", "return std", "fading sum of what steps gained"),
    Metric("radius/promised", "return std", "fading sum of what steps were predicted to gain"),
    Metric("radius/penalty", "std/nats", "the penalty coefficient"),
    Metric("stale/effective_sample_size", "1", "(sum rho)^2 / sum rho^2 as a fraction of the transitions"),
    Metric("stale/max_ratio", "1", "largest ratio, not truncated"),
    Metric("stale/mean_ratio_error", "1", "mean |ratio - 1|"),
    Metric("stale/surrogate_variance", "std^2", "variance of the surrogate's estimate at the old policy"),
    Metric("stale/kl_behavior_old", _KL, "mean KL(behavior || old)"),
    Metric("stale/kl", _KL, "mean KL(behavior || new)"),
    Metric("vine/states", "count", "states of a vine that the update learned from"),
    Metric("stale/share_of_staleness_*", "1", "fraction of the weight that is so many updates old"),
    Metric("stale/share_of_older", "1", "fraction of the weight that is older than those"),
    Metric("stale/mean_staleness", "updates", "mean staleness of new transitions from workers", "staleness", ".2f"),
    Metric("stale/max_staleness", "updates", "largest staleness of a transition"),
    Metric("workers/alive", "count", "rollout workers that are there", "workers", ".0f"),
    Metric("workers/deaths", "count", "rollout workers so far that died, or did not answer in time", "deaths", ".0f"),
    Metric("workers/lost_fragments", "count", "fragments so far that were asked of workers which then died"),
    Metric("workers/refused_fragments", "count", "answers of workers so far that were not what was asked for"),
    Metric("workers/fastest_share", "1", "fraction of the transitions that came from the slot with most of them"),
    Metric("value/loss", "1", "half the mean squared error of the value network after its fit, in scaled reward"),
    Metric("value/explained_variance", "1", "of returns by values, before the fit", "explained var.", ".3f"),
    Metric("value/explained_variance_after", "1", "of returns by values, after the fit"),
    Metric("value/learning_rate", "1", "Adam's learning rate"),
    Metric("policy/committed", "1", "0 where policy or step rule were not finite, and so stayed as they were; else 1"),
    Metric(
        "value/committed",
        "1",
        "0 where value network or Adam were not finite after the fit, and so stayed as they were; else 1",
    ),
    Metric(
        "rewards/committed",
        "1",
        "0 where the moments that rewards are scaled by were not finite, and so stayed as they were; else 1",
    ),
    Metric(
        "normalizer/committed",
        "1",
        "0 where the moments of the observations were not finite, and so stayed as they were; else 1",
    ),
    Metric("time/collect_seconds", "s", "time spent waiting for the rollout"),
    Metric("time/update_seconds", "s", "of the update, without the value fit that goes on beside what follows"),
    Metric("time/value_fit_seconds", "s", "of the value fit"),
    Metric("time/env_steps_per_second", "1/s", "transitions of this update / its seconds"),
    Metric("time/elapsed_seconds", "s", "since training began in this process"),
)


def find(name: str) -> Metric | None:
    """The declaration of a metric, None where there is none; a name that ends in * stands for all it begins."""
    for metric in METRICS:
        if metric.name == name or (metric.name.endswith("*") and name.startswith(metric.name[:-1])):
            return metric
    return None


def ordered(names: Iterable[str]) -> list[str]:
    """Names of metrics as columns: declared ones as they are declared, then the others as they come."""
    declared = [metric.name for metric in METRICS]

    def place(name: str) -> int:
        metric = find(name)
        return declared.index(metric.name) if metric else len(declared)

    return sorted(names, key=place)


def glossary() -> str:
    """The table of docs/metrics.md."""
    escaped = r"\|"
    lines = ["| metric | unit | meaning |", "|---|---|---|"]
    return (
        "\n".join([*lines, *(f"| `{m.name}` | {m.unit} | {m.meaning.replace('|', escaped)} |" for m in METRICS)]) + "\n"
    )
