"""``bench gpu-report`` on a made-up folder of results: whole, partial and cut off."""

from __future__ import annotations

import json

import pytest

SECTIONS = ("machine", "steps", "tests", "triton", "sanitizers", "targets", "ops", "scaling", "model", "ncu")
PLACE = {
    "threads": "2", "device": "NVIDIA H200", "machine": "CPU, 16 cores", "python": "3.12.3", "torch": "2.11.0",
    "triton": "3.6.0", "cuda": "13.0", "driver": "580.159", "vtkernels": "0.1.0", "commit": "0123abc",
    "time": "2026-11-27T19:47:00+00:00",
}  # fmt: skip
# of each headline case: vtkernels, Triton, what people run today, floor; microseconds
TIMES = {
    ("scope_select", 1, 64): (58.2, 308, ("published", 2150), 4.7),
    ("scope_select", 1, 192): (161, 890, ("published", 6400), 4.7),
    ("scope_select", 64, 64): (310, 2100, ("published", 9800), 95),
    ("scope_select", 5, 64): (64, 330, ("published", 2300), 11),
    ("attention_topk", 1, 64): (7.1, 13.3, ("full map", 61), 2.2),
    ("graph_propagate", 1, 576): (24, 32.5, ("published", 120), 7.2),
    ("graph_propagate", 1, 2304): (88, 210, ("published", 900), 58),
    ("topk_select", 1, 64): (3.9, 5.95, ("torch.topk", 18), 1.6),
    ("coverage_select", 1, 64): (52, 846, ("published", 2000), 1.7),
    ("cls_attention", 1, None): (6, 6.4, ("full map", 52), 2.1),
    ("compact_", 1, 64): (2.9, 2.34, ("gather + copy_", 7.4), 1.9),
}
GREEDY, WEIGHTS = "void vtkernels::cuda::greedy<float, 8>(Plan)", "vtkernels::cuda::graph_weights(Args)"
METRICS = (
    ("0", GREEDY, "8", "SpeedOfLight", "Duration", "us", "48.35"),
    ("0", GREEDY, "8", "SpeedOfLight", "Compute (SM) Throughput", "%", "4.20"),
    ("0", GREEDY, "8", "SpeedOfLight", "Memory Throughput", "%", "2.75"),
    ("0", GREEDY, "8", "MemoryWorkloadAnalysis", "Memory Throughput", "Gbyte/s", "11.5"),
    ("0", GREEDY, "8", "LaunchStats", "Registers Per Thread", "register/thread", "96"),
    ("1", WEIGHTS, "171", "SpeedOfLight", "Duration", "ns", "71,300"),
    ("1", WEIGHTS, "171", "SpeedOfLight", "Compute (SM) Throughput", "%", "74.1"),
)


def profiled() -> str:
    """As Nsight Compute prints it, with its own words before, and cut off."""
    heads = ("ID", "Process ID", "Kernel Name", "Block Size", "Grid Size", "Section Name", "Metric Name", "Metric Unit",
             "Metric Value")  # fmt: skip
    lines = [(launch, "4794", kernel, "(256, 1, 1)", f"({grid}, 1, 1)", *rest) for launch, kernel, grid, *rest in METRICS]
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in (heads, *lines))
    return f'==PROF== Profiling "greedy" - 0: 0%....50%....100% - 12 passes\n{text}\n"2","4794","void vtkernels::cuda::to'


