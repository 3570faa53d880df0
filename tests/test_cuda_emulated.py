"""The CUDA kernels in the emulator: what only several plans side by side can show, and the emulator itself.

The tests of the ops run on the emulated GPUs too, as the backends ``sm_90`` and ``sm_80``.
"""

from __future__ import annotations

import ctypes
import functools
import math

import pytest
import torch
from cases import Draw, arrange, assert_same, example, replace, rows_of, run, similar
from emulated import CHOSEN, GPUS, LAUNCHES, emulated
from emulator import build
from golden import scope_case
from oracles import check_selection, clear_threshold, coverage_problems, scope_problems

import vtkernels as vt
from vtkernels._schemas import SCHEMAS
from vtkernels.triton import KERNELS

pytestmark = pytest.mark.skipif(bool(build.why_not()), reason=build.why_not())
REAL = {"sm_80": (80, 108, 163 * 1024), "sm_90": (90, 132, 227 * 1024)}
BARE = {"sm_90 bare": (90, 132, 4 * 1024), "sm_80 bare": (80, 1, 2 * 1024)}
EVERY = {**{f"{name} real": gpu for name, gpu in REAL.items()}, **GPUS, **BARE}


# ------------------------------------------------------------------------------------------------ every plan, one answer


def on(gpu, op, arguments):
    with emulated(*gpu):
        return run(op, replace(arguments, lambda x: x.clone()))


