"""Has a farm run one command, with nothing but curl and the messages of the Remote Execution API as bytes.

usage: execute.py SCHEDULER CAS TOKEN_FILE AUTHORITY ARGUMENT…     /dev/null for no token; prints {"exit": …, "cached": …, "stdout": …, "stderr": …, "error": …}
"""

import hashlib
import json
import subprocess
import sys
import tempfile


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


def call(url, method, message):
    """The messages of the answer, and the status if it is not OK."""
    token, authority = sys.argv[3:5]
    with tempfile.NamedTemporaryFile() as request, tempfile.NamedTemporaryFile() as headers:
        request.write(b"\0" + len(message).to_bytes(4, "big") + message)
        request.flush()
        command = ["curl", "--silent", "--show-error", "--http2-prior-knowledge", "--cacert", authority, "--dump-header", headers.name]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        if secret := open(token).read().strip():
            command += ["--header", "authorization: Bearer " + secret]
        command += ["--data-binary", "@" + request.name, f"{url}/build.bazel.remote.execution.v2.{method}"]
        body = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        lines = headers.read().decode().lower().splitlines()
    status = [line for line in lines if line.startswith("grpc-") and line != "grpc-status: 0"]
    messages = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        messages.append(body[5 : 5 + size])
        body = body[5 + size :]
    return messages, "; ".join(status)


def main():
    command = b"".join(field(1, argument.encode()) for argument in sys.argv[5:])
    action = field(1, digest(command)) + field(2, digest(b""))
    blobs = b"".join(field(2, field(1, digest(blob)) + field(2, blob)) for blob in (command, action, b""))
    _, error = call(sys.argv[2], "ContentAddressableStorage/BatchUpdateBlobs", blobs)
    messages = []
    # Standard output and error come with the result.
    inline = field(10, 1) + field(11, 1)
    if not error:
        messages, error = call(sys.argv[1], "Execution/Execute", field(6, digest(action)) + inline)
    response = fields(fields(fields(messages[-1]).get(5, b"")).get(2, b"")) if messages else {}
    result = fields(response.get(1, b""))
    print(
        json.dumps(
            {
                "exit": result.get(4, 0),
                "cached": bool(response.get(2, 0)),
                "stdout": result.get(5, b"").decode(),
                "stderr": result.get(7, b"").decode(),
                "error": error or (fields(response.get(3, b"")).get(2) or response.get(4, b"")).decode(),
            }
        )
    )


main()
