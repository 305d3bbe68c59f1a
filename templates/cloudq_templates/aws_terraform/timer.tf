# Where long delays wait, and where the schedules of the code are
resource "aws_scheduler_schedule_group" "timer" {
  count = var.timer == null ? 0 : 1

  name = var.timer.resource
}

# What EventBridge Scheduler could not send: a standard queue, as it takes no other. `cloudq dlq list ARN` shows it.
resource "aws_sqs_queue" "undelivered" {
  count = var.timer == null ? 0 : 1

  name                      = var.timer.undelivered
  message_retention_seconds = 1209600

  sqs_managed_sse_enabled = var.kms_key == null ? true : null
  kms_master_key_id       = var.kms_key

  lifecycle {
    prevent_destroy = true # work that waits for a person
  }
}

resource "aws_sqs_queue_policy" "undelivered" {
  count = length(aws_sqs_queue.undelivered)

  queue_url = aws_sqs_queue.undelivered[0].id
  policy    = data.aws_iam_policy_document.tls_only["undelivered"].json
}
