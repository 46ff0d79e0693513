#!/usr/bin/env python3
"""Puts what benchmarks printed into the pages that show it.

Usage: benches/figures.py FOLDER NAME...

What FOLDER/bench-NAME.txt holds takes the place of what stands between `<!-- figures of NAME -->` and `<!-- end -->` in
README.md and benches/README.md. A name that no page asks for is an error, as is one without a file.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "benches/README.md"]


def main():
    folder, *names = sys.argv[1:]
    for name in names:
        figures = (pathlib.Path(folder) / f"bench-{name}.txt").read_text().strip()
        block = re.compile(rf"(<!-- figures of {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        found = 0
        for page in PAGES:
            text, count = block.subn(lambda marks: f"{marks[1]}\n```\n{figures}\n```\n\n{marks[2]}", page.read_text())
            found += count
            if count:
                page.write_text(text)
        if not found:
            sys.exit(f"no page has a place for the figures of {name}")


if __name__ == "__main__":
    main()
