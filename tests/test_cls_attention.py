"""cls_attention: one row of softmax attention. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import DTYPES, Draw, each_dtype, each_int, ragged
from oracles import assert_close, attention

import vtkernels as vt

OP = "cls_attention"
NAN, INF = math.nan, math.inf
SHAPES = [(1, 1, 1), (1, 2, 1), (3, 15, 2), (2, 17, 15), (1, 33, 33), (5, 63, 17), (16, 129, 64), (2, 151, 80)]


def inputs(heads, t, d, *, batch=2, seed=0, dtype=torch.float32):
    draw = Draw(seed, dtype)
    return draw.normal(batch, heads, d), draw.normal(batch, heads, t, d)


def plain(query, key, *, scale=None, prefix=1, reduce="mean"):
    """What a float32 torch program gets for the same values: the measure of what float32 can do."""
    logits = torch.einsum("bhd,bhtd->bht", query.float(), key.float()) * (key.shape[3] ** -0.5 if scale is None else scale)
    return getattr(logits.softmax(-1), reduce)(1)[:, prefix:]


def check(query, key, **options):
    got = vt.cls_attention(query, key, **options)
    assert got.dtype == torch.float32
    measured = None if "lengths" in options else plain(query, key, **options)
    assert_close(got, attention(query, key, **options), measured)
    return got


@each_dtype
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize(("heads", "t", "d"), SHAPES)
def test_attention_is_that_of_the_mathematics(backend, heads, t, d, reduce, dtype):
    query, key = inputs(heads, t, d, dtype=dtype)
    for prefix in {0, 1, t}:
        check(query, key, prefix=prefix, reduce=reduce)


@each_dtype
def test_clip_large_layer(backend, dtype):
    """[B, T, H * d] projections seen as [B, H, T, d], the class token's row of the query."""
    draw = Draw(0, dtype)
    q, k = (draw.normal(2, 577, 16 * 64).view(2, 577, 16, 64).transpose(1, 2) for _ in range(2))
    assert not k.is_contiguous()
    check(q[:, :, 0], k, reduce="sum")


@pytest.mark.parametrize("scale", [None, 0.0, 0.3, 2.0, -1.0])
def test_scale_multiplies_the_logits(backend, scale):
    query, key = inputs(3, 33, 16)
    check(query, key, scale=scale)


def test_mass_is_one_and_not_renormalised(backend):
    query, key = inputs(3, 33, 16)
    whole = check(query, key, prefix=0)
    torch.testing.assert_close(whole.sum(1), torch.ones(2))
    for prefix in (1, 5, 33):
        assert torch.equal(vt.cls_attention(query, key, prefix=prefix), whole[:, prefix:])


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits_do_not_overflow(backend, offset):
    query, key = torch.ones(1, 2, 4), torch.zeros(1, 2, 17, 4)
    key[..., 0] = offset + torch.arange(17) / 8
    check(query, key, scale=1.0)


def test_wide_logits_underflow_to_zero_quietly(backend):
    query, key = torch.ones(1, 1, 1), torch.linspace(-3e4, 0, 65).view(1, 1, 65, 1)
    got = check(query, key, scale=1.0, prefix=0)
    assert got[0, -1] == 1 and (got[0, :-1] == 0).all()


def test_equal_keys_get_equal_attention(backend):
    query, _ = inputs(3, 1, 16)
    got = vt.cls_attention(query, torch.zeros(2, 3, 151, 16))
    assert (got == got[0, 0]).all()
    assert abs(got[0, 0].item() * 151 - 1) < 1e-6


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != torch.float64], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_key_gets_no_mass_in_its_head(backend, value, dtype):
    query, key = inputs(3, 33, 16, batch=3, dtype=dtype)
    clean = vt.cls_attention(query, key)
    key[1, 0, 7, 3] = value
    key[1, :, 9] = value
    key[1, 2, 0, 15] = value  # the class token itself
    got = vt.cls_attention(query, key)
    assert_close(got, attention(query, key), plain(query, key.nan_to_num(0, 0, 0)))
    assert got[1, 8] == 0
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


def test_logit_that_overflows_gets_no_mass(backend):
    query, key = inputs(2, 17, 8)
    query[:, 0] = 1e20
    key[0, 0, 4], key[0, 0, 5] = 1e30, -1e30
    assert_close(vt.cls_attention(query[:, :1], key[:, :1])[:1, 3:5], torch.zeros(1, 2).numpy())


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_head_without_mass_adds_nothing(backend, reduce):
    query, key = inputs(4, 33, 16)
    query[0, 1] = NAN
    key[0, 2] = INF
    query[1] = NAN
    got = vt.cls_attention(query, key, reduce=reduce)
    assert_close(got, attention(query, key, reduce=reduce), plain(query.nan_to_num(0), key.nan_to_num(0, 0, 0), reduce=reduce))
    assert (got[1] == 0).all()


def test_sum_is_heads_times_mean(backend):
    query, key = inputs(8, 33, 16)
    assert torch.equal(vt.cls_attention(query, key, reduce="sum"), vt.cls_attention(query, key) * 8)


@each_int
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_tokens_behind_the_length_get_nothing(backend, prefix, int_dtype):
    query, key = inputs(3, 33, 16, batch=7)
    lengths = ragged(7, 33, int_dtype)
    clean = check(query, key, prefix=prefix, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        key[b, :, max(length, 0) :] = NAN if b % 2 else 1e4
    assert torch.equal(vt.cls_attention(query, key, prefix=prefix, lengths=lengths), clean)
    assert (clean[1, 16 - prefix :] == 0).all()
    assert (clean[[2, 4]] == 0).all()


def test_no_tokens(backend):
    assert vt.cls_attention(torch.ones(2, 3, 4), torch.ones(2, 3, 0, 4), prefix=0).shape == (2, 0)
