"""The quality benchmark: its measures against their definitions, its inputs, and the committed results."""

from __future__ import annotations

import argparse
import csv
import importlib

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from benchmarks import plots_quality, preservation, quality, quality_inputs, quality_table
from benchmarks.harness import RESULTS
from vtkernels.cli._errors import UsageError


@pytest.fixture
def tokens():
    """[12, 5] with a zero row and a repeated one, and what is kept of it: the repeated row twice."""
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    x[7] = x[8]
    return x, torch.tensor([1, 3, 7, 8])


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item() if a.norm() > 0 and b.norm() > 0 else 0.0


def test_coverage_is_the_mean_of_the_greatest_cosine(tokens):
    x, kept = tokens
    x = x.double()
    want = sum(max(cosine(row, x[j]) for j in kept) for row in x) / len(x)
    assert preservation.coverage(preservation.inner_products(x), kept) == pytest.approx(want)


def test_span_error_is_that_of_least_squares(tokens):
    x, kept = tokens
    x = x.double()
    fit = torch.linalg.lstsq(x[kept].T, x.T, driver="gelsd").solution
    want = (x - fit.T @ x[kept]).square().sum() / (x - x.mean(0)).square().sum()
    assert preservation.span_error(preservation.inner_products(x), kept) == pytest.approx(want.item(), abs=1e-8)


def test_nearest_error_is_that_of_the_most_similar_kept_token(tokens):
    x, kept = tokens
    x = x.double()
    nearest = [max(kept.tolist(), key=lambda j: cosine(row, x[j])) for row in x]
    want = sum((row - x[j]).square().sum() for row, j in zip(x, nearest, strict=True)) / (x - x.mean(0)).square().sum()
    assert preservation.nearest_error(preservation.inner_products(x), kept) == pytest.approx(want.item())


def test_everything_kept_loses_nothing():
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(1))
    gram, every = preservation.inner_products(x), torch.arange(9)
    assert preservation.coverage(gram, every) == pytest.approx(1)
    assert preservation.span_error(gram, every) == pytest.approx(0, abs=1e-8)
    assert preservation.nearest_error(gram, every) == pytest.approx(0, abs=1e-12)


def test_tokens_without_variance_have_nothing_to_lose():
    gram = preservation.inner_products(torch.ones(4, 3))
    assert preservation.span_error(gram, torch.tensor([0])) == preservation.nearest_error(gram, torch.tensor([0])) == 0


def test_shares_and_overlap():
    attention = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert preservation.attention_mass(attention, torch.tensor([1, 3])) == pytest.approx(0.6)
    assert preservation.effective_tokens(torch.ones(7)) == pytest.approx(7)
    assert preservation.effective_tokens(torch.tensor([1.0, 0, 0])) == pytest.approx(1)
    assert preservation.groups_hit(torch.tensor([0, 0, 5, 7]), torch.tensor([1, 2])) == pytest.approx(2 / 3)
    assert preservation.overlap(torch.tensor([0, 1, 2]), torch.tensor([2, 3, 4])) == pytest.approx(1 / 5)


@pytest.mark.parametrize(("structure", "saliency"), quality_inputs.FEATURES)
def test_features_have_the_structure_that_they_promise(structure, saliency):
    given = quality_inputs.features(structure, saliency, 0)
    x, labels = given.context.features[0], given.labels
    assert x.shape == (quality_inputs.TOKENS, quality_inputs.WIDTH)
    if labels is None:
        energy = torch.linalg.svdvals(x.double()).square()
        assert energy[:96].sum() / energy.sum() > 0.99
        return
    similarity = preservation.cosines(preservation.inner_products(x))
    same = labels[:, None] == labels
    different = similarity[~same].max()
    if structure == "duplicates":
        assert all(torch.equal(x[i], x[labels == labels[i]][0]) for i in range(len(x)))
    assert similarity[same].min() > different
    sizes = labels.bincount()
    assert sizes.min() >= 1 and sizes.max() > 5 * sizes.median()  # no equal parts


