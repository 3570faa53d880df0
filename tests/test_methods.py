"""The methods on captures made by hand: what each asks of which op, and what the baselines promise."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import vtkernels as vt
from vtkernels.methods import PAR, Context, FoPru, GPrune, HoloV, Method, Random, Scope, Selection, TopAttention, Uniform

METHODS = (Scope(), FoPru(), GPrune(), HoloV(), PAR(), TopAttention(), Random(), Uniform())


def context(batch=2, side=4, d=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    n = side * side
    return Context(
        batch,
        n,
        torch.device("cpu"),
        (side, side),
        features=torch.randn(batch, n, d, generator=draw),
        query=torch.randn(batch, 2, d, generator=draw),
        key=torch.randn(batch, 2, n + 1, d, generator=draw),
        queries=torch.randn(batch, 2, n + 1, d, generator=draw),
        projected=torch.randn(batch, n, d, generator=draw),
        prefix=1,
        prompt=torch.randn(batch, 5, d, generator=draw),
        prompt_ids=torch.randint(2, 90, (batch, 5), generator=draw),
        prompt_lengths=torch.arange(batch) % 5 + 1,
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("k", [1, 5, 15, 16])
def test_a_selection_is_k_distinct_ascending_candidates(method, k):
    c = context()
    indices = method.select(c, k).indices
    assert indices.dtype == torch.int64 and indices.shape == (2, k)
    assert (indices[:, 1:] > indices[:, :-1]).all()
    assert indices.min() >= 0 and indices.max() < c.tokens


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_method_reads_only_what_it_asks_for(method):
    c = context()
    bare = Context(c.batch, c.tokens, c.device, c.grid, prefix=1)
    if "features" in method.needs:
        bare = dataclasses.replace(bare, features=c.features)
    if "projected" in method.needs:
        bare = dataclasses.replace(bare, projected=c.projected)
    if "saliency" in method.needs:
        bare = dataclasses.replace(bare, query=c.query, key=c.key)
    if "attention_profile" in method.needs:
        bare = dataclasses.replace(bare, queries=c.queries, key=c.key)
    if "prompt" in method.needs:
        prompt = {name: getattr(c, name) for name in ("prompt", "prompt_ids", "prompt_lengths")}
        bare = dataclasses.replace(bare, **prompt)
    torch.testing.assert_close(method.select(bare, 5).indices, method.select(c, 5).indices)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_methods_are_frozen_comparable_and_methods(method):
    assert isinstance(method, Method) and isinstance(method.needs, frozenset)
    assert method == type(method)() and hash(method) == hash(type(method)())
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.needs = frozenset()


@pytest.mark.parametrize(("alpha", "combine"), [(1.0, "multiply"), (2.0, "multiply"), (0.0, "multiply"), (1.0, "add")])
def test_scope_is_the_op_on_head_summed_attention(alpha, combine):
    c = context()
    saliency = ((c.query.unsqueeze(2) @ c.key.transpose(2, 3)).squeeze(2) * 8**-0.5).softmax(-1).sum(1)[:, 1:]
    selection = Scope(alpha, combine).select(c, 6)
    expected = vt.scope_select(c.features, saliency, 6, alpha=alpha, combine=combine)
    assert selection.indices.equal(expected)
    torch.testing.assert_close(selection.scores, saliency)


def test_scope_options_change_the_choice():
    c = context(batch=8)
    answers = [Scope(*options).select(c, 4).indices for options in [(1.0, "multiply"), (5.0, "multiply"), (1.0, "add")]]
    assert not answers[0].equal(answers[1]) and not answers[0].equal(answers[2])


def test_top_attention_is_the_mean_attention_of_the_class_token():
    c = context()
    attention = ((c.query.unsqueeze(2) @ c.key.transpose(2, 3)).squeeze(2) * 8**-0.5).softmax(-1).mean(1)[:, 1:]
    selection = TopAttention().select(c, 5)
    torch.testing.assert_close(selection.scores, attention)
    assert selection.indices.equal(attention.topk(5).indices.sort().values)


@pytest.mark.parametrize("fields", [{"alpha": -1}, {"alpha": float("nan")}, {"alpha": float("inf")}, {"combine": "multi"}])
def test_scope_refuses(fields):
    name = next(iter(fields))
    with pytest.raises(ValueError, match=f"Scope: {name} must be"):
        Scope(**fields)


def fopru_profiles(c, source):
    logits = c.queries @ c.key.transpose(2, 3) * 8**-0.5
    attention = (logits.softmax(-1) if source == "softmax" else logits).mean(1)[:, 1:, 1:]
    return attention.mean(1), attention.mean(2)


@pytest.mark.parametrize("source", ["softmax", "logits"])
def test_fopru_takes_the_profile_that_varies_more(source):
    c = context(batch=16)
    received, given = fopru_profiles(c, source)
    wins = received.var(1, keepdim=True) > given.var(1, keepdim=True)
    selection = FoPru(source=source).select(c, 5)
    torch.testing.assert_close(selection.scores, torch.where(wins, received, given))
    assert selection.indices.equal(selection.scores.topk(5).indices.sort().values)
    assert source == "softmax" or 0 < wins.sum() < 16  # both profiles win somewhere


@pytest.mark.parametrize("source", ["softmax", "logits"])
def test_fopru_row_keeps_whole_rows(source):
    c = context(batch=3)
    rank, row = FoPru("rank", source).select(c, 8), FoPru("row", source).select(c, 8)
    assert row.scores.equal(rank.scores)
    first = row.indices.view(3, 2, 4)[:, :, 0]
    assert (first % 4 == 0).all() and row.indices.equal((first[:, :, None] + torch.arange(4)).flatten(1))
    assert (first // 4).equal(rank.scores.view(3, 4, 4).sum(2).topk(2).indices.sort().values)


def test_fopru_profiles_that_vary_alike_give_the_received():
    c = context()
    flat = dataclasses.replace(c, queries=torch.zeros_like(c.queries), key=torch.zeros_like(c.key))
    assert FoPru().select(flat, 3).indices.tolist() == [[0, 1, 2]] * 2


def test_fopru_one_bad_token_does_not_decide_for_its_image():
    """It counts as zeros for the others, which are compared without it, and is kept last."""
    c = context(batch=16)
    queries, key = c.queries.clone(), c.key.clone()
    queries[:, :, 7] = key[:, :, 7] = 0
    received, given = fopru_profiles(dataclasses.replace(c, queries=queries, key=key), "logits")
    others = [n for n in range(16) if n != 6]
    wins = received[:, others].var(1, keepdim=True) > given[:, others].var(1, keepdim=True)
    assert 0 < wins.sum() < 16
    queries[:, :, 7] = key[:, :, 7] = float("nan")
    selection = FoPru(source="logits").select(dataclasses.replace(c, queries=queries, key=key), 15)
    assert selection.indices.tolist() == [others] * 16
    assert selection.scores[:, 6].isnan().all()
    torch.testing.assert_close(selection.scores[:, others], torch.where(wins, received, given)[:, others])


@pytest.mark.parametrize(
    ("strategy", "keep", "expected"),
    [
        ("rank", 7, 7),
        ("rank", 0.002, 1),
        ("rank", 0.25, 144),
        ("rank", 0.11, 63),
        ("rank", 1.0, 576),
        ("row", 48, 48),
        ("row", 0.25, 144),
        ("row", 0.3, 168),
        ("row", 0.01, 24),
        ("row", 1.0, 576),
    ],
)
def test_fopru_budget_is_floored(strategy, keep, expected):
    assert FoPru(strategy).kept_tokens(keep, 576, (24, 24)) == expected


@pytest.mark.parametrize(
    ("keep", "grid", "nearest"),
    [(64, (24, 24), "48 or 72"), (1, (24, 24), "24 or 48"), (575, (24, 24), "552 or 576"), (5, (1, 9), "9")],
)
def test_fopru_row_names_the_nearest_budgets(keep, grid, nearest):
    width, tokens = grid[1], grid[0] * grid[1]
    with pytest.raises(ValueError, match=f"whole rows of {width} tokens, got keep = {keep}; take {nearest}$"):
        FoPru("row").kept_tokens(keep, tokens, grid)


def test_fopru_row_needs_a_grid():
    with pytest.raises(ValueError, match=r"fill a grid of patches; use FoPru\(strategy='rank'\)"):
        FoPru("row").kept_tokens(8, 15, None)
    with pytest.raises(ValueError, match="whole rows of 4 tokens, got keep = 5; take 4 or 8"):
        FoPru("row").select(context(), 5)


@pytest.mark.parametrize("fields", [{"strategy": "column"}, {"source": "attention"}])
def test_fopru_refuses(fields):
    with pytest.raises(ValueError, match=f"FoPru: {next(iter(fields))} must be"):
        FoPru(**fields)


@pytest.mark.parametrize("options", [(), (0.3, 0.1, 2), (0.1, 1.0, 0)])
def test_gprune_is_the_published_matrix_power(options):
    c = context()
    threshold, temperature, iterations = options or (0.5, 0.03, 5)
    selection = GPrune(*options).select(c, 6)
    for b in range(2):
        x = torch.nn.functional.normalize(c.projected[b], dim=-1)
        similarity = x @ x.T
        p = (similarity / temperature).masked_fill(similarity < threshold, -5000).softmax(-1)
        scores = c.projected[b].norm(dim=-1) @ torch.linalg.matrix_power(p, iterations) / (similarity >= threshold).sum(1)
        torch.testing.assert_close(selection.scores[b], scores, rtol=1e-4, atol=0)
        assert selection.indices[b].equal(scores.topk(6).indices.sort().values)


@pytest.mark.parametrize(("keep", "expected"), [(64, 64), (0.5, 288), (0.1, 57), (0.001, 1), (1.0, 576), (64 / 577, 63)])
def test_gprune_budget_is_truncated(keep, expected):
    assert GPrune().kept_tokens(keep, 576, (24, 24)) == expected


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": 1.1}, ValueError),
        ({"threshold": float("nan")}, ValueError),
        ({"threshold": "0.5"}, TypeError),
        ({"temperature": 0.0}, ValueError),
        ({"temperature": float("inf")}, ValueError),
        ({"temperature": None}, TypeError),
        ({"iterations": -1}, ValueError),
        ({"iterations": 2.0}, TypeError),
        ({"iterations": True}, TypeError),
    ],
)
def test_gprune_refuses(fields, error):
    with pytest.raises(error, match=f"GPrune: {next(iter(fields))} must be"):
        GPrune(**fields)


def test_random_is_a_function_of_seed_tokens_and_k():
    one = Random(7).select(context(batch=1), 5).indices
    many = Random(7).select(context(batch=3, seed=1), 5).indices
    assert many.equal(one.expand(3, 5))
    assert not Random(8).select(context(batch=1), 5).indices.equal(one)
    assert set(one[0].tolist()) <= set(Random(7).select(context(batch=1), 9).indices[0].tolist())
    assert Random(7).select(context(batch=1), 5).scores is None


def test_random_positions_never_change():
    """Frozen: tables made with a seed must be reproducible in every later version."""
    assert Random(0).select(context(), 5).indices[0].tolist() == [2, 3, 5, 12, 14]


def test_random_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Random(0).select(context(), 5)
    assert torch.rand(4).equal(expected)


def test_random_is_even_over_positions_and_pairs():
    n, k, draws = 64, 16, 2000
    c = Context(1, n, torch.device("cpu"))
    chosen = torch.zeros(draws, n)
    for seed in range(draws):
        chosen[seed, Random(seed).select(c, k).indices[0]] = 1
    p = k / n
    spread = (p * (1 - p) / draws) ** 0.5
    assert (chosen.mean(0) - p).abs().max() < 4.5 * spread
    both = (chosen.T @ chosen / draws)[~torch.eye(n, dtype=torch.bool)]
    q = p * (k - 1) / (n - 1)
    assert (both - q).abs().max() < 5.5 * (q * (1 - q) / draws) ** 0.5


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_random_takes_any_integer(seed):
    assert Random(seed).select(context(), 5).indices.equal(Random(seed % 2**32).select(context(), 5).indices)


def test_random_refuses_a_seed_that_is_no_integer():
    with pytest.raises(TypeError, match=r"Random: seed must be an integer, got 0\.5"):
        Random(0.5)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [8]), (2, [4, 12]), (3, [2, 8, 13]), (4, [2, 6, 10, 14]), (16, list(range(16)))]
)
def test_uniform_is_evenly_spaced(k, expected):
    assert Uniform().select(context(), k).indices.tolist() == [expected] * 2


@pytest.mark.parametrize("k", [1, 7, 64, 192, 575, 576])
def test_uniform_gaps_differ_by_at_most_one(k):
    indices = Uniform().select(Context(1, 576, torch.device("cpu")), k).indices[0]
    gaps = indices.diff()
    assert k == 1 or gaps.max() - gaps.min() <= 1
    assert abs(int(indices[0]) - (575 - int(indices[-1]))) <= 1


def test_any_object_with_the_two_members_is_a_method():
    class Mine:
        needs = frozenset()

        def select(self, context, k):
            return Selection(torch.arange(k).expand(context.batch, k))

    assert isinstance(Mine(), Method)
    assert not isinstance(object(), Method)


def test_importing_does_not_import_transformers():
    code = "import sys, vtkernels, vtkernels.methods, vtkernels.integrations; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call", ["saliency", "attention_profile"])
def test_a_score_without_its_need_names_the_need(call):
    empty = Context(1, 4, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=rf"context.{call}\(\) has nothing to go by; put '{call}' among the needs of the method"
    ):
        getattr(empty, call)()
