"""Keys: plain and encrypted files, their form to the byte, every refusal, and logs that are served with them."""

from __future__ import annotations

import hmac
import json
import os
import stat
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

import pytest
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from tests.support.grow import CREATED_MS, grow
from tests.support.server import Server, run_tlogd
from tlog.errors import FormatError
from tlog.note import Signer, parse_skey
from tlog.server import key as module
from tlog.server.config import read_config
from tlog.server.create import KeySource, create_key, create_log
from tlog.server.errors import ConfigError, CreateError, StartRefusedError, UnusableNameError
from tlog.server.key import open_key, parse_sealed_key, read_key, read_passphrase, seal_key, write_key

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operating import Tlogd

ORIGIN = "log.example/keys"
SIGNER = Signer(ORIGIN, bytes(range(32)))
QUICK = {"passes": 1, "memory_kib": 8 << 10}
SECRET = b"correct horse"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let argon2id be quick where the default is taken."""
    monkeypatch.setattr(seal_key, "__kwdefaults__", QUICK)


def secret_file(path: Path, content: bytes = SECRET + b"\n", mode: int = 0o400) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


# The format.


def test_an_encrypted_key_is_what_its_description_says() -> None:
    text = seal_key(SIGNER, SECRET, **QUICK).format().decode()
    header, _, last = text.rpartition("secretbox ")
    first, vkey, kdf = header.splitlines()
    assert (first, vkey) == ("treehead/key/v1", f"vkey {SIGNER.verifier.vkey}")
    name, passes, memory, salt = kdf.split(" ")
    assert (name, passes, memory) == ("argon2id", "1", "8192")
    stretched = argon2id.kdf(32, SECRET, b64decode(salt), opslimit=1, memlimit=8 << 20)
    box = SecretBox(hmac.new(stretched, header.encode(), "sha256").digest())
    assert box.decrypt(b64decode(last)).decode() == SIGNER.skey


def test_by_default_a_guess_costs_three_passes_over_256_mib() -> None:
    assert (module.PASSES, module.MEMORY_KIB) == (3, 256 << 10)


def test_two_files_of_one_key_and_passphrase_have_nothing_in_common() -> None:
    one, other = seal_key(SIGNER, SECRET, **QUICK), seal_key(SIGNER, SECRET, **QUICK)
    assert one.salt != other.salt
    assert one.box[24:] != other.box[24:]


def test_the_right_passphrase_opens_it_and_no_other() -> None:
    sealed = parse_sealed_key(seal_key(SIGNER, SECRET, **QUICK).format())
    assert open_key(sealed, SECRET).skey == SIGNER.skey
    for wrong in (b"", b"correct hors", SECRET + b"\n", SECRET.upper()):
        with pytest.raises(StartRefusedError, match="the passphrase is wrong, or the key file was changed"):
            open_key(sealed, wrong)


def test_a_change_of_any_line_is_refused() -> None:
    text = seal_key(SIGNER, SECRET, **QUICK).format()
    other = Signer(ORIGIN, bytes(32)).verifier.vkey.encode()
    changed = [
        text.replace(SIGNER.verifier.vkey.encode(), other),
        text.replace(b"argon2id 1 8192", b"argon2id 2 8192"),
        text.replace(b"argon2id 1 8192", b"argon2id 1 8193"),
    ]
    for data in changed:
        assert data != text
        with pytest.raises(StartRefusedError, match="the passphrase is wrong, or the key file was changed"):
            open_key(parse_sealed_key(data), SECRET)


def test_every_flipped_bit_of_the_box_is_refused() -> None:
    sealed = seal_key(SIGNER, SECRET, **QUICK)
    for at in range(0, 8 * len(sealed.box), 61):
        box = bytearray(sealed.box)
        box[at // 8] ^= 1 << at % 8
        text = sealed.format().replace(b64encode(sealed.box), b64encode(box))
        with pytest.raises(StartRefusedError):
            open_key(parse_sealed_key(text), SECRET)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("treehead/key/v1", "treehead/key/v2"),
        ("argon2id 1 ", "argon2id 0 "),
        ("argon2id 1 ", "argon2id 17 "),
        ("argon2id 1 ", "argon2id 01 "),
        ("argon2id 1 ", "argon2id -1 "),
        ("argon2id", "argon2i"),
        (" 8192 ", " 8191 "),
        (" 8192 ", " 1048577 "),
        (" 8192 ", " 99999999999999999999 "),
        (" 8192 ", "  8192 "),
        ("secretbox ", "secretbox A"),
        ("secretbox ", "secretbox AAAA\nsecretbox "),
        ("vkey ", "vkey x"),
        ("\nvkey", "\n\nvkey"),
    ],
)
def test_what_format_does_not_write_is_refused(old: str, new: str) -> None:
    text = seal_key(SIGNER, SECRET, **QUICK).format().decode()
    assert old in text
    with pytest.raises(FormatError):
        parse_sealed_key(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 60, -1, -5])
def test_a_file_that_is_cut_off_is_refused(cut: int) -> None:
    text = seal_key(SIGNER, SECRET, **QUICK).format()
    with pytest.raises(FormatError):
        parse_sealed_key(text[:cut])


# Files.


@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_a_key_file_is_read_as_it_was_written_and_is_of_mode_0400(tmp_path: Path, passphrase: bytes | None) -> None:
    write_key(tmp_path / "key", SIGNER, passphrase)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o400
    assert read_key(tmp_path / "key", passphrase).skey == SIGNER.skey
    assert (b"PRIVATE" in (tmp_path / "key").read_bytes()) == (passphrase is None)
    with pytest.raises(FileExistsError):
        write_key(tmp_path / "key", SIGNER, passphrase)


def test_a_passphrase_too_many_or_too_few_is_told(tmp_path: Path) -> None:
    write_key(tmp_path / "plain", SIGNER)
    write_key(tmp_path / "sealed", SIGNER, SECRET)
    with pytest.raises(StartRefusedError, match=r"plain is not encrypted"):
        read_key(tmp_path / "plain", SECRET)
    with pytest.raises(StartRefusedError, match=r'sealed is encrypted; set in treehead.toml: passphrase = "file:PATH"'):
        read_key(tmp_path / "sealed")


@pytest.mark.parametrize("content", [b"secret", b"secret\n", b"\x00\xff binary", b" \n\n"])
def test_a_passphrase_is_its_file_without_one_line_feed(tmp_path: Path, content: bytes) -> None:
    assert read_passphrase(secret_file(tmp_path / "p", content)) == content.removesuffix(b"\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 1025])
def test_a_passphrase_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StartRefusedError, match="holds no passphrase"):
        read_passphrase(secret_file(tmp_path / "p", content))


@pytest.mark.parametrize("mode", [0o404, 0o402, 0o401, 0o420])
def test_a_passphrase_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(StartRefusedError, match="can be read by others"):
        read_passphrase(secret_file(tmp_path / "p", mode=mode))


def test_a_passphrase_that_a_service_manager_shows_to_a_group_is_read(tmp_path: Path) -> None:
    assert read_passphrase(secret_file(tmp_path / "p", mode=0o440)) == SECRET


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_passphrase_file_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / "p").mkdir()
    if kind == "pipe":
        os.mkfifo(tmp_path / "p", 0o400)
    with pytest.raises(StartRefusedError, match=r"the passphrase file .* (is missing|is not a file|cannot be read)"):
        read_passphrase(tmp_path / "p")


# Logs.


def test_a_log_with_an_encrypted_key_is_served_with_its_passphrase_and_refused_without(tmp_path: Path) -> None:
    secret = secret_file(tmp_path / "passphrase")
    data = tmp_path / "log"
    config = create_log(ORIGIN, data, CREATED_MS, None, KeySource(passphrase_file=secret))
    assert config.passphrase == f"file:{secret}"
    assert (data / "key").read_bytes().startswith(b"treehead/key/v1\n")
    grow(read_config(data / "treehead.toml"), [[b"one"]])
    with Server(data) as server:
        assert server.stop() == 0
    secret.chmod(0o600)
    secret.write_bytes(b"wrong")
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert done.returncode == 3
    assert done.stderr == f"tlogd: {data / 'key'}: the passphrase is wrong, or the key file was changed\n"
    secret.unlink()
    done = run_tlogd("serve", "--config", data / "treehead.toml", "--port", "0")
    assert (done.returncode, done.stderr) == (3, f"tlogd: the passphrase file {secret} is missing\n")


def test_a_passphrase_may_be_a_credential_of_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tlogd: Tlogd
) -> None:
    secret = secret_file(tmp_path / "passphrase")
    data = tmp_path / "log"
    create_log(ORIGIN, data, CREATED_MS, None, KeySource(passphrase_file=secret))
    file = data / "treehead.toml"
    file.write_text(file.read_text().replace(f"file:{secret}", "file:$CREDENTIALS_DIRECTORY/passphrase"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    grow(read_config(file), [[b"one"]])
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    done = tlogd("serve", "--config", file, "--port", "0")
    assert done.code == 2
    assert "$CREDENTIALS_DIRECTORY is not set by a service manager" in done.err


def test_keygen_and_init_make_a_log_with_a_key_elsewhere(tmp_path: Path, tlogd: Tlogd) -> None:
    secret = secret_file(tmp_path / "passphrase")
    key = tmp_path / "elsewhere.key"
    made = tlogd("keygen", "--origin", ORIGIN, "--passphrase-file", secret, "-o", key, "--json")
    assert made.code == 0
    vkey = json.loads(made.out)["vkey"]
    assert read_key(key, SECRET).verifier.vkey == vkey
    done = tlogd(
        *("init", "--origin", ORIGIN, "--data", tmp_path / "log", "--json"),
        *("--key", key, "--passphrase-file", secret),
    )
    assert done.code == 0, done
    assert json.loads(done.out)["vkey"] == vkey
    assert not (tmp_path / "log" / "key").exists()
    grow(read_config(tmp_path / "log" / "treehead.toml"), [[b"one"]])


def test_a_plain_key_is_printed_as_a_vkey_and_kept_in_its_file(tmp_path: Path, tlogd: Tlogd) -> None:
    done = tlogd("keygen", "--origin", ORIGIN, "-o", tmp_path / "k")
    assert (done.code, done.err) == (0, "")
    assert done.out == parse_skey((tmp_path / "k").read_text().removesuffix("\n")).verifier.vkey + "\n"


def test_a_key_is_of_one_log_only(tmp_path: Path) -> None:
    create_key(ORIGIN, tmp_path / "k")
    create_log(ORIGIN, tmp_path / "one", CREATED_MS, None, KeySource(tmp_path / "k"))
    with pytest.raises(UnusableNameError, match="is the key of a log already"):
        create_log(ORIGIN, tmp_path / "two", CREATED_MS, None, KeySource(tmp_path / "k"))
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "k.used").read_text() == f"{tmp_path / 'one'}\n"


def in_use(key: Path, folder: Path) -> str:
    """Try to create a second log with a key, and return the reason why not."""
    with pytest.raises(UnusableNameError) as refused:
        create_log(ORIGIN, folder / "second", CREATED_MS, None, KeySource(key))
    assert not (folder / "second").exists()
    return str(refused.value)


@pytest.mark.invariant("I13")
def test_a_key_that_init_made_makes_no_second_tree_by_whatever_name_it_has(tmp_path: Path) -> None:
    create_log(ORIGIN, tmp_path / "log", CREATED_MS)
    (tmp_path / "link").symlink_to(tmp_path / "log" / "key")
    for key in (tmp_path / "log" / "key", tmp_path / "link"):
        assert "treehead.toml says that" in in_use(key, tmp_path)
    (tmp_path / "log" / "treehead.toml").unlink()
    for key in (tmp_path / "log" / "key", tmp_path / "link"):
        assert "key.used says that" in in_use(key, tmp_path)
    assert (tmp_path / "log" / "key.used").read_text() == f"{tmp_path / 'log'}\n"


@pytest.mark.invariant("I13")
def test_a_key_of_a_log_that_is_older_than_the_marks_makes_no_second_tree(tmp_path: Path) -> None:
    create_log(ORIGIN, tmp_path / "log", CREATED_MS)
    (tmp_path / "log" / "key.used").unlink()
    assert "treehead.toml says that" in in_use(tmp_path / "log" / "key", tmp_path)
    (tmp_path / "log" / "treehead.toml").write_text("no configuration")
    with pytest.raises(ConfigError):
        create_log(ORIGIN, tmp_path / "second", CREATED_MS, None, KeySource(tmp_path / "log" / "key"))
    assert not (tmp_path / "second").exists()


@pytest.mark.invariant("I13")
def test_a_key_whose_signer_has_a_state_makes_no_second_tree(tmp_path: Path, tlogd: Tlogd) -> None:
    create_log(ORIGIN, tmp_path / "log", CREATED_MS)
    made = tlogd("signer", "init", "--config", tmp_path / "log" / "treehead.toml", "--state", tmp_path / "state.db")
    assert made.code == 0, made
    (tmp_path / "home").mkdir()
    for name in ("key", "key.state"):
        (tmp_path / "log" / name).rename(tmp_path / "home" / name)
    assert "key.state says that" in in_use(tmp_path / "home" / "key", tmp_path)


def test_another_log_beside_a_key_is_not_in_its_way(tmp_path: Path) -> None:
    create_log(ORIGIN, tmp_path / "log", CREATED_MS)
    create_key(ORIGIN, tmp_path / "log" / "another")
    create_log(ORIGIN, tmp_path / "second", CREATED_MS, None, KeySource(tmp_path / "log" / "another"))


def test_a_key_is_not_used_up_by_a_log_that_was_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(ORIGIN, tmp_path / "k")
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        patch.setattr("tlog.server.create.open_segments", fail)
        with pytest.raises(CreateError, match="No space left"):
            create_log(ORIGIN, tmp_path / "log", CREATED_MS, None, KeySource(tmp_path / "k"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k"]
    create_log(ORIGIN, tmp_path / "log", CREATED_MS, None, KeySource(tmp_path / "k"))


def test_what_cannot_be_a_key_is_refused_and_leaves_nothing(tmp_path: Path, tlogd: Tlogd) -> None:
    create_key(ORIGIN, tmp_path / "k", SECRET)
    right, wrong = secret_file(tmp_path / "right"), secret_file(tmp_path / "wrong", b"wrong")
    junk = secret_file(tmp_path / "junk", b"\xff" * 100)
    cases: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (1, "is encrypted; name its passphrase with --passphrase-file FILE", ("--key", tmp_path / "k")),
        (1, "the passphrase is wrong", ("--key", tmp_path / "k", "--passphrase-file", wrong)),
        (1, "not a private key", ("--key", junk)),
        (1, "the key . cannot be read", ("--key", ".")),
        (1, "is missing", ("--key", tmp_path / "nowhere")),
        (1, "is missing", ("--passphrase-file", tmp_path / "nowhere")),
        (2, "is of 'log.example/keys', and not of 'b'", ("--key", tmp_path / "k", "--passphrase-file", right)),
    ]
    for code, message, options in cases:
        done = tlogd("init", "--data", tmp_path / "log", "--origin", "b" if right in options else ORIGIN, *options)
        assert (done.code, message in done.err) == (code, True), done
        assert len(done.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junk", "k", "right", "wrong"]


def test_keygen_refuses_a_taken_name_and_a_bad_origin_with_2(tmp_path: Path, tlogd: Tlogd) -> None:
    (tmp_path / "k").write_text("mine")
    assert tlogd("keygen", "--origin", ORIGIN, "-o", tmp_path / "k").code == 2
    assert (tmp_path / "k").read_text() == "mine"
    assert tlogd("keygen", "--origin", "a b", "-o", tmp_path / "other").code == 2
    assert not (tmp_path / "other").exists()
    assert tlogd("keygen", "--origin", ORIGIN, "-o", tmp_path / "no" / "folder").code == 1
