"""Which modality an answer follows (MC²; SPEC.md 3.3), and what counts as a generation error (A20).

Rule ``conflict/2``; what comes first decides:

1. ``error``: the answer is empty, has no letter and no digit, or repeats itself (``collapse``). Where the model thinks
   in tags, its answer is what follows them.
2. Of a choice, the option letter (``letters``).
3. The one modality whose words are found (``answer_words``), after the last "the answer is" where that stands. Negated
   words do not count, and of two answers one of which contains the other, the longer does.
4. ``flags``: the answer says that the sources disagree, and does not deny or suppose it.
5. ``other``: all else, as refusals and both answers at once. ``read`` tells those apart that name neither answer.

Over two option orders, any error is an error, agreement is what they agree on, and disagreement is ``other``: so one
answer that flags the conflict beside one that follows a modality is ``other``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from eval_suite.scorers import conflict_1
from eval_suite.scorers.answer_words import Mention, Word, meant, mentions, plain, words
from eval_suite.scorers.collapse import collapsed
from eval_suite.scorers.letters import letter

RULE = "conflict/2"
SIDES = ("vision", "text")
NEITHER = ("flags", "other", "error")
VERDICTS = (*SIDES, *NEITHER)
OUTCOMES = ("follow", "compete", "flags", "other", "error")
UNKNOWN = "unknown"

_THOUGHT = r"(?:think|thinking|thought|reasoning)"
_ANSWER_IS = re.compile(
    r"\b(?:answer|choice)\b[*_\s]*(?:(?:is|would be|must be|will be)\b\s*:?|:)|答案(?:是|为|為)?[:：]?", re.IGNORECASE
)
_HENCE = re.compile(r"\b(?:so|therefore|thus|hence)\b|所以|因此|因而", re.IGNORECASE)
_FLAG = re.compile(
    r"\b(?:conflict|contradict|inconsisten|disagree|discrepan|mismatch|incompatib)\w*|\bat odds\b"
    r"|(?:\bnot|n't)\s+(?:\w+\s+){0,2}(?:match|agree|correspond|align|consistent)\b"
    r"|冲突|衝突|矛盾|不一致|不相?符|不匹配|不吻合|相悖",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(
    r"[.,;:!?。，；：！？\n]|\b(?:but|because|due|since|given|as|which|so|and|however|although|though|while)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.;:!?。；：！？\n]")
_SUPPOSED = re.compile(r"\b(?:if|whether|unless|in case)\b|如果|若|是否|假如|要是|一旦", re.IGNORECASE)
_DENIED = re.compile(
    r"\b(?:not|never|nothing|neither|nor|none|without|(?!can't|couldn't)\w+n't)\b|\bno\s+(?:\w+\s+){0,3}$"
    r"|\b(?:cannot|can't|couldn't)\s+(?:\w+\s+){0,1}(?:see|find|detect|notice|identify)\b|[没沒无無不未非]\w{0,4}$",
    re.IGNORECASE,
)


def judge(form: str, text: str, vision: str, text_answer: str) -> str:
    """The verdict on one answer, one of ``VERDICTS``; ``form`` is order1 (option A is the vision answer), order2 or
    open.
    """
    found = read(form, text, vision, text_answer)
    return "other" if found == UNKNOWN else found


def read(form: str, text: str, vision: str, text_answer: str) -> str:
    """As ``judge``, with "unknown" for what is ``other`` and names neither answer."""
    answer = plain(answered(text))
    if collapsed(answer):
        return "error"
    said, names = words(answer), {"vision": vision, "text": text_answer}
    flagged = flags(answer)
    if form != "open":
        behind = dict(zip("AB", ("vision", "text") if form == "order1" else ("text", "vision"), strict=True))
        chosen = letter(answer, said, {key: names[name] for key, name in behind.items()}, only=flagged)
        if chosen is not None:
            return behind[chosen]
    found = mentions(said, names)
    return named(answer, said, found) or ("flags" if flagged else "other" if found else UNKNOWN)


def called(verdict: str, sources: tuple[str, str]) -> str:
    """A verdict of any version of the rule in the names of the two ``sources``: the rule calls the first one vision and
    the second text.
    """
    return dict(zip(SIDES, sources, strict=True)).get(verdict, verdict)


def answered(text: str) -> str:
    """What a model that thinks in tags gives as its answer: nothing while it still thinks; else the text."""
    text = re.split(rf"</{_THOUGHT}>", text, flags=re.IGNORECASE)[-1]
    text = re.split(rf"<{_THOUGHT}>", text, flags=re.IGNORECASE)[0]
    inside = re.findall(r"<answer>(.*?)(?:</answer>|$)", text, flags=re.IGNORECASE | re.DOTALL)
    return inside[-1] if inside else text


def named(text: str, said: Sequence[Word], found: Sequence[Mention]) -> str | None:
    """The one of the mentioned answers that the text means; None where it means none or both."""
    kept = meant(text, said, found)
    for marker, decides in ((_ANSWER_IS, True), (_HENCE, False)):
        after = [m.end() for m in marker.finditer(text) if any(c.isalnum() for c in text[m.end() :])]
        if after:
            final = {mention.name for mention in kept if said[mention.first].start >= after[-1]}
            if decides or len(final) == 1:
                return final.pop() if len(final) == 1 else None
    both = {mention.name for mention in kept}
    return both.pop() if len(both) == 1 else None


def flags(text: str) -> bool:
    """Whether a ``plain`` text says that the sources disagree, in CLASH's words (conflict, contradict), others like
    them, or Chinese.
    """
    return any(not _taken_back(text[: match.start()]) for match in _FLAG.finditer(text))


def _taken_back(before: str) -> bool:
    sentence, clause = _SENTENCE_END.split(before)[-1], _CLAUSE_END.split(before)[-1]
    return bool(_SUPPOSED.search(sentence)) or bool(_DENIED.search(clause))


def agree(verdicts: Sequence[str]) -> str:
    """One verdict for a sample from those on its option orders."""
    if "error" in verdicts:
        return "error"
    return verdicts[0] if len(set(verdicts)) == 1 else "other"


def outcome(verdict: str, direction: str) -> str:
    """What a verdict is for somebody who steers toward ``direction``: one of ``OUTCOMES``."""
    if verdict in ("flags", "error"):
        return verdict
    if verdict in ("other", UNKNOWN):
        return "other"
    return "follow" if verdict == direction else "compete"


RULES: Mapping[str, Callable[[str, str, str, str], str]] = {RULE: read, conflict_1.RULE: conflict_1.judge}
