locals {
  alarm_actions = var.alarms_topic == null ? [] : [var.alarms_topic]

  kept = merge(
    { for queue in values(local.dead_letters) : queue.resource => "Tasks of the app failed for good: see `cloudq dlq list`" },
    var.timer == null ? {} : { (var.timer.undelivered) = "EventBridge Scheduler could not send what was due" },
  )
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  for_each = local.kept

  alarm_name          = "${each.key}-has-letters"
  alarm_description   = each.value
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = each.key }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "age" {
  for_each = { for name, queue in local.queues : name => queue if queue.alarm_age != null }

  alarm_name          = "${each.value.resource}-is-late"
  alarm_description   = "The oldest message waits for longer than ${each.value.alarm_age} seconds"
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = aws_sqs_queue.queue[each.key].name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.alarm_age
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "throttles" {
  for_each = var.functions

  alarm_name          = "${each.key}-is-throttled"
  alarm_description   = "Throttled messages use up their deliveries"
  namespace           = "AWS/Lambda"
  metric_name         = "Throttles"
  dimensions          = { FunctionName = aws_lambda_function.function[each.key].function_name }
  statistic           = "Sum"
  period              = 60
  evaluation_periods  = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.alarm_actions
  ok_actions          = local.alarm_actions
}
