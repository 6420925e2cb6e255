"""Make README.md from nbs/index.ipynb: `python tools/readme.py`.

Markdown cells as they are, code as Python blocks, printed text as text blocks, pictures as files under nbs/images/ (a
git hosting site shows those, unlike data addresses). Links to notebooks and pictures are turned from the folder nbs/ to
the root, where README.md lies.
"""

import re
import sys
from pathlib import Path

from notebooks import ROOT, blocks, read

SOURCE, IMAGES = Path("nbs/index.ipynb"), Path("nbs/images")


def from_root(markdown: str) -> str:
    "Relative links of a page in nbs/, as seen from the root. Code blocks are left alone."

    def turned(found: re.Match[str]) -> str:
        target = found[2]
        inside = re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target, flags=re.IGNORECASE)
        return (
            found[0]
            if inside
            else f"{found[1]}{Path('nbs', target) if '..' not in target else target.removeprefix('../')}{found[3]}"
        )

    parts = re.split(r"(^`{3,}.*?^`{3,}$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if n % 2 else re.sub(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))", turned, part)
        for n, part in enumerate(parts)
    )


def render(root: Path = ROOT) -> tuple[str, dict[Path, bytes]]:
    "README.md as text, and the pictures it needs by their paths below the root."
    images: dict[Path, bytes] = {}

    def save(name: str, content: bytes) -> str:
        images[IMAGES / name] = content
        return f"images/{name}"

    found = [text for text in blocks(read(root / SOURCE), save, "index", html=False) if text]
    note = f"<!-- Made from {SOURCE.as_posix()} by tools/readme.py: edit the notebook, then run it. -->"
    return "\n\n".join([note, *map(from_root, found)]) + "\n", images


def differences(root: Path = ROOT) -> list[str]:
    "What of README.md and its pictures is not as the notebook would make it."
    if not (root / SOURCE).is_file():
        return [f"{SOURCE}: missing; README.md is made from it"]
    text, images = render(root)
    wanted = {Path("README.md"): text.encode(), **images}
    stale = [path for path in (root / IMAGES).glob("index_*") if path.relative_to(root) not in wanted]
    return [
        f"{path}: not what {SOURCE.as_posix()} renders to"
        for path, content in wanted.items()
        if not (root / path).is_file() or (root / path).read_bytes() != content
    ] + [f"{path.relative_to(root)}: no longer used by {SOURCE.as_posix()}" for path in stale]


def main(root: Path = ROOT) -> int:
    text, images = render(root)
    for path in (root / IMAGES).glob("index_*"):
        path.unlink()
    for path, content in {Path("README.md"): text.encode(), **images}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
