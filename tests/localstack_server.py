"""LocalStack's SQS and EventBridge Scheduler on one port of 127.0.0.1, without its DNS server, Docker and reports to its maker.

Run it as a script by an interpreter that has LocalStack: ``localstack_server.py FOLDER --host=… --port=…``; what it writes is in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import runpy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--host")
    parser.add_argument("--port")
    asked = parser.parse_args()
    address = f"{asked.host}:{asked.port}"
    os.environ |= {
        "GATEWAY_SERVER": "hypercorn",  # the other one listens on every interface
        "GATEWAY_LISTEN": address,
        "LOCALSTACK_HOST": address,
        "SQS_ENDPOINT_STRATEGY": "path",  # queue URLs of that address, in place of names in a domain of theirs
        "OVERRIDE_IN_DOCKER": "0",
        "FILESYSTEM_ROOT": asked.folder,
        "SERVICES": "sqs,scheduler",
        "EAGER_SERVICE_LOADING": "1",  # else the first to ask for one holds up everybody for seconds, with leases running
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "SQS_DISABLE_CLOUDWATCH_METRICS": "1",
    }
    runpy.run_module("localstack.runtime.main", run_name="__main__")


if __name__ == "__main__":
    main()
