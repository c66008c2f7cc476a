"""What the rows say: how often answers are taken back, where that can be read, and what the units do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose import ALL
from factory.diagnose.profiles import matching, mean_of
from factory.diagnose.summary import Finding, JsonFile, Summary
from factory.plain import number_of

from .dialogues import ANSWER_NAME
from .figures import early_figure, layers_figure, units_figure
from .neurons import VALUES
from .tables import (
    CONTRAST,
    arms,
    early_table,
    gic_table,
    group_table,
    key_of,
    measured,
    one,
    percent,
    probe_table,
    rate,
    rates_table,
    silence_table,
    spread,
    transfer_table,
    unread,
    words_table,
)

if TYPE_CHECKING:
    from . import Regret

Rows = Sequence[Mapping[str, Any]]


def summarise(rows: Rows, params: Regret.Params) -> Summary | None:
    if not rows:
        return None
    second = [r for r in rows if r["metric"] == "taken_back"]
    whole = [r for r in rows if r["sample"] == ALL]
    if not second:
        asked = len(matching(rows, metric="misled"))
        return Summary(
            "Regret", (Finding(f"None of {asked} first answers came from the wrong modality", values={"asked": asked}),)
        )
    plain = matching(second, method="")
    findings = [_lead(plain, whole, params), *_words(plain), *_layers(whole), *_early(whole, params), *_curve(whole)]
    findings += [*_units(whole, params), *_silenced(whole, params), *_transfer(whole), *_steered(second)]
    tables = (
        rates_table(second),
        words_table(plain),
        probe_table(whole),
        early_table(whole),
        group_table(whole),
        gic_table(whole),
        silence_table(whole),
        transfer_table(whole),
    )
    figures = [layers_figure(whole), early_figure(whole), units_figure(whole, params.tau)]
    return Summary(
        "Regret: answers that are taken back",
        tuple(findings),
        tuple(t for t in tables if t.rows),
        tuple(f for f in figures if f is not None),
        leads=True,
        documents=(JsonFile("dialogues", _dialogues(rows), lines=True),),
    )


def _lead(plain: Rows, whole: Rows, params: Regret.Params) -> Finding:
    """The plain sentence."""
    back, lost = rate(plain), unread(plain)
    values: dict[str, Any] = {"dialogues": len(plain), "unread": lost}
    if back is None:
        return Finding(f"None of {len(plain)} second answers could be read", values=values)
    values |= back.facts("taken_back")
    text = (
        f"Shown or hinted at the modality that it had not followed, the model takes {percent(back)} of its wrong"
        f" answers back ({len(plain)} dialogues; {lost:.1%} of the second answers could not be read)"
    )
    layer = max((r["layer"] for r in matching(whole, metric="rds")), default=None)
    ahead = min(2, params.before)
    probe = one(whole, "early_auroc", before=ahead, source="probe")
    if probe is not None:
        words = one(whole, "early_auroc", before=ahead, source="words")
        text += (
            f"; {ahead} token{'s' * (ahead != 1)} before the place where the word of regret begins, a probe of block"
            f" {layer} tells which with AUROC {spread(probe)}, the words until there with {spread(words)}"
        )
        values |= measured("ahead", probe) | measured("ahead_words", words)
    return Finding(text, values=values)


def _words(plain: Rows) -> list[Finding]:
    known = [r for r in plain if r["act"] != "unread"]
    if not known:
        return []
    word, back = (
        np.array([r[k] is not None if k == "word" else r[k] == "back" for r in known]) for k in ("word", "act")
    )
    agree = float((word == back).mean())
    chance = float(word.mean() * back.mean() + (1 - word.mean()) * (1 - back.mean()))
    kappa = (agree - chance) / (1 - chance) if chance < 1 else float("nan")
    text = (
        f"Words and answers are two things: {(word & ~back).sum()} answers have a word of regret and stay,"
        f" {(~word & back).sum()} are taken back without one, {(word & back).sum()} have both; agreement {agree:.1%},"
        f" Cohen's kappa {kappa:.2f}"
    )
    values: dict[str, Any] = {"both": int((word & back).sum()), "word_alone": int((word & ~back).sum())}
    values |= {"change_alone": int((~word & back).sum()), "neither": int((~word & ~back).sum()), "kappa": kappa}
    return [Finding(text, values=values)]


def _layers(whole: Rows) -> list[Finding]:
    out = []
    for contrast, against in CONTRAST.items():
        rows = [r for r in matching(whole, metric="probe_auroc", contrast=contrast) if not np.isnan(r["value"])]
        if rows:
            last, best = rows[-1], max(rows, key=lambda r: r["value"])
            text = (
                f"At the word, against {against}, a probe held out by item tells regret in the last block with AUROC"
                f" {spread(last)} ({last['n_regret']} against {last['n_none']}); highest of all blocks in"
                f" {best['layer']}, {spread(best)}"
            )
            values = {
                "contrast": contrast,
                "best_layer": best["layer"],
                **measured("last", last),
                **measured("best", best),
            }
            out.append(Finding(text, values=values))
    if not out and (n := [r["value"] for r in matching(whole, metric="positives")]):
        text = f"Too few to hold out a probe: {n[0]:.0f} answers with regret, {n[1]:.0f} without"
        out.append(Finding(text, values={"regret": n[0], "none": n[1]}))
    return out


def _early(whole: Rows, params: Regret.Params) -> list[Finding]:
    rows = matching(whole, metric="early_auroc", source="probe")
    if not rows:
        return []
    each = "; ".join(
        f"-{k}: probe {spread(one(whole, 'early_auroc', before=k, source='probe'))}, words"
        f" {spread(one(whole, 'early_auroc', before=k, source='words'))}, logit"
        f" {spread(one(whole, 'early_auroc', before=k, source='logit'))}"
        for k in range(1, params.before + 1)
    )
    text = f"Early signs, AUROC at so many tokens before the word (a word of regret itself tells nothing there): {each}"
    values = {
        f"{s}_{k}": (r or {}).get("value")
        for k in range(1, params.before + 1)
        for s in ("probe", "words", "logit")
        for r in [one(whole, "early_auroc", before=k, source=s)]
    }
    return [Finding(text, values=values)] if each else []


def _curve(whole: Rows) -> list[Finding]:
    m, rises = one(whole, "m_shape"), one(whole, "rises")
    if rises is None:
        return []
    text = f"The scatter ratio (ours, not S-CDI) rises with depth by a rank correlation of {spread(rises)}"
    out = [Finding(text, values=measured("rises", rises))]
    if m is None:
        return [*out, Finding("The model has too few blocks for a test of the M-shape that the paper reports")]
    holds = m["low"] is not None and m["low"] > 0
    text = (
        f"The scatter ratio over blocks is M-shaped, as the paper reports of its S-CDI: found on one half of the items,"
        f" an M is {spread(m)} deep on the other half (one that is there is above 0)"
    )
    return [*out, Finding(text, holds, measured("m", m))]


def _units(whole: Rows, params: Regret.Params) -> list[Finding]:
    found = [one(whole, "gic", deactivated=v, tau=params.tau, group="RegretD") for v in VALUES]
    rows = [r for r in found if r is not None]
    if not rows:
        return []
    each = "; ".join(
        f"{r['deactivated']}: {r['value']:.3f} against {r['random']:.3f} (sd {r['random_sd']:.3f})" for r in rows
    )
    text = (
        f"RegretD at tau {params.tau:g}, {rows[0]['size']:.0f} units of block {rows[0]['layer']}: the probe's accuracy"
        f" without them over that with them (GIC), against random groups of their size, by the value they are set to:"
        f" {each}"
    )
    values: dict[str, Any] = {"size": rows[0]["size"]}
    for r in rows:
        values |= {f"gic {r['deactivated']}": r["value"], f"random {r['deactivated']}": r["random"]}
    return [Finding(text, values=values)]


def _silenced(whole: Rows, params: Regret.Params) -> list[Finding]:
    rows = matching(whole, metric="silenced")
    if not rows:
        return []
    each = "; ".join(
        f"{r['group']} at {r['deactivated']}: {_signed(r['value'])} ({_signed(r['low'])} to {_signed(r['high'])};"
        f" random {_signed(r['random'] - r['whole'])}, sd {r['random_sd']:.1%}; unread {r['unread']:.1%})"
        for r in rows
    )
    text = f"With units silenced while it answers, the share taken back ({rows[0]['whole']:.1%} without) changes by:"
    text += f" {each}"
    return [Finding(text, values={f"{r['group']} {r['deactivated']}": r["value"] for r in rows})]


def _signed(share: float | None) -> str:
    return "-" if share is None or np.isnan(share) else f"{share:+.1%}"


def _transfer(whole: Rows) -> list[Finding]:
    rows = matching(whole, metric="transfer_auroc")
    same = [r["value"] for r in rows if r["trained"] == r["tested"] and not np.isnan(r["value"])]
    other = [r["value"] for r in rows if r["trained"] != r["tested"] and not np.isnan(r["value"])]
    if not other:
        return []
    text = (
        f"Across words of regret: a probe of one word has AUROC {np.mean(same):.2f} on it (mean of {len(same)} words)"
        f" and {np.mean(other):.2f} on others ({np.min(other):.2f} to {np.max(other):.2f})"
    )
    return [Finding(text, values={"same": float(np.mean(same)), "other": float(np.mean(other)), "words": len(same)})]


def _steered(second: Rows) -> list[Finding]:
    plain = {key_of(r): r for r in matching(second, method="")}
    out = []
    for method, direction, strength in arms(second):
        rows = matching(second, method=method, direction=direction, strength=strength)
        pairs = [
            (r["value"] - plain[key_of(r)]["value"], (r["sample"], r["form"]))
            for r in rows
            if not np.isnan(r["value"] - plain[key_of(r)]["value"])
        ]
        back = rate(rows)
        if not pairs or back is None:
            continue
        change = mean_of([d for d, _ in pairs], [k for _, k in pairs])
        text = (
            f"Steered by {method} toward {direction} at strength {strength:g} it takes {percent(back)} back:"
            f" {change.mean:+.1%} ({change.interval[0]:+.1%} to {change.interval[1]:+.1%}; p {change.p:.2g}) on"
            f" {number_of(change.n, 'sample')} that could be read in both; {unread(rows):.1%} could not be read"
        )
        values: dict[str, Any] = {"method": method, "direction": direction, "strength": strength}
        values |= back.facts("taken_back")
        values |= {**change.facts("change"), "p": change.p, "unread": unread(rows)}
        out.append(Finding(text, values=values))
    return out


def _dialogues(rows: Rows) -> list[dict[str, Any]]:
    """One record for each sample, form and true modality: a0 to a3, the place of the word, and how each was read."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in rows:
        if r["sample"] == ALL or r.get("method"):
            continue
        facts = {"sample": r["sample"], "form": r["form"], "task": r["task"], "true": r["toward"]}
        own = found.setdefault((r["sample"], r["form"], r["toward"]), facts)
        if r["metric"] == "a0":
            own["a0"] = r["text"]
        elif r["metric"] == "misled":
            own["a1 before " + ANSWER_NAME[r["dialogue"]]] = {
                "text": r["first"],
                "from the wrong modality": bool(r["value"]),
            }
        elif r["metric"] == "taken_back":
            keys = {
                "text": "text",
                "act": "act",
                "keyword": "word",
                "severity": "severity",
                "character": "character",
                "token": "token",
            }
            own[ANSWER_NAME[r["dialogue"]]] = {name: r[k] for name, k in keys.items()}
    return list(found.values())
