"""docs/theory is true of the code: links, functions, tests, figures and examples are there."""

import ast
import doctest
import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THEORY = ROOT / "docs" / "theory"
PAGES = sorted(THEORY.glob("*.md"))
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")


def links(text):
    """(is it a figure, text, target) of links to files, without those to the web."""
    return [found.groups() for found in LINK.finditer(text) if "://" not in found[3]]


def defined(path):
    """Names of the functions and classes of a file, methods included."""
    kinds = ast.FunctionDef, ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def equations(text):
    """From T1, T2, ... to what stands after each, up to the next one or the next heading."""
    parts = re.split(r"^(?:\*\*(T\d+)\.\*\*|#)", text, flags=re.MULTILINE)
    return {name: rest for name, rest in zip(parts[1::2], parts[2::2], strict=True) if name}


def missing(page, text):
    """What links of a text promise and is not there."""
    found = []
    for _, name, target in links(text):
        path = page.parent / target.split("#")[0]
        if not path.exists():
            found.append(target)
        elif path.suffix == ".py" and re.fullmatch(r"`\w+`", name) and name.strip("`") not in defined(path):
            found.append(f"{name} in {target}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    assert missing(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_and_a_missing_function_are_seen():
    file = "../../trpo_tf/learner/objective.py"
    text = f"[a](none.md) [`surrogate`]({file}) [`surrogat`]({file})"
    assert missing(THEORY / "mdp.md", text) == ["none.md", f"`surrogat` in {file}"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_equation_has_a_function_and_a_test(page):
    for name, rest in equations(page.read_text(encoding="utf-8")).items():
        formula, _, rest = rest.partition("\nComputed by ")
        computed, _, held = rest.partition("held by")
        assert re.search(r"\$.+\$", formula), name
        assert any("/tests/" not in target for _, _, target in links(computed)), name
        assert any("/tests/" in target for _, text, target in links(held) if text.startswith("`test_")), name


def test_equations_are_numbered_in_reading_order():
    index = (THEORY / "README.md").read_text(encoding="utf-8")
    order = [THEORY / target for _, _, target in links(index) if re.fullmatch(r"\w+\.md", target)]
    assert set(order) == set(PAGES) - {THEORY / "README.md"}, "pages that the index links to"
    found = [name for page in dict.fromkeys(order) for name in equations(page.read_text(encoding="utf-8"))]
    assert found == [f"T{k}" for k in range(1, len(found) + 1)]
    assert len(found) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_a_figure_and_names_the_program_that_draws_it(page):
    text = page.read_text(encoding="utf-8")
    figures = [found for found in LINK.finditer(text) if found[1]]
    assert figures or page.name in ("README.md", "derivations.md")
    for figure in figures:
        path = (page.parent / figure[3]).resolve()
        program = re.search(
            r"Drawn by \[`(benchmarks/\w+\.py)`\]|`python (benchmarks/\w+\.py)` draws", text[figure.end() :]
        )
        source = (ROOT / (program[1] or program[2])).read_text(encoding="utf-8")
        if program[1] == "benchmarks/theory.py":
            source += (ROOT / "benchmarks" / "theory_estimates.py").read_text(encoding="utf-8")
        assert f'"{path.name}"' in source, path.name
        assert path.parent != THEORY or path.stat().st_size < 120_000, path.name


def test_every_figure_is_shown():
    shown = {
        THEORY / target for page in PAGES for picture, _, target in links(page.read_text(encoding="utf-8")) if picture
    }
    assert set(THEORY.glob("*.png")) <= shown


def test_the_table_of_the_derivations_names_tests_that_are_there():
    named = set(re.findall(r"`(test_\w+)`", (THEORY / "derivations.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    assert named <= set(itertools.chain.from_iterable(map(defined, (ROOT / "tests").rglob("test_*.py"))))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_formulas_have_nothing_that_markdown_takes_away(page):
    """Markdown reads a backslash before punctuation as an escape, also within a formula, and < may begin a tag."""
    text = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert text.count("$") % 2 == 0
    for formula in re.findall(r"\$([^$]+)\$", text):
        assert not re.search(r"\\[^A-Za-z]|[<>*]|^\s|\s$|\n\n", formula), formula
        assert formula.count("{") == formula.count("}"), formula


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_give_what_is_written(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_numbers_of_the_finite_mdps_are_those_of_the_results():
    runs = json.loads((ROOT / "benchmarks" / "results" / "finite.json").read_text(encoding="utf-8"))["runs"]
    found = {(run["example"], run["algorithm"], run["factor"]): run for run in runs}
    names = {"TRPO, constraint": ", with or without `max_step`", "TRPO, penalty": "", "NPG": "", "VPG": ""}
    gradients, claims = ((THEORY / name).read_text(encoding="utf-8") for name in ("gradients.md", "claims.md"))
    for name, more in names.items():
        run = found["cliff", name, 10.0]
        assert f"| {name}{more} | {run['falls']} | {run['largest_fall']:.1f} |\n" in gradients
        assert name.startswith("TRPO, c") or f"{name.removeprefix('TRPO, ')} {run['falls']}" in claims
    same = "falls", "largest_fall"
    with_max_step = found["cliff", "TRPO, constraint and max_step", 10.0]
    assert all(with_max_step[key] == found["cliff", "TRPO, constraint", 10.0][key] for key in same)
    good = found["cliff", "TRPO, constraint", 1.0]
    assert f"{good['falls']} falls of at most {good['largest_fall']:.2f}" in claims
    for name in ("algorithm 1", "conservative policy iteration"):
        last = [found[example, name, 1.0]["eta"][-1] for example in ("garnet", "two_states", "cliff")]
        assert "{:.2f} of 5.17, {:.1f} of 18.4, {:.2f} of 2.10".format(*last) in claims
