"""What checkov may find in rendered output, and why it stays so: a reason for each check's id. Nothing else may be found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

AWS: Final[Mapping[str, str]] = {
    "CKV_AWS_18": "The bucket keeps bodies of messages for weeks; who logs access to buckets does so by CloudTrail, for all of an account.",
    "CKV_AWS_21": "A body is written once under a name of its own and never changed; versions would only keep what is to be deleted.",
    "CKV_AWS_50": "cloudq traces by OpenTelemetry, where the app says so; X-Ray would cost everybody.",
    "CKV_AWS_115": "MaximumConcurrency slows the poller down. A reserved concurrency has messages delivered and refused: it is a setting.",
    "CKV_AWS_116": "Lambda's own dead-letter queue is for asynchronous invocations; messages have their queue's redrive policy.",
    "CKV_AWS_119": "A key of the user's own is a setting; without it AWS's own key encrypts the table.",
    "CKV_AWS_144": "Bodies belong to messages of queues in one region.",
    "CKV_AWS_145": "A key of the user's own is a setting; without it S3's own key encrypts the bucket.",
    "CKV_AWS_272": "Signed code needs a signing profile of the account.",
    "CKV_AWS_297": "The input of a schedule is its name and the time. With a key, `cloudq schedule pause` would take it away again.",
    "CKV_AWS_338": "Logs are kept for log_retention, a setting of 30 days unless set.",
    "CKV2_AWS_62": "Nobody waits for a body: it is read by who gets its message.",
}

CLOUDFORMATION: Final[Mapping[str, str]] = {
    **AWS,
    "CKV_AWS_27": "A key of the user's own is a setting; without it SQS's own key encrypts the queues.",
    "CKV_AWS_111": "A function in a VPC has its address in a network interface, which has no name before it is there.",
    "CKV_AWS_117": "A VPC is a setting, for tasks that need something in it: for queues and table a function needs none.",
    "CKV_AWS_158": "A key of the user's own is a setting; without it CloudWatch's own key encrypts the logs.",
    "CKV_AWS_173": "A key of the user's own is a setting; without it Lambda's own key encrypts the variables, which hold no secrets.",
}

GCP: Final[Mapping[str, str]] = {
    "CKV_GCP_62": "The bucket keeps bodies of messages for weeks; who logs access to buckets does so by Cloud Audit Logs.",
    "CKV_GCP_78": "A body is written under a name of its own and never changed; versions would only keep what is to be deleted.",
}

KUBERNETES: Final[Mapping[str, str]] = {
    "CKV_K8S_11": "No limit for the CPU: a worker that is held back renews its leases late, and its messages run twice.",
    "CKV_K8S_15": "The image is pulled by its version or digest; a registry that is down must not keep a worker from starting again.",
    "CKV_K8S_35": "A secret is a variable for every host, so that the same code reads it in functions and in containers.",
    "CKV_K8S_43": "The image is the user's to name, by its digest or by its version.",
}
