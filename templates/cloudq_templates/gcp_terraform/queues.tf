locals {
  topics        = { for name, queue in var.queues : name => queue.existing == null ? google_pubsub_topic.queue[name].id : queue.existing }
  subscriptions = { for name, queue in google_pubsub_subscription.queue : name => queue.id }

  dead_letters = { for name, queue in var.dead_letters : name => queue if queue.existing == null }

  dead_letter_topics        = { for name, queue in var.dead_letters : name => queue.existing == null ? google_pubsub_topic.dead_letters[name].id : queue.existing }
  dead_letter_subscriptions = { for name, queue in var.dead_letters : name => queue.existing == null ? google_pubsub_subscription.dead_letters[name].id : "projects/${var.project}/subscriptions/${queue.resource}" }

  # Who is pushed to, by queue
  pushed = { for name, service in var.services : service.queue => name }
}

resource "google_pubsub_topic" "queue" {
  for_each = { for name, queue in var.queues : name => queue if queue.existing == null }

  name         = each.value.resource
  kms_key_name = var.kms_key

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

resource "google_pubsub_topic" "dead_letters" {
  for_each = local.dead_letters

  name         = each.value.resource
  kms_key_name = var.kms_key

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]
}

# A topic without a subscription throws away what it is sent
resource "google_pubsub_subscription" "dead_letters" {
  for_each = local.dead_letters

  name                       = each.value.resource
  topic                      = google_pubsub_topic.dead_letters[each.key].id
  ack_deadline_seconds       = 60
  message_retention_duration = "${each.value.retention}s"

  # Never: Google would delete a subscription that nobody reads for 31 days
  expiration_policy {
    ttl = ""
  }

  lifecycle {
    prevent_destroy = true # work waits here for a person; replacing the subscription would throw it away
  }
}

resource "google_pubsub_subscription" "queue" {
  for_each = { for name, queue in var.queues : name => queue if queue.subscribed }

  name                       = each.value.resource
  topic                      = local.topics[each.key]
  ack_deadline_seconds       = each.value.ack_deadline
  message_retention_duration = "${each.value.retention}s"
  enable_message_ordering    = each.value.ordered

  expiration_policy {
    ttl = ""
  }

  # Of what is given back, or not answered for; retries of tasks wait by the message that cloudq sends for them
  retry_policy {
    minimum_backoff = "10s"
    maximum_backoff = "600s"
  }

  # The last resort: cloudq gives a message up well before this, and says why in the dead letter. Without it nobody counts deliveries
  dead_letter_policy {
    dead_letter_topic     = local.dead_letter_topics[each.value.dead_letters]
    max_delivery_attempts = each.value.max_deliveries
  }

  dynamic "push_config" {
    for_each = contains(keys(local.pushed), each.key) ? [local.pushed[each.key]] : []

    content {
      # The run.app address: behind internal ingress Pub/Sub reaches no other
      push_endpoint = "${google_cloud_run_v2_service.service[push_config.value].uri}/"

      oidc_token {
        service_account_email = google_service_account.role["pub/sub"].email
        audience              = local.audiences[push_config.value]
      }
    }
  }

  # Who is pushed to before the grants are there answers 403 until they are
  depends_on = [google_cloud_run_v2_service_iam_member.grant]
}

# Dead letters are moved by Pub/Sub's own account. Without these two the policy above is taken, and does nothing.
resource "google_pubsub_topic_iam_member" "agent" {
  for_each = local.dead_letter_topics

  topic  = each.value
  role   = "roles/pubsub.publisher"
  member = local.agents.pubsub
}

resource "google_pubsub_subscription_iam_member" "agent" {
  for_each = local.subscriptions

  subscription = each.value
  role         = "roles/pubsub.subscriber"
  member       = local.agents.pubsub
}
