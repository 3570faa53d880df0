"""The pages of docs/: their Python runs as it stands there, their commands are commands, and they agree with the code."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")
pytest.importorskip("peft")

import models
import tokenizers
import transformers
import yaml

import vtkernels as vt
from vtkernels import cli
from vtkernels.cli._arguments import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
# A block that no test runs says so in its title.
NOT_RUN = "not run by the tests"
INCLUDED = '--8<-- "'
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    """Line, title and text of every block of ``page`` in ``language``."""
    text = (DOCS / page).read_text()
    return [
        (text[: found.start()].count("\n") + 1, found[3].strip(), found[4])
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


# ------------------------------------------------------------------------------------------------ Python


def save_checkpoint(folder, model, processor_class, image_processors, **how):
    """A small model whose tokenizer knows letters."""
    words = {"<pad>": models.PAD, "</s>": models.END, "<unk>": 2, "<image>": models.IMAGE}
    words |= {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzW ?", 3)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<image>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    size = model.config.vision_config.image_size
    # the processor that needs no torchvision is a class of its own from transformers 5 on
    kind = next(getattr(transformers, name) for name in image_processors if hasattr(transformers, name))
    processor = processor_class(
        kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **how),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for part in messages[0]['content'] %}{{ part.get('text', '<image>') }}{% endfor %}",
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of small models, under the names that the pages load."""
    folder = tmp_path_factory.mktemp("checkpoints")
    plain, tiled = models.llava(side=10), models.llava_next()
    save_checkpoint(folder / "plain", plain, transformers.LlavaProcessor, ("CLIPImageProcessorPil", "CLIPImageProcessor"))
    save_checkpoint(
        folder / "tiled",
        tiled,
        transformers.LlavaNextProcessor,
        ("LlavaNextImageProcessorPil", "LlavaNextImageProcessor"),
        image_grid_pinpoints=tiled.config.image_grid_pinpoints,
    )
    models.llava_onevision().save_pretrained(folder / "onevision")
    return {
        "llava-hf/llava-1.5-7b-hf": folder / "plain",
        "llava-hf/llava-v1.6-mistral-7b-hf": folder / "tiled",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf": folder / "onevision",
    }


@pytest.fixture
def elsewhere(checkpoints, tmp_path, monkeypatch):
    """A folder with a photograph, where the names of checkpoints lead to small ones and there is no GPU."""
    shutil.copy(ROOT / "vtkernels" / "assets" / "coffee.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "serving"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kind in (
        transformers.AutoProcessor,
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaNextForConditionalGeneration,
        transformers.LlavaOnevisionForConditionalGeneration,
    ):
        monkeypatch.setattr(
            kind, "from_pretrained", lambda name, load=kind.from_pretrained, **how: load(checkpoints[name], **how)
        )


def given(page, checkpoints):
    """What a page takes as given."""
    if page != "index.md":
        return {}
    from PIL import Image

    folder = checkpoints["llava-hf/llava-1.5-7b-hf"]
    return {
        "model": transformers.LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf").eval(),
        "processor": transformers.AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"),
        "image": Image.open(ROOT / "vtkernels" / "assets" / "coffee.jpg"),
        "prompt": "what is <image>?",
        "folder": folder,
    }


@pytest.mark.filterwarnings("ignore:keep = :UserWarning")  # the small models have fewer tokens than the text speaks of
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page, checkpoints, elsewhere, monkeypatch):
    """Top to bottom in one namespace. A file that is shown whole has tests of its own."""
    # classes that a block defines need a module, as dataclasses ask for it
    module = type(sys)("page")
    monkeypatch.setitem(sys.modules, "page", module)
    vars(module).update(given(page, checkpoints))
    shown = [block for block in blocks(page, "python") if not block[2].startswith(INCLUDED)]
    for line, title, text in shown:
        assert NOT_RUN not in title, f"{page}:{line}: Python that no test runs"
        exec(compile("\n" * line + text, page, "exec"), vars(module))
    for value in vars(module).values():
        assert "generate" not in getattr(value, "__dict__", {}), "a model stays pruned"


@pytest.mark.parametrize("page", PAGES)
def test_included_files_exist(page):
    for path in re.findall(rf"^{INCLUDED}(.*)\"$", (DOCS / page).read_text(), re.MULTILINE):
        assert (ROOT / path).is_file()


# ------------------------------------------------------------------------------------------------ commands

TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def commands(page):
    """Line and words of every command of a page that can be checked here."""
    for line, title, text in blocks(page, "bash") + blocks(page, ""):
        if NOT_RUN in title:
            continue
        for number, command in enumerate(text.replace("\\\n", " ").splitlines(), 1):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield line + number, words


def test_commands(benchmarks, capsys, monkeypatch):
    """Their options exist; none of them runs. pip, other programs' own commands and paths are not looked into."""
    bench, seen = benchmarks("__main__"), set()
    for module in (cli.demo, cli.flops, cli.info, cli.tune, *map(benchmarks, bench.COMMANDS.values())):
        monkeypatch.setattr(module, "run", lambda *given: 0)
    for page in PAGES:
        for line, words in commands(page):
            if words[0] == "vtkernels":
                code = bench.main(words[2:]) if words[1] == "bench" else cli.main(words[1:])
                assert code == 0, f"{page}:{line}: {' '.join(words)}: {capsys.readouterr().err}"
            elif words[0] == "make":
                assert set(words[1:]) <= set(TARGETS), f"{page}:{line}: {' '.join(words)}"
            else:
                assert words[0] in ("pip", "lmms-eval", "python", "benchmarks/gpu.sh"), f"{page}:{line}: {words[0]}"
            seen.add(words[0])
    assert {"vtkernels", "pip", "lmms-eval"} <= seen