@pytest.fixture
def rows(benchmarks):
    """Of every headline case, in every mode of a GPU."""
    harness, modes = benchmarks("harness"), benchmarks("clock").modes("cuda")
    found = []
    for case in benchmarks("ops").headlines(None):
        middle = case.sizes.get("K", case.sizes["N"] if case.op == "graph_propagate" else None)
        ours, triton, (today, loop), floor = TIMES[case.op, case.sizes["B"], middle]
        kind = "memory copy floor" if case.op not in ("scope_select", "graph_propagate") else "torch.mm floor"
        for name, us in {"vtkernels": ours, "triton": triton, today: loop, kind: floor}.items():
            for mode in modes:
                value = us + {"call": 20, "finished": 25}.get(mode.timing, 0) + (3 if mode.cache == "cold" else 0)
                times = {f"p{q}_ms": f"{value * share / 1000:.5f}" for q, share in ((20, 0.98), (50, 1), (80, 1.04))}
                row = {"op": case.op, "shape": case.shape, "provider": name, "dtype": "float16", "repeats": 9, "gate": "same"}
                row["backend"] = "native" if name == "vtkernels" else ""
                found.append(dict.fromkeys(harness.COLUMNS, "") | row | case.sizes | vars(mode) | times | PLACE)
    return found


@pytest.fixture
def folder(benchmarks, rows, tmp_path):
    """What the script leaves."""
    made, harness, scaling = tmp_path / "run", benchmarks("harness"), benchmarks("scaling")
    made.mkdir()
    harness.save(rows, made / "ops.csv")
    points = [
        dict.fromkeys(scaling._COLUMNS, "")
        | {"quantity": "time", "axis": "N", "op": "scope_select", "provider": provider, "N": n, "dtype": "float16",
           "p50_ms": f"{n**power / 1e5:.5f}", "gate": "same"}
        | PLACE
        for provider, power in (("vtkernels", 1.2), ("torch.mm floor", 1.4))
        for n in (576, 1152, 2304)
    ]  # fmt: skip
    harness.save(points, made / "scaling.csv", scaling._COLUMNS)
    model = benchmarks("model")
    stages = [
        model._row(
            {"model": "llava-1.5-7b", "method": method, "keep": keep, "concurrency": 1, "stage": stage, "repeats": 3,
             "p20_ms": ms, "p50_ms": ms, "p80_ms": ms, "tokens_before": 576, "tokens_after": keep or 576, "text_tokens": 48,
             "new_tokens": 8, "vision_depth": 24, "text_depth": 32, "vision_full": 24, "text_full": 32, "dtype": "float16",
             "gate": "same" if keep else "", **PLACE}
        )
        for method, keep, prefill in (("unpruned", "", 31.0), ("Scope", 64, 9.0))
        for stage, ms in {**dict.fromkeys(model.STAGES, 5.0), "prefill": prefill}.items()
    ]  # fmt: skip
    harness.save(stages, made / "model.csv", list(stages[0]))
    facts = {"device": "NVIDIA H200", "driver": "580.159", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0",
             "commit": "0123abc", "copy_gb_s": 3858.2, "matmul_tflop_s": 753.11, "clusters": {"8": 15, "16": 7}}  # fmt: skip
    (made / "machine.json").write_text(json.dumps(facts))
    (made / "summary.txt").write_text(
        "vtkernels 0123abc, Python 3.12.3, limit 480 s\n"
        "machine   passed          7 s  {...}\n"
        "tests     FAILED (1)     43 s  1 failed, 2 passed | 1 skipped\n"
        "memory    no time left    0 s  \n"
        "ops       CUT OFF       100 s  \n"
        "2 not passed, 400 s\n"
    )
    (made / "cuda.xml").write_text(
        '<testsuites><testsuite><testcase name="test_bits[a]"/><testcase name="test_bits[b]"><failure/></testcase>'
        '<testcase name="test_graph"/><testcase name="test_two_devices"><skipped/></testcase></testsuite></testsuites>'
    )
    (made / "triton.log").write_text(
        "topk_select: as the reference, batch-invariant, capturable\nscope_select: cut off after 95 s\n"
    )
    (made / "sanitize.log").write_text(
        "compute-sanitizer --tool memcheck\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
        "compute-sanitizer --tool racecheck\n========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n"
    )
    (made / "ncu.csv").write_text(profiled())
    return made


