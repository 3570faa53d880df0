"""Docstrings as they are written in the package, to the Markdown that the site takes."""

import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    """Roles become links, an example a block of Python, and what is returned one item for each name."""

    def on_instance(self, *, obj, **_):
        if obj.docstring is None:
            return
        text = re.sub(r":(?:class|func|meth):`([\w.]+)`", _link, obj.docstring.value)
        text = re.sub(r"^(Complexity|Source):", r"**\1:**", text, flags=re.MULTILINE)
        text = re.sub(r"^Returns:\n((?:[ ]{4}.*\n?|\n)+)", _returns, text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"^Example:\n((?:[ ]{4}.*\n?|\n)+)", _example, text, flags=re.MULTILINE)


def _link(found):
    name = found[1]
    return f"[`{name.rpartition('.')[2]}`][{name if name.startswith('vtkernels.') else f'vtkernels.{name}'}]"


def _returns(found):
    """Lines that do not begin a name go on with the one before, which the parser sees by their indentation."""
    first, *more = found[1].splitlines()
    more = [line if re.match(r"    \w+: ", line) else f"    {line}".rstrip() for line in more]
    return "\n".join(["Returns:", first, *more, ""])


def _example(found):
    code = textwrap.dedent(found[1]).rstrip().replace("  # doctest: +SKIP", "")
    return f'```pycon title="Example"\n{code}\n```\n'