def wide(op, draw, n):
    """Arguments that reach every path at a size for an emulator: more heads, tokens or channels than the examples have."""
    if op in ("cls_attention", "attention_topk"):
        arguments = {"query": draw.normal(2, 5, 16), "key": draw.normal(2, 5, n + 1, 16)}
        return {**arguments, "lengths": torch.tensor([n + 1, n // 2])} | ({"k": min(n, 9)} if op == "attention_topk" else {})
    return example(op, batch=2, n=n, k=min(n, 9), lengths=True, dtype=draw.dtype)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("n", [1, 40, 100])
@pytest.mark.parametrize("op", LAUNCHES)
def test_every_plan_gives_the_same_bits(op, n, dtype):
    """Cluster shapes, paths and the number of blocks decide who computes what, never the result. The two paths of the attention
    add the heads in another order, and wide tiles have norms that are added up in another order; which of them runs depends on
    the GPU and the tokens alone."""
    arguments = wide(op, Draw(n, dtype), n)
    results: dict[str, list] = {}
    for gpu in EVERY.values():
        CHOSEN.clear()
        result = on(gpu, op, arguments)
        ((_, path),) = CHOSEN
        results.setdefault(path if "attention" in op else "wide" if "wide" in path else "", []).append(result)
    for first, *others in results.values():
        for other in others:
            assert_same(other, first)
    wide_too = op in ("graph_propagate", "scope_select") and dtype == torch.float16
    assert len(results) == (2 if "attention" in op or wide_too else 1)
    if wide_too and op == "scope_select":
        assert_same(results["wide"][0], results[""][0])
    elif wide_too:
        assert results["wide"][0][1].equal(results[""][0][1])
        torch.testing.assert_close(results["wide"][0][0], results[""][0][0], rtol=2e-5, atol=0)
    elif len(results) == 2:
        torch.testing.assert_close(results["heads"][0][-1], results["cluster"][0][-1], rtol=1e-6, atol=1e-9)


@pytest.mark.kernels
def test_streamed_by_a_cluster_gives_the_same_bits():
    """Too many tokens for the shared memory of a cluster; more items than a block has threads."""
    features = {"features": Draw().normal(1, 300, 9), "saliency": None, "k": 9}
    similarity = {"similarity": Draw().normal(1, 800, 20), "weight": None, "k": 9}
    for op, arguments in (("scope_select", features), ("coverage_select", similarity)):
        assert_same(on(GPUS["sm_90"], op, arguments), on(BARE["sm_80 bare"], op, arguments))


@pytest.mark.kernels
def test_every_path_is_taken():
    CHOSEN.clear()
    for op in LAUNCHES:
        arguments = wide(op, Draw(), 100)
        for gpu in (REAL["sm_90"], *((80, 3, shared) for shared in range(8 * 1024, 96 * 1024, 8 * 1024))):
            on(gpu, op, arguments | ({"k": 1} if "k" in arguments else {}))
    for multiprocessors in (1, 4):
        half = {"features": Draw(dtype=torch.float16).normal(1, 300, 8)}
        on((90, multiprocessors, REAL["sm_90"][2]), "graph_propagate", half)
    half = {"features": Draw(dtype=torch.float16).normal(1, 40, 8), "saliency": None, "k": 1}
    on(GPUS["sm_90 wide"], "scope_select", half)
    on(REAL["sm_90"], "topk_select", {"scores": Draw().normal(1, 4100), "k": 3})
    on(REAL["sm_90"], "compact_", {"tokens": torch.ones(1, 3, 8), "indices": torch.tensor([[0, 2]])})
    want = {
        *((op, path) for op in ("cls_attention", "attention_topk") for path in ("cluster", "heads")),
        *((op, path) for op in ("scope_select", "coverage_select") for path in ("resident", "streamed", "streamed, state too")),
        ("scope_select", "wide, resident"),
        *(("topk_select", path) for path in ("registers", "read again")),
        *(("compact_", path) for path in ("16 bytes", "elements")),
        *(("graph_propagate", path) for path in ("grid", "resident", "wide", "wide, resident")),
    }
    assert want == CHOSEN


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("n", "d"), [(193, 8), (260, 330)])
def test_wide_tiles(n, d, dtype):
    """Several clusters an image and more stages than there is room for; and what is in one row stays in it."""
    features = similar(Draw(n, dtype), 2, n, d)
    lengths = torch.tensor([n, n - 70])
    threshold = clear_threshold(features, 0.5, lengths=lengths)
    features[0, [3, 100, n - 1]] = torch.tensor([math.nan, math.inf, 0.0], dtype=dtype).reshape(3, 1)
    features[1, n - 70 :] = math.nan
    arguments = {"features": features, "threshold": threshold, "lengths": lengths}
    CHOSEN.clear()
    scores, degree = on(GPUS["sm_90 wide"], "graph_propagate", arguments)
    assert all("wide" in path for _, path in CHOSEN)
    narrow = on(GPUS["sm_80"], "graph_propagate", arguments)
    assert degree.equal(narrow[1])
    torch.testing.assert_close(scores, narrow[0], rtol=2e-5, atol=0)
    assert not scores[1, n - 70 :].any() and not degree[0, [3, 100, n - 1]].any()
    assert_same(on(GPUS["sm_90 wide"], "graph_propagate", rows_of(arguments, [1])), (scores[1:2], degree[1:2]))
    assert_same(on(REAL["sm_90"], "graph_propagate", arguments), (scores, degree))  # smaller tiles
    for layout in ("batch_inside", "misaligned"):  # the copy engine can read the first
        laid = {**arguments, "features": arrange(features, layout)}
        with emulated(*GPUS["sm_90 wide"]):
            assert_same(run("graph_propagate", laid), (scores, degree))


def test_more_images_than_blocks_along_y_can_be():
    """Two blocks an image, and 65,535 along y."""
    tokens = torch.arange(66_000 * 2).view(-1, 2, 1).to(torch.float32).repeat(1, 1, 33)
    (got,) = on(REAL["sm_90"], "compact_", {"tokens": tokens, "indices": torch.ones(66_000, 1, dtype=torch.int64)})
    assert torch.equal(got, tokens[:, 1:].expand(-1, 2, -1))


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("n", "d"), [(193, 8), (260, 330)])
def test_wide_tiles_of_any_size_and_layout_choose_the_same(n, d, dtype):
    features = similar(Draw(n, dtype), 2, n, d)
    features[0, [3, 100, n - 1]] = torch.tensor([math.nan, math.inf, 0.0], dtype=dtype).reshape(3, 1)
    lengths = torch.tensor([n, n - 70])
    features[1, n - 70 :] = math.nan
    arguments = {"features": features, "saliency": None, "k": 9, "lengths": lengths, "sort": False}
    CHOSEN.clear()
    (picks,) = on(GPUS["sm_90 wide"], "scope_select", arguments)
    assert_same(on(REAL["sm_90"], "scope_select", arguments), (picks,))
    assert_same(on(REAL["sm_90"], "scope_select", rows_of(arguments, [1])), (picks[1:],))
    for layout in ("batch_inside", "misaligned"):  # the copy engine can read the first
        with emulated(*REAL["sm_90"]):
            assert_same(run("scope_select", {**arguments, "features": arrange(features, layout)}), (picks,))
    assert all("wide" in path for _, path in CHOSEN)
    doubled = {**arguments, "features": features * 2}
    assert_same(on(REAL["sm_90"], "scope_select", doubled), (picks,))
    check_selection(scope_problems(features, None, lengths=lengths), picks)


@pytest.mark.kernels
@pytest.mark.parametrize("name", REAL)
def test_greedy_ops_at_the_size_of_a_crop(name):
    """N = 144 with the shared memory of a real GPU: the similarity stays in it."""
    draw = Draw(7)
    features, weight = draw.normal(1, 144, 64), draw.uniform(1, 144)
    similarity = torch.nn.functional.normalize(features, dim=2)
    similarity = similarity @ similarity.mT
    with emulated(*REAL[name]):
        picks = vt.scope_select(features, weight, 36, sort=False)
        indices, gains = vt.coverage_select(similarity, weight, 36, sort=False)
    check_selection(scope_problems(features, weight), picks)
    check_selection(coverage_problems(similarity, weight), indices, gains)


@pytest.mark.kernels
@pytest.mark.parametrize("op", [op for op in ("scope_select", "coverage_select") if op in KERNELS])
@pytest.mark.skipif(not vt.status("triton").available, reason=vt.status("triton").reason)
def test_greedy_ops_choose_as_the_triton_kernels_do(op):
    """Exact integer sums leave nothing to the order; float similarities may differ in their last bit."""
    draw = Draw(3)
    features = torch.nn.functional.one_hot(draw.integers(0, 7, 2, 40), 7).float()
    name, second = ("features", "saliency") if op == "scope_select" else ("similarity", "weight")
    values = features if op == "scope_select" else features @ features.mT
    arguments = {name: values, second: draw.integers(0, 3, 2, 40).float() / 2, "k": 40, "sort": False}
    with vt.backend("triton"):
        want = run(op, arguments)
    assert_same(on(GPUS["sm_90"], op, arguments), want)


def test_every_op_of_the_library_with_a_cuda_source_is_emulated():
    sources = {path.stem for path in (build.ROOT / "csrc" / "cuda").glob("*.cu")} - {"gpu"}
    assert sources == set(LAUNCHES) <= set(SCHEMAS)


# ------------------------------------------------------------------------------------------------ the rounds of the greedy loop


def exchanges(call) -> int:
    before = build.ops().exchanges()
    call()
    return build.ops().exchanges() - before


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("name", "rounds"), [("scope_c576_d64_k64_alpha2", 10), ("scope_c576_d64_k64_noattn", 17), ("scope_g576_d64_k64", 14)]
)
def test_choices_in_an_exchange_on_published_inputs(name, rounds):
    """64 choices of 576 tokens: the blocks of a cluster wait for each other as often as there are rounds."""
    case = scope_case(name)
    with emulated(*REAL["sm_90"]):
        picks = []

        def call():
            picks.append(vt.scope_select(case.features, case.saliency, case.k, alpha=case.alpha, sort=False))

        assert exchanges(call) == rounds
    assert picks[0][0, : case.safe[0]].tolist() == case.picks[0, : case.safe[0]].tolist()


