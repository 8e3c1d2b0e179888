"""Text from files and libraries, made safe to print."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of characters that act instead of showing: controls, formats (they turn the direction of text,
or hide it), halves of surrogates, separators of lines and paragraphs."""
_SHOWN = "\n\t\u200c\u200d"
"""Of these the harmless ones: newline, tab, and the joiners that some scripts are written with."""
_LONGEST = 10_000


def printable(text: str, *, longest: int = _LONGEST) -> str:
    r"""`text` with each character that a terminal would obey in a visible form; newlines stay, what is long is cut.

    Names of files, tags, classes and bands come from whoever made the file, and an escape sequence in one could
    rewrite the screen, the window's title or the clipboard.

    >>> printable("a\x1b[31mred\rb"), printable("x" * 9, longest=6)
    ('a\\x1b[31mred\\rb', 'xxx...')
    """
    if len(text) > longest:
        text = f"{text[: longest - 3]}..."
    if text.isprintable():
        return text
    return "".join(c if not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def _acts(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _SHOWN
