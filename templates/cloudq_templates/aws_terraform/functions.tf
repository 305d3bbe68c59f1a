locals {
  # Bucket names are the whole world's
  bucket = var.bodies == null ? null : "${var.bodies.resource}-${local.account}"
  bodies = var.bodies == null ? "" : "&bodies=s3://${local.bucket}&bodies_days=${var.bodies.days}"

  seams = merge(
    { CLOUDQ_BROKER = "sqs://${local.region}/?prefix=${var.prefix}${local.bodies}" },
    var.store == null ? {} : { CLOUDQ_STORE = "dynamodb://${local.region}/${aws_dynamodb_table.store[0].name}" },
    var.timer == null ? {} : {
      CLOUDQ_TIMER = "eventbridge://${local.region}/${aws_scheduler_schedule_group.timer[0].name}?role=${aws_iam_role.role["scheduler"].arn}&dead_letter=${aws_sqs_queue.undelivered[0].arn}"
    },
  )
}

# Made here and not by Lambda, so that retention, key and deletion are ours
resource "aws_cloudwatch_log_group" "function" {
  for_each = var.functions

  name              = "/aws/lambda/${each.key}"
  retention_in_days = var.log_retention
  kms_key_id        = var.kms_key
}

resource "aws_lambda_function" "function" {
  for_each = var.functions

  function_name                  = each.key
  description                    = "Tasks of the queue ${var.queues[each.value.queue].resource}"
  role                           = aws_iam_role.role[each.key].arn
  handler                        = "cloudq_aws.entry.handler"
  runtime                        = "python${var.python}"
  architectures                  = [var.architecture]
  filename                       = var.package
  source_code_hash               = filebase64sha256(var.package)
  memory_size                    = each.value.memory
  timeout                        = each.value.timeout
  reserved_concurrent_executions = each.value.reserved_concurrency
  kms_key_arn                    = var.kms_key

  environment {
    variables = merge(
      var.environment,
      local.seams,
      { CLOUDQ_APP = var.reference, CLOUDQ_CONCURRENCY = tostring(each.value.concurrency) },
      # Names: the function reads the values as it starts, since whoever may look at a function sees its environment
      length(var.secrets) == 0 ? {} : { CLOUDQ_SECRETS = jsonencode(var.secrets) },
    )
  }

  logging_config {
    log_format = "JSON"
    log_group  = aws_cloudwatch_log_group.function[each.key].name
  }

  dynamic "vpc_config" {
    for_each = length(var.subnets) == 0 ? [] : [true]

    content {
      subnet_ids         = var.subnets
      security_group_ids = var.security_groups
    }
  }

  # Without its permissions the first event source mapping is refused
  depends_on = [aws_iam_role_policy.role]
}

resource "aws_lambda_event_source_mapping" "function" {
  for_each = var.functions

  event_source_arn                   = local.queue_arns[each.value.queue]
  function_name                      = aws_lambda_function.function[each.key].arn
  batch_size                         = each.value.batch_size
  maximum_batching_window_in_seconds = var.queues[each.value.queue].fifo ? null : each.value.batch_window
  # One task that fails does not bring its whole batch back
  function_response_types = ["ReportBatchItemFailures"]

  # It slows the poller down; a reserved concurrency would have messages delivered and refused, and use up their deliveries
  dynamic "scaling_config" {
    for_each = each.value.max_concurrency == null ? [] : [each.value.max_concurrency]

    content {
      maximum_concurrency = scaling_config.value
    }
  }
}
