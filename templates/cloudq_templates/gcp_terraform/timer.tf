# Where long delays and pauses wait. A name that was deleted is blocked for days: rename the queue to make it anew.
resource "google_cloud_tasks_queue" "timer" {
  count = var.timer == null ? 0 : 1

  name     = var.timer.resource
  location = var.region

  # Cloud Tasks has no dead letters: without end, until it gives up itself after 31 days; the alarm on its depth tells
  retry_config {
    max_attempts       = -1
    max_retry_duration = "0s"
    min_backoff        = "1s"
    max_backoff        = "300s"
    max_doublings      = 8
  }

  rate_limits {
    max_dispatches_per_second = 500
    max_concurrent_dispatches = 1000
  }

  depends_on = [google_project_service.api]
}

# The schedules of the code. Each publishes a tick; task and arguments come from the code.
resource "google_cloud_scheduler_job" "schedule" {
  for_each = var.schedules

  name        = each.key
  region      = var.region
  description = each.value.description
  schedule    = each.value.expression
  time_zone   = each.value.timezone

  pubsub_target {
    topic_name = local.topics[each.value.queue]
    data       = base64encode(each.value.body)
  }

  retry_config {
    retry_count = 5
  }

  depends_on = [google_project_service.api]
}
