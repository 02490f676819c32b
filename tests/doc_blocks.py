"""Fenced blocks of a Markdown page."""

from __future__ import annotations

import re

# Every fence: the end of a block in another language must not pass for the start of one.
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "shell", "console")


def shell_blocks(text: str) -> list[str]:
    """Return the blocks of shell commands, continuation lines joined."""
    blocks = FENCED.findall(text)
    return [block.replace("\\\n", " ") for language, block in blocks if language in SHELL]
