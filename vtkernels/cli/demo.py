"""``vtkernels demo``: a picture and a prompt through a LLaVA, unpruned and with each method."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.cli import _arguments, _console, _report
from vtkernels.cli._errors import UsageError, first_line, require
from vtkernels.cli._files import PICTURES, check_out, replacing

if TYPE_CHECKING:
    import torch

    from vtkernels.cli._model import Geometry, Subject

_DTYPES = ("float32", "bfloat16", "float16")
# What the scores of each method that has some are.
_SCORES = {
    "Scope": "Class-token attention",
    "FoPru": "Attention in the map",
    "GPrune": "Mass after propagation",
    "HoloV": "Class-token attention",
    "PAR": "Relevance to the prompt",
    "TopAttention": "Class-token attention",
}
_EXAMPLES = """examples:
  vtkernels demo                                          no checkpoint, no network: a small LLaVA with random weights
  vtkernels demo --keep 32 --method scope,random          two methods, 32 of 576 tokens
  vtkernels demo --keep 0.25 --image photo.jpg --out kept.png
  vtkernels demo --model llava-hf/llava-1.5-7b-hf --device cuda --dtype float16 --prompt "What is on the plate?"
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="prune a LLaVA with each method: times, memory, FLOPs, and a picture",
        description="Runs a picture and a prompt through a LLaVA, unpruned and with each method;\n"
        "prints what every stage costs and draws what was kept.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="PATH", help="folder or hub name of a LLaVA checkpoint (default: small, with random weights)")
    add("--image", metavar="FILE", help="picture (default: the photograph that comes with the package)")
    add("--prompt", default="What is on the saucer?", help="question about the picture (default: %(default)r)")
    add(
        "--method",
        action="append",
        metavar="NAME[,NAME]",
        help=f"methods to run, repeatable (default: all: {', '.join(name.lower() for name in _arguments.METHODS)})",
    )
    add("--keep", default="64", help="visual tokens to keep: a number, or a fraction such as 0.25 (default: %(default)s)")
    add("--out", default="demo.png", metavar="FILE", help="where the picture goes (default: %(default)s)")
    add("--max-new-tokens", type=int, metavar="N", help="tokens to generate per run (default: 8; 32 with --model)")
    add("--repeats", type=int, default=3, metavar="N", help="timed runs per method (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: what torch chooses)")
    add("--seed", type=int, default=0, help="of the random weights and of the method random (default: %(default)s)")
    add("--dtype", choices=_DTYPES, default="float32", help="of the model (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--trust-remote-code", action="store_true", help="let the checkpoint run Python code of its own")


