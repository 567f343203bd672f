from __future__ import annotations

from codemem.completion.filters.around import Around
from codemem.models.tokenizer import comment_leader


def without_path_echo(text: str, around: Around) -> str:
    """Every prompt begins with the document's path in a comment, and with those of snippets: what is written from such
    a line on is no code."""
    leader, kept = comment_leader(around.path), list[str]()
    for number, line in enumerate(text.split("\n")):
        begun = around.line_before + line if number == 0 else line
        if begun.strip().startswith(leader) and around.path in begun:
            break
        kept.append(line)
    return "\n".join(kept)
