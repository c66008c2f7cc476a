"""What a judge model is asked, and how its answer is read: MM-Vet and HallusionBench."""

from __future__ import annotations

import re

from eval_suite.scorers.reading import Reading

MMVET, HALLUSION = "mmvet-judge/1", "hallusion-judge/1"
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
    return f"{MMVET_PROMPT}{question} | {spaced} | {answer} |"


def mmvet_grade(said: str) -> Reading:
    """A grade in [0, 1]; anything else is a parse failure of the judge and counts 0."""
    found = re.match(r"\s*([01](?:\.\d+)?)\b", said)
    grade = float(found[1]) if found and float(found[1]) <= 1 else None
    return Reading(
        None if grade is None else f"{grade:g}", {"grade": grade or 0.0, "n": 1.0}, grade or 0.0, failed=grade is None
    )


def hallusion_verdict(said: str) -> bool | None:
    """Correct, incorrect, or None for unclear (the order of the tests is the original's: "incorrect" holds
    "correct").
    """
    return False if "incorrect" in said.lower() else True if "correct" in said.lower() else None
