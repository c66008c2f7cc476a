"""What is shown, to take along: an archive of the artefact, the picture and Python code that runs as printed in it."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from eval_suite.play.session import Asked, Posed, Session
from factory.data.prompt import Prompt, Segment
from factory.recipe.sections.model import ModelSpec
from factory.steer import PromptMethod, Steering, artefact

ARTEFACT, PICTURE, CODE = "artefact", "picture.png", "play.py"


def code(session: Session, asked: Asked) -> str:
    """Python that gives the steered answer again, from the folder of an ``archive``. Raises ``UserError`` as answers
    do.
    """
    return _code(session, session.posed(asked), asked)


def archive(session: Session, asked: Asked, folder: Path) -> Path:
    """A ZIP in ``folder`` with the code, the picture where one is shown, and the artefact where a vector steers."""
    posed = session.posed(asked)
    name = f"{asked.method}-{asked.direction}".replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root, zipfile.ZipFile(folder / f"{name}.zip", "w") as file:
        if isinstance(posed.made, Steering):
            kept = replace(posed.made, strength=float(asked.strength))
            save = lambda: artefact.save(Path(root) / ARTEFACT, kept, session.view, {"direction": asked.direction})
            for part in sorted(session.worker.do(save).iterdir()):
                file.write(part, f"{ARTEFACT}/{part.name}")
        for picture in posed.prompt.images:
            with file.open(PICTURE, "w") as out:
                picture.save(out, "PNG")
        file.writestr(CODE, _code(session, posed, asked))
        return folder / f"{name}.zip"


def _code(session: Session, posed: Posed, asked: Asked) -> str:
    pictured, tokens, made = bool(posed.prompt.images), session.max_new_tokens, posed.made
    among = f", among=torch.tensor({session.among.tolist()})" if session.among is not None else ""
    imports = {"from PIL import Image": pictured, "import torch": bool(among)}
    own = {"from factory.data.prompt import Prompt, Role, Segment": True, "import factory": False}
    if isinstance(made, Steering | PromptMethod):
        tokens = (isinstance(made, PromptMethod) and made.max_new_tokens) or tokens
        asks = f"print(answer_prompts(view, [prompt], {tokens}{among})[0])"
        own["from factory.bench import answer_prompts"] = True
    if isinstance(made, Steering):
        own["import factory"] = True
        body = f'with factory.steered(view, "{ARTEFACT}", strength={float(asked.strength)!r}):\n    {asks}'
    elif isinstance(made, PromptMethod):
        body = asks
    else:
        node = dict(session.methods.offer(asked.method).node or {})
        own["from factory.recipe.nodes import read_node"] = own["from factory.steer.logits import contrasted"] = True
        body = (
            f'method = read_node("steering", {node!r}).make()\n'
            f'answers = contrasted(view, method, [prompt], "{asked.direction}", [{float(asked.strength)!r}],'
            f" {tokens}{among})\nprint(answers[0][0])"
        )
    loads, model = _model(session.model)
    own |= dict.fromkeys(loads, True)
    if session.plugins:
        own["from factory.registry import load_plugins"] = True
        model = f"load_plugins({list(session.plugins)!r})\n{model}"
    head = [_sorted(imports), _sorted(own)]
    about = f'"""{asked.method} toward {asked.direction}, strength {asked.strength:g}."""'
    parts = [about, *filter(None, head), f"{model}\n{_prompt(posed.prompt)}\n{body}\n"]
    return "\n\n".join(parts)


def _sorted(lines: dict[str, bool]) -> str:
    wanted = [line for line, is_wanted in lines.items() if is_wanted]
    return "\n".join(sorted(wanted, key=lambda line: (line.startswith("from"), line)))


def _model(spec: ModelSpec) -> tuple[tuple[str, ...], str]:
    """Imports, and the line that loads the model."""
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    sources = [key for key in ("zoo", "path", "hub") if key in asked]
    if len(sources) == 1 and not {"compose", "build"} & set(asked):
        name, options = asked.pop(sources[0]), "".join(f", {key}={value!r}" for key, value in asked.items())
        return ("import factory",), f'view = factory.load("{name}"{options})'
    imports = ("from factory.model.load import load", "from factory.recipe.schema import ModelSpec")
    return imports, f"view = load(ModelSpec.model_validate({asked!r}))"


def _prompt(prompt: Prompt) -> str:
    def segment(s: Segment) -> str:
        if s.image is not None:
            return f'Segment(Role.IMAGE, image=Image.open("{PICTURE}").convert("RGB"))'
        return f"Segment(Role.{s.role.name}, {s.text!r}{', inline=True' if s.inline else ''})"

    return "prompt = Prompt((\n" + "".join(f"    {segment(s)},\n" for s in prompt.segments) + "))"
