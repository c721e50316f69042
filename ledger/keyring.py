"""The key ring: the only file that reads keys. Every keyed hash of the ledger is made here.

The ring is one readable JSON file outside the database, mode 0600. It holds a ring id, which the store remembers; a
root, which never rotates (hashes of client secrets and operator tokens, look-ups of subjects, idempotency keys); and
numbered keys, which make tokens and can be rotated and distrusted. The file says nothing of which key is active: that
is history and stands in events. Whoever loses the ring loses every token and every stored secret hash. The ring alone
mints no token that the ledger takes, and neither does the database: back them up together, keep them apart from
strangers both.

No key is ever used itself: each purpose has a subkey of its own (HKDF with SHA-256, RFC 5869), and under it keyed
BLAKE2b (RFC 7693) makes the MAC. So what one purpose shows the world helps nobody with another. The key that signs
JWTs is derived in the same way (ES256, EdDSA), so every ring has had one for each of its keys; an RSA key cannot be
derived and stands in the file.
"""

import base64
import binascii
import hashlib
import os
import secrets
import shlex
import stat
import time
from collections.abc import Mapping, Set
from enum import StrEnum, unique
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn, TypeAlias

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ledger import times, whole_files
from ledger.keys import KEY_ID_MAX
from ledger.randomness import Randomness
from ledger.refusals import LedgerError

if TYPE_CHECKING:
    from ledger.signing import SigningKey

Alg: TypeAlias = Literal["ES256", "EdDSA", "RS256"]
"""How a key of the ring signs JWTs (RFC 7518 3.1, RFC 8037 3.1)."""

_FILE_VERSION = 1
_FILE_BYTES_MAX = 1 << 20


@unique
class Purpose(StrEnum):
    """What a subkey is for. The value goes into its derivation: changing one changes every MAC made under it."""

    __hash__ = str.__hash__  # an enum's own hash is a Python call, and a refresh looks seven keys up

    REFRESH_TAG = "refresh token tag"
    REFRESH_SECRET = "refresh token secret"
    ACCESS_TAG = "access token tag"
    ACCESS_SECRET = "access token secret"
    CODE_TAG = "authorization code tag"
    CODE_SECRET = "authorization code secret"
    ES256_KEY = "access token signature, ES256"
    EDDSA_KEY = "access token signature, EdDSA"
    FINGERPRINT = "fingerprint"
    # of the root
    CREDENTIAL = "client secret or operator token"
    SUBJECT_LOOKUP = "subject lookup"
    IDEMPOTENCY_KEY = "idempotency key"
    IDEMPOTENCY_BODY = "idempotency body"
    SINGLE_USE = "single-use identifier"
    DPOP_NONCE = "DPoP nonce"


class KeyNotHeld(Exception):
    """Something names a key that this ring does not hold. Nothing about it can be believed or refuted here."""

    def __init__(self, key_id: int) -> None:
        super().__init__(f"key {key_id} is not in the key ring")
        self.key_id = key_id


