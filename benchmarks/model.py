"""``bench model``: what pruning costs and saves inside a whole model, stage by stage."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.cli import _arguments, _console
from vtkernels.cli._errors import UsageError, first_line, require
from vtkernels.cli._files import check_out

from . import model_table
from .model_table import markdown

if TYPE_CHECKING:
    import torch

    from .models import Subject
    from .sheet import Sheet

__all__ = ["add_parser", "markdown", "run"]

STAGES = ("vision", "selection", "projector", "prefill", "decode", "other", "first_token", "total")
_COLUMNS = (
    "model", "method", "keep", "concurrency", "image", "stage", "p20_ms", "p50_ms", "p80_ms", "repeats", "peak_bytes",
    "tokens_before", "tokens_after", "text_tokens", "new_tokens", "vision_depth", "text_depth", "vision_full", "text_full",
    "dtype", "gate",
)  # fmt: skip
_SHAPES = ("llava-1.5-7b", "llava-next-7b", "llava-1.5-13b", "llava-next-13b")
_DTYPES = ("float32", "bfloat16", "float16")
_EXAMPLES = """examples:
  vtkernels bench model                                   both 7B shapes, every method and budget, to results/<device>_model.csv
  vtkernels bench model --quick                           a smoke run on a tiny model, printed only
  vtkernels bench model --device cuda                     full depth in float16; concurrency 1, 8 and 32
  vtkernels bench model --device cuda --headline --out gpu_model.csv      a minute on a GPU
  vtkernels bench model --shape llava-1.5-7b --concurrency 32 --keep 64 --out batch.csv
  vtkernels bench model --model llava-hf/llava-1.5-7b-hf --device cuda --out checkpoint.csv
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "model",
        help="milliseconds and memory of whole models, unpruned and with every method",
        description="Runs LLaVA-1.5 and LLaVA-NeXT at their real layer shapes (random weights, or a checkpoint) unpruned,\n"
        "with every method, with the published loops in place of ours, and with smaller pictures;\n"
        "prints and saves every stage.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="PATH", help="folder or hub name of a LLaVA-1.5 or LLaVA-NeXT checkpoint, in place of --shape")
    add("--shape", action="append", metavar="NAME[,NAME]", help=f"layer shapes of {', '.join(_SHAPES)} (default: both 7B)")
    add("--method", action="append", metavar="NAME[,NAME]",
        help="methods to run, repeatable, each with its published loop where there is one (default: all)")  # fmt: skip
    add("--keep", action="append", metavar="N[,N]",
        help="patch tokens per picture (default: 192, 128, 64; of LLaVA-NeXT 640, 320, 160)")  # fmt: skip
    add("--concurrency", action="append", metavar="N[,N]",
        help="requests in one batch (default: 1, 8, 32; on a CPU 8 and 32 for LLaVA-1.5 at one budget)")  # fmt: skip
    add("--text-tokens", type=int, default=48, metavar="N", help="words of every prompt (default: %(default)s)")
    add("--new-tokens", type=int, metavar="N", help="tokens to generate (default: 32; on a CPU 4)")
    add("--vision-layers", type=int, metavar="N", help="depth of the tower (default: all 24; on a CPU 2)")
    add("--text-layers", type=int, metavar="N", help="depth of the language model (default: all 32 or 40; on a CPU 1)")
    add("--repeats", type=int, metavar="N",
        help="timed runs per case (default: 3; on a CPU 2 where a run is long: LLaVA-NeXT, batches)")  # fmt: skip
    add("--dtype", choices=_DTYPES,
        help="of the model (default: float16; on a CPU the faster of float32 and bfloat16)")  # fmt: skip
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, prompts and the method random (default: %(default)s)")
    add("--quick", action="store_true", help="a tiny model of each kind, one timed run, two requests, the smallest budget")
    add("--headline", action="store_true",
        help="for a short run on a GPU: a request to LLaVA-1.5-7B, Scope and TopAttention at 64 tokens, 8 new")  # fmt: skip
    add("--out", type=Path, metavar="FILE",
        help="the CSV to write (default: results/DEVICE_model.csv, if what runs is not chosen otherwise)")  # fmt: skip
    add("--trust-remote-code", action="store_true", help="let the checkpoint run Python code of its own")


@dataclass(frozen=True)
class Cell:
    """Cases that take turns: one model, one batch size, some budgets (None: the model's own three)."""

    shape: str | None
    concurrency: int
    keeps: tuple[int, ...] | None = None
    smallest: bool = False


