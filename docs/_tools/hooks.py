"""What MkDocs does beside its configuration: pages that live outside docs/, and mathematics without a script."""

import posixpath
import re
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Pages of the site that are files of the repository, where readers of the repository look for them.
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/NOTES.md": "benchmarks-notes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Scripts, styles, fonts and pictures that a page would fetch; links that a reader follows are none.
FETCHED = re.compile(r"""(?:src|srcset)=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//|url\(["']?(?:https?:)?//""")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_moved((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown, page, **_):
    """Links from docs/ to the pages above."""
    source = f"docs/{page.file.src_uri}"
    return _moved(markdown, source) if (ROOT / source).exists() else markdown


def on_page_content(html, **_):
    """TeX becomes MathML, which browsers draw themselves."""
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda found: _math(found, "inline"), html, flags=re.DOTALL)
    html = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda found: _math(found, "block"), html, flags=re.DOTALL)
    return html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def on_post_build(config):
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css") and (found := FETCHED.search(path.read_text())):
            raise PluginError(f"{path.name} would fetch from the network: {found[0]}")


def _moved(text, source):
    """``text`` of ``source``, a path in the repository, with its links as they are on the site."""
    here = posixpath.dirname(PAGES.get(source) or posixpath.relpath(source, "docs"))

    def link(found):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return found[1] if target is None else posixpath.relpath(target, here or ".")

    return LINK.sub(link, text)


def _math(found, display):
    return convert(unescape(found[1]), display=display)
