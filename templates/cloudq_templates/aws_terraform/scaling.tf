# As many workers as the backlog asks for, each with its backlog_per_worker
locals {
  metrics = {
    for name, container in var.containers : name => {
      waiting = {
        namespace  = "AWS/SQS"
        name       = "ApproximateNumberOfMessagesVisible"
        dimensions = { QueueName = var.queues[container.queue].resource }
      }
      # What is being worked on counts, so that nobody who works is sent home
      running_tasks = {
        namespace  = "AWS/SQS"
        name       = "ApproximateNumberOfMessagesNotVisible"
        dimensions = { QueueName = var.queues[container.queue].resource }
      }
      workers = {
        namespace  = "ECS/ContainerInsights"
        name       = "RunningTaskCount"
        dimensions = { ClusterName = "${var.app}-${var.stage}", ServiceName = name }
      }
    }
  }
}

resource "aws_appautoscaling_target" "worker" {
  for_each = var.containers

  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.cluster[0].name}/${aws_ecs_service.worker[each.key].name}"
  min_capacity       = each.value.min_workers
  max_capacity       = each.value.max_workers
}

resource "aws_appautoscaling_policy" "backlog" {
  for_each = var.containers

  name               = "${each.key}-backlog"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.worker[each.key].service_namespace
  scalable_dimension = aws_appautoscaling_target.worker[each.key].scalable_dimension
  resource_id        = aws_appautoscaling_target.worker[each.key].resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = each.value.backlog_per_worker
    scale_out_cooldown = 60
    # Workers that stop have tasks: there is no hurry
    scale_in_cooldown = 300

    customized_metric_specification {
      dynamic "metrics" {
        for_each = local.metrics[each.key]

        content {
          id          = metrics.key
          return_data = false

          metric_stat {
            stat = "Average"

            metric {
              namespace   = metrics.value.namespace
              metric_name = metrics.value.name

              dynamic "dimensions" {
                for_each = metrics.value.dimensions

                content {
                  name  = dimensions.key
                  value = dimensions.value
                }
              }
            }
          }
        }
      }

      # SQS stops counting a queue that nobody used for hours. The count of workers comes late: it is the last one that is known, since
      # none would make the backlog of each look like that of all
      metrics {
        id          = "backlog"
        expression  = "(FILL(waiting, 0) + FILL(running_tasks, 0)) / IF(FILL(workers, REPEAT) < 1, 1, FILL(workers, REPEAT))"
        return_data = true
      }
    }
  }
}

# From none to one: tracking multiplies what is there, and nothing times anything is nothing
resource "aws_appautoscaling_policy" "first" {
  for_each = { for name, container in var.containers : name => container if container.min_workers == 0 }

  name               = "${each.key}-first"
  policy_type        = "StepScaling"
  service_namespace  = aws_appautoscaling_target.worker[each.key].service_namespace
  scalable_dimension = aws_appautoscaling_target.worker[each.key].scalable_dimension
  resource_id        = aws_appautoscaling_target.worker[each.key].resource_id

  step_scaling_policy_configuration {
    adjustment_type         = "ChangeInCapacity"
    metric_aggregation_type = "Maximum"
    cooldown                = 120

    step_adjustment {
      metric_interval_lower_bound = 0
      scaling_adjustment          = 1
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "first" {
  for_each = aws_appautoscaling_policy.first

  alarm_name          = "${each.key}-has-no-worker"
  alarm_description   = "Messages wait, and no worker runs: it starts the first one"
  evaluation_periods  = 3 # in the last minute or two the count of workers is not there yet
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = [each.value.arn]

  dynamic "metric_query" {
    for_each = { for id, metric in local.metrics[each.key] : id => metric if id != "running_tasks" }

    content {
      id          = metric_query.key
      return_data = false

      metric {
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.name
        dimensions  = metric_query.value.dimensions
        period      = 60
        stat        = "Maximum"
      }
    }
  }

  metric_query {
    id          = "alone"
    label       = "Messages that wait without a worker"
    expression  = "IF(FILL(workers, 0) < 1, FILL(waiting, 0), 0)"
    return_data = true
  }
}
