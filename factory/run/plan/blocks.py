"""What a block of a decoder computes and moves for some tokens, from its sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

from factory.model.facts import ModelFacts
from factory.run.plan.devices import Device


@dataclass(frozen=True)
class Sizes:
    """Of a decoder of ``depth`` blocks: the weights of one block's linear maps, the widths of its states, of its keys
    (or values) and of its MLP, the vocabulary, the bytes of a value, and the weights beside the decoder that an image
    goes through, with the tokens it becomes."""

    depth: int
    linear: float
    width: int
    kv_width: int
    mlp: int
    vocabulary: int
    bytes: int
    dtype: str
    seeing: int = 0
    image_tokens: int = 0
    packed: float = 1.0

    @classmethod
    def of(cls, model: ModelFacts) -> Sizes:
        seeing = sum(n for name, n in model.parts.items() if name not in ("decoder", "unembedding", "other"))
        held = model.bytes / (model.parameters * model.bytes_per_value)
        return cls(
            model.depth,
            model.linear / model.depth,
            model.width,
            model.kv_width,
            model.mlp,
            model.vocabulary,
            model.bytes_per_value,
            model.dtype,
            seeing,
            model.image_tokens or 0,
            held,
        )

    def block(self, device: Device, rows: int, new: int, seen: float, work: float = 1.0) -> float:
        """Seconds of one block over ``new`` tokens in each of ``rows`` that see ``seen`` tokens in all; ``work`` times
        its operations and bytes by as many small kernels."""
        operations, moved = self.operations(rows, new, seen), self.moved(rows, new, seen)
        weights = self.linear * self.bytes * self.packed
        return device.seconds(work * operations, work * weights, work * moved, self.dtype)

    def operations(self, rows: int, new: int, seen: float) -> float:
        """Floating-point operations of one block's matrix products."""
        return rows * new * (2 * self.linear + 4 * seen * self.width)

    def moved(self, rows: int, new: int, seen: float) -> float:
        """Bytes that one block reads and writes beside its weights.

        Values are counted as eager transformers read and write them: two norms, two residual sums, five linear maps,
        the rotation of queries and keys, the gated MLP; of what is seen, keys and values joined to the cache, spread
        over the query heads and read.
        """
        d, kv, m = self.width, self.kv_width, self.mlp
        values = rows * new * (27 * d + 16 * d + 12 * kv + 8 * m) + rows * seen * (6 * kv + 4 * d)
        return values * self.bytes

    def backward(self, device: Device, rows: int, new: int, seen: float, learns: float = 0.0) -> float:
        """Seconds of one block's backward pass, to its states, and where a share of its weights ``learns`` to those; it
        launches about as many kernels as the forward pass."""
        return self.block(device, rows, new, seen, 1.5 + learns)

    def prompts(self, device: Device, rows: int, tokens: float, share: float = 1.0) -> float:
        """Seconds of ``rows`` whole prompts in one batch through a ``share`` of the blocks."""
        return share * self.depth * self.block(device, rows, round(tokens), tokens)

    def images(self, device: Device, images: float, tokens: float) -> float:
        """Seconds of what turns as many images into ``tokens`` each."""
        each = images * tokens
        moved = self.bytes * each * self.seeing**0.5
        return device.seconds(2 * each * self.seeing, self.seeing * self.bytes, moved, self.dtype)

    def answers(self, device: Device, rows: int, tokens: float, seen: float) -> float:
        """Seconds of ``tokens`` further tokens of as many answers in one batch, unembedded one by one."""
        head = device.seconds(
            2 * rows * self.width * self.vocabulary,
            self.width * self.vocabulary * self.bytes,
            4 * rows * self.vocabulary,
            self.dtype,
        )
        return tokens * (self.depth * self.block(device, rows, 1, seen) + head)
