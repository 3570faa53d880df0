"""``vtkernels flops``: FLOPs and KV cache of a LLaVA by method and kept tokens, beside what the papers print."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtkernels import flops, methods
from vtkernels.cli import _arguments, _console, _published, _sizes
from vtkernels.cli._errors import UsageError, first_line, require
from vtkernels.cli._files import PICTURES, check_out, replacing
from vtkernels.integrations.transformers.budget import budget

_DEFAULT = "llava-1.5-7b"
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8": 1.0}
_HEADERS = (
    "method",
    "selects at\nprojector",
    "visual\ntokens",
    "vision\nTFLOP",
    "select\nGFLOP",
    "project\nGFLOP",
    "prefill\nTFLOP",
    "first\nTFLOP",
    "of un-\npruned",
    "decode\nGFLOP",
    "cache\nMiB",
)
_LEGEND = (
    "2 FLOPs per multiply-add. vision: the tower on all crops, which pruning after it cannot shorten. select: what the native "
    "kernels of this package do. project: on the kept tokens where a method selects before it, on all where it needs projected "
    "ones. prefill: language model and head. first: to the first token, the sum of the four. decode: mean of a later token. "
    "cache: keys and values at the last token, {dtype}. The formulas are in vtkernels.flops; its tests hold them against "
    "PyTorch's counter."
)
_NARROW = 116  # columns of a terminal below which the table leaves out the columns at these places
_LEFT_OUT = (1, 9)
_EXAMPLES = """examples:
  vtkernels flops                                         LLaVA-1.5-7B, every method, 64 of 576 tokens
  vtkernels flops --model llava-next-8b --keep 640 --keep 320 --method gprune,scope
  vtkernels flops --keep 0.25 --prompt-tokens 40 --new-tokens 128 --batch 8 --dtype float8
  vtkernels flops --config checkpoint/config.json --plot cost.png
  vtkernels flops --model llava-1.5-13b --json > cost.json
