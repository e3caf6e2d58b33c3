"""What the RoFormerTokenizer of transformers 4 makes of generated texts; transformers 5 has only the fast one.

Recorded with CPython 3.11.7, transformers 4.50.0, tokenizers 0.21.4 and rjieba 0.2.2. To record it anew, from the root
of the repository, in an environment that holds these and not the one of this project:

    pip install transformers==4.50.0 rjieba==0.2.2
    PYTHONPATH=. python tests/golden/roformer_slow_tokenizer.py

It writes ``roformer_slow_tokenizer.json.gz``, for ``tests/exporter/tokenization/test_roformer_slow.py``:

    cases     for each set of options: the seed and the number of the texts, their SHA-256, the row of ids of each text
              and what it decodes to (the text of every fourth row, with and without special tokens, and cleaned up)
    pairs     ids, types and special masks of pairs of texts, cut and padded in several ways
    vocabulary, files   what save_vocabulary and save_pretrained wrote
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.exporter.tokenization.texts import SPECIAL, chinese_vocabulary, make_texts

GOLDEN = Path(__file__).with_suffix(".json.gz")
RENAMED = {"unk_token": "？", "mask_token": "☃", "additional_special_tokens": ["今天", "<Tag>"]}
CASES: list[tuple[int, int, dict[str, Any]]] = [
    (1, 5200, {}),
    (2, 1000, {"do_lower_case": False}),
    (3, 700, {"do_lower_case": False, "strip_accents": True}),
    (4, 700, {"strip_accents": False}),
    (5, 700, {"tokenize_chinese_chars": False}),
    (6, 700, {"do_basic_tokenize": False}),
    (7, 700, {"never_split": ["北京大学", "GPU", "gpu", "don't", "车", "c#", "é", "學"], "do_lower_case": False}),
    (8, 700, {"never_split": ["gpu", "c#", "今天", "é"], "tokenize_chinese_chars": False}),
    (9, 700, RENAMED),
]
CUTS: list[dict[str, Any]] = [
    {"padding": True},
    {"truncation": True, "max_length": 16, "padding": "max_length"},
    {"truncation": "longest_first", "max_length": 9, "padding": True},
    {"truncation": True, "max_length": 16, "padding": True, "pad_to_multiple_of": 8, "add_special_tokens": False},
]


def main() -> None:
    from transformers import RoFormerTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [*chinese_vocabulary(), "<Tag>"]
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        cases = []
        for seed, count, options in CASES:
            oracle = RoFormerTokenizer(str(folder / "vocab.txt"), **options)
            texts = make_texts(seed, count, [*SPECIAL, *options.get("additional_special_tokens", [])])
            rows = oracle(texts)["input_ids"]
            cases.append(
                {
                    "seed": seed,
                    "options": options,
                    "texts": digest(texts),
                    "ids": rows,
                    "decoded": [
                        [
                            oracle.decode(row),
                            oracle.decode(row, skip_special_tokens=True),
                            oracle.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=True),
                        ]
                        for row in rows[::4]
                    ],
                }
            )
        oracle = RoFormerTokenizer(str(folder / "vocab.txt"))
        pairs = []
        for seed, cut in enumerate(CUTS, 20):
            texts = make_texts(seed, 600, SPECIAL)
            rows = oracle(texts[::2], texts[1::2], **cut, return_special_tokens_mask=True)
            pairs.append({"seed": seed, "count": 600, "arguments": cut, **rows})
        (vocabulary,) = oracle.save_vocabulary(str(folder), "some")
        oracle.save_pretrained(folder / "saved")
        golden = {
            "cases": cases,
            "pairs": pairs,
            "vocabulary": {Path(vocabulary).name: digest(Path(vocabulary).read_text(encoding="utf-8").split("\n"))},
            "files": {path.name: path.read_text(encoding="utf-8") for path in sorted((folder / "saved").iterdir())},
        }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    GOLDEN.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0\0".join(texts).encode("utf-8")).hexdigest()


if __name__ == "__main__":
    main()
