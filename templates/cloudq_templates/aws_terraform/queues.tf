locals {
  queues       = { for name, queue in var.queues : name => queue if queue.existing == null }
  dead_letters = { for name, queue in var.dead_letters : name => queue if queue.existing == null }

  queue_arns        = { for name, queue in var.queues : name => queue.existing == null ? aws_sqs_queue.queue[name].arn : queue.existing }
  dead_letters_arns = { for name, queue in var.dead_letters : name => queue.existing == null ? aws_sqs_queue.dead_letters[name].arn : queue.existing }

  # For a request of SendMessage, which names a queue by its URL
  queue_urls = {
    for name, queue in var.queues : name => queue.existing == null ? aws_sqs_queue.queue[name].url : format(
      "https://sqs.%s.%s/%s/%s", split(":", queue.existing)[3], data.aws_partition.here.dns_suffix, split(":", queue.existing)[4], queue.resource
    )
  }

  # By name, because the two kinds of queues would otherwise refer to each other in a circle
  sources = {
    for name, _ in local.dead_letters : name => [
      for queue in values(var.queues) : coalesce(queue.existing, "arn:${local.partition}:sqs:${local.region}:${local.account}:${queue.resource}")
      if queue.dead_letters == name
    ]
  }
}

resource "aws_sqs_queue" "queue" {
  for_each = local.queues

  name       = each.value.resource
  fifo_queue = each.value.fifo
  # cloudq sends a deduplication id with each message, so nothing is taken for a repetition because its body is the same
  content_based_deduplication = false
  deduplication_scope         = each.value.fifo ? "messageGroup" : null
  fifo_throughput_limit       = each.value.fifo ? "perMessageGroupId" : null

  visibility_timeout_seconds = each.value.visibility
  message_retention_seconds  = each.value.retention
  receive_wait_time_seconds  = 20

  # SQS's own key or yours: the two exclude each other
  sqs_managed_sse_enabled           = var.kms_key == null ? true : null
  kms_master_key_id                 = var.kms_key
  kms_data_key_reuse_period_seconds = var.kms_key == null ? null : 300

  # The last resort: cloudq gives a message up well before this, and says why in the dead letter
  redrive_policy = jsonencode({
    deadLetterTargetArn = local.dead_letters_arns[each.value.dead_letters]
    maxReceiveCount     = each.value.max_receives
  })
}

resource "aws_sqs_queue" "dead_letters" {
  for_each = local.dead_letters

  name                      = each.value.resource
  fifo_queue                = each.value.fifo
  message_retention_seconds = each.value.retention

  sqs_managed_sse_enabled = var.kms_key == null ? true : null
  kms_master_key_id       = var.kms_key

  redrive_allow_policy = jsonencode({ redrivePermission = "byQueue", sourceQueueArns = local.sources[each.key] })

  lifecycle {
    # Work waits here for a person. To let go of it and keep it: terraform state rm 'aws_sqs_queue.dead_letters["NAME"]'
    prevent_destroy = true
  }
}

data "aws_iam_policy_document" "tls_only" {
  for_each = merge(
    { for name, queue in aws_sqs_queue.queue : "queue ${name}" => queue.arn },
    { for name, queue in aws_sqs_queue.dead_letters : "dead-letters ${name}" => queue.arn },
    var.timer == null ? {} : { undelivered = aws_sqs_queue.undelivered[0].arn },
  )

  statement {
    sid       = "OnlyByTls"
    effect    = "Deny"
    actions   = ["sqs:*"]
    resources = [each.value]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sqs_queue_policy" "queue" {
  for_each = local.queues

  queue_url = aws_sqs_queue.queue[each.key].id
  policy    = data.aws_iam_policy_document.tls_only["queue ${each.key}"].json
}

resource "aws_sqs_queue_policy" "dead_letters" {
  for_each = local.dead_letters

  queue_url = aws_sqs_queue.dead_letters[each.key].id
  policy    = data.aws_iam_policy_document.tls_only["dead-letters ${each.key}"].json
}
