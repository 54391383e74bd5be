"""Docstrings as MkDocs should read them: Markdown would take some of their lines for its own."""

import re

import griffe


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Source and cost as paragraphs, "> 0" as no quotation, functions as links."""
    text = re.sub(r"^(Source|Cost|Buffers): ", r"\n**\1:** ", text, flags=re.MULTILINE)
    text = text.replace(": >", r": \>")
    return re.sub(r"`functional\.(\w+)`", r"[`\1`][ssl_fast.functional.\1]", text)
