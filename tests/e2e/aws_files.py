#!/usr/bin/env python3
"""How botocore, and so the AWS command line, reads the shared files in tests/data/aws_files.json.

The unit test `the_files_are_read_as_the_aws_command_line_reads_them` compares the proxy's parser
with the answers that stand there; this compares them with botocore itself. `--write` renews them.
"""
import json
import os
import sys
import tempfile
from pathlib import Path

import botocore
import botocore.exceptions
import botocore.session

DATA = Path(__file__).parent.parent / "data" / "aws_files.json"
REFUSED = "refused"


def answer(case, folder):
    """The keys of the case's profile; None when it is not there, REFUSED when a file is."""
    for name, variable in (("config", "AWS_CONFIG_FILE"), ("credentials", "AWS_SHARED_CREDENTIALS_FILE")):
        path = folder / name
        path.write_bytes(case.get(name, "").encode())
        os.environ[variable] = str(path)
    try:
        profiles = botocore.session.Session().full_config["profiles"]
    except botocore.exceptions.ConfigParseError:
        return REFUSED
    profile = profiles.get(case["profile"])
    if profile is None:
        return None
    flat = {}
    for key, value in profile.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{below}": text for below, text in value.items()})
        else:
            flat[key] = value
    return flat


def main():
    os.environ.pop("AWS_PROFILE", None)
    cases = json.loads(DATA.read_text())
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            found = answer(case, Path(folder))
            if "--write" in sys.argv:
                case["botocore"] = found
            elif case.get("botocore") != found:
                wrong.append(f'{case["name"]}: botocore {botocore.__version__} reads {found!r}')
    if "--write" in sys.argv:
        lines = ",\n".join(json.dumps(case) for case in cases)
        DATA.write_text(f"[\n{lines}\n]\n")
    print("\n".join(wrong) or f"{len(cases)} files read as botocore {botocore.__version__} reads them")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
