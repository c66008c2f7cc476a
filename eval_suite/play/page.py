"""The playground's page, by Gradio (the extra ``play``): it shows what a ``Session`` says, and knows no more."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere

import gradio as gr
from PIL import Image

from eval_suite.play import draw
from eval_suite.play.export import archive, code
from eval_suite.play.session import Asked, Session, read_picture
from factory.errors import UserError
from factory.steer.base import Direction

TOWARD = [("the picture", "vision"), ("the text", "text")]
CSS = (
    draw.CSS
    + """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#sf-head p { margin: .1rem 0 0; } #sf-head h1 { margin: 0; font-size: 1.5rem; }
.sf-answer textarea { font-size: 1.35rem; font-weight: 600; line-height: 1.35; }
.sf-section { margin: .2rem 0 0; font-size: 1rem; font-weight: 600; color: var(--body-text-color); }
footer { opacity: .75; }
#sf-picture img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
#sf-sample input { padding-right: 2rem; text-overflow: ellipsis; }
@media (max-width: 640px) { .gradio-container { padding: .6rem !important; } }
"""
)
FIELDS = (
    *("sample", "picture", "context", "question", "vision", "text"),
    *("method", "direction", "strength", "hidden"),
)
KEPT = 24 * 3600  # seconds that uploaded pictures and exports are kept


def picture_field(**options: Any) -> gr.Image:
    """A picture whose file is handed on whatever is in it: the engine's reader shows the model what it would see of a
    benchmark's, and says what it cannot read. (A subclass would have Gradio write a stub beside this file.)
    """
    field = gr.Image(type="filepath", format="png", image_mode=None, **options)
    field.preprocess = lambda payload: payload.path if payload else None
    return field


def for_people(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """``function``, a generator, with a person's mistake told on the page in its one line, without a traceback;
    ``names`` are those of its inputs for clients of the page.
    """

    @functools.wraps(function)
    def told(*given: Any) -> Iterator[Any]:
        try:
            yield from function(*given)
        except UserError as error:
            raise gr.Error(str(error), title="This cannot be asked", duration=12, print_exception=False) from None

    own = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    told.__signature__ = own  # type: ignore[attr-defined]  # inspect reads it of any function
    return told


class Page:
    """What the events of the page do; none keeps anything of a visitor."""

    def __init__(self, session: Session, exports: Path) -> None:
        self.session, self.exports = session, exports

    def asked(self, *given: Any) -> Asked:
        """What the fields say, in the order of ``FIELDS``."""
        sample, picture, context, question, vision, text, method, direction, strength, hidden = given
        return Asked(
            method,
            question or "",
            context or "",
            read_picture(picture),
            vision or "",
            text or "",
            direction,
            strength,
            "picture" in hidden,
            "context" in hidden,
            sample,
        )

    def take(self, sample: str) -> Iterator[tuple[Image.Image | None, str, str, str, str]]:
        """A sample's picture, context, question and both answers."""
        s = self.session.asked(sample)
        yield s.picture, s.context, s.question, s.vision, s.text

    def choose(self, method: str, direction: Direction) -> Iterator[tuple[Any, Any]]:
        """The directions that a method has, and its strength."""
        offer = self.session.methods.offer(method)
        direction = direction if direction in offer.make else offer.directions[0]
        choices = [(name, side) for name, side in TOWARD if side in offer.make]
        strength = gr.update(value=offer.strength[direction], interactive=offer.has_strength)
        yield gr.update(choices=choices, value=direction), strength

    def answer(self, *given: Any) -> Iterator[tuple[str, str, str, str]]:
        """Both answers as they are written, and what the rule says of them; none where it cannot be asked."""
        try:
            asked = self.asked(*given)
            if not self.session.methods.ready(asked.method, asked.direction):
                yield "", f"({asked.method} is being fitted …)", "", ""
            for found in self.session.answers(asked):
                yield found.unsteered, found.steered, *draw.verdicts(found)
        except UserError:
            yield "", "", "", ""
            raise

    def behind(self, *given: Any) -> Iterator[tuple[Any, Any]]:
        """The curve and the diagnostic's numbers, one after the other."""
        asked = self.asked(*given)
        curve = draw.curve(self.session.curve(asked), asked.strength)
        yield curve, gr.skip()
        yield curve, draw.ratios(self.session.ratios(asked))

    def attention(self, *given: Any) -> Iterator[str]:
        """The attention in a layer."""
        *fields, layer = given
        if layer not in range(depth := self.session.view.depth):
            raise UserError(f"layer {layer} is out of range: the model has layers 0 to {depth - 1}")
        yield draw.attention(self.session.looks(self.asked(*fields)), int(layer))

    def export(self, *given: Any) -> Iterator[tuple[str, str]]:
        """The code of what is shown, and the archive that it runs in."""
        asked = self.asked(*given)
        folder = Path(tempfile.mkdtemp(dir=self.exports))
        yield code(self.session, asked), str(archive(self.session, asked, folder))


