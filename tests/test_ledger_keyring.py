"""The key ring: one MAC a purpose and key, a file that is private and whole, ids that only grow."""

import base64
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from ledger.keyring import KeyNotHeld, KeyRing, Purpose
from ledger.keys import KEY_ID_MAX
from ledger.refusals import LedgerError
from tests.rings import CREATED_AT, RING_ID, check_concealed, every_text_of, key_secret, known_ring, mac_by_hand, shown

LATER = CREATED_AT + 1

GOLDEN = """\
{
  "version": 1,
  "ring_id": "00112233445566778899aabbccddeeff",
  "root": "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
  "keys": [
    {
      "id": 1,
      "secret": "227ba5f2c6c9109fe5c44a0696f393379607493a377f522ee27d9a7ae3227d89",
      "created_at": "2025-11-25T17:18:50.000000Z"
    },
    {
      "id": 2,
      "secret": "08f225fe08e94a5b1da2da4079fcd1a7647d375cc95624a6c6d65a6fc84b3243",
      "created_at": "2025-11-25T17:18:50.000000Z"
    }
  ],
  "checksum": "4774e2099cd06a534e39ed1512c48516b7f94928239a51a940e25d92e67b3cf8"
}
"""


def test_a_mac_is_blake2b_under_a_subkey_of_key_and_purpose() -> None:
    """Known answer, by another road: HKDF with SHA-256 (RFC 5869), then keyed BLAKE2b (RFC 7693)."""
    ring = known_ring()
    assert "0213ce8a6a1dc026f92e7812" == ring.mac(1, Purpose.REFRESH_TAG, b"message", 12).hex()
    assert "63d823e3aa7d6f933ebadd7b0eff63af" == ring.root_mac(Purpose.CREDENTIAL, b"message", 16).hex()
    for purpose in Purpose:
        expected = mac_by_hand(key_secret(2), "key 2", purpose.value, b"m", 20)
        assert expected == ring.mac(2, purpose, b"m", 20)
        assert mac_by_hand(bytes(range(32)), "root", purpose.value, b"m", 64) == ring.root_mac(purpose, b"m", 64)


def test_a_mac_stays_the_same_however_often_it_is_made() -> None:
    """The keyed object is copied per use: no message leaks into the next."""
    ring = known_ring()
    first = ring.mac(1, Purpose.ACCESS_TAG, b"one", 16)
    assert first != ring.mac(1, Purpose.ACCESS_TAG, b"two", 16)
    assert first == ring.mac(1, Purpose.ACCESS_TAG, b"one", 16) == known_ring().mac(1, Purpose.ACCESS_TAG, b"one", 16)


def test_purposes_keys_rings_and_sizes_have_nothing_in_common() -> None:
    """Domain separation: of all MACs of one message none begins like another."""
    ring = known_ring()
    other = KeyRing("f" * 32, ring.root, ring.keys)
    made = [
        made.mac(key_id, purpose, b"message", size)[:12]
        for made in (ring, other)
        for key_id in (0, 1, 2)
        for purpose in Purpose
        for size in (12, 16, 20, 32)
    ]
    assert 2 * 3 * len(Purpose) * 4 == len(set(made))


def test_a_key_that_is_not_held_is_named() -> None:
    """What names a foreign key can neither be believed nor refuted here."""
    with pytest.raises(KeyNotHeld, match=r"^key 3 is not in the key ring$") as caught:
        known_ring().mac(3, Purpose.REFRESH_TAG, b"", 12)
    assert 3 == caught.value.key_id


# ---------------------------------------------------------------- key ids


def test_ids_only_grow() -> None:
    """A key id is never used twice: not after a gap, not after the ring file came from an older backup."""
    assert {1, 9, 10} == set(known_ring(1, 9).with_new_key(LATER).keys)
    assert {1, 2, 201} == set(known_ring().with_new_key(LATER, above=200).keys)
    assert {1, 2, 3} == set(known_ring().with_new_key(LATER, above=1).keys)


def test_a_new_key_changes_nothing_that_was_there() -> None:
    """Rotation adds: the ring before it stays a value of its own, old MACs stay the same."""
    before = known_ring()
    after = before.with_new_key(LATER, randomness=lambda count: b"\xab" * count)
    assert {1, 2} == set(before.keys)
    assert (3, b"\xab" * 32, LATER) == (after.keys[3].id, after.keys[3].secret, after.keys[3].created_at)
    assert before.mac(1, Purpose.REFRESH_TAG, b"m", 12) == after.mac(1, Purpose.REFRESH_TAG, b"m", 12)
    assert before.root_mac(Purpose.CREDENTIAL, b"m", 32) == after.root_mac(Purpose.CREDENTIAL, b"m", 32)


