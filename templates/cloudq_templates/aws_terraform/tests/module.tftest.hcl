# `terraform test`: what holds whatever the app is. No account and no credentials; mock_provider makes up what AWS would answer.
mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_data "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:mocked-AbCdEf" }
  }
}

# What this module is given beside the app's data
variables {
  package = "tests/module.tftest.hcl"
  image   = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1"
  subnets = ["subnet-1"]
}

run "nothing_is_lost_repeated_or_read_by_others" {
  command = plan

  assert {
    condition     = alltrue([for queue in aws_sqs_queue.dead_letters : queue.message_retention_seconds == 1209600])
    error_message = "Dead letters are kept for 14 days: their time has run since they were first sent."
  }

  assert {
    condition = alltrue([
      for queue in concat(values(aws_sqs_queue.queue), values(aws_sqs_queue.dead_letters), aws_sqs_queue.undelivered) :
      var.kms_key == null ? queue.sqs_managed_sse_enabled : queue.kms_master_key_id == var.kms_key
    ])
    error_message = "A queue is not encrypted."
  }

  assert {
    condition     = length(aws_sqs_queue_policy.queue) == length(aws_sqs_queue.queue) && length(aws_sqs_queue_policy.dead_letters) == length(aws_sqs_queue.dead_letters)
    error_message = "A queue takes requests without TLS."
  }

  assert {
    condition     = alltrue([for each in aws_lambda_event_source_mapping.function : contains(each.function_response_types, "ReportBatchItemFailures")])
    error_message = "Without partial batch responses a whole batch runs again."
  }

  assert {
    condition     = alltrue([for each in aws_lambda_function_recursion_config.function : each.recursive_loop == "Allow"]) && length(aws_lambda_function_recursion_config.function) == length(var.functions)
    error_message = "Lambda would take retries and calls of tasks for a loop, and drop them."
  }

  assert {
    condition     = alltrue([for each in aws_ecs_task_definition.worker : each.skip_destroy])
    error_message = "A version that does not come up could not be taken back to the one before."
  }
}

run "every_role_is_bounded_and_no_policy_allows_all_actions" {
  command = plan

  variables {
    permission_boundary = "arn:aws:iam::123456789012:policy/boundary"
  }

  assert {
    condition     = alltrue([for role in aws_iam_role.role : role.permissions_boundary == var.permission_boundary])
    error_message = "A role lacks the boundary."
  }

  assert {
    condition     = alltrue(flatten([for role in aws_iam_role_policy.role : [for each in jsondecode(role.policy).Statement : [for action in each.Action : !strcontains(action, "*")]]]))
    error_message = "A policy allows more than single actions."
  }
}

run "a_queue_that_is_there_is_used_and_not_made" {
  command = plan

  variables {
    queues       = { "a" = { resource = "a", fifo = false, retention = 345600, visibility = 360, max_receives = 10, dead_letters = "b", existing = "arn:aws:sqs:eu-west-1:123456789012:a" } }
    dead_letters = { "b" = { resource = "b", fifo = false, retention = 1209600, existing = "arn:aws:sqs:eu-west-1:123456789012:b" } }
    functions    = { "a" = { queue = "a", memory = 512, timeout = 60, concurrency = 1, batch_size = 10, batch_window = 0 } }
    roles        = { "a" = { purpose = "function", trust = "{}", statements = [] } }
    containers   = {}
    schedules    = {}
    alarms       = {}
    timer        = null
  }

  assert {
    condition     = length(aws_sqs_queue.queue) + length(aws_sqs_queue.dead_letters) == 0 && aws_lambda_event_source_mapping.function["a"].event_source_arn == "arn:aws:sqs:eu-west-1:123456789012:a"
    error_message = "The queue was made again."
  }
}

run "a_queue_that_hides_messages_for_too_short_is_refused" {
  command = plan

  variables {
    queues       = { "a" = { resource = "a", fifo = false, retention = 345600, visibility = 359, max_receives = 10, dead_letters = "b" } }
    dead_letters = { "b" = { resource = "b", fifo = false, retention = 1209600 } }
    functions    = { "a" = { queue = "a", memory = 512, timeout = 60, concurrency = 1, batch_size = 10, batch_window = 0 } }
    roles        = { "a" = { purpose = "function", trust = "{}", statements = [] } }
    containers   = {}
    schedules    = {}
    alarms       = {}
    timer        = null
  }

  expect_failures = [var.functions]
}

run "a_cron_of_five_fields_is_refused" {
  command = plan

  variables {
    schedules = { "every-a" = { queue = "a", expression = "cron(0 2 * * *)", timezone = "UTC", description = "{}", body = "{}" } }
  }

  expect_failures = [var.schedules]
}
