"""Caption scores through pycocoevalcap 1.2: PTB tokeniser, BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where its parser is
there.

CIDEr's document frequencies come from the references of the scored pictures, so the score of a subset is no score of
the whole. The tokeniser and METEOR need Java; SPICE needs CoreNLP 3.6.0, which it downloads at its first use.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from eval_suite.scorers import Scorer
from factory.errors import UserError
from factory.registry import register

RULE = "pycocoevalcap/1.2"
SPICE_PARSER = ("spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar")


def requirements() -> str | None:
    """What is missing before captions can be scored, or None."""
    if find_spec("pycocoevalcap") is None:
        return "captions need pycocoevalcap, of the extra 'benchmarks'"
    return None if shutil.which("java") else "captions need Java (a java command) for the PTB tokeniser and METEOR"


def spice_missing() -> str | None:
    """Why SPICE cannot be computed here, or None."""
    package = find_spec("pycocoevalcap")
    assert package is not None and package.submodule_search_locations, "`requirements` has told of its absence before"
    home = Path(package.submodule_search_locations[0])
    lacking = [name for name in SPICE_PARSER if not (home / name).is_file()]
    return f"SPICE is missing: pycocoevalcap has no {lacking[0]}; fetch Stanford CoreNLP 3.6.0" if lacking else None


def caption_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Corpus scores, and each picture's own in the order of ``captions`` (their mean is the corpus score for CIDEr,
    ROUGE-L and SPICE).
    """
    if why := requirements():
        raise UserError(why)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.spice.spice import Spice
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    scorers = {"BLEU-4": Bleu(4), "METEOR": Meteor(), "ROUGE-L": Rouge(), "CIDEr": Cider()}
    if spice_missing() is None:
        scorers["SPICE"] = Spice()
    corpus, each = {}, {}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print their progress
        tokens = PTBTokenizer()
        gts = tokens.tokenize({k: [{"caption": c} for c in references[k]] for k in captions})
        res = tokens.tokenize({k: [{"caption": c.replace("\n", " ")}] for k, c in captions.items()})
        for name, scorer in scorers.items():
            total, single = scorer.compute_score(gts, res)
            if name == "BLEU-4":
                total, single = total[3], single[3]
            if name == "SPICE":
                single = [s["All"]["f"] for s in single]
            corpus[name], each[name] = float(total), [float(s) for s in single]
    return corpus, each


@register("scorer", "captions")
class Captions(Scorer):
    """Caption scores through pycocoevalcap, for diagnostics that generate captions."""

    missing = staticmethod(requirements)
    lacking = staticmethod(spice_missing)

    @staticmethod
    def score(texts: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Corpus scores by name."""
        return caption_scores(texts, references)[0]
