"""The native library: what it imports, what it says of itself, and one answer at every instruction set and evaluation order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cases import LAYOUTS, SIZES, Draw, arrange, assert_same, backends_of, each_dtype, example, ragged, replace, run
from oracles import attention, check_selection, coverage_problems, scope_problems
from test_cls_attention import assert_close, inputs, plain

import vtkernels as vt
from vtkernels import _load
from vtkernels._schemas import SCHEMAS

if not vt.status("native").available:
    assert os.environ.get("VTKERNELS_REQUIRE_NATIVE") != "1", vt.status("native").reason
    pytest.skip(vt.status("native").reason, allow_module_level=True)

LEVELS = _load.simd_levels()
NATIVE = [op for op in SCHEMAS if "native" in backends_of(op)]
each_level = pytest.mark.parametrize("level", LEVELS, indirect=True)


@pytest.fixture(autouse=True)
def native():
    with vt.backend("native"):
        yield


@pytest.fixture
def host() -> ModuleType:
    """The hooks of ``vtkernels._host``; a wheel has none."""
    if _load.why_no_host():
        pytest.skip(_load.why_no_host())
    return _load.host()


@pytest.fixture
def level(request, host) -> Iterator[str]:
    before = _load.simd_level()
    host.set_simd_level(request.param)
    assert _load.simd_level() == request.param
    yield request.param
    host.set_simd_level(before)


@pytest.fixture
def every_candidate(host) -> Iterator[None]:
    """Greedy steps that evaluate every candidate, as the definition says."""
    host.set_lazy(False)
    yield
    host.set_lazy(True)


# ------------------------------------------------------------------------------------------------ the library


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_imports_no_unstable_symbol_of_torch():
    """One file for every torch from the target version on: nothing of the C++ ABI, only the stable C shim."""
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", str(_load.NATIVE)], capture_output=True, text=True, check=True
    ).stdout
    symbols = [line.split(maxsplit=1)[1] for line in table.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols), "this is not the symbol table of the torch adapter"
    assert [symbol for symbol in symbols if re.search(r"\b(at|c10|torch|caffe2)::", symbol)] == []
    assert [symbol for symbol in symbols if re.search(r"\bPy[A-Z_]\w+|\bcuda[A-Z]", symbol)] == []


def test_library_has_cpu_kernels():
    assert NATIVE
    assert all(vt.which(op) == "native" for op in NATIVE)


def test_build_info_tells_version_compiler_and_torch():
    info = _load.build_info()
    assert info["version"] == vt.__version__
    assert all(isinstance(info[name], str) and info[name] for name in ("compiler", "torch_target", "torch_headers"))
    assert info["cuda"] is None or isinstance(info["cuda"], str)


def test_levels_rise_from_portable():
    assert LEVELS[0] == "portable"
    known = ["portable", "avx2", "avx512"]
    assert [known.index(level) for level in LEVELS if level in known] == sorted(known.index(x) for x in LEVELS if x in known)
    assert _load.simd_level() in LEVELS


def test_unknown_level_is_an_error_that_lists_the_known(host):
    with pytest.raises(ValueError, match=f"level must be one of {', '.join(LEVELS)} on this machine, got mmx"):
        host.set_simd_level("mmx")


# ------------------------------------------------------------------------------------------------ every instruction set


@each_level
@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_scope_select_at_every_level(level, n, dtype):
    draw = Draw(n, dtype)
    features, saliency = draw.normal(2, n, n + 3), draw.uniform(2, n)
    picks = vt.scope_select(features, saliency, min(n, 24), sort=False)
    check_selection(scope_problems(features, saliency), picks)


@each_level
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 48, 700])
def test_scope_select_at_every_level_and_depth(level, d, combine):
    draw = Draw(d)
    features, saliency = draw.normal(3, 70, d), draw.uniform(3, 70)
    options = {"combine": combine, "lengths": torch.tensor([70, 33, 1])}
    check_selection(
        scope_problems(features, saliency, **options), vt.scope_select(features, saliency, 40, sort=False, **options)
    )


@each_level
@each_dtype
@pytest.mark.parametrize("m", SIZES)
def test_coverage_select_at_every_level(level, m, dtype):
    draw = Draw(m, dtype)
    similarity, weight = draw.normal(2, m, 40), draw.uniform(2, 40)
    for combine in ("multiply", "add"):
        picks, gains = vt.coverage_select(similarity, weight, 40, combine=combine, sort=False)
        check_selection(coverage_problems(similarity, weight, combine=combine), picks, gains)


@each_level
@each_dtype
@pytest.mark.parametrize(("heads", "t", "d"), [(1, 1, 1), (3, 15, 2), (2, 33, 17), (5, 64, 33), (16, 151, 64), (1, 600, 80)])
def test_attention_at_every_level(level, heads, t, d, dtype):
    query, key = inputs(heads, t, d, dtype=dtype)
    want, measured = attention(query, key, prefix=0), plain(query, key, prefix=0)
    indices, scores = vt.attention_topk(query, key, t // 2, prefix=0, sort=False)
    assert_close(scores, want, measured)
    assert_same((vt.cls_attention(query, key, prefix=0),), (scores,))
    assert_same((vt.topk_select(scores, t // 2, sort=False),), (indices,))


@each_level
def test_exact_sums_and_non_finite_entries_at_every_level(level):
    draw = Draw()
    similarity = draw.integers(-2, 4, 3, 65, 151).float() / 4
    similarity[1, 7], similarity[2, :, 9], similarity[0, 64, 150] = float("nan"), float("inf"), float("-inf")
    weight = draw.integers(-1, 3, 3, 151).float()
    weight[0, 3] = float("nan")
    picks, gains = vt.coverage_select(similarity, weight, 151, sort=False)
    check_selection(coverage_problems(similarity, weight), picks, gains, tolerance=0)


@each_level
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "requires_grad"])
@pytest.mark.parametrize("op", [op for op in NATIVE if op != "compact_"])
def test_strides_give_the_same_bits_at_every_level(level, op, layout):
    arguments = replace(example(op, n=40, lengths=True), lambda x: arrange(x, layout))
    want = run(op, replace(arguments, lambda x: x.clone(memory_format=torch.contiguous_format)))
    assert_same(run(op, arguments), want)


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(LEVELS), reason="this machine has no second level with fused multiply-add")
@pytest.mark.parametrize("op", NATIVE)
def test_levels_with_fused_multiply_add_give_the_same_bits(op, host, request):
    answers = []
    for name in ("avx2", "avx512"):
        before = _load.simd_level()
        request.addfinalizer(lambda before=before: host.set_simd_level(before))
        host.set_simd_level(name)
        answers.append(run(op, example(op, n=151, lengths=True)))
    assert_same(*answers)


# ------------------------------------------------------------------------------------------------ lazy greedy is exact


@each_level
@each_dtype
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_lazy_steps_are_the_full_evaluation_bit_for_bit(level, combine, dtype, request):
    draw = Draw(3, dtype)
    centres = draw.normal(1, 12, 24)[:, draw.integers(0, 12, 151)]
    features = torch.cat([centres + draw.normal(1, 151, 24) / 100, draw.normal(3, 151, 24)])  # near-duplicates first
    weight = draw.uniform(4, 151)
    weight[1, ::7], weight[2, ::5], weight[3] = float("nan"), 0, 1
    similarity = torch.nn.functional.normalize(features.float(), dim=2).to(dtype)
    similarity = similarity @ similarity.mT
    lengths = torch.tensor([151, 151, 100, 151])
    options = {"combine": combine, "lengths": lengths, "sort": False}
    lazy = *vt.coverage_select(similarity, weight, 151, **options), vt.scope_select(features, weight, 151, **options)
    request.getfixturevalue("every_candidate")
    full = *vt.coverage_select(similarity, weight, 151, **options), vt.scope_select(features, weight, 151, **options)
    assert_same(lazy, full)


@pytest.mark.parametrize("op", ["scope_select", "coverage_select"])
def test_ragged_ties_are_the_full_evaluation_bit_for_bit(op, request):
    draw = Draw(5)
    name = "features" if op == "scope_select" else "similarity"
    arguments = {name: draw.integers(-1, 2, 7, 129, 129).float(), "k": 129, "sort": False, "lengths": ragged(7, 129)}
    arguments["saliency" if op == "scope_select" else "weight"] = draw.integers(0, 3, 7, 129).float()
    lazy = run(op, arguments)
    request.getfixturevalue("every_candidate")
    assert_same(run(op, arguments), lazy)


# ------------------------------------------------------------------------------------------------ memory


def allocated(call) -> int:
    """Bytes that a call takes from the framework's allocator in all, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
    finally:
        torch.set_num_threads(threads)
    return sum(event.nbytes() for event in memory_events(profile) if event.nbytes() > 0)


def memory_events(profile):
    return [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]


@pytest.mark.parametrize(("d", "similarities"), [(64, 1.3), (2000, 2.4)])
def test_scope_select_takes_the_similarity_and_a_packed_block_no_larger(d, similarities):
    n = 1500
    features = Draw().normal(1, n, d)
    assert n * n * 4 < allocated(lambda: vt.scope_select(features, None, 8)) < similarities * n * n * 4


def test_coverage_select_takes_one_copy_of_the_similarity():
    n = 1500
    similarity = Draw().normal(1, n, n)
    assert n * n * 4 < allocated(lambda: vt.coverage_select(similarity, None, 8)) < 1.1 * n * n * 4


def test_attention_profile_holds_no_map():
    t = 2000
    query, key = Draw().normal(1, 2, t, 16), Draw(1).normal(1, 2, t, 16)
    for softmax in (True, False):
        assert allocated(lambda softmax=softmax: vt.attention_profile(query, key, softmax=softmax)) < t * t * 4 / 10


def test_token_clusters_keeps_bits():
    n = 3000
    features = Draw().normal(1, n, 4)
    assert allocated(lambda: vt.token_clusters(features, threshold=0.9)) < n * n * 4 / 8
