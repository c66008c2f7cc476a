"""Answers from elsewhere scored by a benchmark's own rule: outcomes or metrics with intervals, and a row for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from eval_suite.elsewhere import Fields, Left, Matched, Told, WithReleasedAnswers, known, once_each, ours
from eval_suite.released import Row
from eval_suite.report.rows import percent
from eval_suite.results import ratio_of
from eval_suite.scorers.conflict import NEITHER, SIDES, agree
from factory.benchmark import Conflicts, Questions
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.statistics.intervals import wilson

IMAGE = {"vision": "image"}  # what a table calls a source


def matched(benchmark: Conflicts, rows: Sequence[Row], fields: Fields) -> Matched:
    """Each answer with its sample and verdict. Rows in the layout of the benchmark's authors are read as such; others
    name their sample and, where it is asked in several forms, hold ``answers`` to all of them, or one and its ``form``.
    """
    found = Matched()
    samples = {s.id: s for split in ("train", "dev", "test") for s in benchmark.samples(split)}
    plain: list[Row] = []
    for row in rows:
        read = benchmark.released_answer(row) if isinstance(benchmark, WithReleasedAnswers) else None
        if isinstance(read, Told):
            found.told.append(read)
        elif isinstance(read, Left):
            found.left.append(read)
        else:
            plain.append(row)
    _check_once(found.told)
    if plain:
        named = known(((fields.name(row), row) for row in plain), samples, found.left.append)
        found.told += _of_forms(benchmark, samples, named, fields, found.left)
    answered = samples.keys() & {each.sample for each in found.told}
    found.unanswered = len(samples) - len(answered) if answered else 0  # none: all are of another level, say
    return found


def _check_once(told: Sequence[Told]) -> None:
    places: dict[str, str] = {}
    for each in told:
        if (before := places.setdefault(each.sample, each.place)) != each.place:
            raise UserError(f"{each.place}: answers {each.sample}, as {before} does; give one answer to each sample")


def _of_forms(
    benchmark: Conflicts,
    samples: Mapping[str, ConflictSample],
    named: Sequence[tuple[str, Row]],
    fields: Fields,
    left: list[Left],
) -> list[Told]:
    forms = benchmark.forms
    texts: dict[str, dict[str, str]] = {}
    places: dict[str, str] = {}
    keyed = ((f"{name}/{_form(row, forms)}", row) for name, row in named)
    for (name, row), _ in zip(named, once_each(keyed), strict=True):
        places.setdefault(name, row.place)
        form = _form(row, forms)
        whole = dict(zip(forms, row.texts("answers"), strict=False)) if form == "" else {form: fields.text(row)}
        texts.setdefault(name, {}).update(whole)
    told = []
    for name, of_form in texts.items():
        if lacking := [form for form in forms if form not in of_form]:
            left.append(Left(places[name], f"no answer to {' and '.join(lacking)}"))
            continue
        sample = samples[name]
        verdicts = [benchmark.judge(sample, form, of_form[form]) for form in forms]
        answers = tuple(of_form[form] for form in forms)
        told.append(Told(places[name], name, sample.task, answers, ours(agree(verdicts)), verdicts))
    return told


def _form(row: Row, forms: Sequence[str]) -> str:
    """The form that a row answers; "" where it answers all of them."""
    if len(forms) == 1:
        return forms[0]
    return row.among("form", *forms) if "form" in row else ""


def outcome_rows(told: Sequence[Told], rule: str, sources: tuple[str, str] = SIDES) -> list[dict[str, Any]]:
    """For all samples and each task the shares of outcomes with 95 % Wilson intervals by our rule and, where the file
    has them, by the released verdicts. ``sources`` are the names of the two sides.
    """
    tasks = dict.fromkeys(each.task for each in told)
    groups = {"all": list(told)} | {task: [each for each in told if each.task == task] for task in tasks}
    out = []
    for task, members in groups.items() if len(tasks) > 1 else [("all", list(told))]:
        out.append(_outcomes(task, rule, [each.verdict for each in members], sources))
        if official := [each.official for each in members if each.official is not None]:
            out.append(_outcomes(task, "released verdicts", official, sources))
    return out


def _outcomes(task: str, by: str, verdicts: Sequence[str], sources: tuple[str, str]) -> dict[str, Any]:
    counts, n, known = Counter(verdicts), len(verdicts), (*sources, *NEITHER)
    sides = sum(counts[name] for name in sources)
    shares = {verdict: (counts[verdict], n) for verdict in known}
    if sides:
        shares[ratio_of(sources[0])] = (counts[sources[0]], sides)
    return {
        "task": task,
        "by": by,
        "n": n,
        "counts": {verdict: counts[verdict] for verdict in known},
        "metrics": {name: hits / of for name, (hits, of) in shares.items()},
        "ci": {name: list(wilson(hits, of)) for name, (hits, of) in shares.items()},
    }


def outcome_table(rows: Sequence[Mapping[str, Any]], sources: tuple[str, str] = SIDES) -> str:
    """The rows as a Markdown table, in percent."""
    first, second = (IMAGE.get(name, name) for name in sources)
    heads = ["task", "by", "n", f"follows {first}", f"follows {second}", *NEITHER, f"{first} / ({first} + {second})"]
    metrics = (*sources, *NEITHER, ratio_of(sources[0]))
    lines = [_line(heads), "|:---|:---|" + "---:|" * (len(heads) - 2)]
    for row in rows:
        shares = [_share(row, name) for name in metrics]
        lines.append(_line([row["task"], row["by"], f"{row['n']:,}", *shares]))
    return "\n".join(lines) + "\n"


def scored(benchmark: Questions, rows: Sequence[Row], fields: Fields) -> tuple[list[dict[str, Any]], Matched]:
    """The records of a question benchmark, scored as in a run, and what was left out."""
    if why := benchmark.unscorable():
        raise UserError(f"{benchmark.name}: nothing can be scored here: {why}")
    items, found = {item.id: item for item in benchmark.questions()}, Matched()
    named = list(once_each(known(((fields.name(row), row) for row in rows), items, found.left.append)))
    told = [(items[name], fields.text(row)) for name, row in named]
    benchmark.consult(told)
    about = {item.id: {"place": row.place, "text": text} for (item, text), (_, row) in zip(told, named, strict=True)}
    records = [{**about[item.id], "prompt_digest": "", **benchmark.record(item, text)} for item, text in told]
    found.unanswered = len(items) - len(named)
    return list(benchmark.settle(records)), found


def metric_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a question benchmark as a Markdown table of its metrics as they are, with their intervals."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    lines = [_line(["task", "n", "unread", *metrics]), "|:---|" + "---:|" * (len(metrics) + 2)]
    for row in rows:
        cells = [_metric(row, name) for name in metrics]
        lines.append(_line([row["task"], f"{row['n']:,}", percent(row["parse_failure_rate"]), *cells]))
    return "\n".join(lines) + "\n"


def _metric(row: Mapping[str, Any], name: str) -> str:
    if name not in row["metrics"]:
        return ""
    span = row["ci"].get(name)
    return f"{row['metrics'][name]:.4g}" + (f" [{span[0]:.4g}, {span[1]:.4g}]" if span else "")


def _share(row: Mapping[str, Any], name: str) -> str:
    if name not in row["metrics"]:
        return ""
    low, high = row["ci"][name]
    return f"{percent(row['metrics'][name])} [{percent(low)}, {percent(high)}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
