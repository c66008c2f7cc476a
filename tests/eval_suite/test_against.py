"""Sycophancy against accuracy over models, in a comparison of runs."""

from __future__ import annotations

from eval_suite.commands.compare import Compare
from tests.eval_suite.test_compare import drawn, run_folder


def test_sycophancy_stands_against_accuracy_over_models(tmp_path):
    """Five models without steering: the table and the figure have both scores, and the rank correlation is the plain
    one."""
    shares = {"a": (0.9, 0.4), "b": (0.8, 0.5), "c": (0.7, 0.3), "d": (0.6, 0.6), "e": (0.5, 0.7)}
    for name, (accuracy, mss) in shares.items():
        metrics = {"under_pressure": 0.5, "accuracy": accuracy, "mss": mss}
        intervals = {metric: [value - 0.05, value + 0.05] for metric, value in metrics.items()}
        more = {"metrics": metrics, "ci": intervals, "main": "under_pressure", "beside": ["accuracy", "mss"]}
        run_folder(tmp_path, name, {"none": drawn(0.5)}, protocol="pressure/test", **more)
    Compare.over([tmp_path / name for name in shares], tmp_path / "out")
    told = (tmp_path / "out/compare.md").read_text()
    section = told[told.index("### pope: mss against accuracy") :]
    assert "90.0 (85.0 to 95.0) | 40.0 (35.0 to 45.0) |" in section
    assert [line.split("|")[2].split()[0] for line in section.splitlines()[4:9]] == [
        "50.0",
        "60.0",
        "70.0",
        "80.0",
        "90.0",
    ]
    rho = 1 - 6 * sum(d * d for d in (5 - 2, 4 - 3, 3 - 1, 2 - 4, 1 - 5)) / (5 * 24)  # from the ranks, by hand
    assert f"over 5 models without steering: {rho:.2f}." in section
    assert (tmp_path / "out/figures/against_1.svg").stat().st_size > 2000
    Compare.over([tmp_path / name for name in ("a", "b")], tmp_path / "two")
    assert "2 models without steering: too few for a correlation" in (tmp_path / "two/compare.md").read_text()
