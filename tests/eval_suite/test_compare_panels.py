"""The panels of a comparison's figures beside one another."""

from itertools import pairwise

from eval_suite.compare.load import load
from eval_suite.compare.plots import draw
from eval_suite.compare.table import build
from eval_suite.report import style
from tests.eval_suite.test_compare import drawn, run_folder


def test_panels_keep_apart_and_say_which_way_is_better_only_where_it_is_known(tmp_path, monkeypatch):
    drawings, metrics = [], ("f1", "error", "text vision_ratio", "text vision_ratio beside")
    monkeypatch.setattr(style, "finish", lambda canvas, *_: drawings.append(canvas))
    more = {
        "label": "control: irrelevant text",
        "beside": metrics[1:],
        "metrics": dict.fromkeys(metrics, 0.5),
        "ci": {},
    }
    run = run_folder(tmp_path, "a", {"none": drawn(0.5, n=60), "l2s": drawn(0.5, n=60)}, **more)
    draw(build([*load([run])]))
    scores = drawings[0]
    scores.draw_without_rendering()
    of = lambda parts: [part.get_window_extent() for part in parts]
    texts = [[ax.title, ax.xaxis.label] for ax in scores.axes]
    for part in zip(*texts, strict=True):
        assert all(left.x1 < right.x0 for left, right in pairwise(of(part)))
    for ax in scores.axes:  # every score is 0.5: the axis is of points, not of thousandths
        assert ax.get_xlim()[1] - ax.get_xlim()[0] >= 2
        assert all(left.x1 < right.x0 for left, right in pairwise(of(ax.get_xticklabels())))
    sides = [label.get_text().partition(", ")[2] for _, label in texts]
    assert sides == ["right is better", "left is better", "", ""]
