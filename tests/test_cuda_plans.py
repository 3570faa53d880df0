"""The launch planner, without a GPU: what every plan must keep to, and the path of the sizes that matter."""

from __future__ import annotations

import itertools

import pytest

from vtkernels import _load

HOST = _load.host()
if HOST is None:
    pytest.skip(_load.why_no_host(), allow_module_level=True)

ARCHITECTURES = (80, 86, 89, 90, 100)
OPS = ("scope_select", "coverage_select", "graph_propagate", "cls_attention", "attention_topk", "topk_select", "compact_")
TOKENS = (0, 1, 17, 64, 65, 144, 196, 576, 577, 729, 1024, 1025, 2304, 2880, 4096, 10000)
CHANNELS = (1, 64, 1000, 1024, 4096)
IMAGES = (1, 2, 5, 64, 300)
EVERY = list(itertools.product(TOKENS, CHANNELS, IMAGES, (2, 4)))  # and the element's bytes
GIB = 2**30


def plan(op, arch=90, n=576, d=1024, k=64, **options):
    return HOST.plan(op, arch=arch, n=n, d=d, k=min(k, n), **options)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_every_plan_can_be_launched(op, arch):
    """Grid and cluster sizes, shared memory of the architecture, and no block that waits for one that cannot run."""
    for n, d, images, element in EVERY:
        for k in {0, 1, 64, n // 2, n}:
            got = plan(op, arch, n, d, k, images=images, element=element)
            case = (n, d, images, element, k, got)
            assert 1 <= len(got["launches"]) <= 3, case
            for launch in got["launches"]:
                assert 0 <= launch["shared"] <= got["shared_per_block"], case
                assert launch["cluster"] in ((1, 2, 4, 8) if arch >= 90 else (1,)), case
                assert launch["blocks"] % launch["cluster"] == 0, case
                assert 0 <= launch["blocks"] < 2**31, case
                assert n == 0 or launch["blocks"] > 0, case
                assert not launch["resident"] or launch["blocks"] <= got["multiprocessors"], case
                assert not launch["dependent"] or (arch >= 90 and not launch["resident"]), case
            assert not got["launches"][0]["dependent"], case


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_workspace_is_no_more_than_the_matrices_of_the_op(op, arch):
    for n, d, images, element in EVERY:
        for k in {0, 64, n}:
            workspace = plan(op, arch, n, d, k, images=images, element=element)["workspace"]
            matrix = {"scope_select": 4, "coverage_select": 8, "graph_propagate": 4}.get(op, 0)
            rows = {"topk_select": 1, "attention_topk": 17, "cls_attention": 17}.get(op, 1)
            allowed = images * (matrix * n * (n + 8) + 16 * rows * (n + 32) + 600 * n * (matrix > 0)) + 8192
            assert 0 <= workspace <= allowed, (n, d, images, element, k, workspace, allowed)


@pytest.mark.parametrize("op", ["scope_select", "coverage_select"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_images_do_not_change_the_workspace_of_each(op, arch):
    """Linear in the images: what an image gets does not depend on the others."""
    for n in (64, 576, 2880):
        each = [plan(op, arch, n, images=images)["workspace"] / images for images in (64, 128, 256)]
        assert max(each) - min(each) <= 256


# ------------------------------------------------------------------------------------------------ the sizes that matter


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("k", [64, 192])
def test_one_image_of_llava_stays_in_the_shared_memory_of_a_cluster(arch, k, element):
    got = plan("scope_select", arch, k=k, element=element)
    wide = arch == 90 and element == 2
    assert got["path"] == ("wide, resident" if wide else "resident")
    *_, gram, greedy = got["launches"]
    assert (gram["blocks"], gram["cluster"]) == ((30, 2) if wide else (45, 1))
    assert (greedy["blocks"], greedy["cluster"]) == (8, 8)


@pytest.mark.parametrize("images", [1, 5, 15, 16, 30, 31, 64, 66, 67, 128, 132])
def test_images_of_a_batch_run_at_the_same_time(images):
    """Fewer blocks an image, down to one, as long as there are multiprocessors for all images at once."""
    greedy = plan("scope_select", images=images)["launches"][-1]
    assert greedy["blocks"] == images * greedy["cluster"]
    assert images <= {8: 15, 4: 30, 2: 66, 1: 132}[greedy["cluster"]]


def test_clusters_that_fit_decide_how_many_blocks_an_image_has():
    def chosen(*clusters):
        got = plan("scope_select", images=60, clusters=clusters)
        return got["path"], got["launches"][-1]["cluster"]

    assert chosen(66, 30, 15) == ("wide, streamed", 2)
    assert chosen(66, 30, 60) == ("wide, resident", 8)
    assert chosen(66, 60, 15) == ("wide, streamed", 4)
    assert chosen(20, 10, 5) == ("wide, streamed", 1)
    assert chosen(0, 0, 0) == ("wide, streamed", 2)  # not known: as many as fill the multiprocessors


@pytest.mark.parametrize("arch", [80, 86, 89])
def test_without_clusters_a_block_has_an_image(arch):
    for n in (64, 576, 2880):
        assert plan("scope_select", arch, n, images=3)["launches"][-1]["blocks"] == 3
    assert plan("scope_select", arch, 144)["path"] == ("resident" if arch == 80 else "streamed")
    assert plan("scope_select", arch, 576)["path"] in ("streamed", "streamed, state too")


def test_many_tokens_are_streamed_by_a_cluster():
    got = plan("scope_select", n=2880)
    assert got["path"] == "wide, streamed"
    assert got["launches"][-1]["cluster"] == 8


def test_attention_is_one_launch_where_there_are_clusters():
    for op in ("cls_attention", "attention_topk"):
        assert [plan(op, arch)["path"] for arch in (80, 89, 90, 100)] == ["heads", "heads", "cluster", "cluster"]
        assert [len(plan(op, arch)["launches"]) for arch in (80, 90)] == [2, 1]
        assert plan(op, 90)["launches"][0]["cluster"] == 8
        assert plan(op, 90, heads=1)["launches"][0]["cluster"] == 1


def test_graph_of_one_image_keeps_its_weights_in_shared_memory():
    """One wave of wide tiles, two blocks a cluster; then every multiprocessor has its rows."""
    got = plan("graph_propagate", n=2304, d=4096)
    assert got["path"] == "wide, resident"
    directions, weights, steps = got["launches"]
    assert directions["blocks"] == 2304 // 8
    assert weights["blocks"] == 126 <= got["multiprocessors"] and weights["cluster"] == 2
    assert steps["resident"] and steps["blocks"] == 2304 // 18
    assert 18 * 2304 * 4 < steps["shared"] <= got["shared_per_block"]


@pytest.mark.parametrize(("arch", "element"), [(80, 2), (89, 2), (100, 2), (90, 4)])
def test_graph_has_wide_tiles_of_half_types_where_there_are_warpgroups(arch, element):
    got = plan("graph_propagate", arch, 2304, 4096, element=element)
    assert "wide" not in got["path"]
    assert got["launches"][0]["blocks"] == 36 * 37 // 2


@pytest.mark.parametrize("op", ["graph_propagate", "scope_select"])
def test_whether_tiles_are_wide_does_not_depend_on_the_batch(op):
    for n, wide in ((144, False), (192, False), (193, True), (576, True), (2304, True)):
        for images in (1, 2, 64):
            assert ("wide" in plan(op, n=n, images=images)["path"]) == wide


@pytest.mark.parametrize("op", ["graph_propagate", "scope_select"])
def test_wide_tiles_are_large_where_they_occupy_the_gpu(op):
    """15 clusters of small tiles for 576 tokens, two blocks a multiprocessor; 6 of large ones."""
    for images, blocks, shared in ((1, 30, 98368), (8, 240, 98368), (9, 108, 204880), (64, 768, 204880)):
        directions, tiles = plan(op, images=images)["launches"][:2]
        assert directions["blocks"] == images * 576 // 8
        assert (tiles["blocks"], tiles["cluster"], tiles["shared"]) == (blocks, 2, shared)
    assert 2 * (98368 + 1024) <= 228 * 1024  # of a multiprocessor


@pytest.mark.parametrize(("arch", "element"), [(80, 2), (89, 2), (100, 2), (90, 4)])
def test_scope_has_wide_tiles_of_half_types_where_there_are_warpgroups(arch, element):
    got = plan("scope_select", arch, element=element)
    assert "wide" not in got["path"]
    assert len(got["launches"]) == 2 and got["launches"][0]["blocks"] == 45


def test_features_that_the_copy_engine_cannot_read_are_copied():
    got = [plan("graph_propagate", n=2304, d=d)["workspace"] for d in (64, 65)]
    assert got[1] - got[0] == 2304 * 72 * 2


def test_graph_that_does_not_fit_is_read_from_the_cache():
    for n, images in ((4096, 1), (2304, 2)):
        got = plan("graph_propagate", n=n, images=images)
        assert got["path"] == "wide"
        steps = got["launches"][-1]
        assert steps["resident"] and steps["blocks"] <= got["multiprocessors"] and steps["shared"] == 0


def test_very_long_rows_are_read_in_every_pass():
    assert [plan("topk_select", n=n)["path"] for n in (4096, 4097)] == ["registers", "read again"]


@pytest.mark.parametrize("op", OPS)
def test_more_images_than_blocks_along_y(op):
    for launch in plan(op, n=64, d=64, images=100_000)["launches"]:
        assert launch["blocks_y"] == 1
        assert launch["resident"] or 100_000 <= launch["blocks"] < 2**31


def test_second_launch_of_the_attention_may_start_early_where_gpus_allow_it():
    """Too many tokens for the shared memory of a cluster: two launches on sm_90 too."""
    for arch in ARCHITECTURES:
        first, second = plan("attention_topk", arch, n=30000)["launches"]
        assert (first["dependent"], second["dependent"]) == (False, arch >= 90)


def test_rows_of_whole_sixteens_move_in_sixteens():
    assert [plan("compact_", d=d)["path"] for d in (1024, 1000, 1001)] == ["16 bytes", "16 bytes", "elements"]
    assert plan("compact_", d=1004, element=4)["path"] == "16 bytes"


# ------------------------------------------------------------------------------------------------ errors


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(ValueError, match=r"op must be scope_select, .* or compact_, got row_topk"):
        plan("row_topk")
    with pytest.raises(
        ValueError, match=r"arch must be one of 80, 86, 89, 90, 100 \(ten times the compute capability\), got 75"
    ):
        plan("topk_select", 75)
    with pytest.raises(ValueError, match="k at most n"):
        HOST.plan("topk_select", arch=90, n=5, d=1, k=6)