def in_integers(similarity, weight, k, *, add=False):
    """The greedy loop by its definition, exact in float64 for small integers."""
    picks, gains = [], []
    covered = torch.zeros(similarity.shape[0], dtype=torch.float64)
    left = torch.ones(similarity.shape[1], dtype=torch.bool)
    for _ in range(k):
        gain = (similarity.double() - covered[:, None]).clamp(min=0).sum(0)
        score = gain + weight.double() if add else gain * weight.double()
        best = int(score.masked_fill(~left, -1).argmax())  # the first of equal ones
        picks.append(best)
        gains.append(float(score[best]))
        covered = torch.maximum(covered, similarity[:, best].double())
        left[best] = False
    return picks, gains


@pytest.mark.kernels
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("name", EVERY)
def test_ties_go_to_the_lowest_index_in_the_pool_and_outside(name, combine):
    """Few values: in every round many candidates tie, some of them in the pool and some not."""
    draw = Draw(11)
    similarity, weight = draw.integers(0, 3, 70, 90).float(), draw.integers(1, 3, 90).float() / 2
    with emulated(*EVERY[name]):
        indices, gains = vt.coverage_select(similarity[None], weight[None], 60, combine=combine, sort=False)
    want = in_integers(similarity, weight, 60, add=combine == "add")
    assert (indices[0].tolist(), gains[0].tolist()) == want


