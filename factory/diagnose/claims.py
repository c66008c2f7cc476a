"""A paper's claims put to the test: findings that are parts of one, corrected for how many a run tests, and what
follows for the claim.

A finding holds where its effect has the size that the paper would call one, its interval excludes the null, and its p,
corrected by Holm over all findings of the run, is below 0.05. A claim holds where all of its parts were tested and
every test holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from factory.diagnose.summary import Claim, Finding, Summary
from factory.statistics.significance import holm

LEVEL = 0.05


def judged(summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    """The summaries with every p corrected over all of them; before them, under "claims", what follows for each claim
    that they test, of those that they hand in. What several say of a claim of one name is one: all its parts.
    """
    tested = [f for summary in summaries.values() for f in summary.findings if f.p is not None]
    adjusted = iter(holm([f.p for f in tested if f.p is not None]))
    corrected = {
        label: replace(
            summary, findings=tuple(f if f.p is None else _corrected(f, next(adjusted)) for f in summary.findings)
        )
        for label, summary in summaries.items()
    }
    parts = [f for summary in corrected.values() for f in summary.findings if f.part]
    claims: dict[str, Claim] = {}
    for name, claim in (each for summary in summaries.values() for each in summary.claims.items()):
        before = claims.get(name, claim)
        claims[name] = replace(before, parts=tuple(dict.fromkeys((*before.parts, *claim.parts))))
    about = [
        _verdict(name, claim, own)
        for name, claim in claims.items()
        if (own := [f for f in parts if (f.part or "").startswith(f"{name}/")])
    ]
    return (
        {"claims": Summary("What the paper claims, on this model", tuple(about), leads=True)} if about else {}
    ) | corrected


def _corrected(finding: Finding, p: float) -> Finding:
    values = {**finding.values, "p": finding.p, "p_holm": p}
    text = f"{finding.text}; p {finding.p:.2g}, corrected {p:.2g}"
    return replace(finding, text=text, holds=bool(finding.holds and p < LEVEL), values=values)


def _verdict(name: str, claim: Claim, tests: list[Finding]) -> Finding:
    missing = [part for part in claim.parts if f"{name}/{part}" not in {f.part for f in tests}]
    kept = sum(bool(f.holds) for f in tests)
    by_part = ", ".join(
        f"{part} {sum(bool(f.holds) for f in own)} of {len(own)}"
        for part in claim.parts
        if (own := [f for f in tests if f.part == f"{name}/{part}"])
    )
    text = f"{name}: {claim.says}: {kept} of {len(tests)} tests hold ({by_part})" + (
        f"; not tested: {', '.join(missing)}" if missing else ""
    )
    return Finding(text, kept == len(tests) and not missing, {"tests": len(tests), "hold": kept, "missing": missing})
