"""All that is measured of one pair of runs, as rows: scores, decisions, costs, agreement, faithfulness."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from factory.diagnose import ALL
from factory.errors import UserError
from factory.instruments.circuit.edits import GROUPS
from factory.instruments.circuit.graph import Graph
from factory.statistics.association import auroc, spearman

from .curve import area, at_random, faithfulness, sizes, top
from .ground import Count, Ground, Lower, in_precision
from .pairs import Twin
from .precision import Precision, lowered, trying, weight_bytes
from .search import Decided, Rule, Trying, acdc, eap, eap_ig, exact, full

if TYPE_CHECKING:
    from . import Circuit

Row = dict[str, Any]


def row(metric: str, value: float, **facts: Any) -> Row:
    """A row about all samples."""
    named = {"sample": ALL, "task": "", "form": "", "prompt": "base", "metric": metric, "layer": None, "head": None}
    return {**named, **facts, "value": float(value)}


def jaccard(a: Tensor, b: Tensor) -> float:
    """Shared edges over all edges of two circuits [V, U]; 1 where both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


class Found:
    """One search over ``made`` (prompts of ``twins``), judged on ``held``."""

    def __init__(self, params: Circuit.Params, made: Ground, found: Sequence[Twin], held: Ground | None) -> None:
        self.p, self.made, self.twins, self.held = params, made, found, held
        self.graph: Graph = made.machine.graph
        self.scores: dict[tuple[str, Precision], Tensor] = {}
        self.decided: dict[tuple[float, Precision], Decided] = {}
        self.costs: list[Row] = []

    def rows(self) -> list[Row]:
        """Everything."""
        p = self.p
        if "acdc" in p.methods and p.tau not in p.taus:
            raise UserError(f"circuit: tau {p.tau} is none of taus {list(p.taus)}; its edges are the circuit")
        for precision in dict.fromkeys(("full", *p.precision)):
            self._search(precision)
        graph = self.graph
        out = [row("edges", len(graph.edges)), row("gap", self.made.gap)]
        out += [
            row("nodes", n, what=what)
            for what, n in (("senders", len(graph.senders)), ("receivers", len(graph.receivers)))
        ]
        out += [*self._edges(), *self._agreement(), *self.costs]
        circuit, by = self._circuit()
        out += self._of_circuit(circuit, by)
        return [*out, *(self._judged(circuit) if self.held is not None else ())]

    def _search(self, precision: Precision) -> None:
        p, made = self.p, self.made
        low = lowered(made.view, precision)
        lower = None if low is None else in_precision(made, self.twins, p.exchange, low)

        def tried(receiver: int) -> Lower | None:
            how = trying(low, self.graph, receiver)
            return None if lower is None or how is None else Lower(lower.clean, lower.other, how)

        of: Trying = full if low is None else tried
        chosen = [m for m in p.methods if precision == "full" or m in p.lowered]
        if ("acdc" in chosen or "eap" in chosen) and ("eap", precision) not in self.scores:
            self.scores["eap", precision] = self._priced("eap", precision, lambda: eap(made, lower))
        if "eap_ig" in chosen:
            self.scores["eap_ig", precision] = self._priced("eap_ig", precision, lambda: eap_ig(made, p.steps, lower))
        if "exact" in chosen:
            self.scores["exact", precision] = self._priced("exact", precision, lambda: exact(made, p.rows, of))
            if p.by_role:
                self.scores["exact_by_role", precision] = exact(made, p.rows, of, True)
        if "acdc" in chosen:
            sizes_of = self.scores["eap", precision].sum(-1).abs()
            for tau in p.taus:
                rule = Rule(tau, p.absolute)
                self.decided[tau, precision] = self._priced(
                    "acdc",
                    precision,
                    lambda rule=rule: acdc(made, rule, p.rows, sizes_of < rule.tau, p.order, of, p.seed),
                    tau,
                )
            if p.loop and precision == "full":
                rule = Rule(p.tau, p.absolute)
                once = lambda: acdc(made, rule, 1, None, p.order, full, p.seed, whole_forwards=True)
                loop = self._priced("acdc_loop", precision, once, p.tau)
                same = [a[0::3] for a in loop.log] == [a[0::3] for a in self.decided[p.tau, "full"].log]
                self.costs.append(row("loop_decides_alike", same, tau=p.tau))

    def _priced(self, method: str, precision: Precision, run: Any, tau: float | None = None) -> Any:
        """What ``run`` gives; what it cost is kept."""
        count, clock = self.made.count, time.process_time if self.made.view.device.type == "cpu" else time.perf_counter
        self.made.count, began = Count(), clock()
        done = run()
        seconds = clock() - began
        spent, self.made.count = done.count if isinstance(done, Decided) else self.made.count, count
        facts: Row = {"method": method, "precision": precision, "tau": tau}
        self.costs += [row(name, value, **facts) for name, value in vars(spent).items()]
        self.costs.append(row("weights", weight_bytes(self.made.view, precision, self.graph)["bytes"], **facts))
        if self.p.timed:
            self.costs.append(row("seconds", seconds, **facts))
        return done

    def total(self, method: str, precision: Precision = "full") -> Tensor:
        """Scores [V, U] over all roles."""
        return self.scores[method, precision].sum(-1)

    def _edges(self) -> Iterator[Row]:
        for (method, precision), scores in self.scores.items():
            total = scores.sum(-1)
            told = top(self.graph, total.abs(), self.p.told).nonzero().tolist()
            for v, u in told:
                facts: Row = {"method": method, "precision": precision, "edge": self.graph.name((v, u))}
                if method != "exact_by_role":
                    yield row("edge", float(total[v, u]), role="all", **facts)
                if scores.shape[-1] > 1 and precision == "full":
                    roles = zip(GROUPS, scores[v, u].tolist(), strict=True)
                    yield from (row("edge", value, role=role, **facts) for role, value in roles)
        for (tau, precision), decided in self.decided.items():
            facts = {"method": "acdc", "precision": precision, "tau": tau}
            yield row("kept_edges", int(decided.kept.sum()), **facts)
            for v, u in decided.kept.nonzero().tolist():
                yield row("kept", 1.0, edge=self.graph.name((v, u)), **facts)

    def _agreement(self) -> Iterator[Row]:
        known = self.graph.allowed
        of = lambda method, precision: self.total(method, precision)[known].numpy()
        for method, precision in self.scores:
            if method in ("exact", "exact_by_role"):
                continue
            if ("exact", "full") in self.scores:
                r = spearman(of("exact", "full"), of(method, precision))
                yield row("spearman", r, method=method, precision=precision, against="exact")
        reference = self.decided.get((self.p.tau, "full"))
        if reference is None:
            return
        truth = reference.kept[known].numpy()
        if 0 < truth.sum() < len(truth):
            for method, precision in self.scores:
                if method != "exact_by_role":
                    yield row("auc", auroc(abs(of(method, precision)), truth), method=method, precision=precision)
            for precision in self.p.precision:
                if ("acdc" in self.p.lowered or precision == "full") and (self.p.tau, precision) in self.decided:
                    often = sum(self.decided[tau, precision].kept.double() for tau in self.p.taus)
                    value = auroc(torch.as_tensor(often)[known].numpy(), truth)
                    yield row("auc", value, method="acdc", precision=precision)
        for (tau, precision), decided in self.decided.items():
            other = self.decided[tau, "full"].kept
            facts = {"method": "acdc", "precision": precision, "tau": tau}
            yield row("agreement", float((decided.kept == other)[known].double().mean()), **facts)
            yield row("jaccard", jaccard(decided.kept, other), **facts)
            yield row("jaccard_tau", jaccard(decided.kept, self.decided[self.p.tau, precision].kept), **facts)

    def _circuit(self) -> tuple[Tensor, str]:
        """The circuit [V, U], and the method whose scores it is told with."""
        by = next(m for m in ("exact", "eap_ig", "eap") if (m, "full") in self.scores)
        if (self.p.tau, "full") in self.decided:
            return self.graph.connected(self.decided[self.p.tau, "full"].kept), by
        last = self.p.methods[-1]
        n = max(1, min(self.p.size, round(0.05 * len(self.graph.edges))))
        return self.graph.connected(top(self.graph, self.total(last).abs(), n)), last

    def _of_circuit(self, circuit: Tensor, by: str) -> Iterator[Row]:
        graph, scores = self.graph, self.total(by)
        roles = next(
            (self.scores[m, "full"] for m in ("exact_by_role", "eap_ig", "eap") if (m, "full") in self.scores), None
        )
        heads = torch.zeros(graph.depth, graph.heads, dtype=torch.float64)
        for v, u in circuit.nonzero().tolist():
            value, sender = float(scores[v, u]), graph.senders[u]
            facts = {"edge": graph.name((v, u)), "method": by}
            yield row("circuit", value, role="all", **facts)
            if roles is not None:
                yield from (
                    row("circuit", x, role=g, **facts) for g, x in zip(GROUPS, roles[v, u].tolist(), strict=True)
                )
            if sender.kind == "head":
                heads[sender.layer, sender.index] += abs(value)
            for fed in graph.feeds(v) if graph.receivers[v].kind in "qkv" else ():
                heads[graph.senders[fed].layer, graph.senders[fed].index] += abs(value)
        for layer, of_layer in enumerate(heads.tolist()):
            yield from (row("circuit_head", value, layer=layer, head=head) for head, value in enumerate(of_layer))

    def _judged(self, circuit: Tensor) -> Iterator[Row]:
        """Faithfulness on the other samples: by share of edges, of each circuit, and of random ones of its size."""
        p, graph, held = self.p, self.graph, self.held
        assert held is not None
        steps = list(sizes(graph, p.shares))
        of = lambda kept: faithfulness(held, kept, p.rows)
        yield row("gap_held_out", held.gap)
        for method, precision in self.scores:
            if method == "exact_by_role" or precision != "full":
                continue
            for name, ranked in (("cpr", self.total(method)), ("cmd", self.total(method).abs())):
                found = of([top(graph, ranked, n) for _, n in steps])
                facts = {"method": method, "ranked": name}
                yield from (
                    row("faithfulness", f, share=s, draw=0, **facts) for (s, _), f in zip(steps, found, strict=True)
                )
                yield row(name, _area(name, p.shares, found), method=method, draw=0)
        for draw in range(p.draws):
            found = of([at_random(graph, n, f"{p.seed}/{draw}/{n}") for _, n in steps])
            yield from (
                row("faithfulness", f, share=s, draw=draw, method="random", ranked="")
                for (s, _), f in zip(steps, found, strict=True)
            )
            for name in ("cpr", "cmd"):
                yield row(name, _area(name, p.shares, found), method="random", draw=draw)
        own = {("circuit", None): circuit} | {
            ("acdc", tau): d.kept for (tau, q), d in self.decided.items() if q == "full"
        }
        for (what, tau), kept in own.items():
            n = int(graph.connected(kept).sum())
            of_it: Row = {"of": what, "tau": tau, "edges": n}
            yield row("circuit_faithfulness", of([kept])[0], draw=-1, **of_it)
            random = of([at_random(graph, int(kept.sum()), f"{p.seed}/{draw}/own") for draw in range(p.draws)])
            yield from (row("random_faithfulness", f, draw=draw, **of_it) for draw, f in enumerate(random))


def _area(name: str, shares: Sequence[float], found: Sequence[float]) -> float:
    if name == "cpr":
        return area(shares, found, 0.0)
    return area(shares, [abs(1 - f) for f in found], 1.0)
