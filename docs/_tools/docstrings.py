"""Docstrings as they are written in the package, to the Markdown that the site takes."""

import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    """Roles become links, and an example becomes a block of Python."""

    def on_instance(self, *, obj, **_):
        if obj.docstring is None:
            return
        text = re.sub(r":(?:class|func|meth):`([\w.]+)`", lambda found: _link(found[1], obj), obj.docstring.value)
        text = re.sub(r"^(Complexity|Source):", r"**\1:**", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"^Example:\n((?:[ ]{4}.*\n?|\n)+)", _example, text, flags=re.MULTILINE)


def _link(name, obj):
    known = name if name.startswith("vtkernels.") else f"vtkernels.{name}"
    return f"[`{name}`][{known}]"


def _example(found):
    return f'```pycon title="Example"\n{textwrap.dedent(found[1]).rstrip()}\n```\n'
