# These .tf files are yours: cloudq writes them once. What your code and [tool.cloudq] say is data, in cloudq.auto.tfvars.json.
terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
  # Credentials of another account end here, before anything is made there
  allowed_account_ids = var.account == null ? null : [var.account]

  default_tags {
    tags = merge(var.tags, { "cloudq:app" = var.app, "cloudq:stage" = var.stage })
  }
}

data "aws_caller_identity" "here" {}
data "aws_partition" "here" {}

locals {
  account   = data.aws_caller_identity.here.account_id
  partition = data.aws_partition.here.partition
  region    = var.region
}
