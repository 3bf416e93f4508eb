"""The files that make up a tokenizer, and their common hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

TOKENIZER_FILE_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


TEMPLATE_FOLDERS = ("chat_templates", "additional_chat_templates")
"""Where named templates lie beside the default one, as `NAME.jinja`."""


def read_tokenizer_files(directory: str | Path) -> dict[str, bytes]:
    """Read those of the tokenizer's files that a checkpoint directory has, by their path in it.

    Raises:
        FileNotFoundError: there is no `tokenizer.json`; the message says what to do.
    """
    folder = Path(directory)
    names = [
        *TOKENIZER_FILE_NAMES,
        *(
            f"{inside}/{path.name}"
            for inside in TEMPLATE_FOLDERS
            for path in (folder / inside).glob("*.jinja")
        ),
    ]
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    if "tokenizer.json" not in files:
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json. A fast tokenizer is needed; for a checkpoint with older files, "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one."
        )
    return files


def tokenizer_sha256(files: Mapping[str, bytes]) -> str:
    """Hash all files as `GetTokenizer` defines it, in hex.

    Per file, sorted by name: the name, NUL, the content's length as eight little-endian bytes, the content.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name]
        digest.update(name.encode() + b"\0" + len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
