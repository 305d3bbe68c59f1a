# `terraform test` (1.9 and later): no project, no credentials; mock_provider makes up what Google would answer. It reads your data.
mock_provider "google" {
  mock_resource "google_service_account" {
    defaults = {
      email  = "role@project.iam.gserviceaccount.com"
      member = "serviceAccount:role@project.iam.gserviceaccount.com"
    }
  }

  mock_resource "google_cloud_run_v2_service" {
    defaults = { uri = "https://service.invalid" }
  }

  mock_data "google_project" {
    defaults = { number = "1234567890" }
  }
}

run "it_is_as_it_should_be" {
  command = plan

  assert {
    condition = alltrue([
      for subscription in concat(values(google_pubsub_subscription.queue), values(google_pubsub_subscription.dead_letters)) : subscription.expiration_policy[0].ttl == ""
    ])
    error_message = "An idle subscription would be deleted after 31 days."
  }

  assert {
    condition     = toset(keys(google_pubsub_topic_iam_member.agent)) == toset(keys(var.dead_letters)) && toset(keys(google_pubsub_subscription_iam_member.agent)) == toset(keys(google_pubsub_subscription.queue))
    error_message = "Pub/Sub may not move dead letters."
  }

  assert {
    condition     = toset(keys(google_pubsub_subscription.dead_letters)) == toset(keys(google_pubsub_topic.dead_letters))
    error_message = "A dead-letter topic without a subscription throws messages away."
  }

  assert {
    condition = alltrue([
      for name, service in google_cloud_run_v2_service.service : service.ingress == "INGRESS_TRAFFIC_INTERNAL_ONLY" && google_cloud_run_v2_service_iam_member.grant["pub/sub roles/run.invoker ${name}"].role == "roles/run.invoker"
    ]) && length(google_cloud_run_v2_service_iam_member.grant) == length(var.services)
    error_message = "Somebody else than Pub/Sub may call a service."
  }

  assert {
    condition = alltrue([
      for name, service in var.services : google_pubsub_subscription.queue[service.queue].push_config[0].oidc_token[0].audience == google_cloud_run_v2_service.service[name].custom_audiences[0]
    ])
    error_message = "A service does not know the audience of the tokens that it is sent."
  }

  assert {
    condition = alltrue([
      for name, queue in google_pubsub_subscription.queue : length(queue.push_config) == (contains(keys(local.pushed), name) ? 1 : 0)
    ])
    error_message = "A queue that is pulled must not be pushed."
  }

  assert {
    condition = alltrue([
      for name, schedule in var.schedules : base64decode(google_cloud_scheduler_job.schedule[name].pubsub_target[0].data) == schedule.body && google_cloud_scheduler_job.schedule[name].description == schedule.description
    ])
    error_message = "cloudq would not know a schedule again."
  }
}

run "what_google_refuses_is_refused_here" {
  command = plan

  variables {
    accounts  = { producer = "x" }
    schedules = { late = { queue = "default", expression = "rate(5 minutes)", timezone = "UTC", description = "", body = "" } }
  }

  expect_failures = [var.accounts, var.schedules]
}
