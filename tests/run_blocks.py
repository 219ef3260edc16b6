"""Runs the blocks of a document in their order, in this folder: what the tests of documents start.

Reads a JSON list of {"language", "code", "place"} from standard input. Python blocks share an
interpreter, so that what they import is loaded once, but no names. Ends at the first that fails.
"""

import json
import subprocess
import sys


def main() -> None:
    for block in json.load(sys.stdin):
        sys.stdout.write(f"--- {block['place']}\n")
        if block["language"] == "python":
            exec(compile(block["code"], block["place"], "exec"), {"__name__": "__main__"})
            continue
        code = f"set -eo pipefail\n{block['code']}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
        sys.stdout.write(done.stdout + done.stderr)
        if done.returncode:
            sys.exit(f"{block['place']}: exit code {done.returncode}")


if __name__ == "__main__":
    main()