def test_the_ring_says_when_it_runs_out() -> None:
    """254 rotations, then one clear line."""
    ring = KeyRing.new(CREATED_AT)
    assert 254 == ring.ids_left
    for _ in range(254):
        ring = ring.with_new_key(LATER)
    assert (0, KEY_ID_MAX) == (ring.ids_left, max(ring.keys))
    with pytest.raises(LedgerError, match=r"^key ring [0-9a-f]{32}: all 255 key ids are used up, no key can be added$"):
        ring.with_new_key(LATER)


def test_new_rings_share_nothing() -> None:
    """Ids, roots and keys are drawn anew for each ring."""
    one, two = KeyRing.new(CREATED_AT), KeyRing.new(CREATED_AT)
    assert 6 == len({one.ring_id, two.ring_id, one.root, two.root, one.keys[1].secret, two.keys[1].secret})
    assert (32, 32, 32) == (len(one.ring_id), len(one.root), len(one.keys[1].secret))


# ---------------------------------------------------------------- the file


def test_the_file_of_version_1_reads_for_ever(tmp_path: Path) -> None:
    """Golden bytes: what this release wrote, every later one must read; and it writes them today."""
    assert known_ring() == KeyRing.load(ring_file(tmp_path, GOLDEN))
    assert GOLDEN == stored_ring(tmp_path)


def test_a_ring_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Created, rotated, saved and loaded: the same ring, its file private to its owner."""
    path = tmp_path / "ring"
    ring = KeyRing.create(path, now=CREATED_AT)
    assert ring == KeyRing.load(path)
    rotated = ring.with_new_key(LATER)
    rotated.save(path)
    assert rotated == KeyRing.load(path) != ring
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["ring"] == os.listdir(tmp_path)


def test_a_saved_ring_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event that names a new key comes after it: a power cut must not leave a log that no ring can serve."""
    synced, real, path = list[str](), os.fsync, tmp_path / "ledger.keys"

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    ring = KeyRing.create(path)
    monkeypatch.setattr(os, "fsync", noted)
    ring.with_new_key(LATER).save(path)
    content, folder = synced
    assert content.startswith(str(tmp_path / ".ledger.keys."))
    assert str(tmp_path) == folder, "its name, too"


def test_the_clock_is_read_where_none_is_given(tmp_path: Path) -> None:
    """A key's age is true where nobody says otherwise."""
    assert KeyRing.create(tmp_path / "ring").keys[1].created_at > CREATED_AT - 10**15


def test_a_key_says_in_the_file_how_it_signs(tmp_path: Path) -> None:
    """ES256 is not written: a ring that has nothing else is one of the first release. An RSA key stands in the file."""
    rsa = b"\x30" + bytes(range(90))
    ring = known_ring(1).with_new_key(LATER, alg="EdDSA").with_new_key(LATER, alg="RS256", rsa=rsa)
    path = tmp_path / "ring"
    ring.save(path)
    stored = json.loads(path.read_bytes())["keys"]
    said = [(key.get("alg"), key.get("rsa")) for key in stored]
    assert [(None, None), ("EdDSA", None), ("RS256", base64.b64encode(rsa).decode())] == said
    found = KeyRing.load(path)
    assert ring == found
    assert [("ES256", None), ("EdDSA", None), ("RS256", rsa)] == [(key.alg, key.rsa) for key in found.keys.values()]


def test_a_changed_way_of_signing_is_another_ring(tmp_path: Path) -> None:
    """A ring in use goes on with the very same keys (I-20: the line shows none)."""
    path = tmp_path / "ring"
    held = known_ring(1).with_new_key(LATER, alg="RS256", rsa=b"one", randomness=lambda count: b"r" * count)
    known_ring(1).with_new_key(LATER, alg="RS256", rsa=b"two", randomness=lambda count: b"r" * count).save(path)
    with pytest.raises(LedgerError, match=r"ring: holds other keys under the ids in use$"):
        held.reload(path)


@pytest.mark.parametrize(
    "members",
    [
        {"alg": "ES256"},
        {"alg": "HS256"},
        {"alg": "RS256"},
        {"rsa": "AAAA"},
        {"alg": "EdDSA", "rsa": "AAAA"},
        {"alg": "RS256", "rsa": "A"},
        {"alg": 1},
    ],
)
def test_a_way_of_signing_that_does_not_fit_is_refused(tmp_path: Path, members: dict[str, object]) -> None:
    """An RSA key and RS256 go together; what cannot be read is one line, without the key."""
    stored = json.loads(stored_ring(tmp_path))
    stored["keys"][0] |= members
    assert refused(ring_file(tmp_path, json.dumps(stored))).startswith("truncated or no key ring")


