"""Clients files as people write them: what they come to, and the one line for everything that can be wrong."""

import os
from pathlib import Path

import msgspec
import pytest

from api import clients_file
from api.clients_file import load, parsed
from ledger.clients import ClientSpec, OperatorSpec, Settings
from ledger.policy import PRESETS, STANDARD
from ledger.refusals import LedgerError

SECRET = "Secr3t-of-the-tests!"
HASH = "h1$" + "0123456789abcdef" * 4
WHOLE = f'''
serial = 12

[[client]]
id = "www"
secret = "{SECRET}"
auth = "client_secret"
scope = "read openid profile write"
policy = "mobile"

[[client]]
id = "w w"
secret_hash = ["{HASH}"]
auth = "client_secret_basic"
grant_types = ["refresh_token", "authorization_code"]
resource = ["https://api.example", "https://b.example"]
may_introspect = ["https://api.example"]
origins = ["https://app.example"]
redirect_uris = ["https://app.example/cb"]
policy = {{ preset = "strict", refresh_token_ttl_seconds = "off", grant_ttl_seconds = "unlimited" }}

[[client]]
id = "spa"
auth = "none"
policy.rotation = "reuse"
allow_unbound_reuse = true
dpop_bound_access_tokens = false

[[client]]
id = "keyed"
auth = "private_key_jwt"
dpop_nonce_required = true

[[client.jwks.keys]]
y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
kty = "EC"
crv = "P-256"
x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4"

[[operator]]
name = "login-app"
token = ["one", "two"]
roles = ["issuer"]
clients = ["www"]

[[operator]]
name = "soc"
token_hash = "{HASH}"
roles = ["security", "auditor"]
'''
KEY = (
    '{"crv":"P-256","kty":"EC","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",'
    '"y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}'
)


def test_a_whole_file_comes_to_specs() -> None:
    """Presets expanded, words for "unlimited" and "off", lists in their order, what is switched off left out."""
    said = parsed(WHOLE)
    assert 12 == said.serial
    assert [
        ClientSpec(
            client_id="www",
            secrets=(SECRET,),
            preset="mobile",
            settings=Settings(
                auth="client_secret", scope=("read", "openid", "profile", "write"), policy=PRESETS["mobile"]
            ),
        ),
        ClientSpec(
            client_id="w w",
            preset="strict",
            settings=Settings(
                auth="client_secret_basic",
                secret_hashes=(HASH,),
                grant_types=("refresh_token", "authorization_code"),
                resource=("https://api.example", "https://b.example"),
                may_introspect=("https://api.example",),
                origins=("https://app.example",),
                redirect_uris=("https://app.example/cb",),
                policy=msgspec.structs.replace(PRESETS["strict"], refresh_token_ttl_seconds=0, grant_ttl_seconds=None),
            ),
        ),
        ClientSpec(
            client_id="spa",
            settings=Settings(
                auth="none", allow_unbound_reuse=True, policy=msgspec.structs.replace(STANDARD, rotation="reuse")
            ),
        ),
        ClientSpec(
            client_id="keyed",
            settings=Settings(
                auth="private_key_jwt", assertion_audience="issuer", jwks=(KEY,), dpop_nonce_required=True
            ),
        ),
    ] == said.clients
    assert [
        OperatorSpec(name="login-app", tokens=("one", "two"), roles=("issuer",), clients=("www",)),
        OperatorSpec(name="soc", token_hashes=(HASH,), roles=("security", "auditor")),
    ] == said.operators


def test_an_empty_file_names_nobody() -> None:
    """It disables everyone, which is lawful; `--dry-run` shows it."""
    assert (None, [], []) == ((said := parsed("")).serial, said.clients, said.operators)


