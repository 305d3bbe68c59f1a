locals {
  actions = var.alarms_topic == null ? [] : [var.alarms_topic]

  # What each kind of alarm looks at. Nothing to count is no reason to wake anybody.
  watched = {
    for key, alarm in var.alarms : key => merge(alarm, {
      age = {
        resource    = try(var.queues[alarm.on].resource, "")
        name        = "is-late"
        description = "The oldest message waits for longer than ${alarm.above} seconds"
        namespace   = "AWS/SQS"
        dimension   = "QueueName"
        metric      = "ApproximateAgeOfOldestMessage"
        statistic   = "Maximum"
        periods     = 5
      }
      dead-letters = {
        resource    = try(var.dead_letters[alarm.on].resource, "")
        name        = "has-letters"
        description = "Tasks of ${var.app} failed for good: see `cloudq dlq list`"
        namespace   = "AWS/SQS"
        dimension   = "QueueName"
        metric      = "ApproximateNumberOfMessagesVisible"
        statistic   = "Maximum"
        periods     = 1
      }
      timer-undelivered = {
        resource    = try(var.timer.undelivered, "")
        name        = "has-letters"
        description = "EventBridge Scheduler could not send what was due: see `cloudq dlq list`"
        namespace   = "AWS/SQS"
        dimension   = "QueueName"
        metric      = "ApproximateNumberOfMessagesVisible"
        statistic   = "Maximum"
        periods     = 1
      }
      throttles = {
        resource    = alarm.on
        name        = "is-throttled"
        description = "Throttled messages use up their deliveries"
        namespace   = "AWS/Lambda"
        dimension   = "FunctionName"
        metric      = "Throttles"
        statistic   = "Sum"
        periods     = 5
      }
    }[alarm.kind])
  }
}

resource "aws_cloudwatch_metric_alarm" "alarm" {
  for_each = local.watched

  alarm_name          = "${each.value.resource}-${each.value.name}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = { (each.value.dimension) = each.value.resource }
  statistic           = each.value.statistic
  period              = 60
  evaluation_periods  = each.value.periods
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.above
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.actions
  ok_actions          = local.actions
}
