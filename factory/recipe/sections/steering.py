"""`collect:` and `evaluate:`: where states are read and what is compared."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, PositiveInt, model_validator

from factory.data.instructions import Style
from factory.recipe.nodes import Spec, distinct
from factory.recipe.sections.words import Direction, Layer, Text

DEFAULT_STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # SPEC A19
CURVE_SHARE = 0.25  # of test, with curve: chosen
Share = Annotated[float, Field(ge=0, lt=1)]
Position = Literal["last", "second_last", "last_user_token", "mean_prompt", "mean_completion"]
ANSWER = "{answer}"


def _holds_the_answer(completion: str) -> str:
    if ANSWER not in completion:
        raise ValueError(f"should hold {ANSWER}, which stands for a sample's answer toward each side")
    return completion


class CollectSpec(Spec):
    """Where hidden states are read; ``layer`` null takes the model's own, then its card's. ``instructions`` words P+
    and P-.

    ``completion`` contrasts beginnings of the model's own answer in place of instructions, as learn-to-steer does:
    "{answer}, the image" puts each sample's answer toward the image against that toward the text. It is read at its
    last tokens, or over all of them (``mean_completion``, as on POPE), and the prompt without it at its last token.

    ``contrast: pairs`` takes the prompts that the benchmark itself sets against each other, one toward each side.

    ``position`` is the token whose state is read (SPEC A14); ``batch_size`` prompts are run at once.
    """

    layer: Layer | None = None
    instructions: Style = "amps_eq9"
    position: Position = "last"
    batch_size: PositiveInt = 32
    contrast: Literal["instructions", "pairs"] = "instructions"
    completion: Annotated[Text, AfterValidator(_holds_the_answer)] | None = None

    @model_validator(mode="after")
    def _position_is_there(self) -> Self:
        if self.completion is not None and self.contrast == "pairs":
            raise ValueError("contrast: pairs and a completion are two contrasts; leave one of them out")
        if self.completion is None and self.position == "mean_completion":
            raise ValueError("position: mean_completion needs a completion, as in completion: '{answer}'")
        if self.completion is not None and self.position in ("last_user_token", "mean_prompt"):
            raise ValueError(f"position: {self.position} is before the completion; use last or mean_completion")
        return self


class EvaluateSpec(Spec):
    """What is compared: directions, strengths, and the share of errors a strength may add on the dev split; ``cost``
    also times an answer under each method, on the test split's first samples. ``reference`` is the label of the method
    that others are tested against and whose strengths the oracle chooses among; null takes the first that offers
    itself.

    ``directions`` to fit and score; ``strengths`` to try on dev; ``error_budget``: the errors that a strength may add;
    ``max_skipped``: the share of samples that may be unusable before a run stops; ``batch_size`` prompts are run at
    once; ``max_new_tokens`` of an answer; ``bootstrap``: draws of each paired interval.

    ``curve``: full answers test at every strength; chosen answers it at the strengths that dev chose, and draws curves
    and the oracle from a quarter of its samples. A number below 1 is chosen with another share; 0 draws none.

    ``controls``: what is asked beside the conflicts, of every method at its chosen strength; null asks all that the
    benchmark can give, [] none. Of each about ``control_questions`` are asked. ``random_control``: on so many test
    samples every method's vectors are turned into random directions too; 0 leaves that out. ``kl_budget``: a second
    table with the strengths that move an answer's first token by so many nats at most, where there is no conflict.

    ``choose``: grid answers dev at every strength in every variant; halving asks all of them of a few samples, and the
    better half of them of twice as many, until the last are asked of all. ``trials``: the share of training samples on
    which a method with a controller tries its strengths. ``known``: the label of the method that asks with one modality
    alone; the preference is then told of the samples too that it answers rightly from either.
    """

    directions: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(distinct)] = ("vision", "text")
    strengths: Annotated[tuple[FiniteFloat, ...], Field(min_length=1), AfterValidator(distinct)] = DEFAULT_STRENGTHS
    error_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.05
    batch_size: PositiveInt = 32
    max_new_tokens: PositiveInt = 16
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    cost: bool = False
    reference: Text | None = None
    known: Text | None = None
    controls: Annotated[tuple[Text, ...], AfterValidator(distinct)] | None = None
    control_questions: PositiveInt = 96
    random_control: Annotated[int, Field(ge=0)] = 32
    kl_budget: Annotated[float, Field(gt=0)] | None = None
    choose: Literal["grid", "halving"] = "grid"
    trials: Annotated[float, Field(gt=0, le=1)] = 1.0
    curve: Literal["full", "chosen"] | Share = "full"

    @property
    def curve_share(self) -> float:
        """The share of test samples that are asked at every strength."""
        share = {"full": 1.0, "chosen": CURVE_SHARE}.get(self.curve) if isinstance(self.curve, str) else self.curve
        return 1.0 if len(self.strengths) == 1 or share is None else share
