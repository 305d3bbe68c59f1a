# Results, progress, claims, limits, pauses
resource "google_firestore_database" "store" {
  count = var.store == null ? 0 : 1

  name                              = var.store.database
  location_id                       = var.region
  type                              = "FIRESTORE_NATIVE"
  point_in_time_recovery_enablement = "POINT_IN_TIME_RECOVERY_ENABLED"
  delete_protection_state           = "DELETE_PROTECTION_DISABLED" # of the API; Terraform's is below
  deletion_policy                   = "DELETE"

  dynamic "cmek_config" {
    for_each = var.kms_key == null ? [] : [var.kms_key]

    content {
      kms_key_name = cmek_config.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agent]

  lifecycle {
    prevent_destroy = true # results, and what says which tasks have run; another region or key would replace it, too
  }
}

# What has expired is gone for cloudq at once, and for Firestore within a day
resource "google_firestore_field" "expires" {
  count = length(google_firestore_database.store)

  database   = google_firestore_database.store[0].name
  collection = var.store.collection
  field      = "expires"

  ttl_config {}

  # No index: over times that only grow it would be a hot spot
  index_config {}
}

# cloudq finds documents by their names, which need no index of ours; each other index costs at every write
resource "google_firestore_field" "others" {
  count = length(google_firestore_database.store)

  database   = google_firestore_database.store[0].name
  collection = var.store.collection
  field      = "*"

  index_config {}

  # Firestore changes the fields of a collection one after the other
  depends_on = [google_firestore_field.expires]
}
