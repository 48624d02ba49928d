#!/usr/bin/env python3
"""Random nasty captions with the ids of the published tokenizer: ftfy from PyPI, html.unescape, and CLIP's vocabulary.

    python -m venv .venv && .venv/bin/pip install ftfy==6.3.1 regex
    .venv/bin/python bench/peers/captions.py --vocabulary bpe_simple_vocab_16e6.txt.gz --out captions.jsonl
    ALIP_CAPTIONS=$PWD/captions.jsonl cargo test -p alip-runtime --no-default-features --lib captions_of_a_peer -- --nocapture

The lines have the form of tests/goldens/tokenizer/captions.jsonl. The test prints each caption that has other ids here and
fails if there are more than 20. Known differences and their reasons: bench/peers/README.md.
"""

import argparse
import gzip
import html
import json
import random
import unicodedata

import ftfy
import regex

CONTEXT = 77
FRAME = ["<start_of_text>", "<end_of_text>"]
WORD = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class Published:
    """From text to ids as tests/goldens/tokenizer states it."""

    def __init__(self, path: str) -> None:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file.read().split("\n")[1:48895]]
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in plain]
        self.letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        symbols = [self.letters[byte] for byte in plain + others]
        symbols += [symbol + "</w>" for symbol in symbols]
        symbols += ["".join(merge) for merge in merges] + FRAME
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    @staticmethod
    def clean(text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return regex.sub(r"\s+", " ", text).strip().lower()

    def word(self, word: str) -> list[int]:
        if word in FRAME:
            return [self.ids[word]]
        if word not in self.known:
            parts = [self.letters[byte] for byte in word.encode("utf-8")]
            parts[-1] += "</w>"
            while len(parts) > 1:
                best = min(zip(parts, parts[1:]), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                merged, at = [], 0
                while at < len(parts):
                    step = 2 if tuple(parts[at : at + 2]) == best else 1
                    merged.append("".join(parts[at : at + step]))
                    at += step
                parts = merged
            self.known[word] = [self.ids[part] for part in parts]
        return self.known[word]

    def encode(self, cleaned: str) -> list[int]:
        return [number for word in WORD.findall(cleaned) for number in self.word(word)]


WORDS = """a photo of the black and white cat dog runs over snow red wooden fence near old man's boat don't we're it's I'll
Beach SUNSET skiing 2041 café naïve Zürich Überraschung smörgåsbord Łódź œuvre ﬁnance 12½ 3×4 №5 ½ ℃ ²""".split()
SCRIPTS = [
    "ΟΔΟΣ Σίσυφος ΑΣ", "İstanbul ISPARTA ıslak", "Москва ЁЛКА", "北京の猫", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "ﷺ",
    "Ａｂｃ１２３！", "ｶﾞﾊﾟ", "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ", "ĳ Ĳ ŉ ǆ", "ſtraße", "𝒞𝓁𝒾𝓅 𝔸", "①②", "Å Ω K", "\u1e9b\u0323", "ᾳ ᾼ α\u0345\u0301",
    "e\u0301 n\u0303 u\u0308\u0304", "a\u0345 α\u0345 Α\u0345\u0391", "ཱི", "각 각", "👍🏽 👩‍👩‍👧 🇩🇪 ❤️",
]
MARKS = ["‘a’ “b” „c‟ ‚d‛ ‹e› «f» ʼg", "…–—‐‑", "''' \"\"", "`` ´´", "(c) ® ™", "::: ;;; !!!???", "a_b__c_", "#tag @you",
         "http://x.y/?a=1&b=2&copy=3", "IMG_2041.JPG", "<b>bold</b>", "<br/>", "1 < 2 > 0", "<", ">", "&", "&&", "% $ € £ ¥"]
ENTITIES = ["amp", "lt", "gt", "quot", "apos", "nbsp", "eacute", "Eacute", "EACUTE", "copy", "reg", "hellip", "rsquo", "ldquo",
            "mdash", "notanentity", "not", "notin", "frac12", "NotEqualTilde", "bogus", "AMP", "LT", "ouml", "OUML", "thorn",
            "szlig", "zwj", "ThickSpace", "acE", "fjlig", "b.alpha", "Aacute", "AACUTE", "iexcl", "euro", "sup2", "larr"]
NUMBERS = [0, 1, 8, 9, 10, 11, 12, 13, 27, 31, 32, 34, 38, 39, 60, 62, 65, 127, 128, 130, 133, 141, 145, 146, 150, 151, 153,
           159, 160, 173, 233, 8217, 8220, 0x200D, 0xFEFF, 0xFFFE, 0xFFFF, 0xFDD0, 0xD800, 0xDFFF, 0x1F600, 0x1FFFF, 0x10FFFF,
           0x110000, 99999999999]
CONTROLS = ["\0", "\x01", "\x07", "\x08", "\t", "\n", "\x0b", "\x0c", "\r", "\r\n", "\x1b[31m", "\x1b[0m", "\x1b", "\x1b[1;2H",
            "\x1c", "\x1f", "\x7f", "\x80", "\x85", "\x91", "\x92", "\x93", "\x96", "\x9d", "\xa0", "\xad", "\u200b", "\u200d",
            "\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\u206a", "\u3000", "\ufeff", "\ufff9", "\ufffc", "\ufffd"]
# What UTF-8 is read as by mistake: nearly always the first two.
CODECS = ["latin-1"] * 20 + ["windows-1252"] * 60 + ["windows-1250", "windows-1251", "windows-1254", "iso-8859-2"]
TOKENS = ["<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<|endoftext|>", "</w>", "'ſ", "it'ſ", "x'S", "'LL", "''s", "´s"]


def mojibake(draw: random.Random, text: str) -> str:
    """Read as what it is not, now and then twice, and cut as long captions are."""
    for _ in range(draw.choice([1] * 9 + [2])):
        codec = draw.choice(CODECS)
        data = text.encode("utf-8")
        # As ftfy's sloppy codecs: bytes without a meaning are C1 controls.
        text = "".join(bytes([byte]).decode(codec, "ignore") or chr(byte) for byte in data)
    return text if draw.random() < 0.9 else text[: len(text) - draw.randrange(3)]


def script(draw: random.Random) -> str:
    """A phrase, or random syllables and ideographs."""
    if draw.random() < 0.7:
        return draw.choice(SCRIPTS)
    first, last = draw.choice([(0xAC00, 0xD7A3), (0x4E00, 0x9FA5), (0x3041, 0x3093), (0x430, 0x450), (0x3B1, 0x3C9), (0xE1, 0xFE)])
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 5)))


