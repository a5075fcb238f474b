"""Puts a text into a cache without TLS, or reads it from there.

usage: blob.py put|read CAS TEXT     fails if the cache does not take it, or does not have it
"""

import sys

from rpc import call, digest, field, fields


def main():
    action, cas, text = sys.argv[1:]
    blob = text.encode()
    if action == "put":
        request = field(2, field(1, digest(blob)) + field(2, blob))
        messages, error = call(cas, "ContentAddressableStorage/BatchUpdateBlobs", request)
        response = messages and fields(fields(messages[0])[1])
        assert not error and not fields(response.get(2, b"")).get(1), (error, response)
    else:
        messages, error = call(cas, "ContentAddressableStorage/BatchReadBlobs", field(2, digest(blob)))
        assert not error and fields(fields(messages[0])[1]).get(2) == blob, (error, messages)


main()