def run(options: argparse.Namespace, geometry: Geometry | None = None) -> int:
    """Check everything that can be checked, then measure, print and draw."""
    require("vtkernels demo", "demo", "transformers", "PIL", "matplotlib", "numpy")
    names = _arguments.method_names(options.method)
    keep = _arguments.budget(options.keep)
    _arguments.check_counts(options, "max_new_tokens", "repeats", "threads")
    _arguments.check_seed(options.seed)

    import torch

    from vtkernels.cli import _picture

    out = check_out(options.out, suffixes=PICTURES)
    image = _picture.read(options.image)
    device = _arguments.torch_device(options.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        return _demo(options, names, keep, image, out, device, geometry)
    except torch.OutOfMemoryError:
        raise UsageError(f"argument --device: {options.device!r} has too little memory; try --dtype float16") from None
    finally:
        torch.set_num_threads(threads)


def _demo(
    options: argparse.Namespace,
    names: list[str],
    keep: int | float,
    image: Any,
    out: Path,
    device: torch.device,
    geometry: Geometry | None,
) -> int:
    import torch

    from vtkernels import backends, flops
    from vtkernels.cli import _model
    from vtkernels.cli._stages import PeakMemory

    geometry = geometry or _model.Geometry()
    methods = {name: _make(name, options.seed) for name in names}
    results = [_report.Result("unpruned", None), *(_report.Result(name, method) for name, method in methods.items())]
    if options.model is None:
        _arguments.check_budget(keep, (geometry.image // geometry.patch) ** 2)
    memory = PeakMemory(device)
    with _model.quiet():
        with _console.busy("loading the model" if options.model else "building a LLaVA with random weights"):
            subject = _subject(options, keep, image, getattr(torch, options.dtype), device, geometry)
        with _console.progress(len(results) * (options.repeats + 1) + 1) as step:
            _measure(subject, results, keep, memory, options, step)

    sizes = flops.Llava.from_config(subject.model.config)
    for result in results:
        name = None if result.method is None else result.label
        result.flops = flops.cost(sizes, name, result.kept, prompt_tokens=subject.text_tokens).first_token

    count = sum(parameter.numel() for parameter in subject.model.parameters()) / 1e6
    ops = dict.fromkeys(op for name in names for op in (*_arguments.METHODS[name], "gather_tokens"))
    runs_on = _runs_on({op: backends.which(op, device.type) for op in ops})
    print(
        _console.wrap(
            f"{subject.name}; {count:.0f} million parameters, {options.dtype}, {device}, {torch.get_num_threads()} threads"
        )
    )
    source = options.image or "coffee.jpg (shipped)"
    print(_console.wrap(f"image {source}; prompt {options.prompt!r}; backend of the ops: {runs_on}") + "\n")
    _report.show(results, repeats=options.repeats, memory=memory.precision)
    print("\n" + _console.wrap(_report.paragraph(results, tokens=subject.visual_tokens, random_weights=subject.decode is None)))
    for result in results:
        if result.answer is not None:
            print("\n" + _console.wrap(f"{result.label}: {result.answer or '(nothing)'}"))
    _draw(subject, results, out)
    peak = f"; peak memory of the process {memory.highest / 2**30:.2f} GiB" if memory.highest and device.type == "cpu" else ""
    print(f"\nWrote {out}{peak}")
    return 0


def _runs_on(places: dict[str, str]) -> str:
    """``"native"``, or ``"native; reference for route_tokens"``: the backend of most ops, and the ops that run elsewhere."""
    backends = list(places.values())
    most = max(dict.fromkeys(backends), key=backends.count)
    others = {name: [op for op, place in places.items() if place == name] for name in backends if name != most}
    return "; ".join([most, *(f"{name} for {', '.join(ops)}" for name, ops in others.items())])


def _subject(
    options: argparse.Namespace,
    keep: int | float,
    image: Any,
    dtype: torch.dtype,
    device: torch.device,
    geometry: Geometry,
) -> Subject:
    from vtkernels.cli import _model

    if options.model is None:
        return _model.random_model(geometry, image, options.prompt, seed=options.seed, dtype=dtype, device=device)
    trust = options.trust_remote_code
    config = _model.checkpoint_config(options.model, trust_remote_code=trust)
    _arguments.check_budget(keep, _model.side_of(config) ** 2)
    return _model.checkpoint(options.model, image, options.prompt, dtype=dtype, device=device, trust_remote_code=trust)


def _measure(
    subject: Subject,
    results: list[_report.Result],
    keep: int | float,
    memory: Any,
    options: argparse.Namespace,
    step: Callable[..., None],
) -> None:
    """One warm-up of everything, one run each for memory, then timed runs in turn: drift hits every method alike."""
    from vtkernels.cli._stages import Sample
    from vtkernels.integrations import prune
    from vtkernels.integrations.transformers.stats import Meter

    length = options.max_new_tokens or (8 if subject.decode is None else 32)

    def generate(result: _report.Result) -> Any:
        pruning = None if result.method is None else prune(subject.model, result.method, keep)
        try:
            with Meter(subject.model) as meter:
                ids = subject.model.generate(**subject.inputs, do_sample=False, max_new_tokens=length)[0]
        finally:
            if pruning is not None:
                pruning.remove()
        if pruning is None:
            result.kept = subject.visual_tokens
        else:
            result.kept = pruning.last.tokens_after[0]
            result.indices, result.scores = pruning.last.indices[0].tolist(), pruning.last.scores[0]
        if subject.decode is not None:
            result.answer = subject.decode(ids)
        return Sample.of(meter.calls[0])

    for result in results[1:]:
        try:
            prune(subject.model, result.method, keep).remove()
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"argument --method: {result.label} does not fit this model ({first_line(error)}); choose another method"
            ) from None
    step("warming up")
    generate(results[0])
    for result in results:
        step("measuring memory", 1)
        memory.reset()
        generate(result)
        result.memory = memory.peak()
    for turn in range(options.repeats):
        for place in range(len(results)):
            step(f"timing, round {turn + 1} of {options.repeats}", 1)
            result = results[(place + turn) % len(results)]
            result.samples.append(generate(result))


def _draw(subject: Subject, results: list[_report.Result], out: Path) -> None:
    from vtkernels import viz

    grid = (subject.side, subject.side)
    base, pruned = results[0], results[1:]

    def first(result: _report.Result) -> str:
        return f"first token {_report.number(result.median('first'))} ms"

    whole = viz.draw_selection(subject.picture, range(grid[0] * grid[1]), grid, outline=None)
    panels = [viz.Panel(whole, "Unpruned", f"{base.kept} tokens", first(base))]
    scored = next((result for result in pruned if result.scores is not None), None)
    if scored is not None:
        heat = viz.draw_saliency(subject.picture, scored.scores.float().cpu(), grid)
        what = _SCORES.get(scored.label, "Scores")
        panels.append(viz.Panel(heat, what, "", f"the scores of {scored.label} · light is high"))
    for result in pruned:
        kept = viz.draw_selection(subject.picture, result.indices, grid)
        times = f"selection {_report.number(result.median('selection'))} ms · {first(result)}"
        panels.append(viz.Panel(kept, result.label, f"{result.kept} of {base.kept} tokens", times))

    caption = "In colour: the visual tokens that the language model sees; the rest is dropped after the vision tower"
    caption += ", or merged into them (PAR)." if any(result.label == "PAR" for result in pruned) else "."
    if subject.decode is None:
        caption += "\nThe weights are random: attention and features follow the picture, not its meaning. Times are medians."
    else:
        caption += f" Times are medians.\n{subject.name}"
    columns = _columns(len(panels))
    drawn = viz.figure(panels, title="Which visual tokens each method keeps", caption=caption, columns=columns)
    try:
        with replacing(out) as part:
            viz.save(drawn, part)
    except OSError as error:
        raise UsageError(f"argument --out: {str(out)!r} cannot be written ({first_line(error)}); free some space") from None


def _columns(panels: int) -> int:
    """Panels in a row, 3 to 5: as few empty places in the last row as possible, then wide rather than tall."""
    return min((5, 4, 3), key=lambda columns: -panels % columns) if panels > 3 else panels


def _make(name: str, seed: int) -> Any:
    from vtkernels import methods

    return methods.Random(seed) if name == "Random" else getattr(methods, name)()
