"""Names of files, folders and classes that some library takes for something else."""

import os

# Trouble for the shell, for globs, for URLs, for Markdown and for lines.
ODD = "run 1 [ümlaut] lr=[0.1] (x)%20*?\\'\"$HOME`id`#🦊\n{a,b}"

NAMES = {
    "spaces and quotes": ' it\'s "q" ',
    "a range": "lr=[0.1]",
    "a negated range": "[!a]",
    "stars": "a**b*",
    "a backslash": "a\\b",
    "a scheme": "gs:",
    "of a URL": "?x=%20#y&z;|<>~",
    "composed": "ümlaut 🦊",
    "decomposed": "u\u0308mlaut",
    "control characters": "a\nb\t\x01\x7f",
    "no text": os.fsdecode(b"caf\xe9"),
    "long": "x" * 255,
    "deep": "/".join(["y" * 200] * 17),
    "everything": ODD,
}
