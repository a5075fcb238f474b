"""Has a farm run one command.

usage: execute.py SCHEDULER CAS TOKEN_FILE AUTHORITY ARGUMENT…     /dev/null for no token; prints {"exit": …, "cached": …, "stdout": …, "stderr": …, "error": …}
"""

import json
import sys

from rpc import call, digest, field, fields


def main():
    scheduler, cas, *proofs = sys.argv[1:5]
    command = b"".join(field(1, argument.encode()) for argument in sys.argv[5:])
    action = field(1, digest(command)) + field(2, digest(b""))
    blobs = b"".join(field(2, field(1, digest(blob)) + field(2, blob)) for blob in (command, action, b""))
    _, error = call(cas, "ContentAddressableStorage/BatchUpdateBlobs", blobs, *proofs)
    messages = []
    # Standard output and error come with the result.
    inline = field(10, 1) + field(11, 1)
    if not error:
        messages, error = call(scheduler, "Execution/Execute", field(6, digest(action)) + inline, *proofs)
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
