"""What the papers print about cost, beside what the formulas of this package give for the same setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vtkernels.cli._sizes import PRESETS
from vtkernels.flops import Llava, cost, gram, graph_propagate, graph_propagate_published, linear, transformer

_TERA = 1e12


@dataclass(frozen=True)
class Figure:
    """One published figure: ``None`` where the paper has none. ``ours`` is the same quantity; ``note`` explains the two."""

    method: str
    source: str
    setting: str
    quantity: str
    published: float | None
    ours: float
    unit: str
    note: str = ""

    def cell(self, value: float | None) -> str:
        """A value with its unit."""
        if value is None:
            return "none"
        return f"{value:.1f}x" if self.unit == "x" else f"{value:.2f}{'%' if self.unit == '%' else f' {self.unit}'}"


def figures(methods: Sequence[str], prompt_tokens: int) -> list[Figure]:
    """The figures of ``methods``, with ``prompt_tokens`` of text where the paper does not say how many it had."""
    return [figure for name in methods if name in _FIGURES for figure in _FIGURES[name](prompt_tokens)]


def change(before: float, after: float) -> float:
    """In percent; -50 is half."""
    return 100 * (after / before - 1)


def _scope(text: int) -> list[Figure]:
    model = _model("llava-next-7b")
    base, pruned = (cost(model, method, 160, prompt_tokens=text) for method in (None, "Scope"))
    return [
        Figure(
            "Scope", "arXiv 2510.24214, Table 5", "LLaVA-NeXT-7B, 2880 to 160", "POPE run / FLOPs", 601.9 / 188.8,
            base.first_token / pruned.first_token, "x",
            "Latency is not FLOPs. The published row is 601.9 s to 188.8 s for a whole benchmark, data loading, tower, Python "
            "and the published selection loop included; the paper prints no FLOPs. Ours is the arithmetic up to the first "
            f"token, of which the tower, which pruning cannot shorten, is {pruned.vision / pruned.first_token:.0%} after "
            "pruning.",
        )
    ]  # fmt: skip


def _holov(text: int) -> list[Figure]:
    small, large = _model("llava-1.5-7b"), _model("llava-next-7b")
    tokens, keep = small.tokens, 64
    ratio = 1 - keep / tokens
    base, pruned = (cost(small, method, keep, prompt_tokens=text) for method in (None, "HoloV"))
    wide, narrow = (cost(large, method, 144, prompt_tokens=text) for method in (None, "HoloV"))
    attention = 2 * small.text.layers * linear(tokens, small.text.heads * small.text.head_dim, tokens)
    alone = change(small.prefill(tokens), small.prefill(keep))
    source = "arXiv 2510.02912"
    return [
        Figure(
            "HoloV", f"{source}, formula", "LLaVA-1.5-7B, 576 to 64", "prefill FLOPs", -100 * (2 * ratio - ratio**2),
            change(base.prefill, pruned.prefill), "%",
            f"The formula 2R - R^2 = 1 - (1 - R)^2 at R = {ratio:.1%} lets the whole prefill fall with the square of the "
            f"tokens. Only the products of attention do, {attention / small.prefill(tokens):.0%} of the prefill of {tokens} "
            f"tokens; the weights are linear in them. The visual tokens alone give {alone:.1f}%, and {text} tokens of prompt "
            "stay whatever is pruned.",
        ),
        Figure(
            "HoloV", f"{source}, no figure", "LLaVA-1.5-7B, 576 to 64", "KV cache", None,
            change(base.kv_cache, pruned.kv_cache), "%",
            f"The paper reports GPU memory, no cache. The visual part falls by R = {ratio:.1%}; the cache of the prompt stays.",
        ),
        Figure(
            "HoloV", f"{source}, Fig. 14", "LLaVA-NeXT-7B, 2880 to 144", "FLOPs (over 90%)", -90.0,
            change(wide.prefill, narrow.prefill), "%",
            f"The figure reads 'over 90%'. Ours is the prefill; with the tower it is "
            f"{change(wide.first_token, narrow.first_token):.1f}%.",
        ),
    ]  # fmt: skip


def _gprune(text: int) -> list[Figure]:
    model = _model("llava-next-8b")
    grid = model.tokens - model.patches
    keep = int(0.35 * model.patches) + int(0.35 * grid)
    base, pruned = (cost(model, method, keep, prompt_tokens=text) for method in (None, "GPrune"))
    lengths = ((kept, cost(model, "GPrune", kept, prompt_tokens=text).prefill) for kept in range(1, model.tokens))
    nearest = min(lengths, key=lambda length: abs(change(base.prefill, length[1]) + 63.57))[0]

    # A 4:3 picture in 2 x 2 crops: unpadding leaves 36 of the 48 rows of the grid.
    unpadded, rows = 36 * 48, 36
    whole = model.patches + unpadded + rows
    kept = int(0.35 * model.patches) + int(0.35 * unpadded) + rows
    words = min(range(999), key=lambda count: abs(_multiply_adds(model, whole + count) - 18.52e12))
    reading = change(_multiply_adds(model, whole + words), _multiply_adds(model, kept + words))
    once = {tokens: f"{_multiply_adds(model, tokens) / _TERA:.2f}" for tokens in (model.tokens, whole + words)}

    width = model.text.width
    ours, published, power, similarities, triangle = (
        f"{spent / 1e9:.1f}"
        for spent in (
            graph_propagate(grid, width),
            graph_propagate_published(grid, width),
            3 * linear(grid, grid, grid),
            linear(grid, width, grid),
            gram(grid, width),
        )
    )
    source = "arXiv 2501.02268"
    return [
        Figure(
            "GPrune", source, "LLaVA-NeXT-8B, 2880", "FLOPs per inference", 18.52, base.prefill / _TERA, "TFLOP",
            f"2880 tokens cannot give it: the layers of the language model alone take {once[model.tokens]} T of multiply-adds "
            f"for them. They take {once[whole + words]} for a 4:3 picture, which unpadding leaves with {whole} visual tokens, "
            f"and {words} of text, a multiply-add counted once, tower, projector and head left out. That reading is ours; the "
            f"sources we have do not say. Ours counts 2 per multiply-add, {model.tokens + model.newlines} visual tokens "
            f"({model.newlines} of them newlines), {text} of text and the head.",
        ),
        Figure(
            "GPrune", source, "LLaVA-NeXT-8B, keep 35%", "FLOPs", -63.57, change(base.prefill, pruned.prefill), "%",
            f"The ratio behind it is not stated (the code ships 50%). In the reading above, 35% of both branches with all "
            f"newlines kept gives {reading:.2f}%; here -63.57% takes {nearest / model.tokens:.1%}. Selection is extra: per "
            f"grid of {grid} tokens {ours} GFLOP here and {published} as published, which raises an N x N matrix to a power "
            f"(3 dense products, {power}) where a vector is wanted, and computes both triangles of the similarities "
            f"({similarities} for {triangle}).",
        ),
    ]  # fmt: skip


def _par(text: int) -> list[Figure]:
    model = _model("llava-1.5-7b")
    keep = 64

    def drop(words: int, *, tower: bool) -> float:
        base, pruned = (cost(model, method, keep, prompt_tokens=words) for method in (None, "PAR"))
        return change(base.first_token, pruned.first_token) if tower else change(base.prefill, pruned.prefill)

    def words(*, tower: bool) -> int:
        return min(range(500), key=lambda count: abs(drop(count, tower=tower) + 83))

    alone, all_of_it, prefill, first = words(tower=False), words(tower=True), drop(text, tower=False), drop(text, tower=True)
    return [
        Figure(
            "PAR", "arXiv 2410.07278, abstract", "LLaVA-1.5-7B, 576 to 64", "FLOPs", -83.0, prefill, "%",
            f"The abstract gives -83% at a compression of 89% and says neither what is counted nor how long the prompt is. "
            f"The prefill alone falls by 83% with {alone} tokens of text, tower and selection included with {all_of_it}; with "
            f"{text} they fall by {-prefill:.1f} and {-first:.1f}%. No code was published, and the selection counted is our "
            "definition.",
        )
    ]  # fmt: skip


def _fopru(text: int) -> list[Figure]:
    model = _model("llava-1.5-7b")
    base, pruned = (cost(model, method, 144, prompt_tokens=text) for method in (None, "FoPru"))
    return [
        Figure(
            "FoPru", "arXiv 2411.14164, no figure", "LLaVA-1.5-7B, keep 25%", "prefill FLOPs", None,
            change(base.prefill, pruned.prefill), "%", "No FLOPs or KV figure of the paper could be verified.",
        )
    ]  # fmt: skip


def _model(name: str) -> Llava:
    return PRESETS[name][1]


def _multiply_adds(model: Llava, tokens: int) -> int:
    """Of the layers of the language model, without the head."""
    return transformer(model.text, tokens, tokens) // 2


_FIGURES: dict[str, Callable[[int], list[Figure]]] = {
    "Scope": _scope,
    "FoPru": _fopru,
    "GPrune": _gprune,
    "HoloV": _holov,
    "PAR": _par,
}
