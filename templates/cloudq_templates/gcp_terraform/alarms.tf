locals {
  # What each kind of alarm looks at, and what it says
  watched = {
    age = {
      metric   = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
      resource = "pubsub_subscription"
      label    = "subscription_id"
      names    = { for name, queue in var.queues : name => queue.resource }
      aligner  = "ALIGN_MAX"
      duration = "300s"
      says     = "is late"
      advice   = "The oldest message waits for too long: look with `cloudq queue list`, and at what runs the queue."
    }
    dead-letters = {
      metric   = "pubsub.googleapis.com/subscription/num_undelivered_messages"
      resource = "pubsub_subscription"
      label    = "subscription_id"
      names    = { for name, queue in var.dead_letters : name => queue.resource }
      aligner  = "ALIGN_MAX"
      duration = "0s"
      says     = "has letters"
      advice   = "Tasks of the app failed for good: see `cloudq dlq list`."
    }
    throttles = {
      metric   = "run.googleapis.com/request_count"
      resource = "cloud_run_revision"
      label    = "service_name"
      names    = { for name, _ in var.services : name => name }
      aligner  = "ALIGN_DELTA"
      duration = "300s"
      says     = "turns messages away"
      advice   = "There was no instance for them (429): they come again, and each time uses up a delivery. Raise max_concurrency, or concurrency."
    }
    timer-depth = {
      metric   = "cloudtasks.googleapis.com/queue/depth"
      resource = "cloud_tasks_queue"
      label    = "queue_id"
      names    = var.timer == null ? {} : { (var.timer.resource) = var.timer.resource }
      aligner  = "ALIGN_MAX"
      duration = "300s"
      says     = "is deep"
      advice   = "Much waits for its time, or Cloud Tasks cannot send what is due: look at the queue's tasks. If so much may wait, raise the threshold."
    }
  }
}

resource "google_monitoring_alert_policy" "alarm" {
  for_each = var.alarms

  display_name          = "${local.watched[each.value.kind].names[each.value.on]} ${local.watched[each.value.kind].says}"
  combiner              = "OR"
  notification_channels = var.notification_channel == null ? [] : [var.notification_channel]

  conditions {
    display_name = "above ${each.value.above}"

    condition_threshold {
      filter = join(" AND ", concat([
        "resource.type = \"${local.watched[each.value.kind].resource}\"",
        "resource.labels.${local.watched[each.value.kind].label} = \"${local.watched[each.value.kind].names[each.value.on]}\"",
        "metric.type = \"${local.watched[each.value.kind].metric}\"",
      ], each.value.kind == "throttles" ? ["metric.labels.response_code = \"429\""] : []))
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.above
      duration        = local.watched[each.value.kind].duration

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = local.watched[each.value.kind].aligner
        cross_series_reducer = each.value.kind == "throttles" ? "REDUCE_SUM" : null
      }
    }
  }

  documentation {
    content   = local.watched[each.value.kind].advice
    mime_type = "text/markdown"
  }

  depends_on = [google_project_service.api]
}