"""


@dataclass(frozen=True)
class Row:
    """A line of the table: ``None`` for the unpruned model; ``keep`` in patch tokens."""

    method: str | None
    keep: int
    cost: flops.Cost


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "flops",
        help="FLOPs and KV cache by method and kept tokens, beside the published figures",
        description="Prefill and decode FLOPs and KV-cache bytes of a LLaVA as a function of the kept tokens and of where a\n"
        "method prunes, selection included; and the papers' own figures beside the same quantity here. Arithmetic only:\n"
        "no weights, no network.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group()
    names = ", ".join(_sizes.PRESETS)
    model.add_argument("--model", metavar="NAME", help=f"{names} (default: {_DEFAULT})")
    model.add_argument("--config", metavar="FILE", help="config.json of a LLaVA or LLaVA-NeXT checkpoint")
    add(
        "--method",
        action="append",
        metavar="NAME[,NAME]",
        help=f"methods, repeatable (default: all: {', '.join(name.lower() for name in _arguments.METHODS)})",
    )
    add(
        "--keep",
        action="append",
        metavar="K",
        help="patch tokens to keep per picture: a number or a fraction, repeatable (default: a ninth)",
    )
    add("--prompt-tokens", type=int, default=64, metavar="N", help="text tokens, the template included (default: %(default)s)")
    add("--new-tokens", type=int, default=32, metavar="N", help="tokens of the answer (default: %(default)s)")
    add("--batch", type=int, default=1, metavar="N", help="prompts with a picture each (default: %(default)s)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--dtype", choices=_BYTES, help="of the KV cache (default: float16)")
    size.add_argument("--dtype-bytes", type=float, metavar="N", help="bytes of a number of the KV cache, such as 0.5")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--plot", metavar="FILE", help="draw FLOPs and KV cache of the first method against the kept tokens")


def run(options: argparse.Namespace) -> int:
    """Check, compute, draw, print."""
    names = _arguments.method_names(options.method)
    _arguments.check_counts(options, "prompt_tokens", "new_tokens", "batch")
    dtype = options.dtype or "float16"
    width = _BYTES[dtype] if options.dtype_bytes is None else options.dtype_bytes
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"argument --dtype-bytes: {width:g} is out of range; give a number > 0")
    title, model = _sizes.from_file(options.config) if options.config else _sizes.preset(options.model or _DEFAULT)
    keeps = [_arguments.budget(given) for given in options.keep or [str(max(1, model.tokens // 9))]]
    for keep in keeps:
        _arguments.check_budget(keep, model.tokens)
    setting = {
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "batch": options.batch,
        "dtype_bytes": width,
    }
    rows = [Row(None, model.tokens, flops.cost(model, None, model.tokens, **setting))]
    for keep in keeps:
        for name in names:
            kept = _kept(name, keep, model)
            rows.append(Row(name, kept, flops.cost(model, name, kept, **setting)))
    figures = _published.figures(names, options.prompt_tokens)

    if options.plot:
        _plot(options.plot, model, names[0], [row.keep for row in rows if row.method == names[0]], title, setting)
    if options.json:
        print(json.dumps(_plain(title, model, setting, rows, figures), indent=2))
        return 0
    _show(title, model, setting, rows, dtype if options.dtype_bytes is None else f"{width:g} bytes a number")
    if figures:
        _show_published(figures)
    if options.plot:
        print(f"\nWrote {options.plot}")
    return 0


def _kept(name: str, keep: int | float, model: flops.Llava) -> int:
    """``keep`` in patch tokens, as the method reads a fraction."""
    own = getattr(getattr(methods, name)(), "kept_tokens", None)
    return budget(keep, model.tokens) if own is None else own(keep, model.tokens, None)


def _show(title: str, model: flops.Llava, setting: dict[str, Any], rows: Sequence[Row], dtype: str) -> None:
    visual = f"{model.tokens} patch tokens" + (f" of {model.crops} crops, {model.newlines} newlines" if model.newlines else "")
    counts = f"{setting['prompt_tokens']} prompt tokens, {setting['new_tokens']} new tokens, batch {setting['batch']}"
    print(_console.wrap(f"{title}: {visual}; {counts}") + "\n")
    later, base = setting["new_tokens"] - 1, rows[0].cost
    cells = []
    for row in rows:
        cost = row.cost
        where = "-" if row.method is None else "after" if flops.SELECTION[row.method].after_projector else "before"
        cells.append(
            [
                row.method or "unpruned",
                where,
                str(cost.visual_tokens),
                _digits(cost.vision / 1e12),
                "-" if row.method is None else _digits(cost.selection / 1e9),
                _digits(cost.projector / 1e9),
                _digits(cost.prefill / 1e12),
                _digits(cost.first_token / 1e12),
                f"{100 * cost.first_token / base.first_token:.1f}%",
                _digits(cost.decode / later / 1e9) if later else "-",
                _digits(cost.kv_cache / 2**20),
            ]
        )
    narrow = _console.width() < _NARROW
    lines = [[cell for place, cell in enumerate(line) if not (narrow and place in _LEFT_OUT)] for line in (_HEADERS, *cells)]
    _console.table(lines[0], lines[1:], left=1 if narrow else 2, tight=narrow)
    print("\n" + _console.wrap(_LEGEND.format(dtype=dtype)))


def _show_published(figures: Sequence[_published.Figure]) -> None:
    cells = [
        [str(place), figure.method, figure.setting, figure.quantity, figure.cell(figure.published), figure.cell(figure.ours)]
        for place, figure in enumerate(figures, 1)
    ]
    headers = ["", "method", "setting", "quantity", "published", "here"]
    print()
    _console.table(headers, cells, title="Published figures, and the same quantity by these formulas", left=4)
    for place, figure in enumerate(figures, 1):
        print("\n" + _console.wrap(f"{place}. {figure.method}, {figure.source}. {figure.note}"))


def _plain(
    title: str,
    model: flops.Llava,
    setting: dict[str, Any],
    rows: Sequence[Row],
    figures: Sequence[_published.Figure],
) -> dict[str, Any]:
    """Everything the tables show, as plain data in FLOPs and bytes."""
    return {
        "model": {"title": title, "tokens": model.tokens} | asdict(model),
        **setting,
        "rows": [
            {"method": row.method, "keep": row.keep, "first_token": row.cost.first_token, "answer": row.cost.answer}
            | asdict(row.cost)
            for row in rows
        ],
        "published": [asdict(figure) for figure in figures],
    }


def _plot(path: str, model: flops.Llava, name: str, keeps: Sequence[int], title: str, setting: dict[str, Any]) -> None:
    require("argument --plot", "viz", "matplotlib", "numpy", "PIL")
    from vtkernels import viz
    from vtkernels.cli import _plot

    out = check_out(path, "--plot", suffixes=PICTURES)
    try:
        drawn = _plot.draw(model, name, keeps, title=title, **setting)
        with replacing(out) as part:
            viz.save(drawn, part)
    except OSError as error:
        raise UsageError(f"argument --plot: {path!r} cannot be written ({first_line(error)}); free some space") from None


def _digits(value: float) -> str:
    """About three digits: 0.024, 7.98, 312."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"