@dataclass
class Case:
    """One row of the table: how the model runs, and what was measured."""

    method: str
    keep: int | None
    model: Any
    batch: dict[str, Any]
    image: str
    tokens_before: int
    tokens_after: int
    pruning: Any = None
    gate: str = ""
    memory: int | None = None
    samples: list[dict[str, float]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.gate.startswith("failed")


def run(options: argparse.Namespace) -> int:
    """Check everything that can be checked, then gate, measure, print and save."""
    require("bench model", "demo", "transformers", "PIL", "numpy")
    if options.headline:
        _headline(options)
    names = _arguments.method_names(options.method)
    _arguments.check_counts(options, "text_tokens", "new_tokens", "vision_layers", "text_layers", "repeats", "threads")
    _arguments.check_seed(options.seed)
    cells = _cells(options)

    import torch

    from vtkernels.cli import _model

    from .environment import PLACE
    from .harness import default_out
    from .sheet import Sheet

    device = _arguments.torch_device(options.device)
    chosen = options.quick or any((options.model, options.shape, options.method, options.keep, options.concurrency))
    out = options.out or (None if chosen else default_out(f"{device.type}_model.csv"))
    if out is not None:
        check_out(out)
    sheet = Sheet(out, (*_COLUMNS, *PLACE), committed=options.out is None)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with _model.quiet():
            _measure_all(options, names, cells, device, sheet)
    finally:
        torch.set_num_threads(threads)
    wrong = _complaints(sheet.rows)
    written = sheet.close(good=not wrong)
    print(f"Wrote {written}" if written else "Nothing was saved: what runs was chosen by hand. --out FILE saves it.")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def _headline(options: argparse.Namespace) -> None:
    """The choices of ``--headline``, where none was made otherwise."""
    choices = {"shape": ["llava-1.5-7b"], "method": ["Scope,TopAttention"], "concurrency": ["1"], "new_tokens": 8}
    if not options.quick:  # a tiny model has 64 tokens
        choices["keep"] = ["64"]
    for name, value in choices.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _complaints(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every case of which something has to be said, once."""
    found: dict[str, None] = {}
    for row in rows:
        if row["gate"] not in ("", "same"):
            budget = f" at {row['keep']}" if row["keep"] else ""
            found[f"{row['model']}, concurrency {row['concurrency']}, {row['method']}{budget}: {row['gate']}"] = None
    return list(found)


def _cells(options: argparse.Namespace) -> list[Cell]:
    """What to run. On a CPU the default leaves out what takes long, and says so."""
    shapes: tuple[str | None, ...] = _split("shape", options.shape, _SHAPES) or ("llava-1.5-7b", "llava-next-7b")
    keeps = _numbers("keep", options.keep)
    if options.model is not None:
        if options.shape or options.quick or options.vision_layers or options.text_layers:
            raise UsageError("argument --model: a checkpoint has layers of its own; leave out --shape, --quick and depths")
        shapes = (None,)
    on_cpu = options.device == "cpu" and not options.quick
    counts = _numbers("concurrency", options.concurrency) or ((2,) if options.quick else (1,) if on_cpu else (1, 8, 32))
    cells = [Cell(shape, count, keeps, smallest=options.quick) for shape in shapes for count in counts]
    if on_cpu and options.concurrency is None:
        small = next((shape for shape in shapes if shape in (None, "llava-1.5-7b")), "")
        if small != "":
            place = shapes.index(small) + 1
            cells[place:place] = [Cell(small, count, keeps, smallest=True) for count in (8, 32)]
        print(
            _console.wrap(
                "On a CPU the default leaves out concurrency 8 and 32 but for LLaVA-1.5 at its smallest budget, and most "
                "layers. --concurrency 1,8,32, --vision-layers 24 and --text-layers 32 ask for them."
            )
        )
    return cells


def _measure_all(options: argparse.Namespace, names: list[str], cells: list[Cell], device: torch.device, sheet: Sheet) -> None:
    import torch

    from . import models
    from .environment import environment
    from .harness import failure

    dtype = getattr(torch, options.dtype) if options.dtype else models.faster_dtype() if device.type == "cpu" else torch.float16
    new = options.new_tokens or (4 if device.type == "cpu" else 32)
    about = {"text_tokens": options.text_tokens, "new_tokens": new, "dtype": str(dtype).removeprefix("torch.")}
    about |= environment(device)
    for shape in dict.fromkeys(cell.shape for cell in cells):
        mine = [cell for cell in cells if cell.shape == shape]
        try:
            with _console.busy(f"building {shape or options.model}, {about['dtype']}"):
                subject = _subject(options, shape, dtype, device)
        except torch.OutOfMemoryError as error:
            lost = about | {"model": shape or options.model, "gate": failure(error)}
            sheet.add(_row(lost | {"concurrency": cell.concurrency, "method": "unpruned"}) for cell in mine)
            continue
        about |= {
            "model": subject.name, "vision_depth": subject.depth[0], "text_depth": subject.depth[1],
            "vision_full": subject.full[0], "text_full": subject.full[1],
        }  # fmt: skip
        for cell in mine:
            _measure_cell(subject, cell, names, options, device, about | {"concurrency": cell.concurrency}, sheet)
        del subject  # before the next model is built


def _measure_cell(
    subject: Subject,
    cell: Cell,
    names: list[str],
    options: argparse.Namespace,
    device: torch.device,
    about: dict[str, Any],
    sheet: Sheet,
) -> None:
    """The rows of one model and batch size, written after every round and printed at the end."""
    import torch

    from vtkernels.cli._stages import PeakMemory

    from . import selectors
    from .harness import failure

    long = device.type == "cpu" and (cell.concurrency > 1 or subject.model.config.model_type == "llava_next")
    repeats = options.repeats or (1 if options.quick else 2 if long else 3)
    what = f"{subject.name}, concurrency {cell.concurrency}"
    try:
        cases = _cases(subject, cell, selectors.methods(names, options.seed), options)
    except torch.OutOfMemoryError as error:
        sheet.add([_row(about | {"method": "unpruned", "gate": failure(error)})])
        return
    cut = subject.depth != subject.full
    with _console.progress(len(cases) * (repeats + 1)) as step:
        for _ in _measure(cases, cut, repeats, about["new_tokens"], PeakMemory(device), step, what):
            sheet.show(row for case in cases for row in _rows(case, about))
    rows = [row for case in cases for row in _rows(case, about)]
    sheet.add(rows)
    for group in model_table.groups(rows).values():
        _console.table(*model_table.cells(group), title=model_table.title(group), left=2, tight=True)
        print(*map(_console.wrap, model_table.sentences(group)), "", sep="\n", flush=True)


def _subject(options: argparse.Namespace, shape: str | None, dtype: torch.dtype, device: torch.device) -> Subject:
    from . import models

    if shape is None:
        return models.checkpoint_subject(options.model, dtype=dtype, device=device, trust_remote_code=options.trust_remote_code)
    geometry = models.SHAPES[shape]
    if options.quick:
        geometry = replace(models.TINY, kind=geometry.kind)
    shallow = (2, 1) if device.type == "cpu" else (geometry.vision_layers, geometry.text_layers)
    depth = (options.vision_layers or shallow[0], options.text_layers or shallow[1])
    if depth[0] < 2:
        raise UsageError("argument --vision-layers: 1 is too small, features are those of the layer before the last; give >= 2")
    for flag, layers, most in zip(("vision", "text"), depth, (geometry.vision_layers, geometry.text_layers), strict=True):
        if layers > most:
            raise UsageError(f"argument --{flag}-layers: {layers} is more than the {most} of {shape}; give 1 to {most}")
    name = f"{shape} (tiny)" if options.quick else shape
    return models.random_subject(name, geometry, depth, seed=options.seed, dtype=dtype, device=device)


def _cases(subject: Subject, cell: Cell, methods: dict[str, Any], options: argparse.Namespace) -> list[Case]:
    """The cases of a cell, each with what its gate gave."""
    import vtkernels as vt
    from vtkernels.cli._model import side_of

    from . import model_gate, models

    model, config = subject.model, subject.model.config
    whole = models.crops(config) * side_of(config) ** 2
    keeps = sorted(cell.keeps or subject.keeps, reverse=True)
    for keep in keeps:
        _arguments.check_budget(keep, whole)
    keeps = keeps[-1:] if cell.smallest else keeps
    patch, before = config.vision_config.patch_size, models.visual_tokens(config)

    def stock(method: str, keep: int | None, model: Any) -> Case:
        side = side_of(model.config) * patch
        image = f"{side} px" if models.crops(config) == 1 else f"5 x {side} px"
        batch = models.inputs(model, cell.concurrency, options.text_tokens, options.seed)
        return Case(method, keep, model, batch, image, before, models.visual_tokens(model.config))

    base = stock("unpruned", None, model)
    cases = [base]
    for keep in keeps:
        for name, method in methods.items():
            try:
                pruning = vt.prune(model, method, keep)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"argument --method: {name} does not fit {subject.name} ({first_line(error)}); choose another method"
                ) from None
            pruning.remove()
            cases.append(replace(base, method=name, keep=keep, pruning=pruning, samples=[]))
        cases.append(stock("smaller image", keep, models.shrunk(model, models.side_within(config, keep))))
    with _console.busy(f"checking what {subject.name} chooses, concurrency {cell.concurrency}"):
        prompt = model_gate.by_hand(model, base.batch, keeps[-1])
        verdicts = model_gate.check(model, base.batch, methods, keeps)
    for case in cases:
        if case.keep is not None and case.pruning is not None:
            case.gate = prompt if prompt != "same" else verdicts[case.method, case.keep]
    return cases


def _measure(
    cases: list[Case], cut: bool, repeats: int, new: int, memory: Any, step: Callable[..., None], what: str
) -> Iterator[None]:
    """A warm-up, one run each for memory, then timed runs in turn: drift hits every case alike. Yields after every round."""
    step(f"{what}: warming up")
    _attempt(cases[0], new, cut)
    for case in cases:
        step(f"{what}: measuring memory", 1)
        memory.reset()
        if _attempt(case, new, cut):
            case.memory = memory.peak()
    for turn in range(repeats):
        for place in range(len(cases)):
            step(f"{what}: timing, round {turn + 1} of {repeats}", 1)
            case = cases[(place + turn) % len(cases)]
            times = _attempt(case, new, cut)
            if times:
                case.samples.append(times)
        yield


def _attempt(case: Case, new: int, cut: bool) -> dict[str, float]:
    """``generate``; nothing from now on once it raised, which is the case's own affair: too little memory, say."""
    import torch

    from .harness import failure

    if case.failed:
        return {}
    try:
        return generate(case, new, cut)
    except Exception as error:
        case.gate = failure(error)
    gc.collect()
    torch.cuda.empty_cache()
    return {}


def generate(case: Case, new: int, cut: bool) -> dict[str, float]:
    """One batch from pixels to ``new`` tokens per request: milliseconds by stage. ``cut``: take the time of the layers too."""
    from vtkernels.integrations.transformers.stats import Meter

    if case.pruning is not None:
        case.pruning.attach()  # again and not anew: what a pruning learns of a model it learns once
    try:
        with Meter(case.model) as meter, _layers(case.model, cut) as layers:
            case.model.generate(**case.batch, do_sample=False, min_new_tokens=new, max_new_tokens=new)
    finally:
        if case.pruning is not None:
            case.pruning.remove()
    (stats,) = meter.calls
    if case.pruning is not None:
        case.tokens_after = stats.tokens_after[0]
    return {stage: getattr(stats, stage) for stage in STAGES} | layers


@contextmanager
def _layers(model: Any, wanted: bool) -> Iterator[dict[str, float]]:
    """Milliseconds in the layers of the tower and, in the prefill, of the language model."""
    import torch

    from .models import tower_layers

    spent: dict[str, float] = {}
    device = next(model.parameters()).device
    handles, since = [], {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def watch(name: str, layers: Any) -> None:
        def begin(*_: Any) -> None:
            if name not in spent:
                since[name] = now()

        def end(*_: Any) -> None:
            if name not in spent:  # later calls decode
                spent[name] = 1e3 * (now() - since[name])

        handles.append(layers[0].register_forward_pre_hook(begin))
        handles.append(layers[-1].register_forward_hook(end))

    try:
        if wanted:
            watch("vision_layers", tower_layers(model))
            watch("prefill_layers", model.model.language_model.layers)
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _rows(case: Case, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the CSV: one for every stage, or one that says why there is none."""
    from .harness import quantiles

    about = about | {
        "method": case.method, "keep": "" if case.keep is None else case.keep, "image": case.image, "gate": case.gate,
        "tokens_before": case.tokens_before, "tokens_after": case.tokens_after,
        "peak_bytes": "" if case.memory is None else case.memory,
    }  # fmt: skip
    if case.failed:
        yield _row(about)
        return
    for stage in case.samples[0] if case.samples else ():
        times = [sample[stage] for sample in case.samples]
        p20, p50, p80 = (f"{value:.4f}" for value in quantiles(times))
        yield _row(about | {"stage": stage, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "repeats": len(times)})


def _row(about: dict[str, Any]) -> dict[str, Any]:
    """All columns, in their order."""
    from .environment import PLACE

    return {column: about.get(column, "") for column in (*_COLUMNS, *PLACE)}


def _split(flag: str, given: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    parts = [part.strip() for entry in given or () for part in entry.split(",")]
    for part in parts:
        if part not in known:
            raise UsageError(f"argument --{flag}: {part!r} is unknown; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(parts))


def _numbers(flag: str, given: list[str] | None) -> tuple[int, ...] | None:
    parts = [part.strip() for entry in given or () for part in entry.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise UsageError(f"argument --{flag}: {part!r} is out of range; give numbers >= 1")
    return tuple(dict.fromkeys(map(int, parts))) or None
