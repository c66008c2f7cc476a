"""The model class that lmms-eval (0.7.3) finds under the name `steering_factory`.

lmms-eval's pins do not go with this project's (its wandb 0.25 wants protobuf below 7), so it lives in an environment of
its own: ``pip install lmms-eval==0.7.3`` and the dependencies that this project names, then this project with
``pip install --no-deps``.
``python -m lmms_eval --model steering_factory --model_args pretrained=FOLDER,artefact=FOLDER`` works there by itself,
and the benchmark `lmms_eval` starts it (``python: /that/environment/bin/python``).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from factory.bench import answer_prompts
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.steer import artefact as artefacts
from factory.steer import steer

ROLES = {"system": Role.SYSTEM, "assistant": Role.ANSWER, "user": Role.QUESTION}
NEW_TOKENS = 1024


def manifest() -> Any:
    """The entry point's value, called by lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="steering_factory", chat_class_path="eval_suite.bridges.lmms_model.SteeringFactory")


def to_prompt(messages: list[dict[str, Any]]) -> Prompt:
    """lmms-eval's chat messages as a prompt. Raises ``ValueError`` for videos and sounds."""
    segments = []
    for message in messages:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "image":
                segments.append(Segment(Role.IMAGE, image=pictures.rgb(part["url"])))
            elif part["type"] == "text":
                segments.append(Segment(ROLES[message["role"]], part["text"]))
            else:
                raise ValueError(f"steering_factory takes texts and pictures, not {part['type']}")
    return Prompt(tuple(segments))


class SteeringFactory(lmms):
    """A model of this project, steered by an artefact where one is named. Greedy answers only; no answer is ever left
    out silently.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        artefact: str = "",
        dtype: str = "float32",
        device: str = "auto",
        batch_size: int = 1,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.view = load(ModelSpec(path=pretrained, dtype=dtype, device=device))
        self.steering = artefacts.load(Path(artefact), self.view) if artefact else None
        self.batch_size = int(batch_size)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers in the order of the requests; each has (context, doc_to_messages, settings, doc_id, task, split)."""
        answers: list[str] = [""] * len(requests)
        groups: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(_new_tokens(request.args[2]), []).append(i)
        for new_tokens, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                some = members[start : start + self.batch_size]
                for i, text in zip(some, self._answer([requests[i] for i in some], new_tokens), strict=True):
                    answers[i] = _until(text, requests[i].args[2].get("until"))
        return answers

    def _answer(self, requests: list[Any], new_tokens: int) -> list[str]:
        prompts = []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            prompts.append(to_prompt(doc_to_messages(self.task_dict[task][split][doc_id])))
        with steer(self.view, self.steering) if self.steering else nullcontext():
            return answer_prompts(self.view, prompts, new_tokens)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "lmms-eval 0.7.3 cannot score log-likelihoods (its filters turn them into text); use the benchmark lm_eval"
        )

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported")


def _new_tokens(settings: dict[str, Any]) -> int:
    if settings.get("do_sample") or settings.get("temperature"):
        raise ValueError("this task samples its answers; steering_factory answers greedily only")
    return int(settings.get("max_new_tokens", NEW_TOKENS))


def _until(text: str, stops: str | list[str] | None) -> str:
    for stop in [stops] if isinstance(stops, str) else stops or []:
        text = text.split(stop)[0] if stop else text
    return text.strip()
