"""Made-up personal data as people write it, and what looks like it and is none."""

from __future__ import annotations

import random
import string

from server.text.pii.kinds import Kind
from server.text.pii.numbers import IBAN_LENGTHS

NEGATIVES = [
    "On 2024-01-15 at 12:30:45, or 15.01.2024 12:30, 01/02/2024 10:15, 05-06-2023 11.",
    "Order 1234567890123 of 2024, invoice 000123456789, ticket #98765432, ISBN 0140449132 and 978-3-16-148410-0.",
    "Pi is 3.14159265358979, e is 2.718281828459045, c is 299 792 458 m/s.",
    "Version 1.2.3.4, v10.0.19045.3803, release 4.5.6.7 and section 1.2.3.4; 1.2.3.4.5 too.",
    "127.0.0.1:8080, 0.0.0.0, 255.255.255.0, ::1, :: and 999.1.1.1 or 1.2.3.400.",
    "std::vector<int> a::b; Foo::Bar::baz(); 12:30:45.123; 00:1a:2b:3c:4d:5e; aspect 16:9:4",
    "@decorator def f(a, *b): return a @ b.T  # x@y, user@localhost, @handle, a@b.c",
    "react@18.2.0 lodash@4.17.21 actions/checkout@v4",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301 and commit 9099064a1b2c3d4e5f60718293a4b5c6d7e8f901",
    "4111 1111 1111 1112, 1234 5678 9012 3456, 0000 0000 0000 0000, 9999999999999995",
    "DE89 3704 0044 0532 0130 01, GB00WEST12345698765432, AB12 is a plate, DE12 3",
    "sk-learn-contrib-packages, sk-estimator-container, a token of appreciation for everybody there",
    "the secret is that internationalization_and_localization matter, token: <your-token-goes-here-please>",
    "2 500 000 EUR, 1,234,567.89, 10 000 000, 100 200 300, 1000-2000-3000, 12.5 x 30.25",
    "call 911, phone 12, tel. 110; pages 100-200; rooms 101 102 103; 1984 1985 1986 1987",
    "Schedule: 08 09 10 11, scores 21-19 21-18, 6-4 7-5; coordinates 52.520008, 13.404954",
    "1 + 2 = 3; (2 + 3) * 4; 2^31-1 = 2147483647; 18446744073709551615; 0x7fffffff",
    "timestamps 1700000000 and 1700000000000, port 5432, 192.168, HTTP/1.1 200",
    "电话 and 数字 一二三四五六七八九十, ０１２",
]

_SENTENCES = (
    "Please write to {} about it.", "{}", "my details: {}, thanks!", "({})", "Customer said \"{}\" twice.", "{}\nBye",
    "Is {} right? It was 2024-05-06 12:30.", "Order 1234567890: {}; total 49.99 EUR", "See {}.",
)  # fmt: skip


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _with_check(body: str) -> str:
    doubled = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-doubled % 10)


def _email(rng: random.Random) -> str:
    name = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9)))
    local = rng.choice(["{}", "{}.smith", "{}+list", "{}_9", "J.{}", "o'{}", "{}é"]).format(name)
    return f"{local}@{rng.choice(['example.com', 'mail.example.co.uk', 'uni-köln.de', 'b.io', 'x.museum'])}"


def _card(rng: random.Random) -> str:
    begin, length, groups = rng.choice(
        [
            ("4", 16, (4, 4, 4, 4)),
            ("5" + rng.choice("12345"), 16, (4, 4, 4, 4)),
            ("37", 15, (4, 6, 5)),
            ("6011", 16, (4,) * 4),
        ]
    )
    number = _with_check(begin + _digits(rng, length - 1 - len(begin)))
    return _grouped(number, groups, rng.choice(["", " ", "-"]))


def _grouped(text: str, sizes: tuple[int, ...], separator: str) -> str:
    parts, position = [], 0
    for size in sizes:
        parts.append(text[position : position + size])
        position += size
    return separator.join(part for part in [*parts, text[position:]] if part)


def _iban(rng: random.Random) -> str:
    country = rng.choice(sorted(IBAN_LENGTHS)).decode()
    bban = _digits(rng, IBAN_LENGTHS[country.encode()] - 4)
    check = 98 - int("".join(str(int(c, 36)) for c in f"{bban}{country}00")) % 97
    return _grouped(f"{country}{check:02}{bban}", (4,) * 9, rng.choice(["", " "]))


def _ip(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return ".".join(str(rng.randint(1, 223)) for _ in range(4)).replace("127.", "128.", 1)
    groups = [f"{rng.randint(0x1000, 0xFFFF):x}" for _ in range(8)]
    return ":".join(["2001", *groups[1:]]) if rng.random() < 0.5 else f"2a02:{groups[1]}::{rng.randint(1, 9)}"


def _phone(rng: random.Random) -> str:
    form = rng.choice(
        ["+49 30 #######", "+49 (0)151 ########", "+44 20 7### ####", "+1 (2##) 5##-####", "+1-212-5##-####",
         "+33 6 ## ## ## ##", "+8613#########", "(4##) 5##-####", "212-5##-####", "415.5##.####", "06 ## ## ## ##",
         "030/#######", "0151 ########",
         "020 7### ####", "0049 30 #######", "+390612345###", "01-23 45 67 ##", "+91 98### #####"]
    )  # fmt: skip
    return "".join(rng.choice(string.digits) if letter == "#" else letter for letter in form)


def _api_key(rng: random.Random) -> str:
    prefix, length = rng.choice(
        [("sk-", 48), ("sk-proj-", 60), ("ghp_", 36), ("hf_", 34), ("AIza", 35), ("xoxb-", 40), ("glpat-", 20)]
    )
    return prefix + "".join(rng.choices(string.ascii_letters + string.digits, k=length))


_MAKERS = {
    Kind.EMAIL: _email, Kind.CARD: _card, Kind.IBAN: _iban, Kind.IP: _ip, Kind.PHONE: _phone, Kind.API_KEY: _api_key,
}  # fmt: skip


def positives(rng: random.Random) -> list[tuple[Kind, str, str]]:
    """One of each kind: the value, and a text that holds it."""
    values = [(kind, make(rng)) for kind, make in _MAKERS.items()]
    return [(kind, value, rng.choice(_SENTENCES).format(value)) for kind, value in values]
