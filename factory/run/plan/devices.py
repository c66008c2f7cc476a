"""What devices do in a second, as their makers tell it, and how much of that is taken to be reached.

A plan computes time from these and from a model's sizes where nothing can be timed. What is reached is assumed for a
device that is not here; of the processor at hand it is measured (``processor``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from factory.errors import UserError, did_you_mean

PRODUCT_SHARE, MEMORY_SHARE = 0.5, 0.7  # of the peaks that eager transformers reach; assumed, not measured
OPERATIONS = 45  # of an eager block, about
LAUNCH = 1e-5 * OPERATIONS  # seconds in which a processor hands them to an accelerator; assumed


@dataclass(frozen=True)
class Device:
    """``products`` are floating-point operations a second in matrix products by precision, dense, ``bandwidth`` bytes
    a second, ``memory`` bytes; the shares of both that are reached, and ``call``, the seconds that running one block
    takes whatever it computes. ``waits``: the caller waits for each block, so that its call comes on top.
    """

    name: str
    products: Mapping[str, float]
    bandwidth: float
    memory: float
    source: str
    product_share: float = PRODUCT_SHARE
    memory_share: float = MEMORY_SHARE
    call: float = LAUNCH
    waits: bool = False
    measured: bool = False

    def seconds(self, flops: float, weights: float, values: float, dtype: str, calls: float = 1.0) -> float:
        """Of ``calls`` of a block, or of another module, that together multiply ``flops`` operations with bytes of
        ``weights``, and read and write bytes of ``values`` beside. Raises ``UserError`` for a precision it lacks."""
        peak, bandwidth = self.peak(dtype) * self.product_share, self.bandwidth * self.memory_share
        busy = max(flops / peak, weights / bandwidth) + values / bandwidth
        return busy + calls * self.call if self.waits else max(busy, calls * self.call)

    def peak(self, dtype: str) -> float:
        if dtype not in self.products:
            raise UserError(f"--device {self.name}: no figure for {dtype}; there are {', '.join(self.products)}")
        return self.products[dtype]

    def told(self, dtype: str) -> str:
        """The figures and what of them is taken, in a line."""
        how = "measured here just now" if self.measured else f"assumed; peaks: {self.source}"
        return (
            f"{self.name}: {self.product_share:.0%} of {self.peak(dtype) / 1e12:,.3g} TFLOPS in {dtype},"
            f" {self.memory_share:.0%} of {self.bandwidth / 1e9:,.4g} GB/s, {1e3 * self.call:.2f} ms a block at least"
            f" ({how})"
        )


def _half(tera: float, full: float) -> dict[str, float]:
    return {"bfloat16": tera * 1e12, "float16": tera * 1e12, "float32": full * 1e12}


DEVICES = {
    "h100": Device("h100", _half(989.4, 66.9), 3.35e12, 80e9, "NVIDIA H100 data sheet, SXM, dense"),
    "h200": Device("h200", _half(989.4, 66.9), 4.8e12, 141e9, "NVIDIA H200 data sheet, SXM, dense"),
    "a100": Device("a100", _half(312, 19.5), 2.039e12, 80e9, "NVIDIA A100 data sheet, 80 GB SXM, dense"),
    "rtx4090": Device("rtx4090", _half(165.2, 82.6), 1.008e12, 24e9, "NVIDIA Ada whitepaper, appendix A, dense"),
}
NAMES = (*DEVICES, "cpu")


def check_name(name: str) -> None:
    """Raises ``UserError`` for a device that no figures are known of."""
    if name not in NAMES:
        raise UserError(
            f"--device {name}: no figures are known of it.{did_you_mean(name, NAMES)} There are: {', '.join(NAMES)}"
        )
