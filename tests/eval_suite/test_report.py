import csv
import io
import math
import re

import pytest
from rich.console import Console

from eval_suite.report import print_tables, style
from eval_suite.report.outcomes import HEADINGS, outcome_lines
from eval_suite.report.outcomes import to_csv as outcomes_csv
from eval_suite.report.rows import Predictions, groups
from eval_suite.report.table_files import latex_escape, to_csv, to_latex, to_markdown
from eval_suite.report.tables import main_tables
from eval_suite.report.verdict import comparisons, summarise
from tests.eval_suite.synthetic_report import outcome_records, results, simple, synthetic, two_methods


@pytest.fixture(scope="module")
def full():
    return synthetic(per_task=12)


# --- Tables ---


def test_total_and_its_interval_are_those_of_the_counts():
    [block] = main_tables(results(simple("l2s", 146, n=200, error=4, strength=1.5, chosen=True)))
    [line] = block.lines
    # Wilson's 95 % interval of 146 / 200, worked out apart from the code under test.
    z, p, n = 1.959964, 0.73, 200
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [f"{100 * (middle + side * half) / (1 + z * z / n):.1f}" for side in (-1, 1)]
    total = line.entries["all"]
    assert (total.text, total.low, total.high) == ("73.0", *expected)
    assert line.entries["error"].text == "2.0"
    assert (line.strength, line.chosen, block.n) == ("1.5", True, 200)


def test_only_the_chosen_strength_is_reported_on_test():
    rows = [
        simple("amps", f, strength=s, split=split, chosen=s == 2)
        for split, shift in (("dev", 9), ("test", 0))
        for s, f in ((1, 40 + shift), (2, 60 + shift), (4, 90))
    ]
    [block] = main_tables(results(*rows))
    assert [(line.strength, line.entries["all"].text) for line in block.lines] == [("2", "60.0")]


def test_choice_may_be_flagged_on_dev_rows_alone():
    rows = [
        simple("amps", 40, strength=1, split="dev"),
        simple("amps", 60, strength=2, split="dev", chosen=True),
        simple("amps", 41, strength=1),
        simple("amps", 61, strength=2),
    ]
    [block] = main_tables(results(*rows))
    assert block.lines[0].entries["all"].text == "61.0"


def test_two_versions_of_a_scorer_never_share_a_table():
    rows = [
        simple("none", 40, scorer="conflict/1"),
        simple("none", 60, scorer="conflict/2"),
        simple("l2s", 70, scorer="conflict/2"),
    ]
    old, new = main_tables(results(*rows))
    assert [(line.method, line.entries["all"].text) for line in old.lines] == [("none", "40.0")]
    assert [(line.method, line.entries["all"].text) for line in new.lines] == [("none", "60.0"), ("l2s", "70.0")]
    assert "conflict/1" in old.title and "conflict/2" in new.title
    records = list(csv.DictReader(io.StringIO(to_csv([old, new]))))
    assert [(r["scorer"], r["Total"]) for r in records] == [
        ("conflict/1", "40.0"),
        ("conflict/2", "60.0"),
        ("conflict/2", "70.0"),
    ]


def test_every_outcome_is_told_with_the_vision_ratio():
    row = simple("none", 30, n=100, error=5, unknown_rate=0.125)
    row["metrics"] |= {
        "compete": 0.45,
        "flags": 0.2,
        "other": 0.0,
        "vision_ratio": 0.4,
        "first_option": 0.55,
        "known_ratio": 0.25,
    }
    row["ci"] |= {"vision_ratio": [0.3, 0.51], "first_option": [0.45, 0.65], "known_ratio": [0.1, 0.5]}
    row["known_n"] = 12
    [(_, [line, other])] = outcome_lines(results(row, simple("l2s", 80, strength=1.0, chosen=True, direction="text")))
    assert other[:4] == ["the text", "l2s", "1", "100"] and other[-2:] == ["—", "—"]
    assert dict(zip(HEADINGS, line, strict=True)) == {
        "Towards": "the image",
        "Method": "none",
        "Strength": "—",
        "n": "100",
        "Follow": "30.0",
        "Compete": "45.0",
        "Flags": "20.0",
        "Other": "0.0",
        "Error": "5.0",
        "Unknown": "12.5",
        "Vision ratio": "40.0 (30.0–51.0)",
        "First option": "55.0 (45.0–65.0)",
        "Known ratio": "25.0 (10.0–50.0)",
        "Known n": "12",
    }
    [told] = csv.DictReader(io.StringIO(outcomes_csv(results(row))))
    del told["Table"], told["Towards"], told["Method"]
    assert [float(told.pop(f"Vision ratio{end}")) for end in ("", " low", " high")] == [40.0, 30.0, 51.0]
    assert told.pop("Strength") == "" and all(float(number) >= 0 for number in told.values())