class Concealed:
    """A value that holds a secret: no text form shows it, and it is not for pickling. Subclasses are plain slotted
    classes, since encoders that know structs and dataclasses by themselves would write out every field."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds a secret and cannot be pickled or copied")


class RingKey(Concealed):
    """One numbered key: `secret` is 32 random bytes, `created_at` microseconds since 1970. Never changed.

    `alg` is how its JWTs are signed; with RS256 there is the RSA key for that in `rsa` (PKCS #8, DER).
    """

    __slots__ = ("alg", "created_at", "id", "rsa", "secret")

    def __init__(self, id: int, secret: bytes, created_at: int, alg: Alg = "ES256", rsa: bytes | None = None) -> None:
        assert 1 <= id <= KEY_ID_MAX
        assert (alg == "RS256") == (rsa is not None)
        self.id: Final = id
        self.secret: Final = secret
        self.created_at: Final = created_at
        self.alg: Final = alg
        self.rsa: Final = rsa

    def __repr__(self) -> str:
        return f"<RingKey {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RingKey) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def _all(self) -> tuple[object, ...]:
        return self.id, self.secret, self.created_at, self.alg, self.rsa


class KeyRing(Concealed):
    """The keys of one ledger, never changed. `ring_id` is 32 lower-case hex digits, `root` 32 bytes."""

    __slots__ = ("_keyed", "_signing", "keys", "pairs", "ring_id", "root")

    def __init__(self, ring_id: str, root: bytes, keys: Mapping[int, RingKey]) -> None:
        self.ring_id: Final = ring_id
        self.root: Final = root
        self.keys: Final[Mapping[int, RingKey]] = MappingProxyType(dict(keys))
        self._keyed: Final[dict[tuple[int, Purpose, int], hashlib.blake2b]] = {}
        self.pairs: Final[dict[tuple[int, str], tuple[hashlib.blake2b, hashlib.blake2b]]] = {}
        """What makes secret and tag of a kind of token under a key, by key id and prefix: `token_format` fills it."""
        self._signing: Final[dict[int, SigningKey]] = {}

    def __repr__(self) -> str:
        return f"<KeyRing {self.ring_id} with keys {sorted(self.keys)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyRing) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self.ring_id)

    def _all(self) -> tuple[object, ...]:
        return self.ring_id, self.root, dict(self.keys)

    # ------------------------------------------------------------ MACs

    def mac(self, key_id: int, purpose: Purpose, message: bytes, size: int) -> bytes:
        """The MAC of a message under one numbered key, `size` (1–64) bytes long.

        Different sizes are unrelated MACs, not cuts of one another. Raises KeyNotHeld.
        """
        mac = self.keyed(key_id, purpose, size).copy()
        mac.update(message)
        return mac.digest()

    def keyed(self, key_id: int, purpose: Purpose, size: int) -> hashlib.blake2b:
        """The keyed hash that makes such MACs, with nothing in it yet: for copying, never for feeding. Made once a
        ring, for keying anew costs several times as much. Raises KeyNotHeld."""
        return self._keyed.get((key_id, purpose, size)) or self._make_keyed(key_id, purpose, size)

    def root_mac(self, purpose: Purpose, message: bytes, size: int) -> bytes:
        """The MAC of a message under the root, which outlives every rotation. `size` as for `mac`."""
        return self.mac(0, purpose, message, size)

    def _make_keyed(self, key_id: int, purpose: Purpose, size: int) -> hashlib.blake2b:
        keyed = hashlib.blake2b(key=self._subkey(key_id, purpose, 32), digest_size=size)
        self._keyed[key_id, purpose, size] = keyed
        return keyed

    def _subkey(self, key_id: int, purpose: Purpose, length: int) -> bytes:
        if key_id == 0:
            secret, name = self.root, "root"
        elif key_id in self.keys:
            secret, name = self.keys[key_id].secret, f"key {key_id}"
        else:
            raise KeyNotHeld(key_id)
        info = f"token-ledger 1, {name}, {purpose}".encode()
        return HKDF(SHA256(), length=length, salt=bytes.fromhex(self.ring_id), info=info).derive(secret)

    def fingerprint(self, key_id: int) -> str:
        """What the log says of a numbered key beside its id (32 lower-case hex digits): another key of that id has
        another one, and nobody learns anything of the key from it. Raises KeyNotHeld."""
        return self.mac(key_id, Purpose.FINGERPRINT, b"", 16).hex()

    def without(self, key_ids: Set[int]) -> "KeyRing":
        """This ring as it is without some of its keys."""
        return KeyRing(self.ring_id, self.root, {id: key for id, key in self.keys.items() if id not in key_ids})

    # ------------------------------------------------------------ signing keys

    def signing_key(self, key_id: int) -> "SigningKey":
        """The key that signs the JWTs of a numbered key, always the same. Raises KeyNotHeld."""
        found = self._signing.get(key_id)
        if found is None:
            from ledger.signing import SigningKey  # where nothing is signed nobody shall pay for loading it

            key = self.keys.get(key_id)
            if key is None:
                raise KeyNotHeld(key_id)
            if key.alg == "ES256":
                material = self._subkey(key_id, Purpose.ES256_KEY, 48)
            elif key.alg == "EdDSA":
                material = self._subkey(key_id, Purpose.EDDSA_KEY, 32)
            else:
                assert key.rsa is not None
                material = key.rsa
            found = self._signing[key_id] = SigningKey(f"{self._kid_prefix}{key_id}", key.alg, material)
        return found

    def key_id_of(self, kid: str) -> int | None:
        """The key id that a JWT's `kid` names, held or not; None for a `kid` that this ring never gives."""
        number = kid.removeprefix(self._kid_prefix)
        if number == kid or not (number.isascii() and number.isdigit()) or number[0] == "0" or len(number) > 3:
            return None
        key_id = int(number)
        return key_id if key_id <= KEY_ID_MAX else None

    @property
    def _kid_prefix(self) -> str:
        """A `kid` says which ring and which key: what another ring signed is never looked for here."""
        return f"{self.ring_id[:8]}-"

    # ------------------------------------------------------------ key ids

    @property
    def ids_left(self) -> int:
        """How many more keys this ring can be given."""
        return KEY_ID_MAX - max(self.keys, default=0)

    def with_new_key(
        self,
        now: int,
        *,
        above: int = 0,
        randomness: Randomness = secrets.token_bytes,
        alg: Alg = "ES256",
        rsa: bytes | None = None,
    ) -> "KeyRing":
        """This ring and one key more, whose id is above every id here and above `above`, the highest one that the
        store's events name (a ring file brought back from a backup may not know it). `now` in microseconds; `alg` and
        `rsa` as in RingKey.

        Raises LedgerError where all ids are used up.
        """
        key_id = max(*self.keys, above) + 1
        if key_id > KEY_ID_MAX:
            raise LedgerError(f"key ring {self.ring_id}: all {KEY_ID_MAX} key ids are used up, no key can be added")
        keys = {**self.keys, key_id: RingKey(key_id, randomness(32), now, alg, rsa)}
        return KeyRing(self.ring_id, self.root, keys)

    # ------------------------------------------------------------ the file

    @classmethod
    def new(cls, now: int, *, randomness: Randomness = secrets.token_bytes) -> "KeyRing":
        """A ring that no file holds yet, with key 1. `now` in microseconds."""
        return cls(randomness(16).hex(), randomness(32), {1: RingKey(1, randomness(32), now)})

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, now: int | None = None) -> "KeyRing":
        """Make a new ring and its file, durable on return. Never replaces a file: raises LedgerError."""
        ring = cls.new(time.time_ns() // 1000 if now is None else now)
        try:
            whole_files.write_new(os.fspath(path), ring._encoded())
        except FileExistsError:
            raise LedgerError(f"{path}: a key ring is never replaced, and there is a file already") from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot create the key ring: {error.strerror}") from None
        return ring

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KeyRing":
        """Read a ring back. Raises LedgerError where the file is not there, readable by others, damaged, or of
        another version; the line never shows what the file holds."""
        return _decoded(os.fspath(path), _read_private(os.fspath(path)))

    def reload(self, path: str | os.PathLike[str]) -> "KeyRing":
        """Read the file again and check that it continues this ring. Raises LedgerError where it is another ring,
        lacks a key held before or has changed one; this ring then goes on."""
        fresh = KeyRing.load(path)
        if fresh.ring_id != self.ring_id:
            raise LedgerError(f"{path}: this is another key ring ({fresh.ring_id}) than the one in use")
        if missing := sorted(self.keys.keys() - fresh.keys.keys()):
            raise LedgerError(f"{path}: lacks key {missing[0]}, which is in use")
        if fresh.root != self.root or any(fresh.keys[held] != self.keys[held] for held in self.keys):
            raise LedgerError(f"{path}: holds other keys under the ids in use")
        return fresh

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replace the ring's file, mode 0600. The file and its place in the directory are durable on return; a crash
        before leaves the old file whole. Raises LedgerError."""
        try:
            whole_files.write_over(os.fspath(path), self._encoded(), durable=True)
        except OSError as error:
            raise LedgerError(f"{path}: cannot save the key ring: {error.strerror}") from None

    def _encoded(self) -> bytes:
        keys = [_on_file(key) for key in self.keys.values()]
        stored = _RingOnFile(_FILE_VERSION, self.ring_id, self.root.hex(), sorted(keys, key=lambda key: key.id), "")
        stored.checksum = _checksum(stored)
        return msgspec.json.format(msgspec.json.encode(stored), indent=2) + b"\n"


_Hex16: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Moment: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z\Z")]


class _KeyOnFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`alg` is left out for ES256; `rsa` is base64."""

    id: Annotated[int, msgspec.Meta(ge=1, le=KEY_ID_MAX)]
    secret: _Hex32
    created_at: _Moment
    alg: Literal["EdDSA", "RS256"] | None = None
    rsa: str | None = None


class _RingOnFile(msgspec.Struct, forbid_unknown_fields=True):
    """The file. `checksum` tells a damaged key from a foreign token: without it one flipped digit would make every
    token of that key look forged."""

    version: int
    ring_id: _Hex16
    root: _Hex32
    keys: Annotated[list[_KeyOnFile], msgspec.Meta(min_length=1)]
    checksum: str


class _VersionOnFile(msgspec.Struct):
    version: int


def _on_file(key: RingKey) -> _KeyOnFile:
    rsa = None if key.rsa is None else base64.b64encode(key.rsa).decode("ascii")
    alg = None if key.alg == "ES256" else key.alg
    return _KeyOnFile(key.id, key.secret.hex(), times.text(key.created_at), alg, rsa)


def _read_key(key: _KeyOnFile) -> RingKey:
    """Raises ValueError."""
    if (key.alg == "RS256") != (key.rsa is not None):
        raise ValueError("an RSA key stands with RS256 only")
    try:
        rsa = None if key.rsa is None else base64.b64decode(key.rsa, validate=True)
    except binascii.Error:
        raise ValueError("rsa is no base64") from None
    return RingKey(key.id, bytes.fromhex(key.secret), times.micros(key.created_at), key.alg or "ES256", rsa)


def _checksum(stored: _RingOnFile) -> str:
    keys = ([member for member in msgspec.structs.astuple(key) if member is not None] for key in stored.keys)
    covered = [stored.version, stored.ring_id, stored.root, *keys]
    return hashlib.sha256(msgspec.json.encode(covered)).hexdigest()


def _decoded(path: str, content: bytes) -> KeyRing:
    """Read the file's content. What msgspec says of a mismatch names members and types, never values."""
    try:
        version = msgspec.json.decode(content, type=_VersionOnFile).version
        if version != _FILE_VERSION:
            raise LedgerError(f"{path}: key ring of version {version}, this program reads version {_FILE_VERSION}")
        stored = msgspec.json.decode(content, type=_RingOnFile)
        keys = [_read_key(key) for key in stored.keys]
    except (msgspec.MsgspecError, ValueError) as error:
        what = f": {error}" if isinstance(error, msgspec.ValidationError) else ""
        raise LedgerError(f"{path}: truncated or no key ring{what}") from None
    if len({key.id for key in keys}) != len(keys):
        raise LedgerError(f"{path}: the key ring names a key id twice")
    if stored.checksum != _checksum(stored):
        raise LedgerError(f"{path}: the key ring is damaged, its checksum does not match: restore it from a backup")
    return KeyRing(stored.ring_id, bytes.fromhex(stored.root), {key.id: key for key in keys})


def _read_private(path: str) -> bytes:
    """Read a file that nobody else may read. The checks look at the opened file, not at a name that can change."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hang the start
    except FileNotFoundError:
        raise LedgerError(f"{path}: there is no key ring; `token-ledger init` creates one for a new database") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot read the key ring: {error.strerror}") from None
    try:
        _check_private(path, os.fstat(descriptor))
        content = os.pread(descriptor, _FILE_BYTES_MAX + 1, 0)
    except OSError as error:
        raise LedgerError(f"{path}: cannot read the key ring: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > _FILE_BYTES_MAX:
        raise LedgerError(f"{path}: too large for a key ring")
    return content


def _check_private(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path}: the key ring is not a regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise LedgerError(f"{path}: others may use the key ring (mode {mode:04o}): chmod 600 {shlex.quote(path)}")
    if status.st_uid not in (os.geteuid(), 0):
        raise LedgerError(
            f"{path}: the key ring belongs to user {status.st_uid}, this process runs as user {os.geteuid()}"
        )
