"""SAM's own translation, run by the interpreter that has it: a template in JSON, with functions in their long form, to CloudFormation's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("AWS_DEFAULT_REGION", "eu-west-1")  # what it is translated for makes no difference


def main(source: str, made: str) -> None:
    """Read ``source``, write ``made``."""
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    template = json.loads(Path(source).read_text("utf-8"))
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":  # `sam deploy` uploads the file, and writes where it is now
            resource["Properties"]["CodeUri"] = "s3://bucket/function.zip"
    translated = Translator({}, Parser()).translate(template, parameter_values={})
    # Not ASCII alone: cfn-lint reads JSON as YAML, which has no pairs of surrogates
    Path(made).write_text(json.dumps(translated, indent=1, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
