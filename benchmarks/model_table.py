"""The model-level results as tables, with what follows from them: shares, savings, and full depth where less was run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEADERS = (
    "kept", "method", "tokens", "vision", "selection (p20 to p80)", "projector", "prefill", "decode per token", "memory, MiB",
)  # fmt: skip
_DERIVED = ("prefill{}", "first token{}", "selection of unpruned prefill{}", "prefill saved - selection{}")
_BRIEF = ("method", "selection (p20 to p80)")


@dataclass(frozen=True)
class Measured:
    """A method at a budget: its rows of the CSV by stage."""

    stages: dict[str, Mapping[str, Any]]

    def __getitem__(self, column: str) -> str:
        """What is the same in all its rows."""
        return str(next(iter(self.stages.values()))[column])

    def ms(self, stage: str, quantile: str = "p50") -> float:
        return float(self.stages[stage][f"{quantile}_ms"])

    def full(self, stage: str) -> float:
        """``vision``, ``prefill`` or ``first_token`` at full depth.

        Layers are alike, so those that were left out count as the mean of those that ran. What is not in a layer counts once.
        """
        more = {"vision": self._missing("vision", "vision"), "prefill": self._missing("prefill", "text")}
        return self.ms(stage) + (sum(more.values()) if stage == "first_token" else more.get(stage, 0.0))

    def _missing(self, stage: str, part: str) -> float:
        depth, full = int(self[f"{part}_depth"]), int(self[f"{part}_full"])
        return 0.0 if depth == full else self.ms(f"{stage}_layers") * (full / depth - 1)

    @property
    def cut(self) -> bool:
        """Whether less than the full depth was run."""
        return (self["vision_depth"], self["text_depth"]) != (self["vision_full"], self["text_full"])

    @property
    def kept(self) -> int | None:
        return int(self["keep"]) if self["keep"] else None


def groups(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], list[Measured]]:
    """(model, concurrency) -> its cases in the order they were measured in, the unpruned one first.

    Without cases that have no figure; where the unpruned one has none, nothing can be said of the others.
    """
    found: dict[tuple[str, int], dict[tuple[str, str], Measured]] = {}
    for row in (row for row in rows if row["p50_ms"] != ""):
        cases = found.setdefault((row["model"], int(row["concurrency"])), {})
        case = cases.setdefault((row["method"], str(row["keep"])), Measured({}))
        case.stages[row["stage"]] = row
    return {key: list(cases.values()) for key, cases in found.items() if ("unpruned", "") in cases}


def cells(cases: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Headers and a row for each case of one model at one concurrency."""
    base = cases[0]
    star = " *" if base.cut else ""
    rows = []
    for case in cases:
        decoded = int(case["new_tokens"]) - 1
        saved = base.full("prefill") - case.full("prefill") - case.ms("selection")
        first = f"{number(case.full('first_token'))} ({base.full('first_token') / case.full('first_token'):.2f}x)"
        rows.append(
            [
                "all" if case.kept is None else str(case.kept),
                case["method"],
                case["tokens_after"],
                number(case.ms("vision")),
                _spread(case, "selection"),
                number(case.ms("projector")),
                number(case.ms("prefill")),
                number(case.ms("decode") / decoded) if decoded else "-",
                number(int(case["peak_bytes"]) / 2**20) if case["peak_bytes"] else "-",
                number(case.full("prefill")),
                first,
                _share(case, base),
                "-" if case is base else f"{saved:+.0f}" if abs(saved) >= 10 else f"{saved:+.1f}",
            ]
        )
    return [*_HEADERS, *(name.format(star) for name in _DERIVED)], rows


def markdown(rows: Sequence[Mapping[str, Any]], *, brief: bool = False) -> str:
    """A table for each model and concurrency; ``brief``: of each model one, of its smallest budget, and fewer columns."""
    parts, seen = [], set()
    for (model, _), cases in groups(rows).items():
        if brief and model in seen:
            continue
        seen.add(model)
        if brief:
            least = min(case.kept for case in cases if case.kept is not None)
            cases = [case for case in cases if case.kept in (None, least)]
        headers, lines = cells(cases)
        if brief:
            places = [headers.index(name) for name in _BRIEF] + list(range(len(_HEADERS), len(headers)))
            headers, lines = [headers[i] for i in places], [[line[i] for i in places] for line in lines]
        parts += [f"**{title(cases)}**", ""]
        parts += [_line(headers), _line(["---"] * len(headers)), *map(_line, lines), "", *sentences(cases), ""]
    row = rows[0]
    repeats = " or ".join(sorted({str(row["repeats"]) for row in rows}))
    parts.append(
        f"Milliseconds are medians of {repeats} interleaved runs; {row['threads']} threads, {row['device']}, "
        f"torch {row['torch']}, {row['time'][:10]}."
    )
    return "\n".join(parts)


def sentences(cases: Sequence[Measured]) -> Iterator[str]:
    """What the columns that were computed say, and how they were."""
    base, pruned = cases[0], [case for case in cases if case.kept is not None and case["method"] != "smaller image"]
    if base.cut:
        depth, full = ([base[f"{part}_{of}"] for part in ("vision", "text")] for of in ("depth", "full"))
        yield (
            f"Columns with * are for full depth, extrapolated: {depth[0]} of {full[0]} layers of the tower and {depth[1]} of "
            f"{full[1]} of the language model were run, the others count as the mean of those."
        )
    dear = [case for case in pruned if base.full("prefill") - case.full("prefill") <= case.ms("selection")]
    if dear:
        names = ", ".join(f"{case['method']} at {case.kept}" for case in dear)
        yield f"Choosing costs more than the prefill it saves: {names}."
    elif pruned:
        yield "In every row the prefill that is saved is more than choosing costs."


def number(value: float) -> str:
    """About three digits: 0.42, 3.1, 712."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def title(cases: Sequence[Measured]) -> str:
    """Model, batch and prompt in words."""
    case = cases[0]
    requests = "one request" if case["concurrency"] == "1" else f"{case['concurrency']} requests in a batch"
    return f"{case['model']}, {requests}: {case['tokens_before']} visual and {case['text_tokens']} text tokens, {case['dtype']}"


def _spread(case: Measured, stage: str) -> str:
    p20, p50, p80 = (number(case.ms(stage, quantile)) for quantile in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def _share(case: Measured, base: Measured) -> str:
    return "-" if case is base else f"{case.ms('selection') / base.full('prefill'):.2%}"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