def test_the_file_of_the_transcripts_is_read(tmp_path: Path) -> None:
    """Also as an editor on another system writes it: with a mark at its beginning, and CR LF."""
    text = (Path(__file__).parent / "transcripts" / "clients.toml").read_text("utf-8")
    (tmp_path / "clients.toml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert parsed(text) == load(tmp_path / "clients.toml")


CLIENT = f'[[client]]\nid = "www"\nsecret = "{SECRET}"\n'
OPERATOR = f'[[operator]]\nname = "soc"\ntoken = "{SECRET}"\nroles = ["security"]\n'
LIFETIME = "may be a whole number from 1 to 3153600000"
TEXT_OR_TEXTS = "may be text, or a list of texts"
JWK_MEMBERS = "may hold texts, whole numbers, true, false and lists of texts"

BAD_FILES: list[tuple[str, str]] = [
    # the file as a whole
    ("[[client]\n", "is no valid TOML (at line 1, column 9)"),
    (f'[[client]]\nid = "www"\nsecret = "{SECRET}\n', "is no valid TOML (at line 3, column 31)"),
    (f'{CLIENT}secret = "{SECRET}"\n', "is no valid TOML (at line 4, column 32)"),
    (f"x = {'9' * 5000}", "is no valid TOML"),
    (f"x = {'[' * 5000}", "is nested too deeply"),
    (f"clients = []\n{CLIENT}", "the file: field clients: is unknown; did you mean client?"),
    ('"a\\nb" = 1', "the file: field a\\nb: is unknown"),
    (CLIENT.replace("[[client]]", "[client]"), "client: is written as tables that begin with [[client]]"),
    ("client = [1]", "client: is written as tables that begin with [[client]]"),
    ("operator = 1", "operator: is written as tables that begin with [[operator]]"),
    ("serial = 0", "serial: may be a whole number from 1 to 9007199254740991"),
    ("serial = true", "serial: may be a whole number from 1 to 9007199254740991"),
    ('serial = "1"', "serial: may be a whole number from 1 to 9007199254740991"),
    ("serial = 9007199254740992", "serial: may be a whole number from 1 to 9007199254740991"),
    # who
    (f'{CLIENT}\n[[client]]\nsecret = "{SECRET}"', "client number 2: field id: missing"),
    ("[[client]]\nid = 7", "client number 1: field id: may be text"),
    (f"{OPERATOR}[[operator]]\n", "operator number 2: field name: missing"),
    (f"{CLIENT}{CLIENT}", 'client "www": field id: stands twice in the file'),
    (f"{OPERATOR}{OPERATOR}", 'operator "soc": field name: stands twice in the file'),
    (CLIENT.replace('"www"', '"w:w"'), 'client "w:w": field id: holds a colon'),
    (CLIENT.replace('"www"', '"www\\n"'), 'client "www\\n": field id: holds a line feed'),
    (CLIENT.replace('"www"', '"\\u001b[31mwww"'),
     'client "\\u001b[31mwww": field id: may hold visible ASCII characters and spaces only'),
    # unknown fields
    (f"{CLIENT}scopes = ''", 'client "www": field scopes: is unknown; did you mean scope?'),
    (f"{CLIENT}allow_unbound_re_use = true",
     'client "www": field allow_unbound_re_use: is unknown; did you mean allow_unbound_reuse?'),
    (f"{CLIENT}zzz = 1", 'client "www": field zzz: is unknown'),
    (f"{CLIENT}secret_hashes = []", 'client "www": field secret_hashes: is unknown; did you mean secret_hash?'),
    (f"{OPERATOR}role = 'admin'", 'operator "soc": field role: is unknown; did you mean roles?'),
    # the code flow
    *((f"{CLIENT}grant_types = ['authorization_code']\n{redirects}",
       'client "www": field redirect_uris: missing: the grant type authorization_code needs at least one')
      for redirects in ("", "redirect_uris = []")),
    # secrets
    (CLIENT.replace("!", "\\n"), 'client "www": field secret: holds a line feed'),
    (CLIENT.replace(f'"{SECRET}"', f"['fine', '''{SECRET}\n''']"), 'client "www": field secret: holds a line feed'),
    (CLIENT.replace("!", "ä"), 'client "www": field secret: may hold visible ASCII characters and spaces only'),
    (CLIENT.replace(f'"{SECRET}"', "1234"), f'client "www": field secret: {TEXT_OR_TEXTS}'),
    (CLIENT.replace(f'"{SECRET}"', "[]"), f'client "www": field secret: {TEXT_OR_TEXTS}'),
    (CLIENT.replace(f'"{SECRET}"', f'["{SECRET}", 1]'), f'client "www": field secret: {TEXT_OR_TEXTS}'),
    (f"{CLIENT}secret_hash = '{HASH}'", 'client "www": field secret_hash: stands beside secret: one of the two'),
    (f"{CLIENT}auth = 'none'", 'client "www": field secret: a public client (auth = "none") has none'),
    ('[[client]]\nid = "www"',
     'client "www": field secret: missing: auth = "client_secret" needs one; a public client says auth = "none"'),
    (OPERATOR.replace("!", " "), 'operator "soc": field token: holds a space'),
    # kinds of values
    (f"{CLIENT}auth = true",  'client "www": field auth: may be text'),
    (f"{CLIENT}scope = ['read']", 'client "www": field scope: may be text'),
    (f"{CLIENT}scope = 'read  write'",
     'client "www": field scope: may be words of printable ASCII with one space between'),
    (f"{CLIENT}resource = 'https://api.example'", 'client "www": field resource: may be a list of texts'),
    (f"{CLIENT}origins = [1]", 'client "www": field origins: may be a list of texts'),
    (f"{CLIENT}dpop_bound_access_tokens = 1",
     'client "www": field dpop_bound_access_tokens: may be true or false'),
    (f"{CLIENT}allow_unbound_reuse = 'yes'", 'client "www": field allow_unbound_reuse: may be true or false'),
    (f"{OPERATOR}clients = 'www'", 'operator "soc": field clients: may be a list of texts'),
    (OPERATOR.replace('["security"]', '"security"'), 'operator "soc": field roles: may be a list of texts'),
    (OPERATOR.replace("security", "root"),
     'operator "soc": field roles: may hold issuer, auditor, security, admin, and at least one of them'),
    # keys
    (f"{CLIENT}jwks = []", 'client "www": field jwks: may be { keys = [ … ] }'),
    (f"{CLIENT}jwks = {{ keys = [] }}", 'client "www": field jwks: may be { keys = [ … ] }'),
    (f"{CLIENT}jwks = {{ keys = [ {{}} ], more = 1 }}", 'client "www": field jwks: may be { keys = [ … ] }'),
    (f"{CLIENT}jwks = {{ keys = [ 'k' ] }}", 'client "www": field jwks.keys[0]: may be a table'),
    (f"{CLIENT}jwks = {{ keys = [ {{}}, {{ n = 1.5 }} ] }}", f'client "www": field jwks.keys[1]: {JWK_MEMBERS}'),
    (f"{CLIENT}jwks = {{ keys = [ {{ exp = 1979-05-27 }} ] }}", f'client "www": field jwks.keys[0]: {JWK_MEMBERS}'),
    (f"{CLIENT}jwks = {{ keys = [ {{ exp = 9007199254740992 }} ] }}",
     f'client "www": field jwks.keys[0]: {JWK_MEMBERS}'),
    (f"{CLIENT}jwks = {{ keys = [ {{ kty = 'EC', d = '{SECRET}' }} ] }}",
     'client "www": field jwks.keys[0]: holds a private or secret key: give the public one'),
    # policy
    (f"{CLIENT}policy = 'lax'", 'client "www": field policy: may be one of strict, standard, mobile, stable, fapi2'),
    (f"{CLIENT}policy = 7", 'client "www": field policy: may be the name of a preset, or a table'),
    (f"{CLIENT}policy.preset = 'lax'",
     'client "www": field policy.preset: may be one of strict, standard, mobile, stable, fapi2'),
    (f"{CLIENT}policy.preset = ['strict']",
     'client "www": field policy.preset: may be one of strict, standard, mobile, stable, fapi2'),
    (f"{CLIENT}policy.retry_window = 60",
     'client "www": field policy.retry_window: is unknown; did you mean retry_window_seconds?'),
    (f"{CLIENT}policy.retry_budget = true",
     'client "www": field policy.retry_budget: may be a whole number from 0 to 1000000'),
    (f"{CLIENT}policy.retry_budget = '3'",
     'client "www": field policy.retry_budget: may be a whole number from 0 to 1000000'),
    (f"{CLIENT}policy.concurrent_seconds = 1.5",
     'client "www": field policy.concurrent_seconds: may be a whole number from 0 to 3153600000'),
    (f"{CLIENT}policy.concurrent_seconds = 'off'",
     'client "www": field policy.concurrent_seconds: may be a whole number from 0 to 3153600000'),
    (f"{CLIENT}policy.access_token_ttl_seconds = 'unlimited'",
     f'client "www": field policy.access_token_ttl_seconds: {LIFETIME}'),
    (f"{CLIENT}policy.refresh_token_ttl_seconds = 0",
     f'client "www": field policy.refresh_token_ttl_seconds: {LIFETIME} or "unlimited" or "off"'),
    (f"{CLIENT}policy.grant_ttl_seconds = 'off'",
     f'client "www": field policy.grant_ttl_seconds: {LIFETIME} or "unlimited"'),
    (f"{CLIENT}policy.grant_ttl_seconds = 3153600001",
     f'client "www": field policy.grant_ttl_seconds: {LIFETIME} or "unlimited"'),
    (f"{CLIENT}policy.rotation = true", 'client "www": field policy.rotation: may be text'),
    (f"{CLIENT}policy.rotation = 'always'", 'client "www": field policy.rotation: may be one of rotate, reuse'),
    ('[[client]]\nid = "spa"\nauth = "none"\npolicy = "stable"',
     'client "spa": field policy.rotation: '
     'not "reuse" for a public client that is not sender-bound (allow_unbound_reuse = true)'),
    (f"{CLIENT}policy = 'fapi2'",
     'client "www": field policy: the preset fapi2 needs a client that authenticates by private_key_jwt or TLS'),
    (f"{CLIENT}policy.access_token_format = 'jwe'",
     'client "www": field policy.access_token_format: may be one of opaque, jwt'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), BAD_FILES, ids=map(str, range(len(BAD_FILES))))
def test_a_bad_file_is_one_line_that_names_file_owner_and_field(tmp_path: Path, text: str, line: str) -> None:
    """And never a value: whatever stands in a wrong place may be a secret (I-20)."""
    file = tmp_path / "clients.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(LedgerError) as refused:
        load(file)
    said = str(refused.value)
    assert f"{file}: {line}" == said
    assert 1 == len(said.splitlines())
    assert said.isprintable()
    assert_silent(refused.value)


def assert_silent(error: BaseException) -> None:
    """No secret in the error, nor in one that a traceback would show with it."""
    for secret in (SECRET, SECRET[:-1]):
        assert secret not in str(error)
        assert secret not in repr(error)
    shown = None if error.__suppress_context__ else error.__context__
    for other in (error.__cause__, shown):
        if other is not None:
            assert_silent(other)


def test_a_loader_that_repeats_what_the_parser_says_is_caught() -> None:
    """The broken twin: an error with the secret in it, or one that merely leads to such an error, is noticed."""
    with pytest.raises(AssertionError):
        assert_silent(LedgerError(f"is no valid TOML: {SECRET}"))
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise LedgerError("is no valid TOML") from error
    except LedgerError as chained:
        with pytest.raises(AssertionError):
            assert_silent(chained)


def test_every_field_of_a_policy_and_of_a_client_can_be_written() -> None:
    """A setting that no reader knows could never be set."""
    written = {name for name in Settings.__struct_fields__ if name not in ("policy", "secret_hashes")}
    assert written == set(clients_file._SETTINGS)


def test_a_file_that_is_not_there_not_readable_or_no_text_is_one_line(tmp_path: Path) -> None:
    """What the operating system says, with the file's name."""
    for file, content, line in (
        ("absent.toml", None, "cannot be read: No such file or directory"),
        ("latin.toml", "id = 'ä'".encode("latin-1"), "is not UTF-8 text"),
        ("odd\nname.toml", b"x = 1", "the file: field x: is unknown"),
    ):
        if content is not None:
            (tmp_path / file).write_bytes(content)
        with pytest.raises(LedgerError) as refused:
            load(tmp_path / file)
        assert f"{tmp_path}/{file}: {line}".replace("\n", "\\n") == str(refused.value)
    with pytest.raises(LedgerError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    """A common mistake with files that hold secrets."""
    (tmp_path / "clients.toml").touch(mode=0o000)
    with pytest.raises(LedgerError, match="cannot be read: Permission denied"):
        load(tmp_path / "clients.toml")