def build(session: Session, exports: Path) -> gr.Blocks:
    """The page of a session; exports are written into folders of their own in ``exports``."""
    page, first = Page(session, exports), session.methods.first
    names = [
        (f"{s.task.replace('_', ' ')} · {s.question} · {key}" if s.task else f"{s.question} · {key}", key)
        for key, s in session.samples.items()
    ]
    direction = first.directions[0]
    with gr.Blocks(title="Steering Factory playground", analytics_enabled=False, delete_cache=(3600, KEPT)) as blocks:
        gr.HTML(
            f"<h1>Playground</h1><p class='sf-note'>{draw.escape(session.title)}</p>", elem_id="sf-head", padding=False
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                sample = gr.Dropdown(names, value=session.turned, label="Sample", elem_id="sf-sample")
                picture = picture_field(
                    label="Picture",
                    elem_id="sf-picture",
                    height=250,
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                )
                context = gr.Textbox(label="Context", lines=3, max_lines=8)
                question = gr.Textbox(label="Question", lines=1, max_lines=4)
                with gr.Row():
                    vision = gr.Textbox(label="The picture's answer", min_width=120)
                    text = gr.Textbox(label="The text's answer", min_width=120)
                hidden = gr.CheckboxGroup(
                    [("hide the picture", "picture"), ("hide the context", "context")], label="What if", value=[]
                )
                ask = gr.Button("Ask", variant="primary")
            with gr.Column(scale=6, min_width=320):
                with gr.Row():
                    method = gr.Dropdown(
                        list(session.methods.offers), value=first.label, label="Method", filterable=False, min_width=140
                    )
                    toward = gr.Radio(
                        [(name, side) for name, side in TOWARD if side in first.make],
                        value=direction,
                        label="Steer toward",
                        min_width=200,
                    )
                strength = gr.Slider(0, session.most, first.strength[direction], step=0.05, label="Strength")
                strength.preprocess = lambda typed: typed  # also beyond its end: what cannot be is told in our words
                with gr.Row():
                    with gr.Column(min_width=200):
                        unsteered = gr.Textbox(label="As it is", interactive=False, lines=1, elem_classes="sf-answer")
                        plain_verdict = gr.HTML()
                    with gr.Column(min_width=200):
                        steered = gr.Textbox(label="Steered", interactive=False, lines=1, elem_classes="sf-answer")
                        steered_verdict = gr.HTML()
                gr.HTML("<h2 class='sf-section'>Probability of either answer over strength</h2>")
                curve = gr.HTML()
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                gr.HTML("<h2 class='sf-section'>What moves the next token, unsteered</h2>")
                ratios = gr.HTML()
                gr.HTML("<h2 class='sf-section'>To take along</h2>")
                export = gr.Button("Export artefact and code")
                file = gr.File(label="Archive", interactive=False, visible="hidden")
                printed = gr.Code(label="Runs as printed in the unpacked archive", language="python", visible="hidden")
            with gr.Column(scale=6, min_width=320):
                gr.HTML("<h2 class='sf-section'>Where the last token looks on the picture</h2>")
                above = min(session.layer + 1, session.view.depth - 1)  # the first that steering can change
                layer = gr.Slider(0, session.view.depth - 1, above, step=1, label="Layer")
                layer.preprocess = lambda typed: typed
                attention = gr.HTML()
        fields = [sample, picture, context, question, vision, text, method, toward, strength, hidden]
        shown = [unsteered, steered, plain_verdict, steered_verdict]
        run: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
        quiet = {**run, "api_visibility": "private"}
        answer, behind = for_people(page.answer, *FIELDS), for_people(page.behind, *FIELDS)
        look = for_people(page.attention, *FIELDS, "layer")
        taken = [picture, context, question, vision, text]

        def then_below(answered: Any, named: bool = False) -> None:
            """What lies behind the answers; nothing where they were refused. The layer is the one chosen by then."""
            how = {**run, "api_name": "behind"} if named else quiet
            followed = answered.success(behind, fields, [curve, ratios], **how)
            followed.success(look, [*fields, layer], attention, **quiet)
            answered.failure(lambda: ("", "", ""), None, [curve, ratios, attention], **quiet)

        def then_all(event: Any, named: bool = False) -> None:
            how = {**run, "api_name": "answer"} if named else quiet
            then_below(event.success(answer, fields, shown, **how), named)

        for event, how in ((blocks.load, quiet), (sample.input, {**run, "api_name": "sample"})):
            then_all(event(for_people(page.take, "sample"), [sample], taken, **how), named=event is not blocks.load)
        chosen = for_people(page.choose, "method", "direction")
        then_all(method.input(chosen, [method, toward], [toward, strength], **{**run, "api_name": "method"}))
        at_once = [toward.input, hidden.input, ask.click, question.submit, picture.upload, picture.clear]
        for triggers in (at_once, [strength.input]):
            then_below(gr.on(triggers, answer, fields, shown, trigger_mode="always_last", **quiet))
        layer.input(look, [*fields, layer], attention, trigger_mode="always_last", **run, api_name="layer")
        export.click(for_people(page.export, *FIELDS), fields, [printed, file], **run, api_name="export").success(
            lambda: (gr.update(visible=True), gr.update(visible=True)), None, [printed, file], **quiet
        )
    return blocks


def theme() -> gr.themes.Base:
    """The project's colours, and fonts that the machine has: nothing is fetched."""
    own, mono = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "Consolas", "monospace")
    return gr.themes.Default(primary_hue="indigo", neutral_hue="gray", font=own, font_mono=mono)


def serve(session: Session, host: str, port: int, exports: Path, **options: Any) -> tuple[gr.Blocks, str]:
    """Serve the page of a session at ``host`` and ``port`` (0: a free one); returns it and its address, at once.
    Raises ``UserError`` for a port that is taken.
    """
    blocks = build(session, exports)
    try:
        _, local, _ = blocks.queue(default_concurrency_limit=None).launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            share=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=theme(),
            css=CSS,
            **options,
        )
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be served at; name another host or port") from error
    return blocks, local
