"""What a judge model is asked, and how its answer is read: MM-Vet and HallusionBench.

``mmvet-judge/2`` (Yu et al. 2024, mm-vet_evaluator.py at acde843): the first word as a number in [0, 1]; what the
original cannot read it asks for again, up to five times, and then scores 0. Ours: the only number of an answer, maybe
behind a word or between asterisks, is read at once, and so is what the fifth time brings. (``mmvet-judge/1`` left out
the prompt's blank line and last space and asked once.) ``hallusion-judge/1`` (Guan et al. 2024, utils.py at 744007c).
"""

from __future__ import annotations

import math
import re

from eval_suite.scorers.reading import Reading

MMVET, HALLUSION = "mmvet-judge/2", "hallusion-judge/1"
AGAIN = "\nPredict the correctness of the answer (digit): "
WITH_DIGITS = re.compile(r"[-+]?[\w.]*\d[\w.]*%?")
PLAIN = re.compile(r"\d+\.?\d*|\.\d+")
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and"
    " Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland"
    " is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of these"
    " countries do not accurately represent their landscapes. | "
)
MMVET_PROMPT = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in"
    " the ground truth means it is totally right only when all elements in the ground truth are present in the"
    " prediction, and <OR> means it is totally right when any one element in the ground truth is present in the"
    " prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0"
    " (totally right). Just complete the last space of the correctness score.\n\nQuestion | Ground truth | Prediction"
    " | Correctness\n--- | --- | --- | ---\nWhat is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\nWhat is x in the"
    " equation? | -1 <AND> -5 | x = -1 | 0.5\nWhat is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\nWhat is x in"
    " the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\nWhat is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 |"
    f" 1.0\n{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is"
    f" not very icy and Greenland isn't very green. | 0.4\n{_MEME}The meme is using humor to point out the misleading"
    " nature of Iceland's and Greenland's names. Iceland, despite its name, has lush green landscapes while Greenland"
    " is mostly covered in ice and snow. The text 'This is why I have trust issues' is a playful way to suggest that"
    " these contradictions can lead to distrust or confusion. The humor in this meme is derived from the unexpected"
    " contrast between the names of the countries and their actual physical characteristics. | 1.0\n"
)
HALLUSION_PROMPT = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and the prediction answer"
    " to ensure a clear understanding of the information provided. Assess the correctness of the predictions. If the"
    " prediction answer does not conflict with the reference answer, please generate “correct”. If the prediction"
    " answer conflict with the reference answer, please generate “incorrect”. If the prediction answer is unclear about"
    ' the answer, please generate "unclear". \n\n Question:{}\nReference answer: {}\nPrediction answer:{}\nOutput:'
)


def mmvet_prompt(question: str, truth: str, answer: str) -> str:
    spaced = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{MMVET_PROMPT}\n{question} | {spaced} | {answer} | "


def grade_of(said: str) -> float | None:
    """The grade in [0, 1] that a judge gave, or None."""
    first, numbers = said.split(" ")[0].strip(), [found.rstrip(".") for found in WITH_DIGITS.findall(said)]
    try:
        grade = float(first)
    except ValueError:
        grade = float(numbers[0]) if len(numbers) == 1 and PLAIN.fullmatch(numbers[0]) else math.nan
    return grade if 0 <= grade <= 1 else None


def mmvet_grade(said: str | None) -> Reading:
    """A judge's grade; where none can be read it is a parse failure, counts 0 and is to be asked for again."""
    grade = None if said is None else grade_of(said)
    sums = {"grade": grade or 0.0, "n": 1.0}
    return Reading(None if grade is None else f"{grade:g}", sums, grade or 0.0, grade is None, again=grade is None)


def hallusion_verdict(said: str) -> bool | None:
    """Correct, incorrect, or None for unclear (the order of the tests is the original's: "incorrect" holds
    "correct").
    """
    return False if "incorrect" in said.lower() else True if "correct" in said.lower() else None
