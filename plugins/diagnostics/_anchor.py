"""What Instruction Anchor claims (takeaways of sec. 3.2, 3.3, 4.1 and 4.2); several diagnostics test parts of it."""

from __future__ import annotations

from factory.diagnose.summary import Claim

CLAIMS = {
    "anchor 1": Claim(
        "instruction tokens, not the last token or the format constraint, are where the cues of the modalities gather"
        " (sec. 3.2)",
        ("relay", "context", "position"),
    ),
    "anchor 2": Claim(
        "the decision is made at the instruction tokens and reaches the answer through them (sec. 3.3)",
        ("crystallised", "synchronised", "mediated"),
    ),
    "anchor 3": Claim(
        "attention moves the margin toward the instruction where it is followed and where it is not, the MLP less"
        " consistently (sec. 4.1)",
        ("followed", "failed"),
    ),
    "anchor 4": Claim("shallow attention buffers both modalities, deep attention decides (sec. 4.1)", ("buffer",)),
    "anchor 5": Claim(
        "few deep heads decide: blocking them stops following and little else, amplifying them restores it (sec. 4.1,"
        " 4.2)",
        ("sparse", "block", "specific", "amplify"),
    ),
}
