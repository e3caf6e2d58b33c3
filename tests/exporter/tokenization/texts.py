"""Texts to compare tokenizers on, and a vocabulary for RoFormer. Needs nothing but Python: golden data use it, too.

Only ``Random.random`` is drawn from, whose values no Python changes, and only characters are used whose properties
were settled before Unicode 13, which Python 3.10 knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

__all__ = ["SPECIAL", "chinese_vocabulary", "make_texts"]

Item = TypeVar("Item")


def _words(text: str) -> list[str]:
    return text.split()


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHINESE = _words(
    """
    今天 天气 非常 很 好 北京 大学 北京大学 我们 你们 他们 是 不是 的 了 在 中国 中华人民共和国 人民 共和国 国家
    历史 文化 语言 模型 训练 数据 计算机 科学 人工智能 人工 智能 研究 研究生 生命 命运 起源 学习 机器 机器学习 深度
    自然 自然语言 处理 语言学 上海 广州 深圳 长江 长江大桥 大桥 南京 南京市 市长 江 老师 学生 学校 小学 中学 图书馆
    图书 电影 电影院 音乐 火车 火车站 飞机 飞机场 明天 昨天 早上 晚上 中午 时间 小时 分钟 一个 两个 三十 百分之
    第一 第二 喜欢 觉得 知道 认识 看见 吃饭 喝水 睡觉 工作 公司 经济 发展 社会 政府 市场 价格 问题 回答 因为 所以
    但是 如果 虽然 可以 应该 能够 需要 已经 正在 将来 曾经 世界 和平 战争 英雄 传说 故事 小说 作家 诗人 唐诗 宋词
    红楼梦 三国演义 西游记 水浒传 孙悟空 和尚 道士 神仙 妖怪 龍 龜 東京 國際 電腦 軟體
    """
)
ENGLISH = _words(
    """
    the of and to in is that for it was on are as with they be at this have from hello world words transformer
    rotary position embedding attention token tokenizer tokenization language models model modeling training
    trained running unbelievable unaffable international nationalization don't we'll they're it's I've isn't e-mail
    state-of-the-art GPU CUDA ONNX TensorRT BERT RoFormer PreLayerNorm Python3 numpy float32 int8 x86_64 C++ C#
    .NET 3.14159 1,000 50% v2.0 a.b.c snake_case camelCase __init__ self.value def return lambda import
    """
)
ACCENTED = _words(
    "café naïve Übergröße fiancée Ångström São Łódź İstanbul ıssız Ελλάδα ΣΊΣΥΦΟΣ Καλημέρα Москва Ёлка й Việt "
    "tiếng cafe\u0301 A\u030angstro\u0308m n\u0303 q\u0307\u0323 E\u0301COLE שָׁלוֹם नमस्ते สวัสดี ありがとう カタカナ "
    "が か\u3099 한국어 각 \u1100\u1161\u11a8 ﬁne ℌ ²³ ½ Ⅷ \u212b \u2126 豈 更 車 \u0958 ß ẞ ǆ ǅ"
)
EMOJI = _words("😀 😀😀 👩‍👩‍👧 🇨🇳 👍🏽 ❤️ ☃ ✈️ 🏳️‍🌈 1️⃣ 🀄 𝔘𝔫𝔦 𠀀 𠮷野家 𪚥 𫝆 𬺰 丽")
ODD = [
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA1), 0xAD)),
    *"\u1680\u2000\u2003\u200b\u200c\u200d\u200e\u2028\u2029\u202e\u202f\u205f\u2060\u3000\ufeff\ufffd\ue000\U000f0000",
    *"\ufe0f\u0301\u0300\u0345\u20e3",
    "\r\n",
    "\n\n",
    "  ",
]
PUNCTUATION = [*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *"。，、！？；：“”‘’（）《》【】—…·￥～", *"«»¿¡‐–€£°±×÷→∑"]
# First and last characters of blocks to draw from without choosing.
BLOCKS = [(0x20, 0x7E), (0xA0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x300, 0x36F), (0xE01, 0xE2E)]
BLOCKS += [(0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3), (0x3400, 0x4DB5), (0x4E00, 0x9FD5), (0x1EA0, 0x1EF9)]
BLOCKS += [(0xF900, 0xFA6D), (0x20000, 0x2A6D6), (0x2B820, 0x2CEA1), (0x2F800, 0x2FA1D), (0x1F600, 0x1F64F)]


def chinese_vocabulary() -> list[str]:
    """Tokens of a RoFormer vocabulary: words, characters and pieces, none of them complete."""
    characters = sorted(set("".join(CHINESE)))
    english = [word.lower() for word in ENGLISH]
    stems = [part for word in [*ENGLISH[::3], *english] for part in word.replace("-", " ").replace(".", " ").split()]
    pieces = [f"##{stem[cut:]}" for stem in stems for cut in (2, 3, 5) if stem[cut:]]
    pieces += [stem[:cut] for stem in stems[::2] for cut in (2, 3, 5)]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789ABCDE", *"\u2028\u3000"]
    letters += [*"éèüñßçãåöąςσжйがか각한ーあελάδαμοσκвтק"]
    marks = [mark for mark in PUNCTUATION if mark not in "^~¿∑"]
    whole = [
        "c++",
        "50%",
        "e",
        "豈",
        "車",
        "𠀀",
        "😀",
        "☃",
        "CUDA",
        "cuda",
        "##\u0301",
        "cafe",
        "café",
        "москва",
        "ελλάδα",
    ]
    characters = [character for place, character in enumerate(characters) if place % 8]
    tokens = [
        *SPECIAL,
        *CHINESE[::2],
        *characters,
        *stems[::2],
        *pieces,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    return list(dict.fromkeys([*tokens, *marks, *whole]))


def make_texts(seed: int, count: int, special: Sequence[str]) -> list[str]:
    """As many texts, always the same for one seed: languages, white space, symbols, long words, special tokens."""
    random = Random(seed)

    def number(least: int, most: int) -> int:
        return least + int(random.random() * (most + 1 - least))

    def one(items: Sequence[Item]) -> Item:
        return items[number(0, len(items) - 1)]

    def some(source: Callable[[], str], separators: Sequence[str], most: int = 9) -> str:
        return "".join(source() + one(separators) for _ in range(number(1, most)))

    def cased(word: str) -> str:
        return one([word, word, word.upper(), word.capitalize(), word.lower()])

    def near_special() -> str:
        token = one(special)
        return one([token, token, token, token.lower(), f" {token} ", token[:-1], token * 2, f"x{token}y"])

    def any_character() -> str:
        return chr(number(*one(BLOCKS)))

    words: list[Callable[[], str]] = [
        lambda: one(CHINESE),
        lambda: cased(one(ENGLISH)),
        lambda: cased(one(ACCENTED)),
        lambda: one(EMOJI),
        lambda: one(PUNCTUATION),
        lambda: one(ODD),
        any_character,
        near_special,
    ]
    kinds: list[Callable[[], str]] = [
        lambda: some(words[0], ["", "", "", "，", "。"], 14),
        lambda: some(words[1], [" ", " ", " ", ", ", ". ", "\n"], 14),
        lambda: some(lambda: one(words[:2])(), ["", " "]),
        lambda: some(lambda: one(words[1:3])(), ["", " ", " "]),
        lambda: some(lambda: one([words[0], words[1], words[5]])(), [""]),
        lambda: some(lambda: one(words[:5])(), ["", "", " "]),
        lambda: some(lambda: one([*words[:2], near_special])(), ["", "", " "]),
        lambda: some(any_character, ["", "", " "], 14),
        lambda: some(lambda: one(words)(), ["", "", " "], 12),
        lambda: one(["", " ", "\n", "\u3000", one(ODD), one(PUNCTUATION) * number(1, 5)]),
        lambda: one([*ENGLISH, *ACCENTED, *CHINESE]) * number(1, 40),
        lambda: "".join(one("abcxyz今天") for _ in range(number(95, 210))),
    ]
    return [one(kinds)() for _ in range(count)]