def test_flagged_conflicts_are_said_beside_the_table():
    row = simple("none", 30)
    assert main_tables(results(row))[0].notes == main_tables(results(simple("none", 30)))[0].notes
    row["metrics"]["flags"] = 0.125
    assert "Answers that flag the conflict instead: none 12.5 %." in main_tables(results(row))[0].notes


def test_several_strengths_and_no_choice_is_said_not_guessed():
    [block] = main_tables(results(simple("none", 10), simple("l2s", 40, strength=1), simple("l2s", 60, strength=2)))
    assert [line.method for line in block.lines] == ["none"]
    assert "l2s" in block.notes[0]


def test_best_is_marked_among_methods_that_do_not_use_labels():
    [block] = main_tables(
        results(
            simple("none", 20),
            simple("l2s", 54, strength=1),
            simple("amps", 73, strength=1, error=5),
            simple("tied", 73, strength=1, error=2),
            simple("oracle:l2s", 95),
        )
    )
    best = {line.method: (line.entries["all"].best, line.entries["error"].best) for line in block.lines}
    assert best == {
        "none": (False, True),
        "l2s": (False, True),
        "amps": (True, False),
        "tied": (True, False),
        "oracle:l2s": (False, False),
    }
    assert block.lines[-1].oracle


def test_a_column_where_all_tie_marks_none():
    [block] = main_tables(results(simple("none", 50), simple("cot", 50)))
    assert not any(line.entries["all"].best for line in block.lines)


def test_missing_row_is_a_dash_everywhere():
    data = results(simple("none", 20, task="color"), simple("none", 20), simple("l2s", 0, strength=1))
    blocks = main_tables(data)
    line = blocks[0].lines[1]
    assert line.entries["color"].text == "—"
    assert line.entries["all"].text == "0.0"  # measured and zero is not the same as missing
    assert "| l2s | 1 | — |" in to_markdown(blocks)
    assert "l2s & 1 & --- &" in to_latex(blocks)
    records = list(csv.DictReader(io.StringIO(to_csv(blocks))))
    assert (records[1]["Color"], records[1]["Total"]) == ("", "0.0")
    assert "Not measured: Act, Attr, Count" in blocks[0].notes[0]
    # A task that only the table's total lacks must not borrow a number either.
    partial = main_tables(results(simple("none", 20, task="color")))[0].lines[0]
    assert (partial.entries["all"].text, partial.entries["error"].text) == ("—", "—")


def test_columns_follow_the_usual_task_order(full):
    block = main_tables(full[0])[0]
    assert [label for _, label in block.columns] == [
        "Act",
        "Attr",
        "Color",
        "Count",
        "Obj",
        "Pos",
        "Sent",
        "Sport",
        "Total",
        "Error",
    ]


def test_latex_escapes_names_and_marks_best():
    text = to_latex(main_tables(results(simple("few_shot & 50%", 20), simple("a#b$c{d}~^\\", 30))))
    assert r"few\_shot \& 50\%" in text
    assert r"a\#b\$c\{d\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"\textbf{30.0}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert latex_escape("[4pt]") == "{[}4pt{]}"  # at the start of a row a bare bracket would be read as a length
    assert latex_escape("MC²") == r"MC\textsuperscript{2}"
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.strip().splitlines()} == {3}


def test_markdown_escapes_pipes_and_bolds_best():
    text = to_markdown(main_tables(results(simple("none", 20), simple("a|b_c", 30))))
    assert r"| a\|b\_c | — | **30.0** (" in text


