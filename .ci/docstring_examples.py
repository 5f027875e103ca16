"""For mkdocstrings: examples in docstrings (lines from ``>>>`` on) become blocks of code; Markdown would quote them."""

import re
from typing import Any

import griffe

# From a prompt on to the next empty line, in text that stands at the margin.
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", flags=re.MULTILINE)


class Examples(griffe.Extension):
    """Puts a fence around each example of each docstring."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called for every object that griffe has read.

        Args:
          obj: the object.
          **others: what griffe tells beside it.
        """
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
