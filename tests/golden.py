"""Results of published code (float32 on a CPU) on inputs rebuilt from stored recipes.

SCOPE: kinredon/SCOPE @ 6bf7306. G-Prune: jytmelon/G-Prune @ 762c637. FoPru, whose authors published no code: the nearest,
dongxianzhe/hydrainfer @ d4d5f4f. HoloV: obananas/HoloV @ 1d2e65e.

All randomness is ``numpy.random.default_rng(seed)``; the order of the draws is part of a recipe and must not change. Rebuilt
features are checked by hash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "data"
GPRUNE_CASES = sorted(path.stem for path in FOLDER.glob("gprune_*.npz"))
FOPRU_CASES = sorted(path.stem for path in FOLDER.glob("fopru_*.npz"))
HOLOV_CASES = sorted(path.stem for path in FOLDER.glob("holov_*.npz"))
SCOPE_CASES = sorted(path.stem for path in FOLDER.glob("scope_*.npz") if path.stem != "scope_edges")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
COMBINE = {"multi": "multiply", "add": "add"}


@dataclass(frozen=True)
class ScopeCase:
    features: Tensor  # [B, N, D]; float16 or bfloat16 where the published run had inputs rounded so
    saliency: Tensor | None  # [B, N] float32
    k: int
    alpha: float
    combine: str
    picks: Tensor  # [B, k], published order of choice
    safe: list[int]  # leading steps that no float32 evaluation may decide otherwise


def scope_features(kind: str, seed: int, B: int, N: int, D: int, params: dict) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        x = rng.standard_normal((B, N, D))
    elif kind == "clustered":
        clusters, noise, shared = params.get("C", 12), params.get("noise", 0.5), params.get("shared", 0.8)
        centre = rng.standard_normal((B, clusters, D))
        common = rng.standard_normal((B, 1, D))
        label = rng.integers(0, clusters, size=(B, N))
        spread = rng.standard_normal((B, N, D))
        scale = 0.5 + rng.random((B, N, 1))
        x = scale * (np.take_along_axis(centre, label[:, :, None], axis=1) + shared * common + noise * spread)
    else:  # "exactdup" and "neardup"
        distinct = params.get("U", max(2, N // 4))
        base = rng.standard_normal((B, distinct, D))
        label = rng.integers(0, distinct, size=(B, N))
        x = np.take_along_axis(base, label[:, :, None], axis=1)
        if kind == "neardup":
            x = x + params.get("eps", 1e-3) * rng.standard_normal((B, N, D))
    return np.ascontiguousarray(x.astype(np.float32))


@dataclass(frozen=True)
class GPruneBranch:
    positions: Tensor  # [N] in the sequence of the model
    features: Tensor  # [1, N, D]; float16 where the published run had inputs rounded so
    k: int
    kept: set[int]  # published, as rows of ``features``
    scores: Tensor  # [N] float64
    degree: Tensor  # [N]
    gap: float  # between the k-th and the next score, relative
    margin: float  # between the threshold and the nearest similarity


@dataclass(frozen=True)
class GPruneCase:
    options: dict[str, float]
    branches: list[GPruneBranch]  # base crop, grid
    newlines: Tensor  # positions
    kept: Tensor  # positions of both branches and all newlines, ascending


@dataclass(frozen=True)
class FoPruCase:
    query: Tensor  # [B, H, T, d], the class token first
    key: Tensor
    scale: float
    softmax: bool
    strategy: str
    k: int
    grid: tuple[int, int] | None
    kept: Tensor  # [B, k] ascending
    received: Tensor  # [B, N] float64
    given: Tensor
    significance: Tensor  # whichever of the two won
    strict: list[bool]  # rows that no float32 evaluation may decide otherwise


def digest(x: Tensor) -> str:
    """Of dtype, shape and bytes, in float32: the published run took rounded inputs as float32."""
    array = np.ascontiguousarray(x.float().numpy())
    return hashlib.sha256(str(array.dtype).encode() + str(array.shape).encode() + array.tobytes()).hexdigest()


def scope_case(name: str) -> ScopeCase:
    with np.load(FOLDER / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    meta = json.loads(str(stored["meta"]))
    features = torch.from_numpy(scope_features(**meta["recipe"])).to(DTYPES.get(meta["rounding"], torch.float32))
    assert digest(features) == meta["x_sha256"], f"{name}: the rebuilt features are not those of the published run"
    saliency = torch.from_numpy(stored["cls_attn"]) if "cls_attn" in stored else None
    return ScopeCase(
        features,
        saliency,
        k=int(meta["K"]),
        alpha=float(meta["alpha"]),
        combine=COMBINE[meta["combined"]],
        picks=torch.from_numpy(stored["idx"]).long(),
        safe=stored["safe_prefix_q"].tolist(),
    )


def scope_edges() -> tuple[dict[str, tuple[Tensor, Tensor | None, int]], dict[str, list[int]]]:
    """Edge cases: name -> (features, saliency, k), and name -> published picks."""
    with np.load(FOLDER / "scope_edges.npz") as file:
        x, a = torch.from_numpy(file["x"]), torch.from_numpy(file["cls_attn"])
        published = json.loads(str(file["meta"]))["results"]
    zero, nan = x.clone(), a.clone()
    zero[0, 20] = 0
    nan[0, 5] = torch.nan
    same = x[:, :1].repeat(1, 49, 1)
    inputs = {
        "clean_k8": (x, a, 8),
        "zero_norm_token20_k8": (zero, a, 8),
        "nan_attn_token5_k4": (x, nan, 4),
        "antipodal_k12": (torch.cat([x[:, :24], -x[:, :24]], 1), a[:, :48], 12),
        "all_identical_k6": (same, a, 6),
        "zero_attn_k6": (x, torch.zeros_like(a), 6),
        "noattn_identical_k6": (same, None, 6),
    }
    return inputs, published


def gprune_case(name: str) -> GPruneCase:
    with np.load(FOLDER / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    meta = json.loads(str(stored["meta"]))
    recipe = meta["recipe"] | {"B": 1}
    features = torch.from_numpy(scope_features(**recipe)).to(DTYPES.get(meta["rounding"], torch.float32))
    assert digest(features[0]) == meta["x_sha256"], f"{name}: the rebuilt features are not those of the published run"
    rows, columns = meta["rows"], meta["cols"]
    grid = 576 + torch.arange(rows * (columns + 1)).view(rows, columns + 1)  # each row ends in a newline token
    branches = []
    for i, positions in enumerate((torch.arange(576), grid[:, :-1].flatten()), 1):
        gap = meta[f"boundary_gap{i}_f64"][1]
        branches.append(
            GPruneBranch(
                positions,
                features[:, positions],
                k=int(meta[f"k{i}"]),
                kept=set(torch.searchsorted(positions, torch.from_numpy(stored[f"top{i}"]).long()).tolist()),
                scores=torch.from_numpy(stored[f"score{i}_f64"]),
                degree=torch.from_numpy(stored[f"degree{i}"]),
                gap=float("inf") if gap is None else float(gap),
                margin=float(meta[f"thr_margin{i}"]),
            )
        )
    options = {"threshold": meta["similarity"], "temperature": meta["temperature"], "iterations": meta["iterate_num"]}
    return GPruneCase(options, branches, grid[:, -1], torch.from_numpy(stored["keep"]).long())


def fopru_inputs(seed: int, kind: str, B: int, H: int, N: int, hd: int = 16) -> tuple[Tensor, Tensor, float]:
    """Query, key and scale whose map is that of the published run; its two biases ride in two extra channels."""
    rng = np.random.default_rng(seed)
    root = hd**0.5
    query, key = (np.empty((B, H, N + 1, hd + 2), np.float32) for _ in range(2))
    is_class = np.zeros(N + 1)
    is_class[0] = 1.0
    for b in range(B):
        column, row = np.zeros(N + 1), np.zeros(N + 1)
        if kind in ("peaked", "peaked_logits"):
            hot = 1 + rng.permutation(N)[: max(2, N // 40)]
            column[hot] = 4.0 + rng.random(len(hot))
        elif kind == "row_wins":
            row = 6.0 * rng.standard_normal(N + 1)
        elif kind == "clustered":
            centre = rng.standard_normal((8, hd))
            label = rng.integers(0, 8, N + 1)
        for h in range(H):
            q, k = rng.standard_normal((N + 1, hd)), rng.standard_normal((N + 1, hd))
            if kind == "clustered":
                q, k = centre[label] + 0.3 * q, centre[label] + 0.3 * k
            query[b, h] = np.concatenate([q, np.full((N + 1, 1), root), (row * root)[:, None]], 1)
            key[b, h] = np.concatenate([k, column[:, None], is_class[:, None]], 1)
    return torch.from_numpy(query), torch.from_numpy(key), 1 / root


def fopru_case(name: str) -> FoPruCase:
    with np.load(FOLDER / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    kind, n = str(stored["kind"]), int(stored["N"])
    query, key, scale = fopru_inputs(int(stored["seed"]), kind, int(stored["B"]), int(stored["H"]), n)
    received, given = (torch.from_numpy(stored[f"{which}_ref64"]) for which in ("received", "given"))
    won = torch.tensor([branch == "received" for branch in stored["branch"].tolist()])
    side = int(n**0.5 + 0.5)
    return FoPruCase(
        query,
        key,
        scale,
        softmax=kind not in ("logits", "peaked_logits"),
        strategy=str(stored["strategy"]),
        k=int(stored["n_keep"]),
        grid=(side, side) if side * side == n else None,
        kept=torch.from_numpy(stored["indices"]).long(),
        received=received,
        given=given,
        significance=torch.where(won[:, None], received, given),
        strict=((stored["gap_relative"] > 1e-6) & (stored["gap_variance_rel"] > 1e-3)).tolist(),
    )


@dataclass(frozen=True)
class HoloVCase:
    features: Tensor  # [B, N, D] in the dtype of the published run
    attention: Tensor  # [B, N] float32
    k: int
    crops: int
    picks: Tensor  # [B, k], published order; -1 where the published code gives a zero row
    strict: list[bool]  # rows that no float32 evaluation may decide otherwise
    needs_features: list[bool]  # rows that attention alone decides differently


def holov_features(random: np.random.Generator, kind: str, B: int, N: int, D: int) -> np.ndarray:
    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    if kind == "clustered":
        x = np.empty((B, N, D), np.float32)
        for b in range(B):
            centre, label = normal(12, D), random.integers(0, 12, N)
            x[b] = centre[label] + np.float32(0.3) * normal(N, D)
        return x
    if kind == "shared_mean":
        return np.float32(2) * normal(B, 1, D) + normal(B, N, D)
    x = normal(B, N, D)
    if kind == "ortho_half":  # orthogonal inside any run of D tokens
        token = np.arange(N // 2)
        x[:, : N // 2] = 0
        x[:, token, token % D] = 1 + (token // D).astype(np.float32) * 0.5
    return x


def holov_case(name: str) -> HoloVCase:
    with np.load(FOLDER / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    random = np.random.default_rng(int(stored["seed"]))
    features = holov_features(random, str(stored["feature_kind"]), *(int(stored[size]) for size in "BND"))
    for array, told in ((features, "sha256_features_f32"), (stored["attention"], "sha256_attention")):
        found = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        assert found == str(stored[told]), f"{name}: {told} is another one"
    strict = (stored["gap_floor"] > 1e-4) & (stored["gap_remainder"] > 1e-6) & (stored["gap_token"] > 1e-9)
    return HoloVCase(
        torch.from_numpy(features).to(
            {"f16": torch.float16, "bf16": torch.bfloat16}.get(str(stored["feature_dtype"]), torch.float32)
        ),
        torch.from_numpy(stored["attention"]),
        k=int(stored["K"]),
        crops=int(stored["num_crops"]),
        picks=torch.from_numpy(stored["positions"]).long(),
        strict=strict.tolist(),
        needs_features=(~stored["attention_only_same_set"].astype(bool)).tolist(),
    )