def test_csv_is_one_line_per_method_and_direction(full):
    records = list(csv.DictReader(io.StringIO(to_csv(main_tables(full[0])))))
    assert len(records) == 16
    assert {r["direction"] for r in records} == {"vision", "text"}
    assert all(re.fullmatch(r"\d+\.\d", r["Total"]) for r in records)


def test_protocols_and_seeds_never_share_a_table():
    blocks = main_tables(results(simple("none", 20), simple("none", 30, seed=1), simple("none", 40, protocol="x")))
    assert len(blocks) == 3


# --- Terminal ---


def printed(data, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_tables(data, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_terminal_tables_fit_and_lose_no_digit(full, width):
    text = printed(full[0], width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for block in main_tables(full[0]):
        for line in block.lines:
            assert line.entries["all"].text in text
    assert ("Sport" in text) == (width >= 80)
    assert ("95 % CI" in text) == (width >= 120 or width == 60)


def test_terminal_shows_square_brackets_of_names_as_they_are():
    assert "[red]x[/]" in printed(results(simple("[red]x[/]", 10)), 120)


def test_terminal_says_when_there_is_nothing():
    assert "holds no rows" in printed(results(), 80)


def test_benchmarks_without_a_target_modality_are_listed_apart():
    pope = {
        "benchmark": "pope",
        "split": "test",
        "task": "all",
        "direction": None,
        "method": "none",
        "strength": None,
        "n": 9,
        "metrics": {"accuracy": 0.8571},
        "ci": {"accuracy": [0.5, 0.97]},
    }
    text = printed(results(pope), 140)
    assert "0.857" in text
    assert main_tables(results(pope)) == []


# --- Summary ---


def test_summary_claims_a_win_only_when_the_paired_interval_excludes_zero():
    data, predictions = two_methods(100, 140)
    compared, _ = comparisons(data, predictions)
    assert compared[0].follow.difference == pytest.approx(0.2)
    [text] = summarise(data, compared)
    assert "amps follows most often, on 70.0 % of 200 test samples" in text
    assert "+20.0 points" in text
    assert "amps beats l2s" in text

    data, predictions = two_methods(100, 102)
    [text] = summarise(data, comparisons(data, predictions)[0])
    assert "does not show that amps beats l2s" in text


def test_summary_says_when_l2s_is_not_beaten():
    data, predictions = two_methods(140, 100)
    [text] = summarise(data, comparisons(data, predictions)[0])
    assert "No method follows more often than l2s; the closest, amps, reaches 50.0 %, −20.0 points" in text


def test_summary_reports_errors_over_the_budget():
    [text] = summarise(results(simple("amps", 60, error=9, strength=1)), [], budget=0.05)
    assert "with 9.0 % errors, which is over the budget of 5.0 %" in text


def test_comparison_uses_reported_strengths_only():
    data, predictions = two_methods(100, 140)
    predictions = Predictions([*predictions.records, *outcome_records("amps", ["error"] * 200, strength=4.0)])
    data["rows"].append(simple("amps", 0, n=200, error=200, strength=4.0))
    compared, notes = comparisons(data, predictions)
    assert compared[0].follow.difference == pytest.approx(0.2)
    assert notes == []


def test_comparison_without_predictions_is_said():
    data, _ = two_methods(100, 140)
    compared, notes = comparisons(data, Predictions([]))
    assert compared == []
    assert "no paired comparison" in notes[0]


def test_dev_only_numbers_are_labelled_as_such():
    data, _, _ = synthetic(per_task=3, tasks=("color",), splits=("dev",))
    assert "dev numbers" in main_tables(data)[0].notes[0]


def test_groups_keep_the_unsteered_model_first_and_oracles_last():
    [group] = groups(results(simple("oracle:l2s", 9), simple("l2s", 5, strength=1), simple("none", 1)))
    assert group.methods("vision") == ["none", "l2s", "oracle:l2s"]


def test_no_two_methods_look_alike():
    drawn = style.looks(["none", "amps", *(f"method{i}" for i in range(40))], "none")
    assert len({(look.color, look.marker) for look in drawn.values()}) == 42
