"""attention_profile: means of a map nobody stores. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import DTYPES, Draw, bits, each_dtype, each_int, ragged
from oracles import assert_close, profile, valid_count
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vtkernels as vt

OP = "attention_profile"
NAN, INF = math.nan, math.inf
SHAPES = [(1, 1, 1), (1, 2, 1), (3, 15, 2), (2, 17, 15), (1, 33, 33), (5, 63, 17), (4, 64, 64), (3, 65, 8), (2, 151, 80)]
each_source = pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "logits"])


def inputs(heads, t, d, *, batch=2, seed=0, dtype=torch.float32):
    draw = Draw(seed, dtype)
    return draw.normal(batch, heads, t, d), draw.normal(batch, heads, t, d)


def plain(query, key, *, scale=None, prefix=1, softmax=True, lengths=None):
    """What a float32 torch program gets from whole maps: the measure of what float32 can do."""
    b, _, t, d = key.shape
    scale = d**-0.5 if scale is None else scale
    received, given = torch.zeros(b, t), torch.zeros(b, t)
    for i in range(b):
        valid = valid_count(lengths, i, t)
        if valid > prefix:
            logits = query[i, :, :valid].float() @ key[i, :, :valid].float().mT * scale
            attention = (logits.softmax(-1) if softmax else logits).mean(0)[prefix:, prefix:]
            received[i, prefix:valid], given[i, prefix:valid] = attention.mean(0), attention.mean(1)
    return received[:, prefix:], given[:, prefix:]


def check(query, key, clean=None, **options):
    """``clean``: finite query and key to measure the float32 error with."""
    got = vt.attention_profile(query, key, **options)
    for a, want, measured in zip(got, profile(query, key, **options), plain(*(clean or (query, key)), **options), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, want, measured)
    return got


@each_dtype
@each_source
@pytest.mark.parametrize(("heads", "t", "d"), SHAPES)
def test_profiles_are_those_of_the_mathematics(backend, heads, t, d, softmax, dtype):
    query, key = inputs(heads, t, d, dtype=dtype)
    for prefix in {0, 1, t}:
        check(query, key, prefix=prefix, softmax=softmax)


@each_source
def test_clip_large_layer(backend, softmax):
    """[B, T, H * d] projections seen as [B, H, T, d]."""
    draw = Draw(0)
    query, key = (draw.normal(1, 577, 16 * 64).view(1, 577, 16, 64).transpose(1, 2) for _ in range(2))
    assert not key.is_contiguous()
    check(query, key, softmax=softmax)


@each_source
@pytest.mark.parametrize("scale", [None, 0.0, 0.3, 2.0, -1.0])
def test_scale_multiplies_the_logits(backend, scale, softmax):
    query, key = inputs(3, 33, 16)
    check(query, key, scale=scale, softmax=softmax)


def test_mass_is_one_and_not_renormalised(backend):
    query, key = inputs(3, 33, 16)
    received, given = check(query, key, prefix=0)
    torch.testing.assert_close(given, torch.full((2, 33), 1 / 33))
    torch.testing.assert_close(received.sum(1), torch.ones(2))
    received, given = check(query, key, prefix=3)
    assert (given < 1 / 30).all()  # the prefix keeps what it was given
    torch.testing.assert_close(received.sum(1), given.sum(1))


def test_received_is_cls_attention_of_every_row(backend):
    query, key = inputs(3, 33, 16)
    received = sum(vt.cls_attention(query[:, :, i], key) for i in range(1, 33)) / 32
    torch.testing.assert_close(vt.attention_profile(query, key)[0], received)


def test_rows_and_columns_are_not_mixed_up(backend):
    query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    key[0, 0, 2, 0] = 1.0
    query[..., 0] = torch.tensor([0.0, 5.0, 50.0])
    received, given = vt.attention_profile(query, key, scale=1.0, prefix=0, softmax=False)
    torch.testing.assert_close(received, torch.tensor([[0.0, 0.0, 55 / 3]]))
    torch.testing.assert_close(given, torch.tensor([[0.0, 5 / 3, 50 / 3]]))
    received, given = vt.attention_profile(query, key, scale=1.0)
    first, second = math.exp(5) / (2 + math.exp(5)), math.exp(50) / (2 + math.exp(50))
    torch.testing.assert_close(received, torch.tensor([[(1 - first) / 4 + (1 - second) / 4, (first + second) / 2]]))
    torch.testing.assert_close(given, torch.tensor([[(1 + first) / 4, (1 + second) / 4]]))


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_large_logits_do_not_overflow(backend, offset):
    query, key = torch.ones(1, 2, 17, 4), torch.zeros(1, 2, 17, 4)
    key[..., 0] = offset + torch.arange(17) / 8
    check(query, key, scale=1.0)


@each_source
def test_equal_tokens_have_equal_profiles(backend, softmax):
    query, key = torch.zeros(2, 3, 151, 16), torch.zeros(2, 3, 151, 16)
    for x in vt.attention_profile(query, key, softmax=softmax):
        assert (x == x[0, 0]).all()


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != torch.float64], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_key_gets_no_mass_in_its_head(backend, value, dtype):
    query, key = inputs(3, 33, 16, batch=3, dtype=dtype)
    clean = query, key.clone()
    before = vt.attention_profile(query, key)
    key[1, 0, 7, 3] = value
    key[1, :, 9] = value
    key[1, 2, 0, 15] = value  # the class token itself
    received, given = check(query, key, clean)
    assert received[1, 8] == 0 and given[1, 8] > 0
    for got, want in zip((received, given), before, strict=True):
        torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [NAN, INF])
def test_row_without_mass_is_zero(backend, value):
    query, key = inputs(3, 33, 16)
    clean = query.clone(), key
    query[0, :, 5] = value
    query[0, 1, 9] = value
    query[1] = NAN
    received, given = check(query, key, clean)
    assert given[0, 4] == 0 and (given[1] == 0).all() and (received[1] == 0).all()


def test_logit_that_overflows_gets_no_mass(backend):
    query, key = inputs(2, 17, 8)
    query[:, 0] = 1e20
    key[0, 0, 4], key[0, 0, 5] = 1e30, -1e30
    received, _ = vt.attention_profile(query[:1, :1], key[:1, :1])
    assert (received[0, 3:5] == 0).all()


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != torch.float64], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_row_of_logits_counts_as_zero_for_the_others(backend, value, dtype):
    query, key = inputs(3, 33, 16, batch=3, dtype=dtype)
    before = vt.attention_profile(query, key, softmax=False)
    key[1, 0, 7, 3] = value
    query[1, :, 9] = value
    key[1, 2, 0, 15] = value  # the class token: dropped, so nobody notices
    zeroed = query.clone(), key.clone()
    zeroed[1][1, 0, 7], zeroed[0][1, :, 9] = 0, 0
    received, given = check(query, key, zeroed, softmax=False)
    assert received[1].isnan().nonzero().flatten().tolist() == [6]
    assert given[1].isnan().nonzero().flatten().tolist() == [8]
    for got, want in zip((received, given), before, strict=True):
        torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=1e-6, atol=1e-9)


def test_row_of_logits_whose_norm_overflows_counts_as_not_finite(backend):
    query, key = inputs(2, 17, 8)
    key[0, 0, 5], query[1, 1, 3] = 1e20, -1e25
    received, given = check(query, key, inputs(2, 17, 8), softmax=False)
    assert received.isnan().nonzero().tolist() == [[0, 4]]
    assert given.isnan().nonzero().tolist() == [[1, 2]]


@each_int
@each_source
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_tokens_behind_the_length_count_nowhere(backend, prefix, softmax, int_dtype):
    query, key = inputs(3, 33, 16, batch=7)
    lengths = ragged(7, 33, int_dtype)
    options = {"prefix": prefix, "softmax": softmax, "lengths": lengths}
    clean = check(query, key, **options)
    for b, length in enumerate(lengths.tolist()):
        query[b, :, max(length, 0) :] = key[b, :, max(length, 0) :] = NAN if b % 2 else 1e4
    dirty = vt.attention_profile(query, key, **options)
    for a, b in zip(dirty, clean, strict=True):
        assert torch.equal(bits(a), bits(b))
        assert (a[1, 16 - prefix :] == 0).all()
        assert (a[[2, 4]] == 0).all()


@each_source
@pytest.mark.parametrize("t", [1, 3])
def test_nothing_behind_the_prefix(backend, t, softmax):
    query, key = inputs(2, t, 4)
    assert [x.shape for x in vt.attention_profile(query, key, prefix=t, softmax=softmax)] == [(2, 0)] * 2
    for x in vt.attention_profile(query, key, prefix=0, softmax=softmax, lengths=torch.zeros(2, dtype=torch.int64)):
        assert torch.equal(x, torch.zeros(2, t))


@each_source
def test_no_tokens(backend, softmax):
    empty = torch.ones(2, 3, 0, 4)
    assert [x.shape for x in vt.attention_profile(empty, empty, prefix=0, softmax=softmax)] == [(2, 0)] * 2


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize(("softmax", "rows"), [(True, 64), (False, 8)], ids=["softmax", "logits"])
def test_the_reference_never_stores_a_map(softmax, rows):
    """64 rows of it at a time; of logits, nothing larger than the input."""
    heads, t, d = 2, 1500, 8
    query, key = inputs(heads, t, d, batch=1)
    with Largest() as largest:
        vt.reference.attention_profile(query, key, softmax=softmax)
    assert largest.elements == heads * t * rows < heads * t * t / 20
