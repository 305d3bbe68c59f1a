# One account for each that has a part, and for each only what its drivers do, on single things
resource "google_service_account" "role" {
  for_each = var.accounts

  account_id   = each.value
  display_name = substr("cloudq ${var.app} ${var.stage}: ${each.key}", 0, 100)

  depends_on = [google_project_service.api]
}

locals {
  grants = {
    for kind, several in var.grants : kind => { for grant in several : "${grant.account} ${grant.role} ${grant.on}" => grant }
  }
  members = { for name, account in google_service_account.role : name => account.member }
}

resource "google_pubsub_topic_iam_member" "grant" {
  for_each = local.grants.topics

  topic  = local.topics[each.value.on]
  role   = each.value.role
  member = local.members[each.value.account]
}

resource "google_pubsub_subscription_iam_member" "grant" {
  for_each = local.grants.subscriptions

  subscription = local.subscriptions[each.value.on]
  role         = each.value.role
  member       = local.members[each.value.account]
}

resource "google_pubsub_topic_iam_member" "dead_letters" {
  for_each = local.grants.dead_letter_topics

  topic  = local.dead_letter_topics[each.value.on]
  role   = each.value.role
  member = local.members[each.value.account]
}

resource "google_pubsub_subscription_iam_member" "dead_letters" {
  for_each = local.grants.dead_letter_subscriptions

  subscription = local.dead_letter_subscriptions[each.value.on]
  role         = each.value.role
  member       = local.members[each.value.account]
}

# A database has no policy of its own: the condition is what keeps others out of reach
resource "google_project_iam_member" "store" {
  for_each = local.grants.store

  project = var.project
  role    = each.value.role
  member  = local.members[each.value.account]

  condition {
    title      = "only ${google_firestore_database.store[0].name}"
    expression = "resource.name == \"projects/${var.project}/databases/${google_firestore_database.store[0].name}\""
  }
}

resource "google_storage_bucket_iam_member" "grant" {
  for_each = local.grants.bodies

  bucket = google_storage_bucket.bodies[0].name
  role   = each.value.role
  member = local.members[each.value.account]
}

resource "google_cloud_tasks_queue_iam_member" "grant" {
  for_each = local.grants.timer

  name     = google_cloud_tasks_queue.timer[0].name
  location = var.region
  role     = each.value.role
  member   = local.members[each.value.account]
}

# To set what will be sent as another account takes the right to act as it
resource "google_service_account_iam_member" "grant" {
  for_each = local.grants.accounts

  service_account_id = google_service_account.role[each.value.on].name
  role               = each.value.role
  member             = local.members[each.value.account]
}

# Only Pub/Sub calls a service
resource "google_cloud_run_v2_service_iam_member" "grant" {
  for_each = local.grants.services

  name     = google_cloud_run_v2_service.service[each.value.on].name
  location = var.region
  role     = each.value.role
  member   = local.members[each.value.account]
}

# Pub/Sub signs as the account that it pushes as; in projects since April 2021 it may already
resource "google_service_account_iam_member" "push" {
  for_each = length(var.services) == 0 ? {} : { "pub/sub" = local.agents.pubsub }

  service_account_id = google_service_account.role[each.key].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.value

  # In a new project Pub/Sub's own account is there once Pub/Sub is used
  depends_on = [google_pubsub_topic.queue, google_pubsub_topic.dead_letters]
}

# Pods act as their queue's account. Google takes this only once there is a cluster with workload identity federation.
resource "google_service_account_iam_member" "pods" {
  for_each = var.pods

  service_account_id = google_service_account.role[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${coalesce(var.workload_pool, "${var.project}.svc.id.goog")}[${each.value}]"
}

resource "google_secret_manager_secret_iam_member" "grant" {
  for_each = local.grants.secrets

  secret_id = each.value.on
  role      = each.value.role
  member    = local.members[each.value.account]
}

# Jobs of Cloud Scheduler have no policies: who syncs this app's schedules could change others' of the project
resource "google_project_iam_member" "grant" {
  for_each = local.grants.project

  project = var.project
  role    = each.value.role
  member  = local.members[each.value.account]
}

# ---- the key: what is encrypted with it is read and written by Google's accounts, not by ours

data "google_storage_project_service_account" "here" {
  count = var.kms_key == null || var.bodies == null ? 0 : 1

  depends_on = [google_project_service.api]
}

resource "google_kms_crypto_key_iam_member" "agent" {
  for_each = var.kms_key == null ? {} : merge(
    { pubsub = local.agents.pubsub },
    local.runs ? { run = local.agents.run } : {},
    # It is there once somebody asked for it: gcloud beta services identity create --service=firestore.googleapis.com
    var.store == null ? {} : { firestore = local.agents.firestore },
    var.bodies == null ? {} : { storage = data.google_storage_project_service_account.here[0].member },
  )

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value

  depends_on = [google_project_service.api]
}