def piece(draw: random.Random) -> str:
    kind = draw.randrange(16)
    if kind <= 3 or kind in (10, 12):
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6)))
        return draw.choice([words, words, words.upper(), words.title()])
    if kind == 4:
        return script(draw)
    if kind == 5:
        return draw.choice(MARKS)
    if kind == 6:
        return "&" + draw.choice(ENTITIES) + draw.choice([";", ";", ";", "", " "])
    if kind == 7:
        number = draw.choice(NUMBERS)
        return draw.choice([f"&#{number};", f"&#x{number:x};", f"&#X{number:X};", f"&#{number}", f"&#x{number:x} ", f"&amp;#{number};"])
    if kind == 8:
        return draw.choice(CONTROLS)
    if kind == 9:
        return draw.choice(TOKENS)
    if kind == 11:
        return mojibake(draw, draw.choice([script(draw), draw.choice(MARKS), draw.choice(WORDS[30:])]))
    if kind == 13:
        # Pairs of letters that begin mojibake, before anything.
        return draw.choice("ÃÄÅÂÐÑÎÏâãåæøð") + draw.choice([chr(draw.randrange(0xA0, 0x100)), " ", "\xa0", "€", "™", "‚", "a", "A", ""])
    if kind == 14:
        while True:
            letter = chr(draw.choice([draw.randrange(0x20, 0x600), draw.randrange(0x20, 0x3100), draw.randrange(0x20, 0x1FB00)]))
            if unicodedata.category(letter) not in ("Cn", "Cs", "Co"):
                return letter * draw.choice([1, 1, 2, 5])
    return draw.choice(["x" * draw.randint(1, 90), "ab" * draw.randint(1, 60), "9" * draw.randint(1, 30), "é" * draw.randint(1, 40)])


def caption(draw: random.Random) -> str:
    text = "".join(piece(draw) + draw.choice([" ", " ", "", "", ".", ", "]) for _ in range(draw.randint(1, 5)))
    return mojibake(draw, text) if draw.random() < 0.05 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", required=True, help="CLIP's bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    published, draw = Published(args.vocabulary), random.Random(args.seed)
    with open(args.out, "w", encoding="ascii") as out:
        for index in range(args.count):
            text = caption(draw)
            cleaned = published.clean(text)
            tokens = published.encode(cleaned)
            ids = [49406, *tokens, 49407][:CONTEXT]
            ids[-1] = 49407
            ids += [0] * (CONTEXT - len(ids))
            line = {"index": index, "kind": "random", "text": text, "cleaned": cleaned, "token_count": len(tokens), "ids": ids}
            print(json.dumps(line), file=out)


if __name__ == "__main__":
    main()
