from __future__ import annotations

from codemem.completion.filters.around import Around


def with_right_indentation(text: str, around: Around) -> str:
    """Whole lines up to the first that is indented in another way than the document, by tabs and not by spaces or the
    reverse; nothing of a block that no bracket ends and that is indented no further than its header."""
    lines = text.split("\n")
    if around.piece.unit == "block" and not around.piece.bracket:
        first = next((line for line in lines[1:] if line.strip()), "") if not lines[0].strip() else ""
        if (
            first
            and not first.lstrip().startswith((")", "]", "}"))
            and len(first) - len(first.lstrip()) <= around.piece.indent
        ):
            return ""
    tabs = sum(line.startswith("\t") for line in around.text.split("\n"))
    spaces = sum(line.startswith("  ") for line in around.text.split("\n"))
    if tabs == spaces:
        return text
    wrong = "\t" if spaces > tabs else "  "
    for number, line in enumerate(lines[1:], start=1):
        if line.startswith(wrong) and line.strip():
            return "\n".join(lines[:number])
    return text