@pytest.mark.kernels
@pytest.mark.parametrize("n", [1, 3, 17, 100])
@pytest.mark.parametrize("name", EVERY)
def test_a_round_takes_the_whole_pool_where_scores_do_not_fall(name, n):
    """Tokens that have nothing in common: every choice is the lowest index left, and a round ends when its pool is used up."""
    with emulated(*EVERY[name]):
        made = exchanges(lambda: check_whole(n))
    assert made <= -(-n // 4)


def check_whole(n):
    indices, gains = vt.coverage_select(torch.eye(n)[None], None, n, sort=False)
    assert indices[0].tolist() == list(range(n))
    assert gains[0].tolist() == [1.0] * n


@pytest.mark.kernels
@pytest.mark.parametrize("name", EVERY)
def test_score_that_becomes_a_number_when_its_gain_falls(name):
    """Infinity times 0 is NaN, which ranks last, and 0 is not: the only score that can rise, here while its round goes on."""
    similarity, weight = torch.zeros(1, 4, 24), torch.ones(1, 24)
    similarity[0, :, 3] = 3e38  # their sum is no float32, but one of them is
    similarity[0, :3, 9] = 3e38
    weight[0, 3] = 0
    with emulated(*EVERY[name]):
        indices, gains = vt.coverage_select(similarity, weight, 24, sort=False)
    assert indices[0].tolist() == [9, *(i for i in range(24) if i != 9)]
    assert gains[0].tolist() == [float("inf")] + 23 * [0.0]


# ------------------------------------------------------------------------------------------------ the emulator itself


@functools.cache
def kernels() -> ctypes.CDLL:
    return ctypes.CDLL(str(build.library("faults.cpp")))


def verdict(kernel: str) -> str:
    """What the emulator says of a kernel of ``faults.cpp``; nothing if it lets it pass."""
    message = ctypes.create_string_buffer(1000)
    found = kernels().run_kernel(kernel.encode(), message, len(message))
    assert found >= 0, f"faults.cpp has no kernel {kernel!r}"
    return message.value.decode()


RIGHT = (
    "barrier",
    "barrier of the warp",
    "barrier of the cluster",
    "atomics",
    "copies",
    "shuffles and votes",
    "products of boxes",
    "products of boxes for two blocks",
    "words",
    "letters",
    "dependent launch",
)
READ, WRITE = "wrote without a barrier in between", "reads without a barrier in between"
BOX = "thread 0 of block 0 has a box copied over one that may not have been multiplied"
WRONG = {
    "box not received": "multiplies a box before it came",
    "product not waited for": "wrong result",
    "arrival before the product": BOX,
    "warp that does not arrive": "128 threads wait at a barrier",
    "box without room": BOX,
    "box over a box": "has a box copied over one that has not come",
    "box over what the other block multiplies": f"{BOX} (shared byte 8192 of block 1)",
    "product of what a thread wrote": "multiplies what a thread wrote, which the tensor cores may not see",
    "word that nobody posts": "128 threads wait at a barrier",
    "no barrier": READ,
    "barrier of the warp for the block": READ,
    "barrier of the block for the cluster": READ,
    "write under a reader": WRITE,
    "write under a reader, read last by the writer": WRITE,
    "two writers": "writes what thread 0 wrote without a barrier",
    "read among atomics": WRITE,
    "letter that was not received": "touches a letter before it came",
    "letters that take no turns": "sends a letter over one that may not have been read",
    "sent before the block has read": "sends a letter over one that may not have been read",
    "more letters than expected": "32 bytes of letters where 16 were expected",
    "letter that nobody sends": "128 threads wait at a barrier that the others never reach",
    "half of the block at a barrier": "32 threads wait at a barrier that the others never reach",
    "half of the warp at a shuffle": "32 threads wait at a barrier",
    "one block at the barrier of the cluster": "64 threads wait at a barrier",
    "nothing wrote it": "thread 0 of block 0 reads what nothing wrote (shared byte 0 of block 0)",
    "copy not waited for": "reads what nothing wrote",
    "behind the end": "leaves the 1024 bytes of shared memory (shared byte 1024",
    "half behind the end": "leaves the 1024 bytes",
    "before the start": "leaves the 1024 bytes of shared memory (shared byte -4",
    "misaligned": "is not aligned to 4 (shared byte 2",
    "rank beyond the cluster": "no block of rank 2 in a cluster of 2",
    "negative rank": "no block of rank -1 in a cluster of 2",
    "read before the launch before": "wrong result",
    "write under the launch before": "wrong result",
    "launch before not waited for": "thread 0 of block 1 ends without waiting for the launch before it",
    "first launch that waits": "the first launch of a call depends on none before",
    "half a cluster": "a grid of 3 blocks is no whole number of clusters of 2",
}


@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernel_passes(kernel):
    assert verdict(kernel) == ""


@pytest.mark.parametrize("kernel", WRONG)
def test_wrong_kernel_is_caught(kernel):
    assert WRONG[kernel] in verdict(kernel)


def test_every_kernel_is_judged():
    assert kernels().kernels() == len(RIGHT) + len(WRONG)