def test_creating_never_replaces(tmp_path: Path) -> None:
    """A key ring that is overwritten is a ledger that is lost."""
    path = tmp_path / "ring"
    path.write_text("whatever it is")
    with pytest.raises(LedgerError, match=r"ring: a key ring is never replaced, and there is a file already$"):
        KeyRing.create(path)
    assert "whatever it is" == path.read_text()


@pytest.mark.parametrize("work", [KeyRing.create, known_ring().save])
def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, work: Callable[[Path], object]) -> None:
    """Where the file cannot be written the line names it and says why."""
    with pytest.raises(LedgerError, match=r"/none/ring: cannot (create|save) the key ring: No such file or directory$"):
        work(tmp_path / "none" / "ring")


def test_a_kill_while_saving_leaves_the_old_ring(tmp_path: Path) -> None:
    """The new key is durable before anybody may name it; a crash before that leaves the ring of before."""
    path = tmp_path / "ring"
    ring = KeyRing.create(path)
    script = """
import os, signal, sys
from ledger.keyring import KeyRing
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
KeyRing.load(sys.argv[1]).with_new_key(0).save(sys.argv[1])
"""
    assert -signal.SIGKILL == subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode
    assert ring == KeyRing.load(path)
    assert all(0o600 == stat.S_IMODE(left.stat().st_mode) for left in tmp_path.iterdir())


def refused(path: Path) -> str:
    """The line with which a ring file is refused. It is one line, names the file and shows nothing of it."""
    with pytest.raises(LedgerError) as caught:
        KeyRing.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert 1 == len(line.splitlines())
    chain = f"{line} {caught.value.__cause__} {caught.value.__context__}"
    for secret in (bytes(range(32)), key_secret(1), key_secret(2)):
        assert not shown(secret, chain)
        assert not shown(secret[:8], chain)
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610, 0o666])
def test_a_ring_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """The line says what to type."""
    path = tmp_path / "my ring"
    KeyRing.create(path)
    path.chmod(mode)
    assert f"others may use the key ring (mode {mode:04o}): chmod 600 '{path}'" == refused(path)
    path.chmod(0o400)
    KeyRing.load(path)


def test_a_ring_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another user may change is no place for keys; root's is."""
    path = tmp_path / "ring"
    KeyRing.create(path)
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 4343)
    assert f"the key ring belongs to user {owner}, this process runs as user 4343" == refused(path)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    KeyRing.load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """No file, a folder, a FIFO that nobody writes to: each one line, none of them hangs."""
    assert "there is no key ring; `token-ledger init` creates one for a new database" == refused(tmp_path / "none")
    assert "the key ring is not a regular file" == refused(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "the key ring is not a regular file" == refused(tmp_path / "fifo")


def ring_file(tmp_path: Path, content: bytes | str) -> Path:
    path = tmp_path / "ring"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


def stored_ring(tmp_path: Path) -> str:
    known_ring().save(tmp_path / "ring")
    return (tmp_path / "ring").read_text()


def test_a_truncated_ring_is_refused(tmp_path: Path) -> None:
    """Cut off anywhere, the file is no ring; only its last line feed may be missing."""
    whole = stored_ring(tmp_path)
    for length in range(len(whole) - 1):
        assert refused(ring_file(tmp_path, whole[:length])).startswith("truncated or no key ring")
    assert known_ring() == KeyRing.load(ring_file(tmp_path, whole.removesuffix("\n")))


def test_a_ring_with_one_wrong_digit_is_refused(tmp_path: Path) -> None:
    """Without the checksum a flipped bit in a key would make every token of that key look forged."""
    whole = stored_ring(tmp_path)
    for place, letter in enumerate(whole):
        if letter in "0123456789abcdef":
            flipped = whole[:place] + ("0" if letter != "0" else "1") + whole[place + 1 :]
            assert "" != refused(ring_file(tmp_path, flipped))


@pytest.mark.parametrize(
    ("member", "value", "line"),
    [
        ("version", 2, "key ring of version 2, this program reads version 1"),
        ("version", "1", "truncated or no key ring: Expected `int`, got `str` - at `$.version`"),
        ("root", "00", "truncated or no key ring: Expected `str` matching regex '^[0-9a-f]{64}\\\\Z' - at `$.root`"),
        ("root", None, "truncated or no key ring: Expected `str`, got `null` - at `$.root`"),
        ("keys", [], "truncated or no key ring: Expected `array` of length >= 1 - at `$.keys`"),
        ("extra", 1, "truncated or no key ring: Object contains unknown field `extra`"),
        ("checksum", "0" * 64, "the key ring is damaged, its checksum does not match: restore it from a backup"),
        ("checksum", "\u00e9", "the key ring is damaged, its checksum does not match: restore it from a backup"),
        ("ring_id", "0" * 32, "the key ring is damaged, its checksum does not match: restore it from a backup"),
    ],
)
def test_a_wrong_member_is_named(tmp_path: Path, member: str, value: object, line: str) -> None:
    """Another version, another type, a member too many: the line names the member, never what it holds."""
    stored = json.loads(stored_ring(tmp_path))
    assert line == refused(ring_file(tmp_path, json.dumps({**stored, member: value})))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("id", 0),
        ("id", 256),
        ("created_at", "2025-13-45T00:00:00.000000Z"),
        ("created_at", "now"),
        ("secret", "0" * 64 + "\n"),
    ],
)
def test_a_wrong_member_of_a_key_is_refused(tmp_path: Path, member: str, value: object) -> None:
    """A key id is 1–255, and a time is one."""
    stored = json.loads(stored_ring(tmp_path))
    stored["keys"][0][member] = value
    assert refused(ring_file(tmp_path, json.dumps(stored))).startswith("truncated or no key ring")


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Two keys of one id would make tokens that one of two readers refuses."""
    stored = json.loads(stored_ring(tmp_path))
    stored["keys"][1]["id"] = 1
    assert "the key ring names a key id twice" == refused(ring_file(tmp_path, json.dumps(stored)))


@pytest.mark.parametrize("content", [b"", b"\x00" * 99, b"\xff\xfe", b"[]", b"null", b'"x"', b"{}", b"{" * 5000])
def test_what_is_no_ring_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever stands there, the answer is one line."""
    assert refused(ring_file(tmp_path, content)).startswith("truncated or no key ring")


