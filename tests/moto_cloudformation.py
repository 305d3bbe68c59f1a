"""moto's server with a CloudFormation that makes every resource of our templates, and refuses what it does not know. Run it as a script.

By itself moto leaves out resources that it does not know, and properties, and says CREATE_COMPLETE. Its first argument is the folder of
infrastructure tools, whose ``moto_cfn_extra`` adds most of them; here are the others, and what its own resources leave out.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import moto_server  # type: ignore[import-not-found]  # the script beside this one


def main() -> None:
    """Serve, with the further arguments of ``moto_server``."""
    sys.path.append(sys.argv.pop(1))
    extra: Any = importlib.import_module("moto_cfn_extra")
    extra.install()
    _install(extra)
    moto_server.main()


def _install(extra: Any) -> None:
    import moto.cloudformation.parsing as parsing
    from moto.applicationautoscaling.models import applicationautoscaling_backends
    from moto.awslambda.models import LambdaFunction
    from moto.dynamodb.models import Table, dynamodb_backends
    from moto.s3.models import FakeBucket, s3_backends
    from moto.sqs.models import Queue

    class BucketPolicy(extra._Base):  # type: ignore[misc]
        __module__ = "moto.cloudformation.extra"

        @staticmethod
        def cloudformation_type() -> str:
            return "AWS::S3::BucketPolicy"

        @classmethod
        def create_from_cloudformation_json(cls, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            assert s3_backends[account_id]["aws"].get_bucket(js["Properties"]["Bucket"])
            return cls(name)  # it is not put there: moto refuses what a policy denies, and heeds no condition

    class ScalableTarget(extra._Base):  # type: ignore[misc]
        __module__ = "moto.cloudformation.extra"

        @staticmethod
        def cloudformation_type() -> str:
            return "AWS::ApplicationAutoScaling::ScalableTarget"

        @classmethod
        def create_from_cloudformation_json(cls, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            p = js["Properties"]
            applicationautoscaling_backends[account_id][region].register_scalable_target(
                p["ServiceNamespace"], p["ResourceId"], p["ScalableDimension"], p["MinCapacity"], p["MaxCapacity"], "", ""
            )
            return cls("|".join((p["ResourceId"], p["ScalableDimension"], p["ServiceNamespace"])))

    class ScalingPolicy(extra._Base):  # type: ignore[misc]
        __module__ = "moto.cloudformation.extra"

        @staticmethod
        def cloudformation_type() -> str:
            return "AWS::ApplicationAutoScaling::ScalingPolicy"

        @classmethod
        def create_from_cloudformation_json(cls, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            p = js["Properties"]
            resource, dimension, namespace = p["ScalingTargetId"].split("|")
            (body,) = (value for key, value in p.items() if key.endswith("Configuration"))
            made = applicationautoscaling_backends[account_id][region].put_scaling_policy(
                p["PolicyName"], namespace, resource, dimension, body, p["PolicyType"]
            )
            return cls(made.policy_arn)

    class Alarm(extra.Alarm):  # type: ignore[misc]
        __module__ = "moto.cloudformation.extra"

        @classmethod
        def create_from_cloudformation_json(cls, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            # One that computes its metric is kept under the metric's name
            p = {"Namespace": "", "MetricName": name, "Period": 60, "Statistic": "Maximum"} | js["Properties"]
            return super().create_from_cloudformation_json(name, {**js, "Properties": p}, account_id, region, **kw)

    class Schedule(extra.Schedule):  # type: ignore[misc]
        __module__ = "moto.cloudformation.extra"

        @classmethod
        def create_from_cloudformation_json(cls, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            made = super().create_from_cloudformation_json(name, js, account_id, region, **kw)
            p = js["Properties"]
            kept = extra.scheduler_backends[account_id][region].get_schedule(p["GroupName"], p["Name"])
            kept.action_after_completion = "NONE"  # as AWS does
            return made

    for each in (BucketPolicy, ScalableTarget, ScalingPolicy, Alarm, Schedule):
        parsing.get_model_map()[each.cloudformation_type()] = each

    delete = parsing.ResourceMap.delete

    def delete_and_keep(self: Any) -> None:
        """Keep what a stack that was made whole keeps: moto knows ``Retain`` alone."""
        for each in self._resource_json_map.values():
            if each.get("DeletionPolicy") == "RetainExceptOnCreate":
                each["DeletionPolicy"] = "Retain"
        delete(self)

    parsing.ResourceMap.delete = delete_and_keep  # type: ignore[method-assign]

    def and_then(model: Any, more: Any) -> None:
        """Have ``model`` heed properties that it leaves out."""
        create = model.create_from_cloudformation_json.__func__

        def create_whole(cls: Any, name: str, js: Any, account_id: str, region: str, **kw: Any) -> Any:
            made = create(cls, name, js, account_id, region, **kw)
            more(made, name, js["Properties"], account_id, region)
            return made

        model.create_from_cloudformation_json = classmethod(create_whole)

    def table(made: Any, name: str, p: Any, account_id: str, region: str) -> None:
        dynamodb_backends[account_id][region].update_time_to_live(name, p["TimeToLiveSpecification"])

    def bucket(made: Any, name: str, p: Any, account_id: str, region: str) -> None:
        rules = [
            {"ID": rule["Id"], "Status": rule["Status"], "Filter": {"Prefix": ""}, "Expiration": {"Days": str(rule["ExpirationInDays"])}}
            for rule in p["LifecycleConfiguration"]["Rules"]
        ]
        s3_backends[account_id]["aws"].put_bucket_lifecycle_configuration(name, rules)

    def function(made: Any, name: str, p: Any, account_id: str, region: str) -> None:
        made.architectures = p["Architectures"]

    # Functions are run by the tests: moto would ask Docker, and take messages that it could not deliver
    Queue.lambda_event_source_mappings = property(lambda queue: {}, lambda queue, mappings: None)  # type: ignore[assignment]
    and_then(Table, table)
    and_then(FakeBucket, bucket)
    and_then(LambdaFunction, function)


if __name__ == "__main__":
    main()
