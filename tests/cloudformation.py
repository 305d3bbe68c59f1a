"""Reads CloudFormation templates as AWS does: short forms of functions, no YAML aliases, no key twice, and what references come to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.events import AliasEvent

REGION, ACCOUNT = "eu-west-1", "123456789012"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as CloudFormation takes it."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
        assert all(isinstance(key, str) for key in keys), f"a key is no text: {keys}"
        return super().construct_mapping(node, deep)


def _function(loader: _Loader, name: str, node: Any) -> dict[str, Any]:
    made = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence}[type(node)](node)
    if name == "GetAtt":
        made = made.split(".", 1)
    return {name if name == "Ref" else f"Fn::{name}": made}


_Loader.add_multi_constructor("!", _function)


def load(text: str) -> dict[str, Any]:
    """The template, with its functions in their long form."""
    assert not any(isinstance(event, AliasEvent) for event in yaml.parse(text, _Loader)), "CloudFormation refuses aliases"
    found = yaml.load(text, _Loader)  # a SafeLoader
    assert isinstance(found, dict)
    return found


def resolved(template: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The template with every reference replaced by what it comes to in ``REGION`` of ``ACCOUNT``; one that leads nowhere is a KeyError."""
    pseudo = {"AWS::Region": REGION, "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com"}
    known = {**pseudo, **(parameters or {})}

    def value(node: Any) -> Any:
        if isinstance(node, list):
            return [value(each) for each in node]
        if not isinstance(node, dict):
            return node
        match node:
            case {"Ref": name}:
                return known[name] if name in known else _attribute(template["Resources"][name], "Ref", value)
            case {"Fn::GetAtt": [name, attribute]}:
                return _attribute(template["Resources"][name], attribute, value)
            case {"Fn::Sub": text}:
                return re.sub(r"\$\{(!?)([^}]*)\}", lambda found: "${" + found[2] + "}" if found[1] else _named(found[2]), text)
            case _:
                return {key: value(each) for key, each in node.items()}

    def _named(name: str) -> str:
        return str(value({"Fn::GetAtt": name.split(".", 1)} if "." in name else {"Ref": name}))

    return {key: value(each) for key, each in template.items()}


def _attribute(resource: Mapping[str, Any], attribute: str, value: Any) -> Any:
    properties = {key: value(each) for key, each in resource["Properties"].items() if key.endswith("Name") or key == "Family"}
    match resource["Type"], attribute:
        case "AWS::SQS::Queue", "Arn":
            return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{properties['QueueName']}"
        case "AWS::SQS::Queue", "Ref":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{properties['QueueName']}"
        case "AWS::IAM::Role", "Arn":
            return f"arn:aws:iam::{ACCOUNT}:role/{properties['RoleName']}"
        case "AWS::S3::Bucket", "Arn":
            return f"arn:aws:s3:::{properties['BucketName']}"
        case "AWS::IAM::ManagedPolicy", "Ref":
            return f"arn:aws:iam::{ACCOUNT}:policy/{properties['ManagedPolicyName']}"
        case kind, ("Ref" | "Name"):
            own = {"AWS::DynamoDB::Table": "TableName", "AWS::Logs::LogGroup": "LogGroupName", "AWS::Scheduler::ScheduleGroup": "Name"}
            own |= {"AWS::ECS::Cluster": "ClusterName", "AWS::ECS::Service": "ServiceName", "AWS::ECS::TaskDefinition": "Family"}
            own |= {"AWS::Lambda::Function": "FunctionName", "AWS::S3::Bucket": "BucketName"}
            return properties[own[kind]] if kind in own else kind
        case kind, _:
            raise KeyError(f"{kind} has no {attribute} here")