def test_commands_that_are_quick(capsys):
    for page in PAGES:
        for line, words in commands(page):
            if words[:2] in (["vtkernels", "flops"], ["vtkernels", "info"]) and not {"--config", "--plot"} & set(words):
                assert cli.main(words[1:]) == 0, f"{page}:{line}"
                output = capsys.readouterr().out
                assert json.loads(output) if "--json" in words else output.strip()


def test_few_blocks_are_not_run():
    left_out = [
        (page, line) for page in PAGES for line, title, _ in blocks(page, "bash") + blocks(page, "python") if NOT_RUN in title
    ]
    assert {page for page, _ in left_out} == {"serving.md"} and len(left_out) == 3  # commands of engines


# ------------------------------------------------------------------------------------------------ tables and lists


def test_table_of_defaults():
    """docs/models.md says of every method what its policy is."""
    text = (DOCS / "models.md").read_text()
    rows = [
        [re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:6]] for line in text.splitlines() if line.startswith("| `")
    ]
    methods = {name: row for row in rows if all(hasattr(vt, name) for name in row[0]) for name in row[0]}
    assert set(methods) == set(METHODS)
    for name, (_, budgets, *others) in methods.items():
        policy = getattr(getattr(vt, name), "policy", vt.Policy())
        assert budgets == list(policy.budgets)
        assert others == [[policy.positions], [policy.newlines], [policy.padding]]


def test_table_of_classes():
    from vtkernels.integrations.transformers import _FAMILIES

    text = (DOCS / "models.md").read_text()
    assert set(re.findall(r"^\| `(\w+ForConditionalGeneration)`", text, re.MULTILINE)) == set(_FAMILIES)


def test_table_of_methods():
    """docs/methods/index.md says of every method what it reads, where it chooses and what it is made of."""
    rows = re.findall(
        r"^\| (\[`.*) \| .* \| (.*) \| (before|after) the projector \| (.*) \|$",
        (DOCS / "methods" / "index.md").read_text(),
        re.M,
    )
    named = {}
    for names, prompt, place, made_of in rows:
        for name in re.findall(r"`(\w+)`", names):
            named[name] = prompt.strip("*"), place, set(re.findall(r"`(\w+)`", made_of))
    assert set(named) == set(METHODS)
    for name, (prompt, place, made_of) in named.items():
        needs = getattr(vt, name)().needs
        assert prompt == ("yes" if "prompt" in needs else "no")
        assert place == ("after" if "projected" in needs else "before")
        more = {"row_topk"} if name == "FoPru" else set()
        # Random and Uniform share a row
        assert made_of == set(METHODS[name]) | more or (name == "Uniform" and made_of == {"topk_select"})


@pytest.mark.parametrize("name", METHODS)
def test_options_of_methods(name):
    """The page of a method has every option of it with its default, and its policy in words."""
    from dataclasses import fields

    kind = getattr(vt, name)
    page = {"TopAttention": "baselines", "Random": "baselines", "Uniform": "baselines"}.get(name, name.lower())
    text = (DOCS / "methods" / f"{page}.md").read_text()
    for field in fields(kind):
        default = f'"{field.default}"' if isinstance(field.default, str) else field.default
        assert (
            re.search(rf"^\| `{field.name}` \| `?{re.escape(str(default))}`? \|", text, re.M)
            or f"{name}({field.name}={default})" in text
        )
    policy = getattr(kind, "policy", vt.Policy())
    said = text[text.index("Policy") :].partition("\n\n")[0].replace("\n", " ")
    assert policy.budgets[0].replace("_crop", " crop") in said and f"{policy.positions} positions" in said.replace("**", "")
    assert f"newlines {dict(keep='kept', drop='dropped')[policy.newlines]}" in said
    assert f"padding {policy.padding}d" in said


def test_reference_has_every_public_name():
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: vtkernels\.(\w+)$", text, re.MULTILINE)) | {"__version__"} & set(
        re.findall(r"`vt\.(\w+)`", text)
    )
    if "ops" in shown:
        shown |= set(vt.ops.__all__)
    if "flops" in shown:
        shown |= {"flops"}
    assert set(vt.__all__) <= shown


def test_navigation():
    """Every page is in it once, and everything in it is a page or made one."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for item in (entry if isinstance(entry, list) else entry.values()) for leaf in leaves(item)]

    made = {"benchmarks.md", "benchmarks-notes.md", "changelog.md", "contributing.md"}
    listed = leaves(config["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == set(PAGES) | made


def test_site_needs_no_network():
    config = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in config and "://" not in config
    assert "://" not in (DOCS / "assets" / "site.css").read_text()


# ------------------------------------------------------------------------------------------------ citations


def test_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == vt.__version__
    assert {"message", "title", "authors"} <= citation.keys()
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version = {{{vt.__version__}}}" in (DOCS / "citations.md").read_text()


def test_every_paper_can_be_cited():
    """Papers that the pages link to, or docstrings name, are on the page of citations."""
    entries = (DOCS / "citations.md").read_text()
    named = {number for page in PAGES for number in re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", (DOCS / page).read_text())}
    named |= {
        number
        for path in (ROOT / "vtkernels").rglob("*.py")
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", path.read_text())
    }
    cited = set(re.findall(r"(?:arXiv:|eprint +=\s+\{)(\d{4}\.\d{5})", entries)) | {"2503.02175"}  # by its conference
    assert named <= cited
