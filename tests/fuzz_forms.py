"""Forms with wounds: how they are made from a seed, sent in batches, and what every answer to one must keep.

A form is drawn with names in the place of tokens, so that the same form can be put to two servers with tokens of their
own, and their answers be compared. Nothing of a form depends on what was answered before.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from urllib.parse import unquote_plus

from tests.described import check_described
from tests.servers import Server, basic
from tests.wire import FORM, INTROSPECT_PATH, REVOKE_PATH, TOKEN_PATH, Answer, Json, request_bytes

BATCH = 9
"""Forms that come from one address: the tenth failure of authentication would make it wait (TE-8)."""

REFUSED = (
    b'{"error":"invalid_grant","error_description":"the token is unknown, expired, revoked, or not for this client"}'
)
INACTIVE = b'{"active":false}'

OWNERS: Mapping[str, str] = {
    "live": "keep", "revoked": "keep", "expired": "keep", "access": "keep",
    "retired": "susp", "suspended": "susp",
    "foreign": "oth",
}  # fmt: skip
"""Which client each token belongs to."""

TOKENS = (*OWNERS, "forged", "nothing")
TROUBLE = (
    *(b"%", b"%0", b"%zz", b"%00", b"%0a", b"%0D%0A", b"%20", b"%2B", b"%26", b"%3d", b"%25", b"%C3%A9", b"%E2%82"),
    *(b"%FF", b"%ED%A0%80", b"%EF%BB%BF", b"%F0%9F%8D%AA", b"%u0041", b"%C0%80", b"%E2%80%A8"),
    *(b"\x00", b"\n", b"\r\n", b"\t", b"\x7f", b"\xff", b"\xc3\xa9", b"\xe2\x82", b"\xef\xbb\xbf", b"\xed\xa0\x80"),
    *(b"+", b"&", b"&&", b"=", b"==", b";", b",", b"#", b"?", b"/", b"\\", b'"', b"'", b"<", b"{}", b"[]", b"[0]"),
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"$ne", b"' OR 1=1--", b"../", b"{{7*7}}", b"${x}", b"rt1_"),
)
NAMES = (
    *("grant_type", "refresh_token", "scope", "resource", "client_id", "client_secret", "token", "token_type_hint"),
    *("client_assertion", "client_assertion_type", "code", "code_verifier", "redirect_uri", "audience", "hello", ""),
)
VALUES = (
    *("refresh_token", "authorization_code", "client_credentials", "password", "REFRESH_TOKEN", "urn:x:y", ""),
    *("read", "read openid", "openid  read", " read", "admin", "offline_access", "READ", "é", '"', "https://a.example"),
    *("keep", "oth", "nobody", "spa", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "e30.e30.", "x" * 300),
)
MEDIA_TYPES = (
    *(f"{FORM}; charset=UTF-8", f"{FORM};charset=iso-8859-1", FORM.upper(), "application/json", "text/plain"),
    *("multipart/form-data; boundary=x", "", f"{FORM}, {FORM}", "application/x-www-form-urlencodedx"),
)


@dataclass(frozen=True)
class Wounded:
    """One form: where it goes, who sends it and how it says so, and its body with names in the place of tokens."""

    path: str
    sender: str
    media_type: str
    authorization: str | None
    parts: tuple[bytes | str, ...]

    def body(self, tokens: Mapping[str, str]) -> bytes:
        return b"".join(tokens[part].encode() if isinstance(part, str) else part for part in self.parts)

    def request(self, tokens: Mapping[str, str]) -> bytes:
        headers = [("Content-Type", self.media_type)] if self.media_type else []
        if self.authorization is not None:
            headers.append(("Authorization", self.authorization))
        return request_bytes("POST", self.path, headers=headers, body=self.body(tokens))

    @property
    def of_its_sender(self) -> bool:
        """Whether a whole token of its sender stands in it, who may then be told why it is refused."""
        return any(isinstance(part, str) and OWNERS.get(part) == self.sender for part in self.parts)


def forms(seed: int, secrets: Mapping[str, str | None]) -> Iterator[Wounded]:
    """Draw forms for ever."""
    random = Random(seed)
    while True:
        yield _form(random, secrets)


def _form(random: Random, secrets: Mapping[str, str | None]) -> Wounded:
    path = random.choice((TOKEN_PATH, TOKEN_PATH, "/token", REVOKE_PATH, INTROSPECT_PATH))
    # What is alive is not given back: it must last for the whole trial.
    token = random.choice([name for name in TOKENS if path != REVOKE_PATH or name not in ("live", "access")])
    client = random.choice(("keep", "keep", "keep", "susp", "oth", "spa", "nobody"))
    secret = secrets.get(client) or "wr0ng"
    pairs: list[tuple[bytes, list[bytes | str]]] = []
    if path in (TOKEN_PATH, "/token"):
        pairs += [(b"grant_type", [b"refresh_token"]), (b"refresh_token", [token])]
        if random.random() < 0.3:
            pairs.append((b"scope", [random.choice(VALUES).encode()]))
    else:
        pairs.append((b"token", [token]))
    authorization = None
    way = random.random()
    if way < 0.4:
        authorization = basic(client, secret)
    elif way < 0.9:
        pairs.append((b"client_id", [client.encode()]))
        if client != "spa":
            pairs.append((b"client_secret", [secret.encode()]))
    random.shuffle(pairs)
    parts = _joined(pairs)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        parts = _wounded(random, parts)
    media_type = FORM if random.random() < 0.95 else random.choice(MEDIA_TYPES)
    return Wounded(path, client, media_type, authorization, tuple(parts))


def _joined(pairs: list[tuple[bytes, list[bytes | str]]]) -> list[bytes | str]:
    parts: list[bytes | str] = []
    for name, value in pairs:
        parts += [b"&" if parts else b"", name, b"=", *value]
    return parts


def _wounded(random: Random, parts: list[bytes | str]) -> list[bytes | str]:
    """One wound more. A token is touched as a whole, or beside it: another one is put there, or it is cut off."""
    place = random.randrange(len(parts))
    part = parts[place]
    kind = random.random()
    if kind < 0.15:  # a pair more, perhaps a second one of its name
        name, value = random.choice(NAMES).encode(), random.choice(VALUES).encode()
        return [*parts, b"&", name, b"=", value]
    if kind < 0.25:  # a pair again
        return [*parts, b"&", *parts[place : place + 4]]
    if kind < 0.3:  # far too long
        return [*parts, b"&", b"filler=", random.choice((b"x", b"%41", b"\xff")) * random.choice((100, 4000, 9000))]
    if kind < 0.35:  # far too many
        return [*parts, *(b"&p%d=" % number for number in range(random.choice((10, 70, 700))))]
    if isinstance(part, str):
        other: list[bytes | str] = [random.choice(TROUBLE)] if kind < 0.7 else [random.choice(("foreign", "forged"))]
        return [*parts[:place], *([part, *other] if kind < 0.5 else other), *parts[place + 1 :]]
    raw = bytearray(part)
    spot = random.randrange(len(raw) + 1)
    if kind < 0.7:
        raw[spot:spot] = random.choice(TROUBLE)
    elif kind < 0.85:
        del raw[spot : spot + random.randint(1, 3)]
    else:
        raw[spot : spot + 1] = bytes([random.randrange(256)])
    return [*parts[:place], bytes(raw), *parts[place + 1 :]]


# -- to a server and back ---------------------------------------------------------------------------------------------


class Bench:
    """One server that is tried: its tokens by name, and which answers have been judged already, for most come again."""

    def __init__(self, server: Server, tokens: Mapping[str, str]) -> None:
        self.server = server
        self.tokens = tokens
        self._judged: set[Json] = set()

    def answers(self, batch: list[Wounded]) -> list[Answer]:
        """Send a batch from an address of its own, one request behind the other, and return the answers in order,
        each judged. Where an answer ends the connection, the rest goes over another one."""
        source = self.server.new_address()
        raws = [form.request(self.tokens) for form in batch]
        found: list[Answer] = []
        while len(found) < len(raws):
            with self.server.connect(source=source) as connection:
                connection.send(b"".join(raws[len(found) :]))
                for form, raw in zip(batch[len(found) :], raws[len(found) :], strict=True):
                    found.append(connection.answer())
                    self._judge(form, raw, found[-1])
                    if ("connection", "close") in found[-1].headers:
                        break
        return found

    def _judge(self, form: Wounded, raw: bytes, answer: Answer) -> None:
        headers = tuple(pair for pair in answer.headers if pair[0] != "date")
        seen = (form.path, form.of_its_sender, answer.status, headers, answer.body)
        if seen not in self._judged:
            self.server.checked(raw, answer)
            judge(form, answer)
            self._judged.add(seen)


def judge(form: Wounded, answer: Answer) -> None:
    """Assert what an answer to any form keeps: no 5xx, as described, and a refusal tells a stranger nothing (I-19)."""
    assert answer.status < 500, answer
    if not answer.body:  # a revocation's 200
        return
    told: Json = answer.json()
    check_described("POST", form.path, answer.status, told)
    if answer.status == 200 and form.path == INTROSPECT_PATH and told["active"] is False:
        assert INACTIVE == answer.body
    if answer.status == 400 and told["error"] == "invalid_grant" and "reason" not in told:
        assert REFUSED == answer.body
    if "reason" in told:
        assert form.of_its_sender, f"a reason is told to whoever is not the owner: {told}"


def alike(one: Answer, other: Answer) -> bool:
    """Whether two servers say the same, but for what names tokens, events, places in the log and time."""
    same = (one.status, one.body) == (other.status, other.body) and len(one.headers) == len(other.headers)
    return (same and one.headers[1:] == other.headers[1:]) or _told(one) == _told(other)


def _told(answer: Answer) -> Json:
    told = json.loads(answer.body) if answer.body else None
    if isinstance(told, dict):
        for name in ("event_id", "access_token", "refresh_token", "grant_id", "jti", "sub", "iat", "exp", "iss", "aud"):
            told.pop(name, None)
        for name in ("expires_in", "refresh_token_timeout", "authorization_expires_in"):
            if name in told:
                told[name] = "counted"
    headers = [pair for pair in answer.headers if pair[0].lower() not in ("date", "ledger-position", "content-length")]
    return answer.status, sorted(headers), told


def readable(form: Wounded) -> str:
    """A form as a failure shows it, with names in the place of tokens."""
    body = b"".join(f"<{part}>".encode() if isinstance(part, str) else part for part in form.parts)
    return f"POST {form.path} by {form.sender} {form.media_type!r} {unquote_plus(body[:600].decode('latin-1'))!r}"
