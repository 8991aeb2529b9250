"""Writes an authority, and a certificate of 127.0.0.1 that it signed, into a folder: ca.crt, tls.crt, tls.key."""

import datetime
import ipaddress
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def name(common):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def sign(subject, key, issuer, issuer_key, extensions):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


folder = pathlib.Path(sys.argv[1])
authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
is_authority = (x509.BasicConstraints(ca=True, path_length=0), True)
authority = sign("khook test authority", authority_key, "khook test authority", authority_key, [is_authority])
places = x509.SubjectAlternativeName(
    [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
)
leaf = sign("khook test agent", key, "khook test authority", authority_key, [(places, False)])
pem = serialization.Encoding.PEM
(folder / "ca.crt").write_bytes(authority.public_bytes(pem))
(folder / "tls.crt").write_bytes(leaf.public_bytes(pem))
(folder / "tls.key").write_bytes(
    key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
)