def test_saliency_is_the_same_attention_on_other_tokens():
    agrees, independent, contradicts = (
        quality_inputs.features("clusters", saliency, 0) for saliency in quality_table.SALIENCIES
    )
    sizes = agrees.labels.bincount()[agrees.labels].double()

    def crowding(given):
        """How large the group is that the class token looks at, on average."""
        attention = given.context.saliency()[0].double()
        return (attention * sizes).sum() / attention.sum()

    assert crowding(agrees) < crowding(independent) < crowding(contradicts)
    masses = [given.context.saliency()[0].sort().values for given in (agrees, independent, contradicts)]
    for mass in masses[1:]:
        torch.testing.assert_close(mass, masses[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", quality_inputs.IMAGES)
def test_images_are_seeded_and_labelled_by_patch(name):
    draw = quality_inputs.IMAGES[name]
    (image, labels), (again, _) = (draw(np.random.default_rng(3)) for _ in range(2))
    assert image.tobytes() == again.tobytes()
    if labels is not None:
        patches = quality_inputs._by_patch(labels)
        assert set(patches.tolist()) == set(np.unique(labels).tolist())


def test_a_picture_reaches_the_methods_as_vt_prune_shows_it():
    given = quality_inputs.image("object", 0)
    c = given.context
    assert c.grid == (24, 24) and c.features.shape == (1, 576, 1024) and c.prefix == 1 and c.prompt is not None
    assert preservation.effective_tokens(c.saliency()[0]) < 300  # far from flat
    assert [len(quality.select(given, name, 64, draws=2)) for name in ("Scope", "Random", quality_table.GREEDY)] == [1, 2, 1]


def test_a_row_of_the_committed_results_comes_out_again():
    rows = _committed()
    given = quality_inputs.features("clusters", "agrees", int(rows[0]["seed"]))
    draws = max(int(row["draws"]) for row in rows if not row["other"])
    fresh = {_key(row): row for row in quality.rows_of(given, (64,), draws)}
    kept = [row for row in rows if row["input"] == given.name and row["keep"] in ("64", "576")]
    assert {_key(row) for row in kept} == set(fresh)
    for row in kept:
        # another processor may round a tie otherwise: a token of 64, not a different result
        assert float(row["value"]) == pytest.approx(
            float(fresh[_key(row)]["value"]), abs=0.03 if row["measure"] == "overlap" else 0.02
        )


def test_the_committed_results_are_complete():
    rows = _committed()
    assert all(row[name] for row in rows for name in ("device", "torch", "vtkernels", "commit", "time"))
    names = {row["input"] for row in rows}
    assert len(names) == len(quality_inputs.IMAGES) + len(quality_inputs.FEATURES)
    for keep in quality.KEEPS:
        for name in names:
            measured = {
                row["method"] for row in rows if (row["input"], row["keep"], row["measure"]) == (name, str(keep), "coverage")
            }
            assert measured == set(quality_table.METHODS)
    greedy = quality_table.mean(rows, method=quality_table.GREEDY, measure="coverage", keep=64)
    random = quality_table.mean(rows, method="Random", measure="coverage", keep=64)
    assert 0 < random < greedy <= 1


def test_table_and_picture_are_made_from_rows_alone():
    rows = _committed()
    table = quality_table.markdown(rows)
    assert all(f"| {name} |" in table for name in quality_table.METHODS)
    assert "192 / 128 / 64 of 576" in table and "±" in table and "saliency agrees / independent / contradicts" in table
    drawn = plots_quality.draw(rows)
    titles = " ".join(axes.get_title("left") for axes in drawn.axes)
    assert all(word in titles for word in ("Coverage", "Attention", "Lost", "agree"))


def test_quick_run_prints_and_saves(tmp_path, capsys, monkeypatch):
    # as measure() imports it: other tests make Python forget benchmarks/
    monkeypatch.setattr(
        importlib.import_module("benchmarks.quality_inputs"),
        "inputs",
        lambda seed, quick: [lambda: quality_inputs.features(*quality_inputs.FEATURES[0], seed)],
    )
    parser = argparse.ArgumentParser()
    quality.add_parser(parser.add_subparsers())
    out = tmp_path / "q.csv"
    assert quality.run(parser.parse_args(["quality", "--quick", "--out", str(out)])) == 0
    assert "Greedy coverage" in capsys.readouterr().out
    with out.open(newline="") as file:
        assert {row["keep"] for row in csv.DictReader(file)} == {"64", "576"}


def test_an_output_folder_that_is_not_there_is_said(tmp_path):
    parser = argparse.ArgumentParser()
    quality.add_parser(parser.add_subparsers())
    with pytest.raises(UsageError, match=r"--out.*folder .* that does not exist"):
        quality.run(parser.parse_args(["quality", "--quick", "--out", str(tmp_path / "no" / "q.csv")]))


def _committed():
    with (RESULTS / "quality.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _key(row):
    return row["method"], row["other"], str(row["keep"]), row["measure"]