@pytest.fixture
def report(benchmarks, monkeypatch, tmp_path, capsys):
    """Run the command in a made-up checkout; returns code, what it printed and the folder with results and docs."""
    pytest.importorskip("matplotlib")
    module, plots = benchmarks("gpu_report"), benchmarks("plots")
    results, docs = tmp_path / "results", tmp_path / "docs"
    for made in (results, docs):
        made.mkdir()
    (docs / "gpu.md").write_text("# GPU\n\n" + "\n".join(
        f"## {name}\n<!-- gpu-report:{name} -->\nwhat was there\n<!-- /gpu-report:{name} -->\n" for name in SECTIONS
    ))  # fmt: skip
    monkeypatch.setattr(module, "RESULTS", results)
    monkeypatch.setattr(module, "PAGE", docs / "gpu.md")
    monkeypatch.setattr(plots, "DOCS", docs)

    def run(folder):
        code = benchmarks("__main__").main(["gpu-report", str(folder)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err, tmp_path

    return run


def section(root, name):
    text = (root / "docs" / "gpu.md").read_text()
    return text.partition(f"<!-- gpu-report:{name} -->\n")[2].partition(f"\n<!-- /gpu-report:{name} -->")[0]


def test_a_whole_folder(report, folder, benchmarks):
    code, said, root = report(folder)
    assert code == 0 and "missing" not in said
    harness = benchmarks("harness")
    for source, target in {"ops": "", "scaling": "_scaling", "model": "_model"}.items():
        assert harness.load(root / "results" / f"nvidia_h200{target}.csv") == harness.load(folder / f"{source}.csv")
    assert not any("what was there" in section(root, name) for name in SECTIONS)
    assert "| copy, GB/s | 3858.2 |" in section(root, "machine") and "15 of 8, 7 of 16" in section(root, "machine")
    assert "| `tests` | FAILED (1) | 43 | 1 failed, 2 passed \\| 1 skipped |" in section(root, "steps")
    assert "| `memory` | no time left | 0 |" in section(root, "steps")
    assert section(root, "tests") == "2 passed, 1 failed, 1 skipped of 4 tests. Failed: `test_bits` (1 of 2)."
    assert "| `scope_select` | cut off after 95 s |" in section(root, "triton")
    assert "| `memcheck` | 0 errors |" in section(root, "sanitizers")
    assert "| `racecheck` | 2 hazards displayed (0 errors, 2 warnings) |" in section(root, "sanitizers")
    targets = section(root, "targets")
    assert "| `scope_select` | B 1, N 576, D 1024, K 64 | 60 | 58.2 | met | native | same |" in targets
    assert "| `scope_select` | B 1, N 576, D 1024, K 192 | 150 | 161.0 | missed by 1.07x | native | same |" in targets
    ops = section(root, "ops")
    assert "| native | 58.2 (57.0 to 60.5) | 308 | published 2,150 | torch.mm 4.70 | 78.2, 83.2 | same |" in ops
    assert "float16, NVIDIA H200, driver 580.159, CUDA 13.0, torch 2.11.0, Triton 3.6.0, commit 0123abc, 2026-11-27." in ops
    assert "`scope_select` | torch.mm | 1.20 (1.40)" in section(root, "scaling")
    assert "Scope" in section(root, "model")
    assert "| `greedy` | (8, 1, 1) | (256, 1, 1) | 48.4 | 4.20 | 2.75 | 96 |" in section(root, "ncu")
    assert "| `graph_weights` | (171, 1, 1) | (256, 1, 1) | 71.3 | 74.1 |  |  |" in section(root, "ncu")
    pillow = pytest.importorskip("PIL.Image")
    plots = benchmarks("plots")
    with pillow.open(root / "docs" / "gpu_ops.png") as picture:
        assert picture.text[plots.KEY] == plots.digest(root / "results" / "nvidia_h200.csv")


def test_the_plot_has_a_line_per_case(benchmarks, rows):
    pytest.importorskip("matplotlib")
    (axes,) = benchmarks("plots_gpu").draw(rows).axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(labels) == len(TIMES) and labels[0] == "scope_select   B 1, N 576, D 1024, K 64" and axes.get_xscale() == "log"


@pytest.mark.parametrize(
    "lost",
    ["machine.json", "ops.csv", "scaling.csv", "model.csv", "cuda.xml", "triton.log", "sanitize.log", "ncu.csv", "summary.txt"],
)
def test_what_is_missing_is_named_and_stays_as_it_was(report, folder, lost):
    (folder / lost).unlink()
    code, said, root = report(folder)
    assert code == 0 and f"missing: {lost}" in said
    kept = [name for name in SECTIONS if section(root, name) == "what was there"]
    assert kept == {
        "machine.json": ["machine"], "ops.csv": ["targets", "ops"], "scaling.csv": ["scaling"], "model.csv": ["model"],
        "cuda.xml": ["tests"], "triton.log": ["triton"], "sanitize.log": ["sanitizers"], "ncu.csv": ["ncu"],
        "summary.txt": ["steps"],
    }[lost]  # fmt: skip


def test_files_that_were_cut_off(report, folder):
    for name in ("machine.json", "cuda.xml", "ncu.csv", "summary.txt", "sanitize.log"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) // 2])
    assert report(folder)[0] == 0


def test_logs_in_one_file(report, folder):
    for name in ("triton.log", "sanitize.log"):
        (folder / name).unlink()
    (folder / "log.txt").write_text(
        "[triton] topk_select: as the reference\n[triton] warning: slow\n======== memcheck: compute-sanitizer (at most 60 s)\n"
        "========= ERROR SUMMARY: 0 errors\n"
    )
    _, said, root = report(folder)
    assert "missing" not in said and "| `topk_select` | as the reference |" in section(root, "triton")
    assert "| `memcheck` | 0 errors |" in section(root, "sanitizers")


def test_cases_without_a_figure(report, folder, benchmarks, rows):
    """Ours failed at one case, was red at another; a loop has no graph."""
    lost = [row for row in rows if not (row["op"] == "topk_select" and row["provider"] == "vtkernels")]
    case = {"op": "topk_select", "shape": "llava-1.5-7b", "provider": "vtkernels", "B": 1, "N": 576, "K": 64}
    failed = dict.fromkeys(rows[0], "") | case | {"dtype": "float16", "gate": "failed: out of memory"} | PLACE
    for row in lost:
        if row["op"] == "attention_topk":
            row["gate"] = "red: full map: 1.6% of the picks differ"
    lost = [row for row in lost if not (row["provider"] == "published" and row["launch"] == "graph")]
    benchmarks("harness").save([*lost, failed], folder / "ops.csv")
    code, _, root = report(folder)
    assert code == 0 and "vtkernels failed: out of memory" in section(root, "ops") and "published 2,150" in section(root, "ops")
    assert "| `topk_select` | B 1, N 576, K 64 | 4 |  | not measured |  |  |" in section(root, "targets")
    assert "| met | native | red: full map: 1.6% of the picks differ |" in section(root, "targets")


def test_what_a_user_can_get_wrong(report, benchmarks, tmp_path):
    code, said, _ = report(tmp_path / "nowhere")
    assert code == 2 and "is no folder" in said
    (tmp_path / "empty").mkdir()
    code, said, _ = report(tmp_path / "empty")
    assert code == 2 and "names the GPU" in said


def test_a_page_without_markers_is_named(report, folder):
    _, _, root = report(folder)
    (root / "docs" / "gpu.md").write_text("# GPU\n")
    assert "missing: <!-- gpu-report:ops --> ... <!-- /gpu-report:ops --> in" in report(folder)[1]
    (root / "docs" / "gpu.md").unlink()
    code, said, _ = report(folder)
    assert code == 0 and "no section was written" in said