def test_an_endless_file_is_refused(tmp_path: Path) -> None:
    """A wrong path does not fill the memory."""
    assert "too large for a key ring" == refused(ring_file(tmp_path, b" " * (2 << 20)))


# ---------------------------------------------------------------- reading again


def test_a_reloaded_ring_may_only_have_more_keys(tmp_path: Path) -> None:
    """A ring in use is replaced by its continuation only: the same ring, every key held before, unchanged."""
    path = tmp_path / "ring"
    held = known_ring()
    known_ring(1, 2, 3).save(path)
    assert {1, 2, 3} == set(held.reload(path).keys)
    known_ring(1, 3).save(path)
    with pytest.raises(LedgerError, match=r"ring: lacks key 2, which is in use$"):
        held.reload(path)
    KeyRing("f" * 32, held.root, held.keys).save(path)
    with pytest.raises(LedgerError, match=r"ring: this is another key ring \(f{32}\) than the one in use$"):
        held.reload(path)
    for root, keys in ((bytes(32), held.keys), (held.root, {**held.keys, 2: KeyRing.new(0).keys[1]})):
        changed = {key_id: type(key)(key_id, key.secret, key.created_at) for key_id, key in keys.items()}
        KeyRing(held.ring_id, root, changed).save(path)
        with pytest.raises(LedgerError, match=r"ring: holds other keys under the ids in use$"):
            held.reload(path)


# ---------------------------------------------------------------- secrets stay inside


def test_no_text_of_a_ring_shows_a_secret() -> None:
    """I-20: neither repr, str, format, log line nor a traceback with locals."""
    ring = known_ring()
    ring.mac(1, Purpose.REFRESH_TAG, b"m", 12)
    assert f"<KeyRing {RING_ID} with keys [1, 2]>" == repr(ring) == str(ring) == f"{ring}"
    assert "<RingKey 1>" == repr(ring.keys[1]) == str(ring.keys[1]) == f"{ring.keys[1]}"
    check_concealed(ring, ring.root, ring.keys[1].secret, ring.keys[2].secret)
    check_concealed(ring.keys[1], ring.keys[1].secret)


def test_a_value_that_shows_its_secret_is_caught() -> None:
    """Broken twins of the test above: a key as the usual kinds of plain values."""
    secret = known_ring().root
    for twin in (SecretStruct(secret), SecretTuple(secret), {"root": secret}, [secret.hex()]):
        assert shown(secret, every_text_of(twin))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_concealed(Quiet(secret), secret)


class SecretStruct(msgspec.Struct):
    secret: bytes


class SecretTuple(NamedTuple):
    secret: bytes


class Quiet(SecretStruct):
    def __repr__(self) -> str:
        return "<Quiet>"
