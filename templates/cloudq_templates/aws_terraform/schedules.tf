# Straight to the queue, and not to a function: retries and dead letters are the same as for every task.
# Named and described as `cloudq schedule` does, which lists and pauses them. A rate counts from the time it is made here.
resource "aws_scheduler_schedule" "schedule" {
  for_each = var.schedules

  name                         = each.key
  description                  = each.value.description
  group_name                   = aws_scheduler_schedule_group.timer[0].name
  schedule_expression          = each.value.expression
  schedule_expression_timezone = each.value.timezone

  flexible_time_window {
    mode = "OFF"
  }

  target {
    # A request of SendMessage where a message has more than its body: a group, or a deduplication id of its own
    arn      = each.value.request == null ? local.queue_arns[each.value.queue] : "arn:${local.partition}:scheduler:::aws-sdk:sqs:sendMessage"
    role_arn = aws_iam_role.role["scheduler"].arn
    # Put together as text: jsonencode would escape the < > of the time that Scheduler puts in
    input = each.value.request == null ? each.value.body : "{\"QueueUrl\":${jsonencode(local.queue_urls[each.value.queue])},${each.value.request}"

    # As long as AWS tries
    retry_policy {
      maximum_retry_attempts       = 185
      maximum_event_age_in_seconds = 86400
    }

    dead_letter_config {
      arn = aws_sqs_queue.undelivered[0].arn
    }
  }

  lifecycle {
    # One that `cloudq schedule pause` has paused stays paused, and one that it has resumed counts from where it did
    ignore_changes = [state, start_date]
  }

  depends_on = [aws_iam_role_policy.role]
}
