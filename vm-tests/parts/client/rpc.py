"""Calls of the Remote Execution API, with nothing but curl and messages as bytes."""

import hashlib
import subprocess
import tempfile

# What curl says of a connection that ended before there was an answer. Then build tools try once more.
ENDED = (16, 52, 55, 56)


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message):
    """The fields of a message by number; what is there several times, the last."""
    found, at = {}, 0

    def number():
        nonlocal at
        result, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while at < len(message):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or number()
            found[key >> 3] = message[at : at + size]
            at += size
    return found


def digest(blob):
    return field(1, hashlib.sha256(blob).hexdigest().encode()) + field(2, len(blob))


def call(url, method, message, token="/dev/null", authority="/dev/null"):
    """The messages of the answer, and the status if it is not OK."""
    with tempfile.NamedTemporaryFile() as request, tempfile.NamedTemporaryFile() as headers:
        request.write(b"\0" + len(message).to_bytes(4, "big") + message)
        request.flush()
        command = ["curl", "--silent", "--show-error", "--http2-prior-knowledge", "--cacert", authority, "--dump-header", headers.name]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        if secret := open(token).read().strip():
            command += ["--header", "authorization: Bearer " + secret]
        command += ["--data-binary", "@" + request.name, f"{url}/build.bazel.remote.execution.v2.{method}"]
        curl = subprocess.run(command, stdout=subprocess.PIPE)
        if curl.returncode in ENDED and not curl.stdout:
            curl = subprocess.run(command, stdout=subprocess.PIPE)
        curl.check_returncode()
        body = curl.stdout
        lines = headers.read().decode().lower().splitlines()
    status = [line for line in lines if line.startswith("grpc-") and line != "grpc-status: 0"]
    messages = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        messages.append(body[5 : 5 + size])
        body = body[5 + size :]
    return messages, "; ".join(status)
