"""What the demo measured, as a table and as sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vtkernels.cli import _console
from vtkernels.cli._stages import Sample

_HEADERS = (
    "method",
    "visual\ntokens",
    "vision\nms",
    "selection\nms",
    "prefill\nms",
    "first\ntoken ms",
    "decode\nms/token",
    "memory\nMiB",
    "GFLOP",
)
_SCATTER = 0.1  # half an interquartile range, relative to the median, above which the times deserve a warning
_NARROW = 94  # columns below which the table has no room for spreads
_LEGEND = (
    "{figures}. vision: the tower. selection: saliency, choice and gather or merge, before the projector or after it. prefill: "
    "projector, language model and head. first token: from the call to the first logits. decode: each later token. memory: "
    "{memory}. GFLOP: from pixels to first token, by the formulas of vtkernels.flops, 2 per multiply-add."
)


@dataclass
class Result:
    """One row: a method (None: unpruned), what it kept, and its runs."""

    label: str
    method: Any
    kept: int = 0
    indices: list[int] = field(default_factory=list)
    scores: Any = None
    samples: list[Sample] = field(default_factory=list)
    memory: int | None = None
    flops: int | None = None
    answer: str | None = None

    def median(self, stage: str) -> float:
        """Median of a stage in milliseconds."""
        values: list[float] = [getattr(sample, stage) for sample in self.samples]
        return statistics.median(values)

    def spread(self, stage: str) -> float:
        """Half the interquartile range of a stage in milliseconds; 0 for a single run."""
        values: list[float] = sorted(getattr(sample, stage) for sample in self.samples)
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return (high - low) / 2

    def cell(self, stage: str, *, spread: bool = True) -> str:
        """``"712 ±9"``, the spread as precise as the median."""
        median = self.median(stage)
        if len(self.samples) < 2 or not spread:
            return number(median)
        return f"{number(median)} ±{self.spread(stage):.{_decimals(median)}f}"


def number(value: float) -> str:
    """About three digits: 0.42, 3.1, 712."""
    return f"{value:.{_decimals(value)}f}"


def show(results: Sequence[Result], *, repeats: int, memory: str) -> None:
    """Print the table and what its columns mean; ``memory`` says how far that column can be trusted."""
    wide = _console.width() >= _NARROW
    spread = repeats > 1 and wide
    rows = []
    for result in results:
        decoded = result.samples[0].decode is not None
        rows.append(
            [
                result.label,
                str(result.kept),
                result.cell("vision", spread=spread),
                "-" if result.method is None else result.cell("selection", spread=spread),
                result.cell("prefill", spread=spread),
                result.cell("first", spread=spread),
                result.cell("decode", spread=spread) if decoded else "-",
                "-" if result.memory is None else f"{result.memory / 2**20:.0f}",
                "-" if result.flops is None else f"{result.flops / 1e9:.1f}",
            ]
        )
    _console.table(_HEADERS, rows, tight=not wide)
    figures = "Times of a single run" if repeats == 1 else f"Medians of {repeats} interleaved runs"
    if spread:
        figures += " ± half the interquartile range"
    print("\n" + _console.wrap(_LEGEND.format(figures=figures, memory=memory)))


def paragraph(results: Sequence[Result], *, tokens: int, random_weights: bool) -> str:
    """What the table says, in words that hold for these numbers."""
    base, pruned = results[0], results[1:]
    before = base.median("first")
    kept = sorted({result.kept for result in pruned})
    choosing = ", ".join(f"{result.label} {number(result.median('selection'))} ms" for result in pruned)
    ratios = [before / result.median("first") for result in pruned]
    low, high = min(ratios), max(ratios)
    span = f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}x to {high:.2f}x"
    slowest = max(result.median("selection") for result in pruned)
    saved = base.median("prefill") - min(result.median("prefill") for result in pruned)
    change = f"{number(abs(saved))} ms {'shorter' if saved >= 0 else 'longer'}"
    decode = ""
    if base.samples[0].decode is not None:
        fastest = min(result.median("decode") for result in pruned)
        decode = f"; a decoded token took {number(base.median('decode'))} ms unpruned and {number(fastest)} ms at best pruned"

    text = (
        f"Of {tokens} visual tokens the language model saw {' or '.join(map(str, kept))}. Choosing them took {choosing}; the "
        f"slowest choice is {slowest / before:.1%} of the {number(before)} ms that the unpruned model needs for its first "
        f"token. Prefill became up to {change}, and the first token came {span} as fast{decode}. Pruning cannot shorten the "
        f"vision tower, which runs before it. Random and Uniform are the rivals to beat: they cost almost nothing, so no other "
        f"method wins by speed alone; compare accuracy on your task."
    )
    scatter = max(result.spread("first") / result.median("first") for result in results)
    if scatter > _SCATTER:
        text += (
            f" These times scatter by up to {scatter:.0%}: the machine is busy, so trust no small difference; run again when "
            f"it is idle, or with more --repeats."
        )
    if random_weights:
        text += (
            " The weights are random, so the model's text would be meaningless and is not shown, and which patches a method "
            "keeps follows from the picture through random features. The photograph, the token geometry, the ops and the times "
            "are real; the model is much smaller than a LLaVA in use, whose language model has a far larger share of the time. "
            "For real answers: vtkernels demo --model llava-hf/llava-1.5-7b-hf"
        )
    return text


def _decimals(value: float) -> int:
    return 2 if value < 1 else 1 if value < 100 else 0
